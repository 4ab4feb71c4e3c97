"""Secure sums inside a compiled round: quantise, mask, add modulo 2^32, unmask, dequantise.

Simulates what the protocol of `client` and `server` computes, bit for bit, in pure JAX: between the
clients and the aggregator lies a codec of uint32 words whose sum alone has a meaning. Everything
wraps modulo 2^32 on any number of devices, and integers add up the same in any order.

One process simulates all parties, so nothing is hidden from whoever runs it.
"""
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.federated.types import Aggregator, Stream

MAX_BITS = 22  # float32 holds no finer levels
_NOBODY = 2**31 - 1  # a client id that sorts behind all others
_ROUNDING = 2**30  # the stream of stochastic rounding, which no client id reaches


def check_capacity(num_clients, bits):
  """Raises ConfigError unless the sum of `num_clients` numbers of `bits` bits stays below 2^32."""
  config_lib.require(1 <= bits <= MAX_BITS, 'bits', f'1 to {MAX_BITS}', bits)
  config_lib.require(num_clients * (2**bits - 1) < 2**32, 'bits',
                     f'num_clients * (2^bits - 1) < 2^32 for {num_clients} clients', bits)


def quantize(x, clip, bits, key=None):
  """rint((clip(x, -c, c) + c) * (2^B - 1) / (2 c)) as uint32, in [0, 2^B - 1].

  The levels are symmetric about 0, which is none of them: rounded to the nearest, 0 always becomes
  the level half a step above it. With a key rounding is stochastic, and unbiased.

  A NumPy array, without a key, is computed in float64: these are the integers of the formula. JAX
  arrays, as in a compiled round, are computed in their own dtype: in float32 a number whose exact
  position is within 2^(B - 22) of half-way between two levels may get the other one.

  Args:
    x: floats of any shape.
    clip: c > 0; what lies outside [-c, c] is clipped.
    bits: B.
    key: PRNG key of stochastic rounding, or None for the nearest level.
  """
  levels = 2**bits - 1
  if isinstance(x, np.ndarray) and key is None:
    scaled = (np.clip(x.astype(np.float64), -clip, clip) + clip) * levels / (2 * clip)
    return jnp.asarray(np.minimum(np.rint(scaled), levels).astype(np.uint32))
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  scaled = (jnp.clip(x, -clip, clip) + clip) * levels / (2 * clip)
  if key is None:
    scaled = jnp.rint(scaled)
  else:
    scaled = jnp.floor(scaled + jax.random.uniform(key, x.shape, x.dtype))
  return jnp.minimum(scaled, levels).astype(jnp.uint32)


def dequantize(total, count, clip, bits):
  """The sum of the numbers whose quantised sum is `total`: total * 2 c / (2^B - 1) - c * count.

  The offset is taken off in integers, so that large sums of small numbers keep their digits.

  Args:
    total: uint32, any shape.
    count: how many numbers were added; count * (2^B - 1) < 2^32.
    clip: c.
    bits: B.
  """
  levels = 2**bits - 1
  span = jnp.asarray(count).astype(jnp.uint32) * jnp.uint32(levels)
  half = span >> 1
  above = total >= half
  distance = jnp.where(above, total - half, half - total).astype(jnp.result_type(float))
  centred = jnp.where(above, distance, -distance) - 0.5 * (span & 1)
  return centred * (2 * clip / levels)


def error_bound(count, clip, bits, rounding='nearest'):
  """Largest error of a dequantised sum of `count` numbers in [-clip, clip].

  Half a step a number, (a whole one if rounding is stochastic), that is count / (2 * scale) with
  scale = (2^B - 1) / (2 c), and what float32 arithmetic adds to it: at most 2^(B - 22) steps.
  """
  step = 2 * clip / (2**bits - 1)
  return count * step * ((0.5 if rounding == 'nearest' else 1.0) + 2.0**(bits - 22))


