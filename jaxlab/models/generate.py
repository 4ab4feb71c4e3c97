"""Sampling from a decoder language model: one compiled loop over a key-value cache."""
import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models.decoder_lm import Cache, DecoderLM, init_cache
from jaxlab.models.pretrained import unstack_layers

_NEVER = -np.inf  # logit of a token that is not sampled; one always is, so that no NaN comes of it


class Generation(NamedTuple):
  """What was sampled.

  Attributes:
    tokens: int32 [B, N], `pad_id` after the first stop token.
    mask: bool [B, N], True up to and including the first stop token.
    logprobs: float32 [B, N], of each token under the model itself.
    sampling_logprobs: float32 [B, N], of each token under the tempered and filtered distribution
      that it was drawn from; 0 for greedy decoding.
  """
  tokens: jax.Array
  mask: jax.Array
  logprobs: jax.Array
  sampling_logprobs: jax.Array


class _Loop(NamedTuple):
  """The carry of the decoding loop; `token` [B] is the last one and `alive` [B] not yet stopped."""
  step: jax.Array
  cache: Cache
  token: jax.Array
  alive: jax.Array
  out: Generation


def generate(model, params, prompt, prompt_mask, key, *, max_new, temperature=1.0, top_k=0,
             top_p=1.0, eos_ids=(), pad_id=0, loop: Literal['while', 'scan'] = 'while'):
  """Continues prompts.

  Args:
    model: DecoderLM.
    params: its parameters, in either layout of the layers.
    prompt: int [B, P], padded at the left.
    prompt_mask: [B, P], 0 on padding.
    key: PRNG key, of which each row folds in its number; or keys [B], one a row.
    max_new: N, tokens to sample, at least 1.
    temperature: 0 takes the likeliest token.
    top_k: sample among the k likeliest tokens (and those as likely as the k-th); 0 for all.
    top_p: sample among the likeliest tokens that together reach this probability; 1 for all.
    eos_ids: token ids that end a row.
    pad_id: what follows them.
    loop: 'while' ends when all rows have; 'scan' always takes N steps, for vmapped models.

  Returns:
    Generation.

  Raises:
    ConfigError: a setting out of its range.
  """
  check_sampling(max_new, temperature, top_k, top_p)
  config_lib.require(loop in ('while', 'scan'), 'loop', "'while' or 'scan'", loop)
  batch, length = prompt.shape
  keys = key if key.shape else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
  if model.config.scan_layers:  # a stack is sliced, that is copied, at every token
    model = unscanned(model)
    params = unstack_layers(params)
  apply = functools.partial(model.apply, {'params': params})
  sample = functools.partial(_sample, keys=keys, temperature=temperature, top_k=top_k, top_p=top_p)
  stops = jnp.array(eos_ids, jnp.int32)
  ends = lambda token: (token[:, None] == stops).any(-1)
  prompt_mask = prompt_mask.astype(bool)
  positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
  x, cache = apply(prompt, prompt_mask, positions, init_cache(model.config, batch, length),
                   method='hidden')
  widen = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, max_new - 1), (0, 0)))
  cache = Cache(jax.tree.map(widen, cache.layers), cache.slot)
  mask = jnp.pad(prompt_mask, ((0, 0), (0, max_new - 1)), constant_values=True)
  next_position = prompt_mask.sum(1)

  def write(out, step, token, alive, logprob, sampling):
    values = Generation(jnp.where(alive, token, pad_id), alive, logprob * alive, sampling * alive)
    return jax.tree.map(lambda buffer, value: buffer.at[:, step].set(value), out, values)

  def body(carry):
    x, cache = apply(carry.token[:, None], mask, (next_position + carry.step - 1)[:, None],
                     carry.cache, method='hidden')
    token, *scores = sample(apply(x[:, -1], method='logits'), step=carry.step)
    out = write(carry.out, carry.step, token, carry.alive, *scores)
    return _Loop(carry.step + 1, cache, token, carry.alive & ~ends(token), out)

  token, *scores = sample(apply(x[:, -1], method='logits'), step=0)
  empty = Generation(*(jnp.zeros((batch, max_new), kind)
                       for kind in (jnp.int32, bool, jnp.float32, jnp.float32)))
  out = write(empty._replace(tokens=empty.tokens + pad_id), 0, token, jnp.ones(batch, bool),
              *scores)
  start = _Loop(jnp.ones((), jnp.int32), cache, token, ~ends(token), out)
  if loop == 'while':
    going = lambda carry: (carry.step < max_new) & carry.alive.any()
    return jax.lax.while_loop(going, body, start).out
  return jax.lax.scan(lambda carry, _: (body(carry), None), start, length=max_new - 1)[0].out


def check_sampling(max_new=1, temperature=1.0, top_k=0, top_p=1.0):
  """Raises ConfigError for a sampling setting out of its range."""
  config_lib.require(max_new >= 1, 'max_new', 'at least 1', max_new)
  config_lib.require(temperature >= 0, 'temperature', 'at least 0', temperature)
  config_lib.require(top_k >= 0, 'top_k', 'at least 0', top_k)
  config_lib.require(0 < top_p <= 1, 'top_p', 'in (0, 1]', top_p)


def unscanned(model):
  """The same model with a layer at a time, for `unstack_layers` of its parameters."""
  return DecoderLM(dataclasses.replace(model.config, scan_layers=False))


