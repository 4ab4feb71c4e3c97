"""Sentence embeddings of an encoder: batches of like lengths, each length compiled once."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import parallel
from jaxlab.data import text
from jaxlab.models import bert

# Lengths beside those of `text.BUCKETS`: sorted rows hardly differ, so that rounding up is most of
# the padding.
FINE = tuple(range(8, 129, 8))
# On two cores 32 rows of 128 tokens took 1.6 times as long as eight parts of them: their attention
# weights do not fit a core's cache. Accelerators want them whole.
CPU_TOKENS = 512


@functools.partial(jax.jit, static_argnames=('model', 'how', 'normalise'))
def embed(model, params, ids, mask, *, how='mean', normalise=True):
  """Vectors float32 [B, D] of token ids [B, T]; see `bert.pool`.

  Args:
    model: Bert.
    params: its parameters.
    ids: int [B, T].
    mask: [B, T].
    how: pooler.
    normalise: whether the vectors have length 1.
  """
  vectors = bert.pool(model.apply({'params': params}, ids, mask), mask, how).astype(jnp.float32)
  if normalise:
    vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
  return vectors


def embed_texts(model, params, tokenizer, texts, *, max_length=256, batch_size=32, how='mean',
                normalise=True):
  """Vectors float32 [N, D] of texts, in their order.

  Args:
    model: Bert.
    params: its parameters.
    tokenizer: as by `text.load_tokenizer`.
    texts: N strings.
    max_length: tokens after which a text is cut off.
    batch_size: most rows of a device's batch, fewer of long ones on a CPU; rows are sorted by
      length, and lengths rounded up to a bucket.
    how: pooler, see `bert.pool`.
    normalise: whether the vectors have length 1.
  """
  tokens = text.encode(tokenizer, texts, max_length=max_length)
  return embed_tokens(model, params, tokens, batch_size=batch_size, how=how, normalise=normalise)


def embed_tokens(model, params, tokens, *, batch_size=32, how='mean', normalise=True):
  """Vectors float32 [N, D] of `text.Tokens` that are padded at the right; see `embed_texts`."""
  vectors = np.zeros((len(tokens.ids), model.config.hidden_size), np.float32)
  devices = jax.local_device_count()
  program = _program(model, how, normalise, devices)
  if devices > 1:
    params = parallel.place(params)
  limit, running = model.config.max_length, []
  batches = text.length_batches(
      tokens.mask.sum(1), batch_size,
      sorted({size for size in (*FINE, *text.BUCKETS, limit) if size <= limit}),
      tokens=CPU_TOKENS if jax.default_backend() == 'cpu' else None, parts=devices)
  for rows, length, share in batches:
    # A batch that is not full is filled up, so that a length is compiled for one number of rows.
    filled = np.resize(rows, share * devices)
    cut = lambda x: np.pad(x[filled, :length], ((0, 0), (0, max(0, length - x.shape[1]))))
    ids, mask = cut(tokens.ids), cut(tokens.mask)
    if devices > 1:
      ids, mask = parallel.split((ids, mask))
    running.append((rows, program(params, ids, mask)))
  for rows, out in running:
    vectors[rows] = np.asarray(out).reshape(-1, vectors.shape[1])[:len(rows)]
  return vectors


@functools.lru_cache
def _program(model, how, normalise, devices):
  run = functools.partial(embed, model, how=how, normalise=normalise)
  return run if devices == 1 else jax.pmap(run, in_axes=(None, 0, 0))
