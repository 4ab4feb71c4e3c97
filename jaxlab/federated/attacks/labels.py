"""Label flipping: the malicious clients train on wrong labels."""
from typing import Literal

import numpy as np

from jaxlab import config as config_lib
from jaxlab.federated.attacks.simple import honest


def flip(labels, rng, num_classes, kind):
  """Wrong labels for all: C - 1 - y ('reverse'), y + 1 mod C ('next') or any other ('random').

  Raises:
    ConfigError: a label that is not below C.
  """
  largest = int(labels.max(initial=0))
  config_lib.require(largest < num_classes, 'federated.attack.num_classes',
                     f'more than the largest label, {largest}', num_classes)
  if kind == 'random':
    wrong = labels + rng.integers(1, num_classes, len(labels))
    return (wrong % num_classes).astype(labels.dtype)
  wrong = num_classes - 1 - labels if kind == 'reverse' else (labels + 1) % num_classes
  return wrong.astype(labels.dtype)


def label_flip(*, num_classes: int, kind: Literal['reverse', 'next', 'random'] = 'reverse',
               column: str = 'label'):
  """Label flip: honest training on flipped labels.

  Args:
    num_classes: C, at least 2 and more than every label.
    kind: 'reverse' C - 1 - y, 'next' (y + 1) mod C, or 'random', another class.
    column: the column of the data that holds y.
  """
  config_lib.require(num_classes >= 2, 'num_classes', 'at least 2', num_classes)

  def poison(columns, rows, rng):
    labels = np.array(config_lib.choose(column, columns, 'federated.attack.column'))
    labels[rows] = flip(labels[rows], rng, num_classes, kind)
    return {**columns, column: labels}

  return honest()._replace(poison=poison)
