"""From an affine point map to camera, depth and metric points (MoGe's post-processing)."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.systems.moge2 import geometry, resize

GRID = 64
_STEPS = 20
_NEAR = 1e-3  # least z + shift of a point of the grid, relative to its largest z


class Geometry(NamedTuple):
  """What is known of images.

  Attributes:
    points: [B, H, W, 3] in meters (units of the network without a metric scale).
    depth: [B, H, W].
    mask: bool [B, H, W].
    intrinsics: [B, 3, 3], normalised.
    normal: [B, H, W, 3], or None.
  """
  points: jax.Array
  depth: jax.Array
  mask: jax.Array
  intrinsics: jax.Array
  normal: jax.Array | None


def recover_focal_shift(points, mask, focal=None):
  """Focal and shift in z under which the points project to their own pixels.

  Minimises sum_i |f p_i - uv_i|^2 with p_i = (x_i, y_i) / (z_i + shift) over the shift, f in closed
  form or given, by Levenberg-Marquardt with a fixed number of steps.

  Args:
    points: [H, W, 3].
    mask: bool [H, W].
    focal: [], relative to half the diagonal; None to solve for it.

  Returns:
    (focal [], shift []); 1 and 0 where fewer than two points are valid.
  """
  h, w = mask.shape
  rows, columns = resize.nearest_indices(GRID, h), resize.nearest_indices(GRID, w)
  uv = geometry.view_plane(h, w)[rows][:, columns].reshape(-1, 2)
  points = points[rows][:, columns].reshape(-1, 3)
  valid = mask[rows][:, columns].reshape(-1)
  points = jnp.where(valid[:, None], points, 1.0)
  z = points[:, 2]

  def project(shift):
    p = points[:, :2] / (z + shift)[:, None] * valid[:, None]
    f = jnp.sum(p * uv) / jnp.maximum(jnp.sum(p * p), 1e-12) if focal is None else focal
    return p, f

  def residual(shift):
    p, f = project(shift)
    return (f * p - uv * valid[:, None]).reshape(-1)

  nearest = jnp.min(jnp.where(valid, z, jnp.inf))
  least = _NEAR * jnp.max(jnp.where(valid, jnp.abs(z), 0.0))

  def step(carry, _):
    shift, damping, cost = carry
    value, slope = jax.jvp(residual, (shift,), (jnp.ones_like(shift),))
    curvature = jnp.sum(slope * slope)
    new = shift - jnp.sum(slope * value) / jnp.maximum(curvature * (1 + damping), 1e-20)
    allowed = nearest + new > least
    new_cost = jnp.where(allowed, jnp.sum(residual(jnp.where(allowed, new, shift))**2), jnp.inf)
    better = new_cost < cost
    carry = (jnp.where(better, new, shift), jnp.where(better, 0.1 * damping, 10 * damping),
             jnp.where(better, new_cost, cost))
    return carry, None

  # A map with points behind the camera begins where all of them are in front of it.
  start = jnp.where(nearest > least, 0.0, 2 * least - nearest)
  # The grid may hold one pixel of a small map several times.
  enough = (valid.sum() >= 2) & (mask.sum() >= 2)
  start = jnp.where(enough, start, 0.0).astype(jnp.float32)
  cost = jnp.sum(residual(start)**2)
  (shift, _, _), _ = jax.lax.scan(step, (start, jnp.float32(1e-3), cost), None, length=_STEPS)
  return jnp.where(enough, project(shift)[1], 1.0), jnp.where(enough, shift, 0.0)


@functools.partial(jax.jit, static_argnames=('force_projection', 'apply_mask'))
def infer(points, mask_probability, normal=None, metric_scale=None, fov_x=None, *,
          force_projection=True, apply_mask=True):
  """Camera, depth and points of predictions.

  Args:
    points: [B, H, W, 3], affine. The batch axis may be left out of all arguments.
    mask_probability: [B, H, W].
    normal: [B, H, W, 3], or None.
    metric_scale: [B], or None.
    fov_x: [B], known horizontal field of view in degrees; only the shift is solved then. None where
      it is not known.
    force_projection: whether points are made of depth and camera anew.
    apply_mask: whether depth and points outside the mask become inf, and normals 0.

  Returns:
    Geometry; without the batch axis where the arguments had none.
  """
  if points.ndim == 3:
    one = jax.tree.map(lambda x: jnp.asarray(x)[None],
                       (points, mask_probability, normal, metric_scale, fov_x))
    found = infer(*one, force_projection=force_projection, apply_mask=apply_mask)
    return jax.tree.map(lambda x: x[0], found)
  h, w = mask_probability.shape[1:]
  points = points.astype(jnp.float32)
  mask = mask_probability > 0.5
  if fov_x is None:
    focal, shift = jax.vmap(recover_focal_shift)(points, mask)
  else:
    focal, shift = jax.vmap(recover_focal_shift)(points, mask,
                                                 geometry.focal_from_fov(fov_x, w / h))
  intrinsics = geometry.intrinsics_from_focal(focal, w / h)
  points = points + shift[:, None, None, None] * jnp.array([0.0, 0.0, 1.0])
  depth = points[..., 2]
  mask &= depth > 0
  if force_projection:
    points = geometry.unproject(depth, intrinsics)
  if metric_scale is not None:
    points = points * metric_scale[:, None, None, None]
    depth = depth * metric_scale[:, None, None]
  if apply_mask:
    points = jnp.where(mask[..., None], points, jnp.inf)
    depth = jnp.where(mask, depth, jnp.inf)
    normal = None if normal is None else jnp.where(mask[..., None], normal, 0.0)
  return Geometry(points, depth, mask, intrinsics, normal)