def seed_key(seed):
  """The PRNG key of a 32-byte seed given as uint32 [8]."""
  key = jax.random.wrap_key_data(jnp.asarray(seed[:2], jnp.uint32))
  return jax.lax.fori_loop(2, 8, lambda i, k: jax.random.fold_in(k, seed[i]), key)


def draw_mask(key, words):
  """Uniform uint32, shaped like the pytree `words`: one stream, leaf after leaf."""
  leaves, treedef = jax.tree.flatten(words)
  stream, drawn, start = jax.random.bits(key, (sum(x.size for x in leaves),), jnp.uint32), [], 0
  for x in leaves:
    drawn.append(stream[start:start + x.size].reshape(x.shape))
    start += x.size
  return treedef.unflatten(drawn)


def mask(words, keys, signs, draw=draw_mask):
  """words + sum_i signs[i] * draw(keys[i]) modulo 2^32.

  Args:
    words: pytree of uint32.
    keys: [m] what the masks are drawn from.
    signs: int [m] of 1, -1 and 0; a mask of sign 0 is not drawn (under vmap: drawn for nothing).
    draw: (key, words) -> pytree of uint32 shaped like `words`.
  """
  def step(words, key_and_sign):
    key, sign = key_and_sign

    def add(words):
      return jax.tree.map(lambda x, m: jnp.where(sign > 0, x + m, x - m), words, draw(key, words))

    return jax.lax.cond(sign != 0, add, lambda words: words, words), None

  return jax.lax.scan(step, words, (keys, signs))[0]


class Encoded(NamedTuple):
  """What a client sends.

  Attributes:
    sender: int32, its id; -1 for a padding client.
    words: (weight, message), masked uint32.
  """
  sender: jax.Array
  words: Any


class Codec(NamedTuple):
  """A codec between clients and aggregator under which only sums have a meaning.

  Attributes:
    encode: (messages [c, ...], weights [c], ids [c], everyone [n], key) -> Encoded [c, ...]. `ids`
      are those of the clients at hand, `everyone` those of all clients of the round on all devices,
      -1 for padding.
    aggregator: the weighted mean of what the present clients encoded. Its `finish` wants the key of
      `encode`; weights say who is present, and clients of weight 0 have dropped out.
    unmask: (accumulator of the aggregator's stream, key) -> (sum of the weights, sums of the
      quantised messages, number of clients present), uint32: what the server gets to know.
    max_weight: weights beyond it are clipped.
  """
  encode: Callable[..., Encoded]
  aggregator: Aggregator
  unmask: Callable[..., Any]
  max_weight: int


def _pairs(key, client, invited, half):
  """(keys [2 half], signs [2 half], others [2 half]): the masks that a client shares with others.

  Everyone invited sits on a ring in the order of ids; a client shares masks with the `half` nearest
  on either side. The lower id adds, the higher one subtracts.
  """
  count = (invited != _NOBODY).sum()
  rank = jnp.searchsorted(invited, client)
  distance = jnp.arange(2 * half) // 2 + 1
  right = jnp.arange(2 * half) % 2 == 0
  others = invited[(rank + jnp.where(right, distance, -distance)) % jnp.maximum(count, 1)]
  exists = (2 * distance < count) | ((2 * distance == count) & right)  # opposite: one, not two
  signs = jnp.where(exists, jnp.where(client < others, 1, -1), 0)
  pair = lambda low, high: jax.random.fold_in(jax.random.fold_in(key, low), high)
  keys = jax.vmap(pair)(jnp.minimum(client, others), jnp.maximum(client, others))
  return keys, signs, others


def _own(key, client):
  """The key of a client's self mask."""
  return jax.random.fold_in(jax.random.fold_in(key, client), client)


def _with_own(own, keys):
  return jnp.concatenate([own[None], keys])