def _sample(logits, keys, step, temperature, top_k, top_p):
  """(token int32 [B], its log-probability under the model, and under what it was drawn from)."""
  at = lambda values, token: jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]
  normaliser = jax.nn.logsumexp(logits, axis=-1)
  if temperature == 0:
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, at(logits, token) - normaliser, jnp.zeros_like(normaliser)
  filtered = filter_logits(logits / temperature, top_k=top_k, top_p=top_p)
  draws = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
  token = jax.vmap(jax.random.categorical)(draws, filtered).astype(jnp.int32)
  sampling = at(filtered, token) - jax.nn.logsumexp(filtered, axis=-1)
  return token, at(logits, token) - normaliser, sampling


def filter_logits(logits, *, top_k=0, top_p=1.0):
  """Logits float32 [..., V] with -inf where a token is not to be sampled.

  Args:
    logits: [..., V], already divided by the temperature.
    top_k: keep the k largest, and what equals the k-th; 0 keeps all.
    top_p: of what is left keep a token if the mass of all likelier ones, and of those of lower ids
      that are as likely, is below this; 1 keeps all.
  """
  if 0 < top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits >= least, logits, _NEVER)
  if top_p < 1:
    probabilities = jax.nn.softmax(logits, axis=-1)
    logits = jnp.where(_in_nucleus(probabilities, top_p), logits, _NEVER)
  return logits


def _in_nucleus(probabilities, top_p):
  """Which tokens [..., V] are kept: above the edge all, at it the first, up to a mass of top_p."""
  edge = _nucleus_edge(probabilities, top_p)
  above, at = probabilities > edge, probabilities == edge
  mass = jnp.sum(jnp.where(above, probabilities, 0), axis=-1, keepdims=True)
  ids = jnp.arange(probabilities.shape[-1])

  def halve(_, bounds):
    low, high = bounds  # the last id is in [low, high]
    middle = (low + high + 1) // 2
    before = mass + edge * jnp.sum(at & (ids < middle), axis=-1, keepdims=True)
    return jnp.where(before < top_p, middle, low), jnp.where(before < top_p, high, middle - 1)

  bounds = jnp.zeros(edge.shape, jnp.int32), jnp.full(edge.shape, len(ids) - 1, jnp.int32)
  last, _ = jax.lax.fori_loop(0, len(ids).bit_length(), halve, bounds)
  return above | (at & (ids <= last))


def _nucleus_edge(probabilities, top_p):
  """The least probability [..., 1] that has a mass below top_p of likelier tokens.

  Found by bisection on the bits, which order positive floats as integers do: 31 sums instead of a
  sort, which is several times slower.
  """
  low = jnp.zeros((*probabilities.shape[:-1], 1), jnp.int32)  # the edge is in [low, high]
  high = jnp.full_like(low, np.float32(1).view(np.int32))

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    above = probabilities > jax.lax.bitcast_convert_type(middle, jnp.float32)
    mass = jnp.sum(jnp.where(above, probabilities, 0), axis=-1, keepdims=True)
    return jnp.where(mass < top_p, low, middle + 1), jnp.where(mass < top_p, middle, high)

  return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, halve, (low, high))[1], jnp.float32)


_program = jax.jit(generate, static_argnums=0, static_argnames=(
    'max_new', 'temperature', 'top_k', 'top_p', 'eos_ids', 'pad_id', 'loop'))


def generate_all(model, params, prompts, key, *, max_new, batch_size=8, buckets=(), eos_ids=(),
                 pad_id=0, **settings):
  """Continues prompts of unlike lengths: batches of equal padded length, few compilations.

  Args:
    model: DecoderLM.
    params: its parameters.
    prompts: list of token id lists, none empty.
    key: PRNG key; prompt i draws with fold_in(key, i), whatever batch it falls into.
    max_new: tokens to sample at most.
    batch_size: rows of a batch; the last of a bucket is filled up.
    buckets: lengths that prompts are padded to at the left; powers of two from 16 by default.
    eos_ids: token ids that end a row.
    pad_id: of the padding.
    **settings: temperature, top_k, top_p, as in `generate`.

  Returns:
    List of int32 arrays, the tokens of each prompt up to and including the stop token.

  Raises:
    ConfigError: a setting out of its range, an empty prompt or one longer than every bucket.
  """
  lengths = [len(prompt) for prompt in prompts]
  config_lib.require(all(lengths), 'prompts', 'at least one token each', min(lengths, default=0))
  largest = max(lengths, default=1)
  buckets = sorted(buckets) or [16 * 2**i for i in range(max(largest, 16).bit_length())]
  config_lib.require(largest <= buckets[-1], 'buckets', f'a length of at least {largest}', buckets)
  results = [None] * len(prompts)
  groups = {}
  for number, length in enumerate(lengths):
    groups.setdefault(next(b for b in buckets if b >= length), []).append(number)
  for width, numbers in groups.items():
    for start in range(0, len(numbers), batch_size):
      rows = numbers[start:start + batch_size]
      filled = rows + rows[-1:] * (batch_size - len(rows))
      tokens, mask = pad_left([prompts[i] for i in filled], width, pad_id)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.array(filled))
      out = _program(model, params, tokens, mask, keys, max_new=max_new, eos_ids=tuple(eos_ids),
                     pad_id=pad_id, **settings)
      for i, row, kept in zip(rows, np.asarray(out.tokens), np.asarray(out.mask)):
        results[i] = row[kept]
  return results


def pad_left(rows, width, pad_id=0):
  """(tokens int32 [B, width], mask bool [B, width]) of lists of at most `width` token ids.

  >>> pad_left([[7, 8]], 3)[0].tolist()
  [[0, 7, 8]]
  """
  tokens = np.full((len(rows), width), pad_id, np.int32)
  mask = np.zeros((len(rows), width), bool)
  for i, row in enumerate(rows):
    tokens[i, width - len(row):], mask[i, width - len(row):] = row, True
  return tokens, mask
