"""MoGe's evaluation of one image: errors after the best alignment of each kind.

(Official evaluation of arXiv 2410.19115 and 2507.02546.) Alignments are on the valid points of a
coarse grid and not truncated; errors are over all valid pixels.
"""
import functools
from typing import NamedTuple

import jax
import numpy as np

from jaxlab.metrics import depth as depth_metrics
from jaxlab.systems.moge2 import alignment, geometry, resize

GRID = 64
RADII = (1, 2, 3)
_MIN_POINTS = 10  # of the grid, for a segment to count


class Truth(NamedTuple):
  """Ground truth of an image.

  Attributes:
    depth: [H, W].
    points: [H, W, 3].
    mask: bool [H, W], where both are valid.
    intrinsics: [3, 3], or None.
    segments: int [H, W], ids (0 for none), or None.
    metric: whether depth is in meters.
    sharp: whether boundaries may be measured.
  """
  depth: np.ndarray
  points: np.ndarray
  mask: np.ndarray
  intrinsics: np.ndarray | None = None
  segments: np.ndarray | None = None
  metric: bool = True
  sharp: bool = True


class Guess(NamedTuple):
  """What a model says of an image; None for what it does not say.

  Attributes:
    depth: [H, W].
    points: [H, W, 3].
    intrinsics: [3, 3].
    disparity: [H, W], of a model that knows no depth.
    metric: whether depth and points are in meters.
  """
  depth: np.ndarray | None = None
  points: np.ndarray | None = None
  intrinsics: np.ndarray | None = None
  disparity: np.ndarray | None = None
  metric: bool = True


def _padded(n):
  """The next power of two: alignments of few sizes are compiled."""
  return max(1 << (n - 1).bit_length(), 16)


def grid_pixels(mask, grid=GRID):
  """Flat indices [n] of the valid pixels that stand for a grid."""
  index, low = (np.asarray(x) for x in _nearest(mask, grid))
  return index[low]


def _take(maps, index):
  """Pixels of each map, filled up with zeros."""
  size = _padded(len(index))
  picked = []
  for x in maps:
    rows = np.asarray(x, np.float32).reshape(-1, *x.shape[2:])[index]
    picked.append(np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), np.float32)]))
  return picked


@functools.partial(jax.jit, static_argnums=1)
def _nearest(mask, grid):
  return resize.masked_nearest(mask, grid, grid)


_SOLVERS = {
    'depth_scale': jax.jit(alignment.align_depth_scale),
    'depth_affine': jax.jit(alignment.align_depth_affine),
    'points_shift': jax.jit(alignment.align_points_shift),
    'points_scale': jax.jit(alignment.align_points_scale),
    'points_affine': jax.jit(alignment.align_points_affine),
}


def aligned(kind, guess, true, pixels, unit=None):
  """A guessed map moved onto the true one.

  Args:
    kind: key of `_SOLVERS`.
    guess: [H, W] or [H, W, 3].
    true: likewise.
    pixels: flat indices of the pixels that are aligned.
    unit: the weights are one over it; by default one over each true point's distance.
  """
  source, target = _take([guess, true], pixels)
  length = np.abs(target) if target.ndim == 1 else np.linalg.norm(target, axis=-1)
  real = np.arange(len(target)) < len(pixels)
  w = np.where(real, 1 / np.maximum(length if unit is None else unit, 1e-12), 0.0)
  out = _SOLVERS[kind](source, target, w.astype(np.float32))
  if kind == 'points_shift':
    return guess + np.asarray(out)
  if kind in ('depth_scale', 'points_scale'):
    return guess * np.asarray(getattr(out, 'scale', out))
  return guess * np.asarray(out.scale) + np.asarray(out.shift)


def local_points(guess, truth, pixels):
  """(error, share of near points) of segments aligned one by one, relative to their size.

  The mean over the segments that have enough of the `pixels`; None where there is none.
  """
  scores = []
  for number in np.unique(truth.segments[truth.mask & (truth.segments > 0)]):
    mask = truth.mask & (truth.segments == number)
    inside = pixels[mask.reshape(-1)[pixels]]
    if len(inside) < _MIN_POINTS:
      continue
    points = truth.points[mask]
    size = float((points.max(0) - points.min(0)).max())
    moved = aligned('points_affine', guess, truth.points, inside, unit=size)
    scores.append(depth_metrics.point_error(moved[mask], points, size))
  return tuple(np.mean(scores, axis=0)) if scores else None


def evaluate(guess, truth, *, grid=GRID):
  """All metrics of an image that guess and truth allow.

  Args:
    guess: Guess, without masking.
    truth: Truth.
    grid: side of the grid of alignments (64 is the paper's).

  Returns:
    {'depth_scale_invariant.rel': float, ...}: 'rel' and 'delta1' of the kinds, 'fov_x.mae' and
    'fov_x.deviation' in degrees, 'boundary.radius1_f1', ...
  """
  mask, out, pixels = truth.mask, {}, grid_pixels(truth.mask, grid)
  true_depth = np.where(mask, truth.depth, 1.0)
  true_points = np.where(mask[..., None], truth.points, 1.0)

  def put(name, scores):
    out[f'{name}.rel'], out[f'{name}.delta1'] = scores

  depth, points = guess.depth, guess.points
  best = depth
  if depth is not None:
    for kind in ('scale', 'affine'):
      moved = aligned(f'depth_{kind}', depth, true_depth, pixels)
      put(f'depth_{kind}_invariant', depth_metrics.depth_error(moved[mask], true_depth[mask]))
    if guess.metric and truth.metric:
      put('depth_metric', depth_metrics.depth_error(depth[mask], true_depth[mask]))
  if depth is not None or guess.disparity is not None:
    disparity = guess.disparity if depth is None else 1 / np.maximum(depth, 1e-12)
    fitted = align_disparity(disparity, true_depth, mask)
    moved = 1 / np.maximum(fitted, 1 / true_depth[mask].max())
    best = 1 / fitted if best is None else best
    put('disparity_affine_invariant', depth_metrics.depth_error(moved[mask], true_depth[mask]))
  if points is not None:
    kinds = {'points_scale_invariant': 'points_scale', 'points_affine_invariant': 'points_affine'}
    if guess.metric and truth.metric:
      kinds['points_metric'] = 'points_shift'
    for name, kind in kinds.items():
      moved = aligned(kind, points, true_points, pixels)
      put(name, depth_metrics.point_error(moved[mask], true_points[mask]))
    if truth.segments is not None:
      scores = local_points(points, truth, pixels)
      if scores is not None:
        put('local_points', scores)
  if guess.intrinsics is not None and truth.intrinsics is not None:
    error = float(geometry.fov_of(guess.intrinsics) - geometry.fov_of(truth.intrinsics))
    out.update({'fov_x.mae': abs(error), 'fov_x.deviation': error})
  if truth.sharp and best is not None:
    for radius in RADII:
      out[f'boundary.radius{radius}_f1'] = depth_metrics.boundary_f1(best, true_depth, mask, radius)
  return out


def align_disparity(disparity, true_depth, mask):
  """Disparity [H, W] after the least squares fit to one over the true depth."""
  x = np.asarray(disparity, np.float64)[mask]
  design = np.stack([x, np.ones_like(x)], axis=1)
  a, b = np.linalg.lstsq(design, 1 / np.asarray(true_depth, np.float64)[mask], rcond=None)[0]
  return a * disparity + b
