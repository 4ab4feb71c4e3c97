"""Real labels refined by a model of synthetic data (arXiv 2507.02546, equations 4-7).

Pixels of real depth whose local structure contradicts the prediction are dropped (the prediction's
scale, global or local, does not matter), and what is missing is filled in with the prediction's
gradients of log depth, anchored at the pixels that stay.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.moge2 import alignment, geometry, local_loss, resize

MIN_POINTS = 16
LEVELS = ((4, 16, 64), (16, 8, 1024), (64, 4, 8192))  # (level, grid, anchors), see `filter_depth`
SHARPNESS = 10.0  # of the weights between pixels, per unit of log depth
_TESTS = 16  # neighbours that say how crowded an anchor is


@functools.partial(jax.jit, static_argnames=('level', 'resolution', 'chunk'))
def filter_given_anchors(real, guess, mask, intrinsics, anchors, tolerance, *, level, resolution,
                         chunk=16):
  """Bool [H, W]: the pixels of `mask` that no patch contradicts.

  Each patch of real points is aligned with the predicted one by a scale and a shift; pixels that
  stay farther away than `tolerance` of the patch's radius are out.

  Args:
    real: depth [H, W].
    guess: predicted depth [H, W].
    mask: bool [H, W], pixels that are looked at; both depths are finite there.
    intrinsics: [3, 3] of both.
    anchors: int [P], flat pixels.
    tolerance: [], also where an error stops to count in the alignment.
    level: L; a patch has the size of 1 / L of the image's diagonal.
    resolution: side of the grid of a patch's points that is aligned.
    chunk: patches at a time.
  """
  h, w = mask.shape
  focal = geometry.diagonal_focal(intrinsics)
  fill = lambda depth: jnp.where(mask, depth, 1.0)
  flat = lambda depth: geometry.unproject(fill(depth), intrinsics).reshape(-1, 3)
  real, guess = flat(real), flat(guess)
  size = local_loss.pixel_radius(h, w, level)

  def contradicted(anchor):
    window = local_loss.cut_patch(anchor, mask, size)
    near, radius = jnp.zeros(window.mask.shape, bool), None
    for points in (real, guess):
      radius = local_loss.ball_radius(points[anchor, 2], focal, level)
      near |= jnp.linalg.norm(points[window.index] - points[anchor], axis=-1) <= radius
    valid = window.mask & near & mask.reshape(-1)[anchor]
    r, g = real[window.index], guess[window.index]
    index, low = resize.masked_nearest(valid, resolution, resolution)
    index, low = index.reshape(-1), low.reshape(-1)
    scale, shift, _ = alignment.align_points_affine(
        resize.gather(r, index), resize.gather(g, index), low / radius, tolerance, shift='xyz')
    far = jnp.linalg.norm(scale * r + shift - g, axis=-1) / radius > tolerance
    return window.index, valid & far & (valid.sum() >= MIN_POINTS)

  index, out = jax.lax.map(contradicted, anchors, batch_size=min(chunk, len(anchors)))
  hits = jnp.zeros(h * w, jnp.int32).at[index.reshape(-1)].add(out.reshape(-1).astype(jnp.int32))
  return mask & (hits == 0).reshape(h, w)


def filter_depth(real, guess, intrinsics, key, *, levels=LEVELS, tolerance=1.0):
  """Bool [H, W]: the pixels of `real` that stay, level by level.

  Args:
    real: depth [H, W], not finite where unknown.
    guess: predicted depth [H, W].
    intrinsics: [3, 3] of both.
    key: PRNG key of the anchors, which are drawn by importance (the mean of both maps').
    levels: triples (level, side of the grid of a patch, number of anchors).
    tolerance: see `filter_given_anchors`.
  """
  mask = jnp.isfinite(real) & jnp.isfinite(guess)
  for number, (level, resolution, count) in enumerate(levels):
    offset_key, anchor_key = jax.random.split(jax.random.fold_in(key, number))
    anchors = _draw(real, guess, mask, intrinsics, offset_key, anchor_key, level, count)
    mask = filter_given_anchors(real, guess, mask, intrinsics, anchors, tolerance, level=level,
                                resolution=resolution)
  return np.asarray(mask)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _draw(real, guess, mask, intrinsics, offset_key, anchor_key, level, count):
  focal, h, w = geometry.diagonal_focal(intrinsics), *mask.shape
  radius = local_loss.pixel_radius(h, w, level)
  offsets = jax.random.randint(offset_key, (_TESTS, h, w, 2), -radius, radius + 1)
  weights = sum(local_loss.anchor_weights(
      geometry.unproject(jnp.where(mask, depth, 1.0), intrinsics), mask, focal, level, offsets)
                for depth in (real, guess)) / 2
  return local_loss.sample_anchors(anchor_key, weights, count)


@functools.partial(jax.jit, static_argnames='steps')
def _fill(log_real, log_guess, keep, inside, sharpness, steps):
  """Correction of `log_guess` [H, W]: that of the kept pixels, spread over the others."""
  weights = []
  for axis in (0, 1):
    cut = lambda x, part: jax.lax.slice_in_dim(
        x, 1 if part else 0, x.shape[axis] - (0 if part else 1), axis=axis)
    both = cut(inside, 0) & cut(inside, 1)
    step = jnp.abs(cut(log_guess, 0) - cut(log_guess, 1))
    weights.append(jnp.where(both, jnp.exp(-2 * sharpness * step), 0.0))

  def laplace(x):
    total = jnp.zeros_like(x)
    for axis, weight in enumerate(weights):
      flow = weight * jnp.diff(x, axis=axis)
      before = [(0, 0), (0, 0)]
      after = [(0, 0), (0, 0)]
      before[axis], after[axis] = (1, 0), (0, 1)
      total += jnp.pad(flow, before) - jnp.pad(flow, after)
    return total

  degree = sum(jnp.pad(w, p) for axis, w in enumerate(weights)
               for p in ([(1, 0), (0, 0)] if axis == 0 else [(0, 0), (1, 0)],
                         [(0, 1), (0, 0)] if axis == 0 else [(0, 0), (0, 1)]))
  free = inside & ~keep
  known = jnp.where(keep, log_real - log_guess, 0.0)
  operator = lambda x: jnp.where(free, laplace(jnp.where(free, x, 0.0)), 0.0)
  scale = jnp.where(free & (degree > 0), 1 / jnp.maximum(degree, 1e-12), 0.0)
  solved, _ = jax.scipy.sparse.linalg.cg(operator, jnp.where(free, -laplace(known), 0.0),
                                         M=lambda x: scale * x, tol=1e-6, maxiter=steps)
  return jnp.where(keep, known, solved)


def complete(real, guess, keep, *, sharpness=SHARPNESS, steps=2000):
  """Depth [H, W] that equals `real` where kept and follows the prediction's detail elsewhere.

  Minimises sum g^2 ((l_i - l_j) - (s_i - s_j))^2 over neighbours, l the log depth, s that of the
  prediction, g = exp(-sharpness |s_i - s_j|), by conjugate gradients from s shifted to the mean of
  the kept pixels; parts without a kept pixel stay there.

  Args:
    real: [H, W].
    guess: [H, W].
    keep: bool [H, W], where `real` is trusted.
    sharpness: how much an edge of the prediction separates.
    steps: at most.

  Returns:
    float32 [H, W]: inf where either depth is, NaN where the prediction is unknown.
  """
  real, guess, keep = np.asarray(real), np.asarray(guess), np.asarray(keep)
  inside = np.isfinite(guess)
  keep = keep & inside & np.isfinite(real)
  log = lambda depth, mask: np.log(np.where(mask, depth, 1.0)).astype(np.float32)
  log_real, log_guess = log(real, keep), log(guess, inside)
  if keep.any():
    log_guess = log_guess + np.float32((log_real - log_guess)[keep].mean())
  delta = _fill(log_real, log_guess, keep, inside, np.float32(sharpness), steps)
  depth = np.where(inside, np.exp(log_guess + np.asarray(delta)), np.nan)
  return np.where(np.isposinf(real) | np.isposinf(guess), np.inf, depth).astype(np.float32)


def corrupt(depth, rng, *, bleed=2, outliers=0.05, holes=0.08):
  """Labels as sensors and reconstructions give them: (depth, bool outliers, bool clean) [H, W].

  Args:
    depth: true depth [H, W], inf in the sky, which stays known.
    rng: numpy.random.Generator.
    bleed: pixels by which the foreground grows.
    outliers: share of finite pixels at half or 1.8 times their depth.
    holes: share of them that is unknown (NaN).
  """
  from scipy import ndimage
  finite = np.isfinite(depth)
  grown = np.where(finite, ndimage.minimum_filter(depth, 2 * bleed + 1), np.inf)
  # A slope is no foreground: only where surfaces end.
  edges = np.asarray(geometry.occlusion_edges(np.where(finite, depth, 1.0), finite))
  jump = (grown < depth / 1.1) & ndimage.binary_dilation(edges, iterations=bleed)
  real = np.where(jump, grown, depth)
  wild = finite & (rng.random(depth.shape) < outliers)
  real = np.where(wild, real * rng.choice([0.5, 1.8], depth.shape), real)
  hole = finite & (rng.random(depth.shape) < holes)
  clean = finite & ~jump & ~wild & ~hole
  return np.where(hole, np.nan, real).astype(np.float32), wild & ~hole, clean


def smooth_bias(depth, rng, *, scale=1.3, error=0.05):
  """The truth at another scale, with a smooth relative error of at most `error`."""
  from scipy import ndimage
  noise = ndimage.gaussian_filter(rng.normal(size=depth.shape), max(depth.shape) / 3)
  noise = error * noise / np.abs(noise).max()
  return np.where(np.isfinite(depth), scale * depth * np.exp(noise), depth).astype(np.float32)
