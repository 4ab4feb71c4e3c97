"""Quantity enhancement: lies about the number of examples, on top of any attack."""
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.attacks.crafted import Knowledge, known, moments


def scale(*, factor: float = 10.0):
  """`factor` times the true size."""
  config_lib.require(factor > 0, 'factor', 'more than 0', factor)
  return lambda weights, present, malicious: factor * weights


def by_moments(*, scale: float = 3.0, knowledge: Knowledge = 'all'):
  """The whole part of mean + scale * deviation of the known sizes (UA-FedRec)."""
  def claim(weights, present, malicious):
    mean, deviation = moments(weights[:, None], known(present, malicious, knowledge))
    return jnp.maximum(jnp.floor(mean + scale * deviation)[0], 1)
  return claim


def largest(*, factor: float = 1.0):
  """`factor` times the largest benign size."""
  config_lib.require(factor > 0, 'factor', 'more than 0', factor)
  return lambda weights, present, malicious: factor * jnp.where(
      present & ~malicious, weights, 0).max()


QUANTITIES = {'scale': scale, 'moments': by_moments, 'max': largest}


def enhanced(attack, claim):
  """The attack with sizes `claim(weights, present, malicious)` for the malicious clients."""
  def apply(state, payload, messages, weights, malicious, key):
    present = weights > 0
    claimed = jnp.where(malicious & present, claim(weights, present, malicious), weights)
    return attack.apply(state, payload, messages, claimed.astype(weights.dtype), malicious, key)
  return attack._replace(apply=apply)
