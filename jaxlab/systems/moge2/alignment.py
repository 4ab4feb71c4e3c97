"""Robust, optimal and efficient alignment of point maps (arXiv 2410.19115, section 3.2).

All problems come down to a scale of one variable, a* = argmin_a sum_i min(t, w_i |a x_i - y_i|),
which is solved exactly, and to anchors: the optimum of a scale with a shift passes through one
point, so that each point in turn is moved to the origin and the best one wins. Functions are of one
image; vmap over images. The solvers have no gradient of their own: scale and shift are recomputed
from the winning pair of points, and differentiate as functions of it.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.moge2 import anchor_bounds

EPS = 1e-7
DENSE = 200  # up to this many terms every candidate is tried, which beats sorting on the CPU
_FIRST, _BOUNDED_CHUNK = 8, 16  # anchors that give the first solution, and those of a later step
_BEST = 4  # candidates of a sorted sweep that are evaluated anew: its running sums are float32
_SHIFTS = {'z': (0.0, 0.0, 1.0), 'xyz': (1.0, 1.0, 1.0), 'depth': (1.0,)}


class Scale(NamedTuple):
  """Solution of the problem in one variable.

  Attributes:
    scale: [], a* = y / x of one term.
    loss: [], the objective there.
    index: int32 [], that term.
  """
  scale: jax.Array
  loss: jax.Array
  index: jax.Array


class Affine(NamedTuple):
  """A scale with a shift.

  Attributes:
    scale: [].
    shift: [3], or [] of scalars.
    loss: [], the objective there.
  """
  scale: jax.Array
  shift: jax.Array
  loss: jax.Array


def _clip(errors, trunc):
  return errors if trunc is None else jnp.minimum(errors, trunc)


def _objective(a, x, y, w, trunc):
  """Objectives [K] of scales a [K]."""
  return jnp.sum(_clip(w * jnp.abs(a[:, None] * x - y), trunc), axis=-1)


def _dense(x, y, w, trunc):
  a = y / jnp.maximum(x, EPS)
  # A weighted median does not depend on the weights' size; only truncation has a unit.
  least = 0.0 if trunc is None else 1e-6
  losses = jnp.where(w * x > least, _objective(a, x, y, w, trunc), jnp.inf)
  return jnp.argmin(losses)


def _keys(x):
  """uint32 keys whose order is that of floats."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _argsort(x):
  """Stable order of floats [n].

  Two passes over 16 bits of the keys, each packed with a position into one integer: XLA's CPU sorts
  single integers ten times as fast as floats with a payload.
  """
  if len(x) > 1 << 16:
    return jnp.argsort(x)
  keys, numbers = _keys(x), jnp.arange(len(x), dtype=jnp.uint32)
  pack = lambda part: jnp.sort(part << 16 | numbers, stable=False) & 0xFFFF
  first = pack(keys & 0xFFFF)
  return first[pack(keys[first] >> 16)].astype(jnp.int32)


def _median(x, y, w):
  """Index of the weighted median of y / x, weights w x: the first that reaches half of them.

  Found by bisection of the ratio's bits, 32 sums instead of a sort.
  """
  wx, keys = w * x, _keys(y / jnp.maximum(x, EPS))
  half = 0.5 * wx.sum()

  def narrow(step, low):
    # `low` is the largest prefix below which there is less than half.
    middle = low | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
    less = jnp.sum(jnp.where(keys < middle, wx, 0.0)) < half
    return jnp.where(less, middle, low)

  found = jax.lax.fori_loop(0, 32, narrow, jnp.uint32(0))
  return jnp.argmax((keys == found) & (wx > 0))


