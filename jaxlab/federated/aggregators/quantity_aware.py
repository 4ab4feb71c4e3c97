"""FedRA (arXiv 2205.10848): scores of update and claimed size, and an estimate of how many lie."""
import math
from typing import Literal

import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.distance import others, ranks, squared_distances
from jaxlab.federated.aggregators.stack import average, from_rule, sum_in_order

_IMPOSSIBLE = -1e30  # log-likelihood of a number that is not considered
# What a size, and a score in units of the median, count as at most, so that nothing overflows.
_LARGEST_SIZE, _LARGEST_SCORE = 2.0**60, 2.0**30

FACTORS = {
    'product': lambda a, b: jnp.sqrt(a) * jnp.sqrt(b),
    'pairwise': lambda a, b: 1 / jnp.sqrt(1 / a + 1 / b),
    'self': lambda a, b: jnp.sqrt(a) + 0 * b,
    'none': lambda a, b: jnp.ones_like(a + b),
}


def scores_of(distances, sizes, factor):
  """s_i = sum over the others of phi(q_i, q_j) |u_i - u_j| [n]; +inf for the absent.

  Args:
    distances: [n, n], not squared.
    sizes: q [n]; 0 means absent, and more than 2^60 counts as that.
    factor: phi, a name of `FACTORS`.
  """
  present = sizes > 0
  sizes = jnp.minimum(jnp.where(present, sizes, 1), _LARGEST_SIZE).astype(distances.dtype)
  # The column is i, the row j: rows are summed in order.
  phi = FACTORS[factor](sizes[None, :], sizes[:, None])
  total = sum_in_order(jnp.where(others(present), phi * distances.T, 0))
  return jnp.where(present, total, jnp.inf)


def log_likelihoods(scores, *, mixing=True, floor=0.1, m_max=None):
  """Log-likelihood of every number m of malicious clients: two Gaussians over the sorted scores.

  The n - m lowest scores, in units of the median and at most 2^30, are one Gaussian and the m
  highest the other, each with its own mean and maximum-likelihood variance, at least floor^2;
  `mixing` adds the logarithms of the shares of the groups.

  Args:
    scores: [n], +inf for the absent.
    mixing: whether the shares count.
    floor: smallest standard deviation.
    m_max: largest m considered; never more than floor((present - 1) / 2).

  Returns:
    [floor((n - 1) / 2) + 1], -1e30 for an m that is not considered.
  """
  n = len(scores)
  present = scores < jnp.inf
  count = present.sum().astype(scores.dtype)
  ordered = jnp.sort(scores)
  number = lambda x: x.astype(jnp.int32)
  low, high = (ordered[jnp.maximum(number((count - 1 + i) // 2), 0)] for i in (0, 1))
  median = (low + high) / 2
  here = jnp.arange(n) < count
  usable = (median > 0) & (median < jnp.inf)
  ordered = jnp.where(here, ordered, 0) / jnp.where(usable, median, 1)
  ordered = jnp.minimum(ordered, _LARGEST_SCORE)

  m = jnp.arange((n - 1) // 2 + 1, dtype=scores.dtype)
  rank = jnp.arange(n, dtype=scores.dtype)[:, None]

  def gaussian(member, size):
    """Log-likelihood [m] of a group: two passes, so that nothing cancels."""
    values, weight = ordered[:, None], member.astype(scores.dtype)
    divisor = jnp.maximum(size, 1)
    mean = sum_in_order(weight * values) / divisor
    square = sum_in_order(weight * jnp.square(values - mean))
    variance = jnp.maximum(square / divisor, floor**2)
    return -size / 2 * jnp.log(2 * math.pi * variance) - square / (2 * variance)

  benign = gaussian(rank < count - m, jnp.maximum(count - m, 0))
  malicious = gaussian((rank >= count - m) & (rank < count), m)
  total = benign + malicious
  if mixing:
    share = lambda k: k * jnp.log(jnp.maximum(k, 1) / jnp.maximum(count, 1))
    total += jnp.where(m > 0, share(count - m) + share(m), 0)
  largest = (count - 1) // 2 if m_max is None else jnp.minimum(m_max, (count - 1) // 2)
  return jnp.where((m <= largest) & (usable | (m == 0)), total, _IMPOSSIBLE)


def fedra(*, factor: Literal['product', 'pairwise', 'self', 'none'] = 'product',
          mixing: bool = True, floor: float = 0.1, m_max: int | None = None,
          m: int | None = None):
  """FedRA: drops the m_hat clients of the highest scores, and averages the others by size.

  Args:
    factor: how the claimed sizes enter the score: 'product' sqrt(q_i q_j), 'pairwise'
      (1/q_i + 1/q_j)^(-1/2), 'self' sqrt(q_i), 'none' 1.
    mixing: whether the estimator counts the shares of the two groups.
    floor: smallest standard deviation of a group, in units of the median score.
    m_max: most clients to drop; floor((n - 1) / 2) by default.
    m: the number to drop where it is known; then nothing is estimated.
  """
  config_lib.require(floor > 0, 'floor', 'more than 0', floor)
  for name, value in (('m_max', m_max), ('m', m)):
    config_lib.require(value is None or value >= 0, name, 'at least 0', value)

  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    distances = jnp.sqrt(squared_distances(updates, present))
    scores = scores_of(distances, weights, factor)
    info = {'scores': scores}
    if m is None:
      info['log_likelihoods'] = log_likelihoods(scores, mixing=mixing, floor=floor, m_max=m_max)
      m_hat = info['log_likelihoods'].argmax()
    else:
      m_hat = jnp.int32(m)
    keep = (ranks(scores) < present.sum() - m_hat) & present
    info |= {'m_hat': m_hat, 'keep': keep}
    return average(updates, jnp.where(keep, weights, 0)), state, info
  return from_rule(rule, minimum=1 if m is None else m + 1)
