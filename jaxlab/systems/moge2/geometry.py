"""Cameras, point maps, normals and edges: OpenCV axes (x right, y down, z forward).

Intrinsics are normalised: fx in widths of the image, fy in heights, principal point (.5, .5); the
centre of pixel (row i, column j) is ((j + .5) / W, (i + .5) / H). "focal" without an index is
relative to half the diagonal. Functions take NumPy or JAX arrays and trace.
"""
import jax.numpy as jnp
import numpy as np

_TINY = 1e-12


def view_plane(height, width, aspect=None):
  """Coordinates [H, W, 2] (x first) of the pixels on a plane whose half diagonal is 1.

  Args:
    height: H.
    width: W.
    aspect: width over height of the image, by default W / H.
  """
  a = width / height if aspect is None else aspect
  span_x, span_y = a / (1 + a * a)**0.5, 1 / (1 + a * a)**0.5
  line = lambda span, n: np.linspace(-span * (n - 1) / n, span * (n - 1) / n, n, dtype=np.float32)
  return np.stack(np.meshgrid(line(span_x, width), line(span_y, height)), axis=-1)


def pixel_uv(height, width):
  """Centres [H, W, 2] of the pixels (x first) in (0, 1)."""
  line = lambda n: ((np.arange(n) + 0.5) / n).astype(np.float32)
  return np.stack(np.meshgrid(line(width), line(height)), axis=-1)


def intrinsics_from_focal(focal, aspect):
  """Normalised intrinsics [..., 3, 3] of `focal` [...], relative to half the diagonal."""
  diagonal = (1 + aspect**2)**0.5
  return camera_matrix(focal / 2 * diagonal / aspect, focal / 2 * diagonal)


def camera_matrix(fx, fy):
  """Intrinsics [..., 3, 3] with the principal point in the middle."""
  fx, fy = jnp.asarray(fx, jnp.float32), jnp.asarray(fy, jnp.float32)
  zero, half, one = jnp.zeros_like(fx), jnp.full_like(fx, 0.5), jnp.ones_like(fx)
  rows = [[fx, zero, half], [zero, fy, half], [zero, zero, one]]
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def focal_from_fov(fov_x, aspect):
  """Focal, relative to half the diagonal, of a horizontal field of view in degrees."""
  return aspect / (1 + aspect**2)**0.5 / jnp.tan(jnp.deg2rad(fov_x) / 2)


def fov_of(intrinsics):
  """Horizontal field of view in degrees [...] of intrinsics [..., 3, 3]."""
  return jnp.rad2deg(2 * jnp.arctan(0.5 / intrinsics[..., 0, 0]))


def diagonal_focal(intrinsics):
  """Focal [...] in units of the full diagonal."""
  return 1 / jnp.sqrt(intrinsics[..., 0, 0]**-2 + intrinsics[..., 1, 1]**-2)


def unproject(depth, intrinsics):
  """Points [..., H, W, 3] of depth [..., H, W] under intrinsics [..., 3, 3]."""
  uv = pixel_uv(*depth.shape[-2:])
  at = lambda i, j: intrinsics[..., i, j, None, None]
  x = (uv[..., 0] - at(0, 2)) / at(0, 0)
  y = (uv[..., 1] - at(1, 2)) / at(1, 1)
  # Where depth is inf or NaN, so is the point; x = 0 would make NaN of inf.
  finite = jnp.isfinite(depth)
  safe = jnp.where(finite, depth, 1.0)
  points = jnp.stack([x * safe, y * safe, safe], axis=-1)
  return jnp.where(finite[..., None], points, depth[..., None])


def normalize(vector):
  """Vectors [..., d] of length 1; zero stays finite, also in the gradient."""
  return vector / jnp.sqrt(jnp.sum(vector**2, axis=-1, keepdims=True) + _TINY**2)


def angle(first, second):
  """Angle [...] in radians between vectors [..., 3] of any lengths."""
  cross = jnp.cross(first, second)
  # The derivative of a norm at 0 is NaN; the guard is far below what float32 can tell apart.
  sine = jnp.sqrt(jnp.sum(cross**2, axis=-1) + 1e-30)
  return jnp.arctan2(sine + _TINY, jnp.sum(first * second, axis=-1))


