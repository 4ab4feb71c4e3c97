"""The residual-based rule: a repeated-median line through each coordinate's sorted values."""
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.distance import others
from jaxlab.federated.aggregators.order import keys_of, middle
from jaxlab.federated.aggregators.stack import average, by_blocks, from_rule, sum_in_order

BLOCK = 64  # columns at a time: every pair of clients has a slope


def reweight(columns, present, lam, thresh):
  """Confidence and corrected values of one block of coordinates.

  Args:
    columns: [n, B] values.
    present: bool [n].
    lam: width of the confidence interval.
    thresh: weights below it are replaced by the line.

  Returns:
    (confidence [n, B], values [n, B]).
  """
  n = present.sum().astype(columns.dtype)
  row = jnp.arange(len(columns))
  keys = keys_of(columns)
  before = keys[None] < keys[:, None]
  before |= (keys[None] == keys[:, None]) & (row[None, :] < row[:, None])[..., None]
  rank = jnp.where(present[None, :, None], before, False).sum(1).astype(columns.dtype)
  pairs = others(present)
  gap = rank[:, None] - rank[None, :]
  slopes = (columns[:, None] - columns[None, :]) / jnp.where(gap == 0, 1, gap)
  # middle() looks along the leading axis: slopes[j, i] is the slope of client i against j.
  repeated = middle(slopes, jnp.broadcast_to(pairs[..., None], slopes.shape))
  slope = middle(repeated, present)
  line = middle(columns, present) - slope * (n - 1) / 2 + slope * rank
  residual = columns - line
  spread = 1.4826 * (1 + 5 / (n - 1)) * middle(jnp.abs(residual), present, skip=1) + 1e-7
  leverage = 1 / n + jnp.square(rank - (n - 1) / 2) / ((n**3 - n) / 12)
  scale = jnp.sqrt(jnp.maximum(1 - leverage, 0))
  ratio = residual / spread / jnp.where(scale == 0, 1, scale)
  bound = lam * jnp.sqrt(2 / n)
  weight = jnp.where(ratio == 0, 1, jnp.clip(ratio, -bound, bound) / jnp.where(
      ratio == 0, 1, ratio))
  weight = jnp.where(present[:, None], weight, 0)
  mean = sum_in_order(weight) / n
  off = jnp.where(present[:, None], jnp.square(weight - mean), 0)
  confidence = weight * jnp.sqrt(sum_in_order(off) / jnp.maximum(n - 1, 1))
  return confidence, jnp.where(weight < thresh, line, columns)


def residual(*, lam: float = 2.0, thresh: float = 0.1):
  """Residual-based reweighting (arXiv 1912.11464): clients by their distance from a robust line.

  Memory is O(n d), time O(n^2 d).

  Args:
    lam: width of the confidence interval, in units of sqrt(2 / n).
    thresh: a value of lower weight is replaced by the line.
  """
  config_lib.require(lam > 0, 'lam', 'more than 0', lam)
  config_lib.require(0 <= thresh <= 1, 'thresh', 'in [0, 1]', thresh)

  def rule(updates, weights, state, key):
    del key
    present = weights > 0

    def step(total, columns):
      confidence, values = reweight(columns, present, lam, thresh)
      # A column of zeros, which is no column of the block, has weights 1 and no spread.
      return total + confidence.sum(1), values

    zero = jnp.zeros(len(updates), updates.dtype)
    total, values = by_blocks(step, zero, updates, present, output=(len(updates),), block=BLOCK)
    shares = jnp.where(present, jnp.square(total / jnp.maximum(total.max(), 1e-30)), 0)
    shares = jnp.where(sum_in_order(shares) > 0, shares, present)  # no spread anywhere: evenly
    shares = shares / jnp.maximum(sum_in_order(shares), 1e-30)
    return average(values, shares), state, {'scores': shares}
  return from_rule(rule, minimum=4)