def secure_mean(*, clip: float | Mapping, bits: int = 16, max_weight: int = 1,
                neighbors: int | None = None,
                rounding: Literal['nearest', 'stochastic'] = 'nearest', num_clients, cohort_size):
  """The weighted mean through secure aggregation, simulated (Bonawitz et al. 2017).

  A client sends its weight w, a whole number of at most `max_weight`, and w * message, quantised
  within +-max_weight * clip. The error of the mean is at most `error_bound(participants, clip *
  max_weight, bits, rounding)` / (sum of the weights), where no message exceeds `clip`.

  Args:
    clip: public bound of a message's entries; a mapping gives parts of a message bounds of their
      own.
    bits: a quantised number's.
    max_weight: public bound of a client's weight.
    neighbors: even number of clients that a client shares masks with; None for all, 0 to quantise
      and not to mask, which is faster. The sums are the same bit for bit.
    rounding: 'nearest' or 'stochastic', see `quantize`.
    num_clients: ids are below it.
    cohort_size: clients of a round at most.

  Returns:
    Codec.

  Raises:
    ConfigError: an impossible value, or sums that could reach 2^32.
  """
  clip = _plain(clip)
  for bound in jax.tree.leaves(clip):
    config_lib.require(bound > 0, 'clip', 'more than 0', bound)
  config_lib.require(max_weight >= 1, 'max_weight', 'at least 1', max_weight)
  config_lib.require(neighbors is None or (neighbors >= 0 and neighbors % 2 == 0), 'neighbors',
                     'None or an even number of at least 0', neighbors)
  check_capacity(cohort_size, bits)
  config_lib.require(cohort_size * max_weight < 2**32, 'max_weight',
                     f'less than 2^32 / {cohort_size} clients', max_weight)
  half = cohort_size // 2 if neighbors is None else min(neighbors, cohort_size) // 2
  masked = neighbors != 0

  def bounds(message):
    try:
      return jax.tree.map(lambda c, part: jax.tree.map(lambda _: c, part), clip, message)
    except ValueError as error:
      raise config_lib.ConfigError(
          f'clip: expected a number, or numbers by the parts of a message: {error}') from error

  def encode_one(message, weight, client, invited, key):
    weight = jnp.clip(jnp.rint(weight), 0, max_weight)
    leaves, treedef = jax.tree.flatten(message)
    keys = [None] * len(leaves)
    if rounding == 'stochastic':
      keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _ROUNDING), client),
                              len(leaves))
    quantized = [quantize(jnp.clip(x, -c, c) * weight.astype(x.dtype), c * max_weight, bits, k)
                 for x, c, k in zip(leaves, jax.tree.leaves(bounds(message)), keys)]
    words = weight.astype(jnp.uint32), treedef.unflatten(quantized)
    if masked:
      pair_keys, signs, _ = _pairs(key, client, invited, half)
      words = mask(words, _with_own(_own(key, client), pair_keys), jnp.pad(signs, (1, 0),
                                                                           constant_values=1))
    return Encoded(client, words)

  def encode(messages, weights, ids, everyone, key):
    invited = jnp.sort(jnp.where(everyone < 0, _NOBODY, everyone))
    one = lambda message, weight, client: encode_one(message, weight, client, invited, key)
    return jax.vmap(one)(messages, weights, ids)

  def zero(message):
    words = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.uint32), message.words)
    # Who was invited (1) and who sent something (2); the last row is that of padding clients.
    return words, jnp.zeros(num_clients + 1, jnp.int32)

  def add(accumulator, messages, weights):
    total, status = accumulator
    present = weights > 0
    take = lambda x: jnp.where(present.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0)
    total = jax.tree.map(lambda t, x: t + take(x).sum(0, dtype=jnp.uint32), total, messages.words)
    return total, status.at[messages.sender].max(jnp.where(present, 2, 1))

  def remaining_masks(status, words, key):
    """What the masks of the present clients add up to; each device draws its share of them."""
    invited = jnp.nonzero(status > 0, size=cohort_size, fill_value=_NOBODY)[0].astype(jnp.int32)
    here, devices = 0, 1
    if parallel.on_axis(parallel.CLIENTS):
      here = parallel.axis_index(parallel.CLIENTS)
      devices = jax.lax.axis_size(parallel.CLIENTS)
    state_of = lambda clients: status.at[clients].get(mode='fill', fill_value=0)

    def of_slot(i, total):
      client = invited.at[i * devices + here].get(mode='fill', fill_value=_NOBODY)
      keys, signs, others = _pairs(key, client, invited, half)
      signs = jnp.where(state_of(others) == 1, signs, 0)  # with present ones masks cancel
      signs = jnp.pad(signs, (1, 0), constant_values=1) * (state_of(client) == 2)
      return mask(total, _with_own(_own(key, client), keys), signs)

    zeros = jax.tree.map(jnp.zeros_like, words)
    slots = -(-cohort_size // devices)
    return parallel.psum(jax.lax.fori_loop(0, slots, of_slot, zeros), parallel.CLIENTS)

  def unmask(accumulator, key):
    words, status = accumulator
    status = status[:num_clients]
    if masked:
      words = jax.tree.map(jnp.subtract, words, remaining_masks(status, words, key))
    return *words, (status == 2).sum(dtype=jnp.uint32)

  def finish(accumulator, key):
    weight, message, count = unmask(accumulator, key)
    mean = lambda x, c: dequantize(x, count, c * max_weight, bits) / jnp.maximum(weight, 1)
    return jax.tree.map(mean, message, bounds(message))

  stream = Stream(zero, add, parallel.psum, finish)

  def apply(state, messages, weights, key):
    one = jax.tree.map(lambda x: x[0], messages)
    return finish(add(zero(one), messages, weights), key), state, {}

  return Codec(encode, Aggregator(lambda params: (), apply, stream), unmask, max_weight)


def _plain(clip):
  """Mappings as dicts, which are pytrees."""
  return {key: _plain(value) for key, value in clip.items()} if hasattr(clip, 'items') else clip


def make_codec(config, aggregator, algorithm, num_clients, cohort_size):
  """Makes the Codec that `config` (the keyword arguments of `secure_mean`) asks for.

  Args:
    config: mapping 'federated.secure'.
    aggregator: mapping 'federated.aggregator'.
    algorithm: Algorithm.
    num_clients: clients of the federation.
    cohort_size: clients of a round.

  Raises:
    ConfigError: a bad key or value, or an aggregator that needs more than a sum.
  """
  config_lib.require(
      aggregator.get('name') == 'mean', 'federated.aggregator.name',
      "'mean' under federated.secure, which shows the server nothing but a sum",
      aggregator.get('name'))
  config_lib.require(
      algorithm.aggregator is None, 'federated.secure',
      'an algorithm whose messages are averaged (this one aggregates a part of them by another '
      'rule)', dict(config))
  return config_lib.call(secure_mean, config, 'federated.secure', drop=(), num_clients=num_clients,
                         cohort_size=cohort_size)


def check_weights(codec, weighting, sizes):
  """Raises ConfigError if a client has more examples than its weight can say.

  Args:
    codec: Codec, or None, which has no bound.
    weighting: 'examples' or 'uniform'.
    sizes: examples of each client.
  """
  if codec is None:
    return
  largest = int(sizes.max()) if weighting == 'examples' else 1
  config_lib.require(codec.max_weight >= largest, 'federated.secure.max_weight',
                     f"at least the largest client's number of examples, {largest}",
                     codec.max_weight)


def union_words(key, members):
  """Hides a set in a vector whose secure sum over clients is positive exactly on the union.

  A member becomes a uniform number in [1, 2^32 - 1]. The sum of several is uniform modulo 2^32, so
  it does not tell how many clients hold an item; it is 0 by chance, and an item of two or more
  clients lost, with probability 2^-32.

  Args:
    key: PRNG key, one a client.
    members: bool [V], the client's items.

  Returns:
    uint32 [V].
  """
  drawn = jnp.maximum(jax.random.bits(key, members.shape, jnp.uint32), 1)
  return jnp.where(members, drawn, 0)
