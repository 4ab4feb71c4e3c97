"""Actions and states in the units of the network, and back."""
from typing import Literal, NamedTuple

import numpy as np

from jaxlab import config as config_lib

KINDS = ('minmax', 'quantile')


class Scale(NamedTuple):
  """How a robot's numbers become the network's.

  Attributes:
    low: [A], what becomes -1.
    high: [A], what becomes 1.
    scaled: bool [A]; False for the gripper, which is 0 or 1 as it is.
    clip: whether values outside are cut to [-1, 1].
  """
  low: np.ndarray
  high: np.ndarray
  scaled: np.ndarray
  clip: bool


class Scales(NamedTuple):
  """The Scales of a data set.

  Attributes:
    action: Scale.
    state: Scale, or None where states stay as they are.
  """
  action: Scale
  state: Scale | None = None


def make_scale(stats, dims, *, kind: Literal['minmax', 'quantile'] = 'minmax', gripper=None,
               where='stats'):
  """The Scale of the actions or the states of a data set.

  Args:
    stats: mapping with 'min' and 'max' ('minmax'), or 'q01' and 'q99' ('quantile'), each [dims].
    dims: A, numbers of an action or a state.
    kind: 'minmax' for LIBERO and DROID; 'quantile', which clips, for Bridge and Fractal.
    gripper: index of the gripper, or None.
    where: file of the statistics, for messages.

  Raises:
    ValueError: a statistic is missing, or of another width than `dims`.
  """
  config_lib.require(kind in KINDS, 'data.normalise', ' or '.join(KINDS), kind)
  ends = []
  for name in ('min', 'max') if kind == 'minmax' else ('q01', 'q99'):
    if name not in stats:
      raise ValueError(f'{where}: expected {name!r} for {kind} scaling, found {sorted(stats)}')
    value = np.asarray(stats[name], np.float32)
    if value.shape != (dims,):
      raise ValueError(f'{where}: {name}: expected {dims} numbers, one a dimension, got shape '
                       f'{value.shape}')
    ends.append(value)
  scaled = np.ones(dims, bool)
  if gripper is not None:
    config_lib.require(0 <= gripper < dims, 'data.gripper', f'an index below {dims}', gripper)
    scaled[gripper] = False
  return Scale(*ends, scaled, kind == 'quantile')


def normalise(x, scale):
  """Values [..., A] in the network's units: arm dimensions in [-1, 1], a constant one 0.

  The gripper is left as it is, or, where the Scale clips, becomes 1 above 0.5 and 0 below.
  """
  width = scale.high - scale.low
  constant = width <= 0
  y = 2 * (x - scale.low) / np.where(constant, 1, width) - 1
  y = np.where(constant, 0, y)
  grip = x
  if scale.clip:
    y, grip = np.clip(y, -1, 1), (x > 0.5).astype(np.float32)
  return np.where(scale.scaled, y, grip).astype(np.float32)


def unnormalise(y, scale):
  """The inverse of `normalise` on [-1, 1]; the gripper becomes 0 or 1."""
  y = np.clip(y, -1, 1)
  x = 0.5 * (y + 1) * (scale.high - scale.low) + scale.low
  return np.where(scale.scaled, x, (y >= 0.5)).astype(np.float32)


def keep_steps(actions, gripper=None, threshold=5e-4):
  """bool [T]: the steps that move the arm or change the gripper; the others are pauses.

  Args:
    actions: raw [T, A], the first three of them dx, dy, dz.
    gripper: index of the gripper, or None.
    threshold: of a motion along an axis.
  """
  moves = (np.abs(actions[:, :3]) > threshold).any(-1)
  if gripper is not None:
    change = np.diff(actions[:, gripper], prepend=actions[:1, gripper]) != 0
    moves = moves | change
  return moves
