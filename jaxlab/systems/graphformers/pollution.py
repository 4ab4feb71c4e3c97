"""Polluted texts of progressive learning: spans of the centre's tokens masked, replaced or kept."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_SPAN, STOP = 10, 0.2  # span lengths are geometric, drawn again while longer than this
MASKED, REPLACED = 0.8, 0.1  # of the selected tokens; the rest is kept


class Vocabulary(NamedTuple):
  """The ids that pollution knows.

  Attributes:
    size: V; replacements are drawn from all ids.
    mask: id that stands for a masked token.
    special: ids that are never selected, padding among them.
  """
  size: int
  mask: int
  special: tuple[int, ...]


def pollute(key, ids, vocabulary, rate=0.15):
  """Polluted token ids of texts.

  Args:
    key: PRNG key, or keys [B], one a row.
    ids: int [B, S].
    vocabulary: Vocabulary.
    rate: share of the non-special tokens that is selected, at least one token.

  Returns:
    int [B, S].
  """
  keys = key if key.ndim else jax.random.split(key, len(ids))
  return jax.vmap(functools.partial(_pollute, vocabulary=vocabulary, rate=rate))(keys, ids)


def select_spans(key, candidates, count):
  """bool [S]: `count` of the candidates, taken in spans.

  Spans start at candidates, uniformly without replacement, until the count is reached; what in a
  span is no candidate or already taken is passed over.

  Args:
    key: PRNG key.
    candidates: bool [S], with at least `count` True.
    count: int scalar.
  """
  length = candidates.shape[0]
  order_key, span_key = jax.random.split(key)
  # Candidates in random order, then the others.
  order = jnp.argsort(jax.random.uniform(order_key, (length,)) + ~candidates)
  logits = jnp.arange(MAX_SPAN) * jnp.log(1 - STOP)
  spans = 1 + jax.random.categorical(span_key, logits, shape=(length,))
  positions = jnp.arange(length)

  def one(taken, start_and_span):
    start, span = start_and_span
    fresh = (candidates & ~taken & candidates[start] & (positions >= start) &
             (positions < start + span))
    return taken | (fresh & (jnp.cumsum(fresh) <= count - taken.sum())), None

  return jax.lax.scan(one, jnp.zeros(length, bool), (order, spans))[0]


def _pollute(key, ids, *, vocabulary, rate):
  span_key, kind_key, word_key = jax.random.split(key, 3)
  candidates = ~jnp.isin(ids, jnp.array(vocabulary.special, ids.dtype))
  total = candidates.sum()
  count = jnp.minimum(jnp.maximum(jnp.round(rate * total).astype(jnp.int32), 1), total)
  selected = select_spans(span_key, candidates, count)
  kind = jax.random.uniform(kind_key, ids.shape)
  words = jax.random.randint(word_key, ids.shape, 0, vocabulary.size, jnp.int32)
  changed = jnp.where(kind < MASKED, vocabulary.mask,
                      jnp.where(kind < MASKED + REPLACED, words, ids)).astype(ids.dtype)
  return jnp.where(selected, changed, ids)
