"""Attacks fitted to a defence: STAT-OPT (Fang et al. 2020) and DYN-OPT (min-max, min-sum)."""
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.distance import krum_scores, others, ranks, squared_distances
from jaxlab.federated.attacks.crafted import Knowledge, from_update, known, moments

SMALLEST = 1e-5  # where the searches stop
FIRST = 10.0  # step and start of DYN-OPT's search, so that gamma stays under 20


def opposite_range(updates, mask, knowledge):
  """Where STAT-OPT draws from against trimmed mean and median: (low [d], high [d])."""
  mean, deviation = moments(updates, mask)
  up = mean >= 0  # then the malicious values go down
  if knowledge == 'own':
    return (jnp.where(up, mean - 4 * deviation, mean + 3 * deviation),
            jnp.where(up, mean - 3 * deviation, mean + 4 * deviation))
  least = jnp.where(mask[:, None], updates, jnp.inf).min(0)
  most = jnp.where(mask[:, None], updates, -jnp.inf).max(0)
  farther = 2.0
  low = jnp.where(least > 0, least / farther, least * farther)
  high = jnp.where(most > 0, most * farther, most / farther)
  low, high = jnp.where(up, low, most), jnp.where(up, least, high)
  return jnp.where(mask.any(), low, 0), jnp.where(mask.any(), high, 0)


def krum_rate(updates, benign, malicious):
  """STAT-OPT's lambda against Krum, halved until Krum picks a malicious -lambda sign(mean).

  Args:
    updates: clean updates [n, d].
    benign: bool [n].
    malicious: bool [n].

  Returns:
    (lambda, its start, signs [d]).
  """
  mean, _ = moments(updates, benign)
  signs = jnp.sign(mean)
  size, liars = updates.shape[1], malicious.sum()
  count = benign.sum() + liars
  apart = squared_distances(updates, benign)
  nearest = krum_scores(apart, benign, 0)  # n - m - 2 of the n - m benign
  from_mean = jnp.sqrt(jnp.where(benign, jnp.square(updates - mean).sum(1), 0).max())
  start = jnp.sqrt(nearest.min() / (jnp.maximum(count - 2 * liars - 1, 1) * size))
  start += from_mean / jnp.sqrt(size)
  # |u_i + lambda s|^2 needs no pass over the updates.
  own, along, length = jnp.square(updates).sum(1), updates @ signs, jnp.square(signs).sum()

  def fooled(rate):
    to_liar = own + 2 * rate * along + rate**2 * length
    both = malicious[:, None] & malicious[None, :]
    distances = jnp.where(malicious[:, None], to_liar[None, :], apart)
    distances = jnp.where(malicious[None, :] & ~malicious[:, None], to_liar[:, None], distances)
    scores = krum_scores(jnp.where(both, 0, distances), benign | malicious, liars)
    return malicious[jnp.argmin(scores)]

  unsuccessful = lambda rate: ~fooled(rate) & (rate > SMALLEST)
  rate = jax.lax.while_loop(unsuccessful, lambda rate: rate / 2,
                            jnp.where(jnp.isfinite(start), start, 0))
  return rate, start, signs


def stat_opt(*, target: Literal['trimmed_mean', 'krum', 'generic'] = 'trimmed_mean',
             knowledge: Knowledge = 'all'):
  """STAT-OPT (Fang et al. 2020): against the sign of the benign mean, as far as the defence lets.

  Args:
    target: 'trimmed_mean', also for the median: each malicious client draws its own values just
      beyond the benign ones (beyond 3 to 4 deviations under knowledge 'own'); 'krum': the largest
      step against the signs that Krum still picks; 'generic', whatever the defence: mean - gamma
      sign(mean) with the gamma of min-max.
    knowledge: whose updates are known; 'all' against Krum.
  """
  config_lib.require(target != 'krum' or knowledge == 'all', 'knowledge', "'all' against krum",
                     knowledge)

  def craft(updates, present, malicious, key):
    mask = known(present, malicious, knowledge)
    if target == 'krum':
      rate, _, signs = krum_rate(updates, mask, malicious)
      return -rate * signs
    if target == 'generic':
      mean, _ = moments(updates, mask)
      signs = jnp.sign(mean)
      gamma = dyn_gamma(updates, mask, malicious, -signs, 'min_max', 'max')
      return mean - gamma.astype(mean.dtype) * signs
    low, high = opposite_range(updates, mask, knowledge)
    return low + jax.random.uniform(key, updates.shape, updates.dtype) * (high - low)
  return from_update(craft)


