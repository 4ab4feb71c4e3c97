"""MoGe's local losses: patches around anchors, each with an alignment of its own.

(arXiv 2410.19115, section 3.2; anchors by importance as in the code of MoGe-2.)
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.systems.moge2 import alignment, resize
from jaxlab.systems.moge2.losses import finite_points, huber, weighted_mean

MIN_POINTS = 32  # patches with fewer are skipped
_OFFSETS = 64  # random neighbours of a pixel that say how crowded it is


class LocalLoss(NamedTuple):
  """The local loss and how near the patches came.

  Attributes:
    value: [].
    truncated_error: [], mean of the distance to the truth over the patch's radius, at most 1, of
      the valid points of the kept patches; -1 where none was kept.
    delta: [], share of these points where it is below 1; -1 likewise.
  """
  value: jax.Array
  truncated_error: jax.Array
  delta: jax.Array


def pixel_radius(height, width, level):
  """Radius of a patch in pixels."""
  diagonal = (height**2 + width**2)**0.5
  return int(-(-0.5 / level * diagonal // 1))


def ball_radius(z, gt_focal, level):
  """Radius of a patch in space around a point at depth z."""
  return 0.5 / level / gt_focal * z


def anchor_weights(points, mask, gt_focal, level, offsets):
  """Importance [H, W] of pixels as anchors: one over the number of near neighbours; the sum is 1.

  Args:
    points: finite [H, W, 3].
    mask: bool [H, W].
    gt_focal: [], `geometry.diagonal_focal`.
    level: L.
    offsets: int [K, H, W, 2], rows and columns to the neighbours that are looked at.
  """
  h, w = mask.shape
  at = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing='ij'), axis=-1)
  radius = ball_radius(points[..., 2], gt_focal, level)

  def count(total, offset):
    i, j = jnp.moveaxis(at + offset, -1, 0)
    inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    i, j = jnp.clip(i, 0, h - 1), jnp.clip(j, 0, w - 1)
    near = jnp.linalg.norm(points[i, j] - points, axis=-1) <= radius
    return total + (inside & mask[i, j] & near), None

  total, _ = jax.lax.scan(count, jnp.zeros((h, w)), offsets)
  weights = mask / jnp.maximum(total, 1)
  return weights / jnp.maximum(weights.sum(), 1e-7)


def sample_offsets(key, shape, radius):
  """Uniform offsets [64, H, W, 2] in [-radius, radius]."""
  return jax.random.randint(key, (_OFFSETS, *shape, 2), -radius, radius + 1)


def sample_anchors(key, weights, count):
  """Flat pixels [count], drawn with replacement with probability proportional to weights [H, W]."""
  cumulative = jnp.cumsum(weights.reshape(-1))
  drawn = jax.random.uniform(key, (count,)) * cumulative[-1]
  return jnp.minimum(jnp.searchsorted(cumulative, drawn, side='right'), weights.size - 1)


class Patch(NamedTuple):
  """A window around an anchor.

  Attributes:
    index: int32 [S, S], flat pixels, clipped into the image.
    mask: bool [S, S], in the image and valid.
  """
  index: jax.Array
  mask: jax.Array


def cut_patch(anchor, mask, radius):
  """The window of (2 radius + 1)^2 pixels around a flat pixel, without regard to space."""
  h, w = mask.shape
  steps = jnp.arange(-radius, radius + 1)
  i, j = (anchor // w + steps)[:, None], (anchor % w + steps)[None]
  inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
  index = jnp.clip(i, 0, h - 1) * w + jnp.clip(j, 0, w - 1)
  return Patch(index, inside & mask.reshape(-1)[index])


def local_loss_given_anchors(pred, gt, gt_focal, global_scale, anchors, *, level, resolution,
                             trunc=1.0, beta=0.0, chunk=16):
  """L1 of the points of each patch after its own scale and shift.

  Args:
    pred: [H, W, 3].
    gt: [H, W, 3], NaN or inf where invalid.
    gt_focal: [].
    global_scale: [], of the global loss; patches whose scale is ten times off are skipped.
    anchors: int [P], flat pixels with valid ground truth.
    level: L; a patch has the size of 1 / L of the image's diagonal.
    resolution: side of the grid of a patch's points that is aligned.
    trunc: of the alignment.
    beta: of `huber`.
    chunk: patches at a time; memory is bounded by it.

  Returns:
    LocalLoss; skipped patches count as 0 in the mean over the patches.
  """
  gt, mask = finite_points(gt)
  h, w = mask.shape
  size = pixel_radius(h, w, level)
  flat_gt, flat_pred = gt.reshape(-1, 3), pred.reshape(-1, 3)
  inverse = weighted_mean(1 / jnp.where(mask, gt[..., 2], 1.0), mask)
  harmonic = 1 / jnp.maximum(inverse, 1e-7)

  def patch_loss(anchor):
    window = cut_patch(anchor, mask, size)
    center = flat_gt[anchor]
    radius = ball_radius(center[2], gt_focal, level)
    g, p = flat_gt[window.index], flat_pred[window.index]
    near = jnp.linalg.norm(g - center, axis=-1) <= radius
    valid = window.mask & near & mask.reshape(-1)[anchor]
    index, low = resize.masked_nearest(valid, resolution, resolution)
    index, low = index.reshape(-1), low.reshape(-1)
    weight = low / (radius + 1e-7)
    scale, shift, _ = alignment.align_points_affine(
        resize.gather(p, index), resize.gather(g, index), weight, trunc, shift='xyz')
    ratio = scale / jnp.where(global_scale > 0, global_scale, 1.0)
    fits = jnp.where(global_scale > 0, (ratio > 0.1) & (ratio < 10), scale > 0)
    enough = valid.sum() >= MIN_POINTS
    scale = jnp.where(fits & enough, scale, 0.0)
    shift = jnp.where(fits & enough, shift, 0.0)
    aligned = scale * p + shift
    weights = valid * fits * enough / jnp.maximum(g[..., 2], 0.1 * harmonic)
    value = jnp.mean(huber(jnp.abs(aligned - g) * weights[..., None], beta))
    error = jnp.linalg.norm(jax.lax.stop_gradient(aligned) - g, axis=-1) / radius
    kept = valid * enough
    return (value, jnp.sum(kept * jnp.minimum(error, 1.0)), jnp.sum(kept * (error < 1)),
            jnp.sum(kept))

  # The backward pass recomputes a chunk's windows, so that no more than one lies in memory.
  values, errors, near, counts = jax.lax.map(jax.checkpoint(patch_loss), anchors,
                                             batch_size=min(chunk, len(anchors)))
  total = counts.sum()
  share = lambda x: jnp.where(total > 0, x.sum() / jnp.maximum(total, 1), -1.0)
  return LocalLoss(values.mean(), share(errors), share(near))


def local_loss(key, pred, gt, gt_focal, global_scale, *, level, resolution, num_patches, **options):
  """`local_loss_given_anchors` with anchors drawn by importance.

  Args:
    key: PRNG key.
    pred: as there, like the other arguments.
    gt: as there.
    gt_focal: as there.
    global_scale: as there.
    level: as there.
    resolution: as there.
    num_patches: P.
    **options: `trunc`, `beta`, `chunk`.
  """
  points, mask = finite_points(gt)
  offset_key, anchor_key = jax.random.split(key)
  offsets = sample_offsets(offset_key, mask.shape, pixel_radius(*mask.shape, level))
  weights = anchor_weights(points, mask, gt_focal, level, offsets)
  anchors = sample_anchors(anchor_key, weights, num_patches)
  return local_loss_given_anchors(pred, gt, gt_focal, global_scale, anchors, level=level,
                                  resolution=resolution, **options)