def neighbour(x, di, dj):
  """x[i + di, j + dj] for maps [H, W, ...]; 0 (False) beyond the edge."""
  h, w = x.shape[:2]
  pad = [(1, 1), (1, 1)] + [(0, 0)] * (x.ndim - 2)
  return jnp.pad(x, pad)[1 + di:1 + di + h, 1 + dj:1 + dj + w]


def normals_from_points(points, mask, max_angle=None):
  """Surface normals of a point map; they face the camera.

  The crosses of neighbouring differences (up x left, left x down, down x right, right x up) are
  normalised and added up.

  Args:
    points: [H, W, 3].
    mask: bool [H, W], which points are valid.
    max_angle: a triangle counts only if its normal is less than this many degrees away from the
      line of sight; None for all.

  Returns:
    (normals [H, W, 3], bool [H, W]: where there is any triangle).
  """
  filled = jnp.where(mask[..., None], points, 1.0)
  steps = {'up': (-1, 0), 'left': (0, -1), 'down': (1, 0), 'right': (0, 1)}
  sides = [(neighbour(filled, *s) - filled, neighbour(mask, *s)) for s in steps.values()]
  ray = normalize(filled)
  total, valid = jnp.zeros_like(filled), jnp.zeros_like(mask)
  for (a, a_ok), (b, b_ok) in zip(sides, sides[1:] + sides[:1]):
    cross = jnp.cross(a, b)
    normal = cross / (jnp.sqrt(jnp.sum(cross**2, axis=-1, keepdims=True)) + _TINY)
    ok = mask & a_ok & b_ok
    if max_angle is not None:
      ok &= jnp.abs(jnp.sum(normal * ray, -1)) > np.cos(np.deg2rad(max_angle))
    total += jnp.where(ok[..., None], normal, 0.0)
    valid |= ok
  length = jnp.sqrt(jnp.sum(total**2, axis=-1, keepdims=True))
  return total / (length + _TINY), valid


def target_normals(depth, intrinsics):
  """Normals [H, W, 3] to learn from; NaN where depth or one of its 4 neighbours is not finite."""
  finite = jnp.isfinite(depth)
  normals, valid = normals_from_points(unproject(depth, intrinsics), finite, max_angle=88.0)
  whole = finite
  for step in ((-1, 0), (0, -1), (1, 0), (0, 1)):
    inside = neighbour(jnp.ones_like(finite), *step)
    whole &= neighbour(finite, *step) | ~inside
  return jnp.where((valid & whole)[..., None], normals, jnp.nan)


def windows(x, radius, fill):
  """[(2 r + 1)^2, H, W]: each pixel's neighbours, `fill` beyond the edge."""
  h, w = x.shape
  padded = jnp.pad(x, radius, constant_values=fill)
  size = 2 * radius + 1
  return jnp.stack([padded[i:i + h, j:j + w] for i in range(size) for j in range(size)])


def depth_edges(depth, *, rtol=0.04):
  """Bool [H, W]: where depth changes by more than `rtol` of itself within the 3 x 3 around.

  Infinite depth beside finite depth is an edge; unknown depth (NaN) should be filled or masked.
  """
  depth = jnp.asarray(depth)
  high, low = windows(depth, 1, -jnp.inf).max(0), windows(depth, 1, jnp.inf).min(0)
  finite = jnp.isfinite(depth)
  inner = jnp.where(finite, high, 0.0) - jnp.where(finite, low, 0.0) > rtol * depth
  return jnp.where(finite, inner, jnp.isfinite(low))


def occlusion_edges(depth, mask, *, tolerance=0.1, thickness=1):
  """Bool [H, W]: where the surface jumps, next to both its front and its back.

  A pixel is in front (behind) if its disparity is larger (smaller) than the mean of its window by
  the relative `tolerance`; an edge has one of each within `thickness` pixels.
  """
  disparity = jnp.where(mask, 1 / depth, 0.0)
  valid = windows(mask, thickness, False)
  mean = jnp.sum(windows(disparity, thickness, 0.0), 0) / jnp.maximum(valid.sum(0), 1)
  front = mask & (disparity > (1 + tolerance) * mean)
  back = mask & (mean > (1 + tolerance) * disparity)
  spread = lambda edge: windows(edge, thickness, False).any(0)
  return spread(front) & spread(back)