def search(allowed):
  """The largest gamma under 20 with `allowed(gamma)`, by steps of halving size."""
  def body(loop):
    gamma, step, best = loop
    good = allowed(gamma)
    return (jnp.where(good, gamma + step / 2, gamma - step / 2), step / 2,
            jnp.where(good, gamma, best))
  going = lambda loop: jnp.abs(loop[2] - loop[0]) > SMALLEST
  first = jnp.float32(FIRST)
  return jax.lax.while_loop(going, body, (first, first, jnp.zeros_like(first)))[2]


def direction_of(mean, deviation, direction):
  """The perturbation p [d] of DYN-OPT."""
  if direction == 'unit':
    return -mean / jnp.maximum(jnp.sqrt(jnp.square(mean).sum()), 1e-30)
  return -jnp.sign(mean) if direction == 'sign' else -deviation


def dyn_gamma(updates, mask, malicious, perturbation, objective, bound):
  """The largest gamma at which mean + gamma * perturbation passes the objective."""
  mean, _ = moments(updates, mask)
  off = jnp.where(mask[:, None], mean - updates, 0)
  own, along = jnp.square(off).sum(1), off @ perturbation
  length = jnp.square(perturbation).sum()
  apart = jnp.where(others(mask), squared_distances(updates, mask), 0)
  reach = lambda gamma: jnp.where(mask, own + 2 * gamma * along + gamma**2 * length, 0)
  if objective == 'min_max':
    return search(lambda gamma: reach(gamma).max() <= apart.max())
  sums = apart.sum(1)
  if objective == 'min_sum':
    limit = sums.max() if bound == 'max' else jnp.where(mask, sums, jnp.inf).min()
    return search(lambda gamma: reach(gamma).sum() <= limit)

  def selected(gamma):
    """All malicious clients are among those that multi-Krum keeps."""
    present, far = mask | malicious, reach(gamma)
    distances = jnp.where(malicious[:, None], far[None, :], apart)
    distances = jnp.where(malicious[None, :], jnp.where(malicious, 0, far)[:, None], distances)
    distances = jnp.where(malicious[:, None] & malicious[None, :], 0, distances)
    liars = malicious.sum()
    kept = ranks(krum_scores(distances, present, liars)) < present.sum() - liars
    return (kept | ~malicious).all()
  return search(selected)


def dyn_opt(*, objective: Literal['min_max', 'min_sum', 'multi_krum'] = 'min_max',
            direction: Literal['unit', 'sign', 'std'] = 'unit',
            bound: Literal['max', 'min'] = 'max', knowledge: Knowledge = 'all'):
  """DYN-OPT (Shejwalkar and Houmansadr 2021): mean + gamma p with the largest gamma allowed.

  Args:
    objective: 'min_max': no farther from any benign update than the two farthest benign ones are
      from each other; 'min_sum': its sum of squared distances no more than a benign one's;
      'multi_krum': all malicious clients pass multi-Krum's selection.
    direction: p = -mean / |mean|, -sign(mean) or -deviation.
    bound: of 'min_sum', the largest benign sum, or the smallest as in public code.
    knowledge: whose updates are known; 'all' against multi-Krum.
  """
  config_lib.require(objective != 'multi_krum' or knowledge == 'all', 'knowledge',
                     "'all' against multi_krum", knowledge)

  def craft(updates, present, malicious, key):
    del key
    mask = known(present, malicious, knowledge)
    mean, deviation = moments(updates, mask)
    perturbation = direction_of(mean, deviation, direction)
    gamma = dyn_gamma(updates, mask, malicious, perturbation, objective, bound)
    return mean + gamma.astype(mean.dtype) * perturbation
  return from_update(craft)
