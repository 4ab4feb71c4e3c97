"""MoGe's losses of one image (arXiv 2410.19115, 2507.02546); vmap over images.

Ground truth points [H, W, 3] hold NaN (unknown) or inf (sky) where they are not finite. Each loss
returns a float32 scalar.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.moge2 import alignment, geometry, resize

_DEGREE = float(np.pi / 180)


class GlobalLoss(NamedTuple):
  """The global loss and what it aligned with.

  Attributes:
    value: [].
    scale: [], of prediction to ground truth, without gradient; 0 where none is valid. For metric
      data this is the scale that the network should name.
    truncated_error: [], mean of the distance to the truth over its depth, at most 1, of valid
      pixels.
    delta: [], share of valid pixels where it is below 1.
  """
  value: jax.Array
  scale: jax.Array
  truncated_error: jax.Array
  delta: jax.Array


def huber(error, beta):
  """|e| for beta 0; else e^2 / 2 beta below beta and |e| - beta / 2 above."""
  if not beta:
    return error
  return jnp.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)


def weighted_mean(x, w):
  """Mean of x weighted by w; 0 where w is 0 everywhere."""
  return jnp.sum(x * w) / jnp.maximum(jnp.sum(w), 1e-7)


def finite_points(points):
  """(points with 1 where they are not finite, bool [H, W]: which are)."""
  mask = jnp.isfinite(points).all(-1)
  return jnp.where(mask[..., None], points, 1.0), mask


def depth_weights(z, mask):
  """1 / z where valid, at most ten times its mean there."""
  valid = mask.astype(jnp.float32)
  weights = valid / jnp.maximum(z, 1e-5)
  return jnp.minimum(weights, 10.0 * weighted_mean(weights, valid))


def global_loss(pred, gt, *, resolution=48, trunc=1.0, beta=0.0, sparsity_aware=False, anchors=None,
                metric=False):
  """L1 of points after one scale and one shift in z, weighted by 1 / depth.

  Args:
    pred: [H, W, 3].
    gt: [H, W, 3].
    resolution: side of the grid of valid points that is aligned.
    trunc: of the alignment.
    beta: of `huber`.
    sparsity_aware: divides by the share of valid pixels relative to that of the grid.
    anchors: points of the grid that are tried as anchors; None for all.
    metric: True aligns by a shift in z alone, the scale being 1 (the entangled variant).

  Returns:
    GlobalLoss.
  """
  gt, mask = finite_points(gt)
  index, mask_low = resize.masked_nearest(mask, resolution, resolution)
  index, mask_low = index.reshape(-1), mask_low.reshape(-1)
  pred_low, gt_low = resize.gather(pred, index), resize.gather(gt, index)
  w = mask_low / jnp.maximum(gt_low[:, 2], 1e-2)
  if metric:
    scale = jnp.float32(1.0)
    shift = alignment.align_points_shift(pred_low, gt_low, w, trunc, shift='z')
  else:
    scale, shift, _ = alignment.align_points_affine(pred_low, gt_low, w, trunc, shift='z',
                                                    anchors=anchors)
  valid = (scale > 0) & mask_low.any()
  scale, shift = jnp.where(valid, scale, 0.0), jnp.where(valid, shift, 0.0)
  aligned = scale * pred + shift
  weights = depth_weights(gt[..., 2], mask) * valid
  value = jnp.mean(huber(jnp.abs(aligned - gt) * weights[..., None], beta))
  if sparsity_aware:
    value /= jnp.maximum(jnp.mean(mask), 1e-7) / jnp.maximum(jnp.mean(mask_low), 1e-7)
  error = jnp.linalg.norm(jax.lax.stop_gradient(aligned) - gt, axis=-1) / gt[..., 2]
  return GlobalLoss(value, jax.lax.stop_gradient(scale),
                    weighted_mean(jnp.minimum(error, 1.0), mask), weighted_mean(error < 1, mask))


def edge_loss(pred, gt):
  """Huber loss of the angles between neighbouring points' differences, predicted and true."""
  gt, mask = finite_points(gt)
  h, w = mask.shape

  def along(axis):
    step = lambda x: jnp.diff(x, axis=axis)
    both = mask[1:] & mask[:-1] if axis == 0 else mask[:, 1:] & mask[:, :-1]
    # Differences of masked points are nothing to differentiate.
    keep = lambda x: jnp.where(both[..., None], step(x), 1.0)
    angle = geometry.angle(keep(pred), keep(gt))
    angle = jnp.clip(angle, 0.1 * _DEGREE, 90 * _DEGREE)
    return jnp.mean(jnp.where(both, huber(angle, 3 * _DEGREE), 0.0))

  return (along(0) + along(1)) / (2 * max(h, w))


def normal_loss(pred, gt):
  """MoGe-1: Huber loss of the angles between normals of the four triangles of each 2 x 2 quad."""
  gt, mask = finite_points(gt)
  h, w = mask.shape
  corners = lambda x: (x[:-1, :-1], x[:-1, 1:], x[1:, 1:], x[1:, :-1])
  p, g, m = corners(pred), corners(gt), corners(mask)
  total = 0.0
  for a in range(4):
    b, c = (a + 1) % 4, (a - 1) % 4
    ok = m[a] & m[b] & m[c]
    normal = lambda x: jnp.where(ok[..., None], jnp.cross(x[b] - x[a], x[c] - x[a]), 1.0)
    angle = jnp.clip(geometry.angle(normal(p), normal(g)), 1 * _DEGREE, 90 * _DEGREE)
    total += jnp.mean(jnp.where(ok, huber(angle, 3 * _DEGREE), 0.0))
  return total / (4 * max(h, w))


def normal_map_loss(pred, gt):
  """Mean over all pixels of the squared angle to the true normal; NaN normals count as 0.

  Args:
    pred: [H, W, 3], of any length.
    gt: [H, W, 3].
  """
  gt, mask = finite_points(gt)
  a, b = geometry.normalize(pred), geometry.normalize(gt)
  cos = jnp.sum(a * b, axis=-1)
  length = lambda x: jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-30)
  sine = jnp.minimum(length(b - a * cos[..., None]), length(a - b * cos[..., None]))
  return jnp.mean(mask * jnp.arctan2(sine + 1e-8, cos)**2)


def mask_bce_loss(logits, positive, negative):
  """Binary cross entropy of the mask, mean over all pixels; pixels of neither kind count as 0.

  Args:
    logits: [H, W].
    positive: bool [H, W], pixels with finite depth.
    negative: bool [H, W], pixels that are infinitely far.
  """
  loss = jnp.where(positive, jax.nn.softplus(-logits), jax.nn.softplus(logits))
  return jnp.mean(jnp.where(positive | negative, loss, 0.0))


def mask_l2_loss(mask, positive, negative):
  """MoGe-1: squared error of the raw mask [H, W], mean over all pixels."""
  return jnp.mean(negative * mask**2 + positive * (1 - mask)**2)


def metric_scale_loss(scale, target):
  """Squared difference of logarithms; 0 where `target` (no gradient) is not positive."""
  target = jax.lax.stop_gradient(target)
  safe = jnp.where(target > 0, target, 1.0)
  return jnp.where(target > 0, (jnp.log(scale) - jnp.log(safe))**2, 0.0)