def _sweep(x, y, w, trunc):
  """Index of the best term by one pass over the sorted breakpoints of the objective.

  A term is truncated up to B and from C on, and bends at A in between.
  """
  wx = w * x
  safe = jnp.maximum(wx, EPS)
  breaks = jnp.concatenate([y / jnp.maximum(x, EPS), (w * y - trunc) / safe,
                            (w * y + trunc) / safe])
  order = _argsort(breaks)
  sorted_breaks, n = breaks[order], len(x)
  sums = lambda *parts: jnp.cumsum(jnp.concatenate(parts)[order])
  wy = w * y
  slope = sums(2 * wx, -wx, -wx)
  constant = sums(-2 * wy, wy - trunc, wy + trunc)
  values = n * trunc + constant + sorted_breaks * slope
  usable = (order < n) & (wx[order % n] > 1e-6)
  _, best = jax.lax.top_k(-jnp.where(usable, values, jnp.inf), min(_BEST, n))
  terms = order[best] % n
  losses = _objective(breaks[terms], x, y, w, trunc)
  return terms[jnp.argmin(jnp.where(usable[best], losses, jnp.inf))]


def _positive(x, y):
  """The same terms with x >= 0."""
  sign = jnp.where(x < 0, -1.0, 1.0)
  return x * sign, y * sign


def _solve(x, y, w, trunc):
  """(index, objective) of the best term; index 0 where no term decides."""
  x, y = _positive(x, y)
  if len(x) <= DENSE:
    index = _dense(x, y, w, trunc)
  else:
    index = _median(x, y, w) if trunc is None else _sweep(x, y, w, trunc)
  a = y[index] / jnp.maximum(x[index], EPS)
  return index, _objective(a[None], x, y, w, trunc)[0]


def align_1d(x, y, w, trunc=None):
  """argmin_a sum_i min(trunc, w_i |a x_i - y_i|), exact.

  Args:
    x: [n].
    y: [n].
    w: [n], >= 0.
    trunc: where an error stops to count; None for plain weighted L1 (a weighted median).

  Returns:
    Scale; its gradient flows through y[index] / x[index].
  """
  x, y, w = jnp.asarray(x), jnp.asarray(y), jnp.asarray(w)
  index, loss = _solve(*jax.lax.stop_gradient((x, y, w)), trunc)
  x, y = _positive(x, y)
  return Scale(y[index] / jnp.maximum(x[index], EPS), loss, index)


def align_points_scale(source, target, w, trunc=None):
  """Scale with the least sum of w |s source - target| over points [N, 3]; see `align_1d`."""
  return align_1d(source.reshape(-1), target.reshape(-1), jnp.repeat(w, 3), trunc)


def _anchor_solver(source, target, w, trunc, moved):
  """k -> (entry, objective) with point k [C] moved to the origin, the axes where `moved` is 1;
  the objective is infinite where the point has no weight."""
  weights = jnp.repeat(w, source.shape[1])

  def solve(k):
    entry, loss = _solve((source - moved * source[k]).reshape(-1),
                         (target - moved * target[k]).reshape(-1), weights, trunc)
    return entry, jnp.where(w[k] > 0, loss, jnp.inf)

  return solve


def _from_anchor(points, moved, k, entry):
  """Entry number `entry` of points [N, C] with point k moved to the origin."""
  return points.reshape(-1)[entry] - (moved * points[k])[entry % points.shape[1]]


def _best_anchor(source, target, w, trunc, moved, anchors, chunk):
  """(anchor, entry, objective) over anchors; points [N, C], `moved` [C] 1 where anchors shift."""
  numbers = jnp.arange(len(source), dtype=jnp.int32) if anchors is None else jnp.asarray(
      anchors, jnp.int32)
  entries, losses = jax.lax.map(_anchor_solver(source, target, w, trunc, moved), numbers,
                                batch_size=min(chunk, len(numbers)))
  best = jnp.argmin(losses)
  return numbers[best], entries[best], losses[best]


