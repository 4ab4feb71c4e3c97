"""Ranking metrics of impressions: AUC, MRR, nDCG per impression, and leaderboard ranks.

An impression is a list of candidates of which some were clicked; lists are rows of padded arrays
[..., L]. The order is that of a stable ascending sort, reversed: among equal scores the later item
ranks first (0 and -0 are equal). The functions take NumPy and JAX arrays alike, and work under jit
and vmap. Scores must be finite.
"""
import numpy as np

METRICS = ('auc', 'mrr', 'ndcg@5', 'ndcg@10')


def _ascending(scores, mask, namespace):
  """Positions [..., L] of a stable ascending sort of the real items; padding comes before them."""
  return namespace.argsort(namespace.where(mask, scores, -namespace.inf), axis=-1, stable=True)


def _inverse(order, namespace):
  return namespace.argsort(order, axis=-1, stable=True)


def _sum(x):
  return x.sum(axis=-1)


def ranks(scores, mask):
  """Ranks [..., L], 1 for the best item, as the MIND leaderboard wants them; -1 where padded.

  Args:
    scores: [..., L].
    mask: bool [..., L], True for real items.

  Example:

    >>> ranks(np.array([.5, .9, .5, 0.]), np.array([True, True, True, False])).tolist()
    [3, 1, 2, -1]
  """
  xp = scores.__array_namespace__()
  ascending = _inverse(_ascending(scores, mask, xp), xp)
  return xp.where(mask, scores.shape[-1] - ascending, -1)


def two_class(labels, mask):
  """bool [...]: the impression has a click and an item that was not clicked."""
  return _sum(mask & (labels == 1)).astype(bool) & _sum(mask & (labels == 0)).astype(bool)


def auc(labels, scores, mask):
  """P(score of a click > score of a non-click) + half of P(equal), [...]; NaN with one class only.

  Args:
    labels: [..., L], 1 for a click, 0 for none.
    scores: [..., L].
    mask: bool [..., L], True for real items.
  """
  xp = scores.__array_namespace__()
  positive = (mask & (labels == 1)).astype(scores.dtype)
  negative = (mask & (labels == 0)).astype(scores.dtype)
  # The rank of an item with ties broken one way and the other average to the middle rank. Padding
  # sorts to the lower end, where a shift of all ranks by its number takes it off again.
  one_way = _inverse(_ascending(scores, mask, xp), xp)
  other_way = xp.flip(
      _inverse(_ascending(xp.flip(scores, axis=-1), xp.flip(mask, axis=-1), xp), xp), axis=-1)
  middle = (one_way + other_way) / 2 - _sum(~mask)[..., None] + 1
  clicks, others = _sum(positive), _sum(negative)
  pairs = xp.where(clicks * others > 0, clicks * others, xp.nan)
  return (_sum(middle * positive) - clicks * (clicks + 1) / 2) / pairs


def mrr(labels, scores, mask):
  """Mean of 1 / rank over all clicks of the impression, [...]; NaN without a click."""
  xp = scores.__array_namespace__()
  clicked = mask & (labels == 1)
  reciprocal = xp.where(clicked, 1 / xp.where(clicked, ranks(scores, mask), 1), 0)
  count = _sum(clicked)
  return _sum(reciprocal) / xp.where(count > 0, count, xp.nan)


def ndcg(labels, scores, mask, k):
  """DCG@k / ideal DCG@k with gains 2^label - 1 and discounts log2(rank + 1), [...].

  Lists shorter than k just end. NaN without a click.
  """
  xp = scores.__array_namespace__()
  gains = xp.where(mask & (labels == 1), 1.0, 0.0)

  def dcg(rank):
    counted = (rank >= 1) & (rank <= k)
    return _sum(xp.where(counted, gains / xp.log2(xp.where(counted, rank, 1) + 1.0), 0))

  ideal = dcg(ranks(gains, mask))
  return dcg(ranks(scores, mask)) / xp.where(ideal > 0, ideal, xp.nan)


def impression_metrics(labels, scores, mask):
  """The four metrics of MIND, one value an impression; all NaN where there is one class only.

  Args:
    labels: [..., L], 1 for a click, 0 for none.
    scores: [..., L].
    mask: bool [..., L], True for real items.

  Returns:
    {'auc', 'mrr', 'ndcg@5', 'ndcg@10': [...]}.
  """
  xp = scores.__array_namespace__()
  values = (auc(labels, scores, mask), mrr(labels, scores, mask), ndcg(labels, scores, mask, 5),
            ndcg(labels, scores, mask, 10))
  both = two_class(labels, mask)
  return {name: xp.where(both, value, xp.nan) for name, value in zip(METRICS, values)}


def clicks_first(labels, *arrays):
  """Reorders each impression as the official evaluators do: clicks, then the rest, then padding.

  Among equal scores the later item ranks first, so this order is the pessimistic one.

  Args:
    labels: [..., L] of 1, 0, and -1 for padding.
    *arrays: more arrays [..., L].

  Returns:
    Tuple (labels, *arrays), reordered alike.
  """
  xp = labels.__array_namespace__()
  order = xp.argsort(-labels, axis=-1, stable=True)
  return tuple(xp.take_along_axis(x, order, axis=-1) for x in (labels, *arrays))


def mean_metrics(batches):
  """Plain means over the impressions that have both classes; the others are left out of all four.

  Args:
    batches: iterable of (labels, scores, mask), NumPy [B, L] each; L may differ.

  Returns:
    {'auc', 'mrr', 'ndcg@5', 'ndcg@10': float}.

  Raises:
    ValueError: no impression has a click and an item that was not clicked.
  """
  sums, count = dict.fromkeys(METRICS, 0.0), 0
  for labels, scores, mask in batches:
    rows = impression_metrics(labels, np.asarray(scores, np.float64), mask)
    count += int(two_class(labels, mask).sum())
    for name, values in rows.items():
      sums[name] += float(np.nansum(values))
  if not count:
    raise ValueError('expected impressions with clicks and items that were not clicked, got none')
  return {name: total / count for name, total in sums.items()}


def write_leaderboard(path, impressions, scores, mask):
  """Writes MIND's prediction.txt: a line `id [rank,rank,...]` an impression, sorted by id.

  Args:
    path: file to write; the leaderboard takes it zipped.
    impressions: ids [N].
    scores: [N, L] in the order of the official file.
    mask: bool [N, L], True for real items.
  """
  table = ranks(np.asarray(scores), np.asarray(mask))
  with open(path, 'w', encoding='utf-8') as file:
    for row in np.argsort(impressions, kind='stable'):
      listed = ','.join(str(rank) for rank in table[row] if rank > 0)
      file.write(f'{impressions[row]} [{listed}]\n')
