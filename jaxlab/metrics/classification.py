"""Metrics of classifiers."""
import numpy as np
from scipy import special


def _check_rows(logits, labels):
  if len(logits) != len(labels) or not len(labels):
    raise ValueError(f'expected equal, non-zero numbers of rows, got {len(logits)} logits '
                     f'and {len(labels)} labels')


def accuracy(logits, labels):
  """Share of rows whose largest logit is the label, in [0, 1].

  Args:
    logits: [N, K] scores.
    labels: [N] integers.

  Raises:
    ValueError: no rows, or the numbers of rows differ.

  Example:

    >>> accuracy(np.array([[1., 0.], [0., 1.]]), np.array([0, 0]))
    0.5
  """
  _check_rows(logits, labels)
  return float(np.mean(np.argmax(logits, -1) == labels))


def cross_entropy(logits, labels):
  """Mean of -log softmax(logits)[label] in nats.

  Args:
    logits: [N, K] scores.
    labels: [N] integers.

  Raises:
    ValueError: no rows, or the numbers of rows differ.
  """
  _check_rows(logits, labels)
  log_probabilities = special.log_softmax(np.asarray(logits, np.float64), axis=-1)
  return float(
      -np.mean(np.take_along_axis(log_probabilities,
                                  np.asarray(labels, np.int64)[:, None], -1)))