def _best_bounded_anchor(source, target, w, trunc, moved, chunk):
  """What `_best_anchor` gives for shifts of z of all points, whose bounds leave few to solve.

  Anchors are solved in the order of their lower bounds until the next bound is above the best.
  """
  total, chunk = len(source), min(chunk, _BOUNDED_CHUNK)
  solver = jax.vmap(_anchor_solver(source, target, w, trunc, moved))

  def solve(numbers):
    """(anchor, entry, objective) of the best of some anchors."""
    entries, losses = solver(numbers)
    best = jnp.argmin(losses)
    return numbers[best], entries[best], losses[best]

  usable = jnp.argsort(w <= 0).astype(jnp.int32)
  spread = jnp.linspace(0.0, 1.0, _FIRST) * jnp.maximum((w > 0).sum() - 1, 0)
  first = solve(usable[spread.astype(jnp.int32)])
  scale = _from_anchor(target, moved, *first[:2]) / _from_anchor(source, moved, *first[:2])
  lower = anchor_bounds.lower_bounds(source, target, w, trunc, scale, first[-1])
  order = jnp.argsort(lower).astype(jnp.int32)
  noise = anchor_bounds.noise_of(target, w[:, None])
  padded = jnp.pad(order, (0, -total % chunk), mode='edge')

  def unsure(carry):
    start, (*_, loss) = carry
    return (start < total) & (lower[order[jnp.minimum(start, total - 1)]] + noise < loss)

  def step(carry):
    start, best = carry
    found = solve(jax.lax.dynamic_slice(padded, (start,), (chunk,)))
    better = found[-1] < best[-1]
    return start + chunk, jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best)

  return jax.lax.while_loop(unsure, step, (jnp.int32(0), first))[1]


def _affine(source, target, w, trunc, shift, anchors, chunk, zero):
  source, target, w = (jnp.asarray(x) for x in (source, target, w))
  moved = jnp.array(_SHIFTS[shift], source.dtype)
  fixed = jax.lax.stop_gradient((source, target, w))
  if shift == 'z' and anchors is None and source.size > DENSE:
    k, entry, loss = _best_bounded_anchor(*fixed, trunc, moved, chunk)
  else:
    k, entry, loss = _best_anchor(*fixed, trunc, moved, anchors, chunk)
  difference = _from_anchor(source, moved, k, entry)
  scale = _from_anchor(target, moved, k, entry) / jnp.where(difference == 0, zero, difference)
  return Affine(scale, moved * target[k] - scale * (moved * source[k]), loss)


def align_points_affine(source, target, w, trunc=None, *, shift='xyz', anchors=None, chunk=64):
  """Scale and shift with the least sum of min(trunc, w |s source + t - target|) over entries.

  Args:
    source: [N, 3].
    target: [N, 3].
    w: [N], >= 0; points of weight 0 are no anchors.
    trunc: see `align_1d`.
    shift: 'xyz' or 'z' (t = (0, 0, tz)).
    anchors: numbers of the points to try as anchors; None for all, which is exact.
    chunk: anchors at a time; memory is bounded by it.

  Returns:
    Affine. The scale may be negative, and the loss is inf where every weight is 0: callers look.
  """
  return _affine(source, target, w, trunc, shift, anchors, chunk, 1.0)


def align_points_shift(source, target, w, trunc=None, *, shift='xyz'):
  """Shift [3] with the least sum of min(trunc, w |source + t - target|) over coordinates."""
  difference = target - source
  solve = lambda d: align_1d(jnp.ones_like(d), d, w, trunc).scale
  shifts = jax.vmap(solve, in_axes=1)(difference)
  return shifts * jnp.array(_SHIFTS[shift], source.dtype)


def align_depth_scale(source, target, w, trunc=None):
  """Scale [] of depths [N]."""
  return align_1d(source, target, w, trunc).scale


def align_depth_affine(source, target, w, trunc=None, *, chunk=64):
  """Scale and shift of depths [N]."""
  result = _affine(source[:, None], target[:, None], w, trunc, 'depth', None, chunk, EPS)
  return result._replace(shift=result.shift[0])


def align_affine_lstsq(source, target, w=None):
  """(a, b) of the least squares a source + b = target, weighted by w."""
  w = jnp.ones_like(source) if w is None else w
  total = jnp.maximum(w.sum(), np.finfo(np.float32).tiny)
  mean_x, mean_y = (w * source).sum() / total, (w * target).sum() / total
  x, y = source - mean_x, target - mean_y
  a = (w * x * y).sum() / jnp.maximum((w * x * x).sum(), np.finfo(np.float32).tiny)
  return a, mean_y - a * mean_x
