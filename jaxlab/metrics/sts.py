"""Semantic textual similarity in SentEval's manner: Spearman over subsets. NumPy on the host."""
import numpy as np

from jaxlab.metrics.glue import spearman


def spearman_subsets(scores, gold, sizes):
  """Spearman correlations of a year of STS, which comes in subsets.

  Args:
    scores: [N], of the model, subset after subset.
    gold: [N].
    sizes: rows of each subset, their sum N.

  Returns:
    {'subsets': [correlation of each subset], 'all': of all rows together (what SimCSE and its
    followers report), 'mean': of the subsets, 'wmean': weighted by their sizes}. Ties have average
    ranks.

  Raises:
    ValueError: the sizes do not add up, or a subset has fewer than two rows.
  """
  scores, gold = np.asarray(scores, np.float64), np.asarray(gold, np.float64)
  if sum(sizes) != len(scores) or len(scores) != len(gold):
    raise ValueError(f'expected as many rows as the subsets have, {sum(sizes)}, got {len(scores)} '
                     f'scores and {len(gold)} gold scores')
  cuts = np.cumsum(sizes)[:-1]
  subsets = [spearman(a, b) for a, b in zip(np.split(scores, cuts), np.split(gold, cuts))]
  return {'subsets': subsets, 'all': spearman(scores, gold), 'mean': float(np.mean(subsets)),
          'wmean': float(np.average(subsets, weights=sizes))}
