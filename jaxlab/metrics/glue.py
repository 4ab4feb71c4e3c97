"""Metrics of the GLUE tasks (arXiv 1804.07461) over NumPy arrays of a whole split."""
import numpy as np
from scipy import stats


def f1(predictions, labels):
  """F1 of class 1 against class 0, 0 where class 1 is neither predicted nor there.

  Args:
    predictions: [N] of 0 and 1.
    labels: [N] of 0 and 1.

  >>> round(f1(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 1])), 3)
  0.4
  """
  from sklearn.metrics import f1_score
  return float(f1_score(labels, predictions, zero_division=0))


def matthews(predictions, labels):
  """Matthews correlation in [-1, 1], 0 where one side is constant.

  >>> matthews(np.array([1, 0, 1]), np.array([1, 0, 1]))
  1.0
  """
  from sklearn.metrics import matthews_corrcoef
  return float(matthews_corrcoef(labels, predictions))


def pearson(x, y):
  """Pearson correlation of [N] and [N]; 0 where one side is constant, which orders nothing."""
  return _correlation(stats.pearsonr, x, y)


def spearman(x, y):
  """Spearman correlation of [N] and [N], ties by average ranks; 0 where one side is constant.

  >>> round(spearman(np.array([1., 2., 3., 3.]), np.array([1., 4., 9., 9.])), 6)
  1.0
  """
  return _correlation(stats.spearmanr, x, y)


def _correlation(function, x, y):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if len(x) != len(y) or len(x) < 2:
    raise ValueError(f'expected two columns of one length >= 2, got {len(x)} and {len(y)} rows')
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    return 0.0
  return float(function(x, y).statistic)
