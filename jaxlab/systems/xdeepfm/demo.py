"""A world with a planted cross of three fields, which pairs cannot see, as a libffm-like file."""
from typing import NamedTuple

import numpy as np

FIELDS, VALUES = 6, 20


class World(NamedTuple):
  """Rows of a planted world.

  Attributes:
    ids: int32 [N, 6], feature ids; value v of field f is f * values + v.
    label: float32 [N].
    probability: float64 [N], of a 1: what no model can beat.
  """
  ids: np.ndarray
  label: np.ndarray
  probability: np.ndarray


def make(seed, rows, *, values=VALUES):
  """A World: each value of a field has a hidden sign s, and the logit of a click is

  .8 s0 s1 + 2 s2 s3 s4 + .3 s5, with uniform values and independent draws of the label.
  """
  rng = np.random.default_rng(seed)
  signs = rng.choice([-1.0, 1.0], (FIELDS, values))
  chosen = rng.integers(0, values, (rows, FIELDS))
  s = signs[np.arange(FIELDS), chosen].T
  logit = .8 * s[0] * s[1] + 2 * s[2] * s[3] * s[4] + .3 * s[5]
  probability = 1 / (1 + np.exp(-logit))
  label = rng.random(rows) < probability
  return World((chosen + values * np.arange(FIELDS)).astype(np.int32), label.astype(np.float32),
               probability)


def write(path, world, *, groups=0):
  """Writes a World in the libffm-like format; rows belong to `groups` users in turn, if any."""
  with open(path, 'w', encoding='utf-8') as file:
    for number, (ids, label) in enumerate(zip(world.ids, world.label)):
      pairs = ' '.join(f'{f + 1}:{i + 1}:1' for f, i in enumerate(ids))
      file.write(f'{int(label)} {pairs}' + (f'%{number % groups}' if groups else '') + '\n')
