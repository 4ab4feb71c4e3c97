"""From tokens to feature ids: a vocabulary with a minimum count, or hashing.

A field has the ids of its absent token, of its rare tokens, and of the tokens that are kept; the
fields stand one after the other in a single table of features.
"""
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from jaxlab import config as config_lib
from jaxlab.systems.xdeepfm.formats import ABSENT

_FIELD_BITS = 40  # a token has fewer bits; the field stands above them
_SHIFT = np.int64(1) << (_FIELD_BITS - 1)


class Vocabulary(NamedTuple):
  """How tokens [..., m] become ids in [0, size).

  Attributes:
    keys: int64 sorted, field and token in one number; empty with `buckets`.
    ids: int32, the id of each key.
    absent: int32 [m], the id of an empty field.
    rare: int32 [m], the id of a token that is not among the keys.
    size: V.
    buckets: hash buckets a field, or 0 for a vocabulary.
  """
  keys: np.ndarray
  ids: np.ndarray
  absent: np.ndarray
  rare: np.ndarray
  size: int
  buckets: int

  def encode(self, tokens):
    """Ids int32 [..., m] of tokens int64 [..., m]."""
    absent = tokens == ABSENT
    keys = _keys(np.where(absent, 0, tokens))
    if self.buckets:
      ids = self.rare + (mix(keys) % np.uint64(self.buckets)).astype(np.int32)
    else:
      place = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
      known = self.keys[place] == keys if len(self.keys) else np.zeros(keys.shape, bool)
      ids = np.where(known, self.ids[place] if len(self.ids) else 0, self.rare)
    return np.where(absent, self.absent, ids).astype(np.int32)


def _keys(tokens):
  field = np.arange(tokens.shape[-1], dtype=np.int64) << _FIELD_BITS
  return field + np.clip(tokens, -_SHIFT, _SHIFT - 1) + _SHIFT


def mix(keys):
  """splitmix64: keys to uniform uint64."""
  x = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def integer_bucket(values):
  """floor(ln(v)^2) where v > 2, else v: how Criteo's integers are made few (int64 [...])."""
  values = np.asarray(values, np.int64)
  return np.where(values > 2, np.floor(np.log(np.maximum(values, 1))**2), values).astype(np.int64)


def integer_tokens(values):
  """Tokens of integers: their bucket, apart from the small numbers that look like one."""
  tokens = 2 * integer_bucket(values) + (values <= 2)
  return np.where(values == ABSENT, ABSENT, tokens)


def count(blocks: Iterable[np.ndarray]):
  """(keys int64 sorted, counts int64) of the tokens of blocks [N, m]; absent ones do not count."""
  keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
  for tokens in blocks:
    new, times = np.unique(_keys(np.where(tokens == ABSENT, 0, tokens))[tokens != ABSENT],
                           return_counts=True)
    merged = np.union1d(keys, new)
    total = np.zeros(len(merged), np.int64)
    total[np.searchsorted(merged, keys)] += counts
    total[np.searchsorted(merged, new)] += times
    keys, counts = merged, total
  return keys, counts


def from_counts(keys, counts, min_counts, rare: Literal['one', 'count'] = 'one'):
  """The Vocabulary of counted tokens.

  Args:
    keys: as `count` gives them.
    counts: likewise.
    min_counts: int [m], times that a token of the field must occur to be kept.
    rare: what a token that is kept not becomes: 'one' id a field, or its 'count', an id for each
      count below `min_counts`, as the official code of xDeepFM has it.

  Returns:
    Vocabulary; ids of a field are absent, rare (one for unseen tokens, then one a count), kept.
  """
  config_lib.require(rare in ('one', 'count'), 'rare', "'one' or 'count'", rare)
  min_counts = np.asarray(min_counts)
  fields = keys >> _FIELD_BITS
  kept = counts >= min_counts[fields]
  reserved = 2 + (np.maximum(min_counts - 1, 0) if rare == 'count' else 0 * min_counts)
  sizes = reserved + np.bincount(fields[kept], minlength=len(min_counts))
  start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
  first = np.concatenate([[0], np.cumsum(np.bincount(fields[kept], minlength=len(min_counts)))])
  number = np.cumsum(kept) - 1 - first[fields]  # of a kept token in its field
  ids = np.where(kept, start[fields] + reserved[fields] + number, start[fields] + 1 + counts)
  listed = kept if rare == 'one' else np.ones(len(keys), bool)
  return Vocabulary(keys[listed], ids[listed].astype(np.int32), start[:-1].astype(np.int32),
                    (start[:-1] + 1).astype(np.int32), int(start[-1]), 0)


def hashed(num_fields, buckets):
  """The Vocabulary without words: `buckets` ids a field, and one for its absent token."""
  absent = (np.arange(num_fields) * (buckets + 1)).astype(np.int32)
  none = np.zeros(0, np.int64)
  return Vocabulary(none, none.astype(np.int32), absent, absent + 1, num_fields * (buckets + 1),
                    buckets)

