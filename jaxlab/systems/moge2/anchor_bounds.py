"""Lower bounds of what each anchor of an alignment can reach, by branch and bound.

The problem with a shift of z has two unknowns, a scale a and a shift t:
sum_i min(trunc, w_i |a x_i + m_i t - y_i|), with m_i 1 for the entries of z. An anchor is a line in
the plane (a, t). Boxes of the plane that cannot hold the minimum are dropped, the others are cut
into four; what is left lies around the minimum, and few lines cross it.
"""
import jax
import jax.numpy as jnp

_SIDE = 16  # boxes of the first level a side
_KEPT = 64  # boxes that a level hands on
_LEVELS = 10
_NOISE = 6e-8  # relative rounding of a float32


def noise_of(y, w):
  """Differences [] of objectives below which float32 tells nothing."""
  return _NOISE * jnp.sum(w * jnp.abs(y))


def _interval(x, y, w, trunc, scale, objective):
  """(low, high): outside, entries [n] that no shift moves cost more than `objective` alone.

  NaN where that cannot be said.
  """
  sign = jnp.where(x < 0, -1.0, 1.0)
  x, y = (x * sign)[:, None], (y * sign)[:, None]
  steps = jnp.abs(scale) * 2.0 ** (4 - jnp.arange(20.0) / 2)

  def cost(edge, side):
    # Beyond the edge an entry costs what it costs there, unless its zero is still to come.
    passed = side * (edge * x - y) >= 0
    errors = (w[:, None] * jnp.abs(edge * x - y)).clip(max=trunc)
    return jnp.sum(jnp.where(passed, errors, 0.0), 0)

  def reach(side):
    found = jnp.where(cost(scale + side * steps, side) > objective, steps, jnp.inf).min()
    return scale + side * jnp.where(jnp.isfinite(found), found, jnp.nan)

  return reach(-1), reach(1)


def _bounds(entries, trunc, a, t, half_a, half_t):
  """(lower bound of the objective in each box, objective at its centre) [K]."""
  x, m, y, w = entries
  residuals = x[:, None] * a + m[:, None] * t - y[:, None]
  errors = w[:, None] * jnp.abs(residuals)
  reach = (w * (jnp.abs(x) * half_a + m * half_t))[:, None]
  # An error that neither bends nor is cut within the box is linear; slopes of these cancel.
  linear = errors >= reach
  if trunc is not None:
    linear &= errors + reach <= trunc
  slopes = jnp.stack([w * x, w * m]) @ jnp.where(linear, jnp.sign(residuals), 0.0)
  least = jnp.where(linear, errors, jnp.maximum(errors - reach, 0).clip(max=trunc)).sum(0)
  return (least - jnp.abs(slopes[0]) * half_a - jnp.abs(slopes[1]) * half_t,
          errors.clip(max=trunc).sum(0))


def lower_bounds(source, target, w, trunc, scale, objective):
  """Lower bounds [N] of the objectives of points as anchors, shift 'z'.

  Args:
    source: [N, 3].
    target: [N, 3].
    w: [N], >= 0.
    trunc: where an error stops to count, or None.
    scale: [], of a solution.
    objective: [], of that solution: no bound below it is dropped.

  Returns:
    [N]; inf for points of weight 0. They are correct up to `noise_of`; an anchor that certainly
    does not win may have the bound of another.
  """
  moves = jnp.tile(jnp.array([0.0, 0.0, 1.0], source.dtype), len(source))
  entries = source.reshape(-1), moves, target.reshape(-1), jnp.repeat(w, 3)
  slack = noise_of(*entries[2:])
  low, high = _interval(source[:, :2].reshape(-1), target[:, :2].reshape(-1), jnp.repeat(w, 2),
                        trunc, scale, objective + slack)
  known = jnp.isfinite(low) & jnp.isfinite(high)
  low, high = jnp.where(known, low, scale), jnp.where(known, high, scale)
  z, target_z = source[:, 2], target[:, 2]
  shifts = jnp.where(w > 0, target_z - jnp.stack([low, high])[:, None] * z, jnp.nan)
  first, last = jnp.nanmin(shifts), jnp.nanmax(shifts)
  half_a, half_t = (high - low) / (2 * _SIDE), (last - first) / (2 * _SIDE)
  middle = 2 * jnp.arange(_SIDE) + 1
  a, t = (grid.reshape(-1) for grid in jnp.meshgrid(low + middle * half_a, first + middle * half_t))
  alive = jnp.ones(a.shape, bool)
  dropped = jnp.where(known, jnp.inf, -jnp.inf)  # the least bound of a box that is not looked into

  def keep(a, t, alive, half_a, half_t, dropped, objective):
    bounds, centers = _bounds(entries, trunc, a, t, half_a, half_t)
    bounds = jnp.where(alive, bounds, jnp.inf)
    objective = jnp.minimum(objective, jnp.where(alive, centers, jnp.inf).min())
    negative, order = jax.lax.top_k(-bounds, _KEPT + 1)
    bounds = -negative
    dropped = jnp.minimum(dropped, bounds[-1])
    return bounds[:-1], a[order[:-1]], t[order[:-1]], dropped, objective

  def level(_, carry):
    bounds, a, t, half_a, half_t, dropped, objective = carry
    alive = bounds <= objective + slack
    dropped = jnp.minimum(dropped, jnp.where(alive, jnp.inf, bounds).min())
    half_a, half_t = half_a / 2, half_t / 2
    a = jnp.concatenate([a - half_a, a + half_a] * 2)
    t = jnp.concatenate([t - half_t] * 2 + [t + half_t] * 2)
    bounds, a, t, dropped, objective = keep(a, t, jnp.tile(alive, 4), half_a, half_t, dropped,
                                            objective)
    return bounds, a, t, half_a, half_t, dropped, objective

  bounds, a, t, dropped, objective = keep(a, t, alive, half_a, half_t, dropped, objective)
  bounds, a, t, half_a, half_t, dropped, _ = jax.lax.fori_loop(
      1, _LEVELS, level, (bounds, a, t, half_a, half_t, dropped, objective))
  crosses = (jnp.abs(target_z[:, None] - z[:, None] * a - t)
             <= (half_t + jnp.abs(z)[:, None] * half_a) * (1 + 1e-3))
  lower = jnp.minimum(jnp.where(crosses, bounds, jnp.inf).min(1), dropped)
  return jnp.where(w > 0, lower, jnp.inf)
