"""Sentence embeddings of an encoder: batches of like lengths, each length compiled once."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data import text
from jaxlab.models import bert


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
    batch_size: rows of a batch; rows are sorted by length, and lengths rounded up to a bucket.
    how: pooler, see `bert.pool`.
    normalise: whether the vectors have length 1.
  """
  tokens = text.encode(tokenizer, texts, max_length=max_length)
  return embed_tokens(model, params, tokens, batch_size=batch_size, how=how, normalise=normalise)


def embed_tokens(model, params, tokens, *, batch_size=32, how='mean', normalise=True):
  """Vectors float32 [N, D] of `text.Tokens` that are padded at the right; see `embed_texts`."""
  vectors = np.zeros((len(tokens.ids), model.config.hidden_size), np.float32)
  limit = model.config.max_length
  buckets = tuple(size for size in text.BUCKETS if size < limit) + (limit,)
  running = []
  for rows, length in text.length_batches(tokens.mask.sum(1), batch_size, buckets):
    # The last batch is filled up, so that a length is compiled for one number of rows only.
    filled = np.resize(rows, batch_size) if len(rows) < batch_size else rows
    cut = lambda x: np.pad(x[filled, :length], ((0, 0), (0, max(0, length - x.shape[1]))))
    running.append((rows, embed(model, params, cut(tokens.ids), cut(tokens.mask), how=how,
                                normalise=normalise)))
  for rows, out in running:
    vectors[rows] = np.asarray(out)[:len(rows)]
  return vectors
