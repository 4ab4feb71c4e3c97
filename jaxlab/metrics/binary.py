"""Metrics of click probabilities over a whole split."""
import numpy as np
from scipy import special

from jaxlab.metrics import ranking


def _rows(labels, scores):
  labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
  if labels.shape != scores.shape or labels.ndim != 1 or not len(labels):
    raise ValueError(f'expected equal, non-zero numbers of rows, got {labels.shape} labels and '
                     f'{scores.shape} scores')
  return labels, scores


def auc(labels, scores):
  """P(score of a positive > of a negative) + half of P(equal); NaN with one class only.

  Args:
    labels: [N] of 0 and 1.
    scores: [N], finite, of any scale.

  Raises:
    ValueError: no rows, or the numbers of rows differ.

  Example:

    >>> auc([0, 1, 1, 0], [.1, .1, .9, .3])
    0.625
  """
  labels, scores = _rows(labels, scores)
  return float(ranking.auc(labels, scores, np.ones(len(labels), bool)))


def group_auc(labels, scores, groups):
  """Mean AUC of the groups that hold both classes, weighted by their rows; NaN without one.

  Args:
    labels: [N] of 0 and 1.
    scores: [N].
    groups: [N], anything that can be sorted, such as ids of users.
  """
  labels, scores = _rows(labels, scores)
  order = np.argsort(groups, kind='stable')
  cuts = np.flatnonzero(np.diff(np.unique(groups, return_inverse=True)[1][order])) + 1
  parts = [rows for rows in np.split(order, cuts) if 0 < labels[rows].sum() < len(rows)]
  if not parts:
    return float('nan')
  sizes = [len(rows) for rows in parts]
  return float(np.average([auc(labels[rows], scores[rows]) for rows in parts], weights=sizes))


def log_loss(labels, logits):
  """Mean of -log p(label) in nats, from logits, so that nothing needs to be clipped.

  Args:
    labels: [N] of 0 and 1.
    logits: [N].
  """
  labels, logits = _rows(labels, logits)
  return float(-np.mean(special.log_expit(np.where(labels > 0, logits, -logits))))


def calibration(labels, probabilities, bins=10):
  """(mean probability [bins], share of positives [bins], rows [bins]) of bins of equal numbers.

  Args:
    labels: [N] of 0 and 1.
    probabilities: [N], in [0, 1].
    bins: at most N.
  """
  labels, probabilities = _rows(labels, probabilities)
  parts = np.array_split(np.argsort(probabilities, kind='stable'), bins)
  mean = lambda values: np.array([values[rows].mean() for rows in parts])
  return mean(probabilities), mean(labels), np.array([len(rows) for rows in parts])
