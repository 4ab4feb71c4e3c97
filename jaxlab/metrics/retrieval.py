"""Retrieval of one relevant item from a pool: Recall@k, MRR@k, nDCG@k. NumPy on the host.

The rank of the relevant item is 1 + the number of items that score higher: a tie counts in its
favour.
"""
import numpy as np


def ranks(scores, relevant, mask=None):
  """Rank int64 [Q] of each query's relevant item, 1 for the best.

  Args:
    scores: [Q, N], higher is better.
    relevant: int [Q], the column of the relevant item.
    mask: bool [Q, N], the items that are in the query's pool; all by default.

  Raises:
    ValueError: shapes that do not fit, a relevant item that is not in the pool, or a score in it
      that is not finite.

  >>> ranks(np.array([[.1, .9, .5], [.2, .2, .1]]), np.array([2, 1])).tolist()
  [2, 1]
  """
  scores, relevant = np.asarray(scores), np.asarray(relevant)
  if scores.ndim != 2 or relevant.shape != scores.shape[:1]:
    raise ValueError(f'expected scores [Q, N] and relevant [Q], got {scores.shape} and '
                     f'{relevant.shape}')
  mask = np.ones(scores.shape, bool) if mask is None else np.asarray(mask, bool)
  inside = (relevant >= 0) & (relevant < scores.shape[1])
  if not (inside.all() and mask[np.arange(len(relevant)), relevant].all()):
    raise ValueError('relevant: expected an item of the pool for each query')
  if not np.isfinite(scores[mask]).all():
    raise ValueError('scores: expected finite numbers')
  own = scores[np.arange(len(relevant)), relevant]
  return 1 + ((scores > own[:, None]) & mask).sum(1)


def recall_at(found, k):
  """Share of the ranks [Q] that are at most k."""
  return float((np.asarray(found) <= k).mean())


def mrr(found, k=None):
  """Mean of 1 / rank [Q]; of ranks beyond k, where it is given, 0."""
  found = np.asarray(found, np.float64)
  return float(np.where(found <= (np.inf if k is None else k), 1 / found, 0).mean())


def ndcg_at(found, k):
  """Mean of 1 / log2(1 + rank) [Q], 0 beyond k: nDCG@k with one relevant item.

  >>> round(ndcg_at([1, 3, 11], 10), 3)
  0.5
  """
  found = np.asarray(found, np.float64)
  return float(np.where(found <= k, 1 / np.log2(1 + found), 0).mean())


def report(found):
  """{'recall@1', 'recall@5', 'recall@10', 'mrr@10', 'ndcg@10': float} of ranks [Q]."""
  return {**{f'recall@{k}': recall_at(found, k) for k in (1, 5, 10)},
          'mrr@10': mrr(found, 10), 'ndcg@10': ndcg_at(found, 10)}
