"""Retrieval metrics of a square of scores: row i should score key i highest."""
import numpy as np

from jaxlab.metrics import ranking, retrieval

TIE = 1e-4  # scores that differ by less than this share of the own one are tied


def official(scores):
  """The reference's metrics of a batch; a tie with the own key counts as a hit.

  Args:
    scores: [n, n], finite.

  Returns:
    {'p@1', 'mrr', 'ndcg', 'auc'}: means over the rows of [rank = 1], 1 / rank, 1 / log2(1 + rank)
    and the share of the other keys that score lower (half of those that score the same), where
    rank = 1 + number of keys that score higher than the own.
  """
  scores = np.asarray(scores, np.float64)
  rank = retrieval.ranks(scores, np.arange(len(scores)))
  labels, mask = np.eye(len(scores)), np.ones(scores.shape, bool)
  auc = np.mean(ranking.auc(labels, scores, mask)) if len(scores) > 1 else 1.0
  return {'p@1': retrieval.recall_at(rank, 1), 'mrr': retrieval.mrr(rank),
          'ndcg': retrieval.ndcg_at(rank, len(scores)), 'auc': float(auc)}


def tie_aware(scores):
  """Metrics in which a tie counts with its expected value over random order.

  Args:
    scores: [n, n], finite.

  Returns:
    {'p@1', 'mrr'}.

  >>> tie_aware(np.array([[2., 2., 1.], [0., 1., 2.], [0., 0., 1.]]))
  {'p@1': 0.5, 'mrr': 0.75}
  """
  scores = np.asarray(scores, np.float64)
  own = np.diagonal(scores)[:, None]
  tied = np.abs(scores - own) <= TIE * np.abs(own)
  higher = ((scores > own) & ~tied).sum(1)
  equal = tied.sum(1) - 1
  harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, len(scores) + 1))])
  return {'p@1': float(np.where(higher == 0, 1 / (1 + equal), 0).mean()),
          'mrr': float(((harmonic[higher + equal + 1] - harmonic[higher]) / (equal + 1)).mean())}


def over_batches(queries, keys, candidates=300):
  """The metrics of `official`, and of `tie_aware` as 'tied_p@1' and 'tied_mrr', over batches.

  As in the reference each batch is ranked within itself and the last partial batch is left out;
  where there is no full batch, all rows are one.

  Args:
    queries: [N, D].
    keys: [N, D]; key i belongs to query i.
    candidates: rows of a batch, which is part of the metric.

  Returns:
    {metric: float}, means over the batches.
  """
  size = min(candidates, len(queries))
  found = []
  for start in range(0, len(queries) - size + 1, size):
    rows = slice(start, start + size)
    scores = np.asarray(queries[rows], np.float64) @ np.asarray(keys[rows], np.float64).T
    tied = {f'tied_{name}': value for name, value in tie_aware(scores).items()}
    found.append({**official(scores), **tied})
  return {name: float(np.mean([one[name] for one in found])) for name in found[0]}
