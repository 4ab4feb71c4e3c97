"""Attacks that need no statistics, or nothing but moments: noise, signs, constants, LIE."""
import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.attacks.crafted import Knowledge, from_update, known, moments
from jaxlab.federated.types import Attack


def honest():
  """Clean updates; for those who lie about nothing but their size."""
  def apply(state, payload, messages, weights, malicious, key):
    del payload, malicious, key
    return messages, weights, state
  return Attack(lambda params: (), apply)


def gaussian(*, std: float = 1.0):
  """The same draw of N(0, std^2) in each coordinate from all malicious clients."""
  config_lib.require(std >= 0, 'std', 'at least 0', std)
  return from_update(lambda updates, present, malicious, key: std * jax.random.normal(
      key, updates.shape[1:], updates.dtype))


def gaussian_moments(*, scale: float = 1.0, knowledge: Knowledge = 'own'):
  """N(mean, (scale deviation)^2) of the known updates in each coordinate, one draw for all."""
  def craft(updates, present, malicious, key):
    mean, deviation = moments(updates, known(present, malicious, knowledge))
    return mean + scale * deviation * jax.random.normal(key, mean.shape, mean.dtype)
  return from_update(craft)


def sign_flip(*, scale: float = 1.0):
  """Each malicious client sends -scale times its own update."""
  return from_update(lambda updates, present, malicious, key: -scale * updates)


def same_value(*, value: float = 0.0):
  """Every coordinate is `value`; 0 is the zero attack."""
  return from_update(lambda updates, present, malicious, key: jnp.full(
      updates.shape[1:], value, updates.dtype))


def lie_z(count, malicious):
  """Largest z of "A little is enough": a majority still lies farther out than mean - z deviation.

  Args:
    count: clients of the round.
    malicious: of them.

  Returns:
    z; in small rounds it may be 0 or negative.
  """
  supporters = jnp.floor(count / 2 + 1) - malicious
  benign = jnp.maximum(count - malicious, 1)
  return jax.scipy.special.ndtri((benign - supporters) / benign)


def lie(*, z: float | None = None, sign: int = -1, knowledge: Knowledge = 'all'):
  """LIE (Baruch et al. 2019): mean + sign * z * deviation.

  Args:
    z: how many deviations; None takes `lie_z` of the round, at least 0.
    sign: -1, or 1 as in public benchmark code.
    knowledge: whose updates are known.
  """
  config_lib.require(sign in (-1, 1), 'sign', '-1 or 1', sign)

  def craft(updates, present, malicious, key):
    del key
    mean, deviation = moments(updates, known(present, malicious, knowledge))
    width = z
    if z is None:
      width = jnp.maximum(lie_z(present.sum(), malicious.sum()), 0).astype(updates.dtype)
    return mean + sign * width * deviation
  return from_update(craft)


def sign_std(*, scale: float = 3.0, knowledge: Knowledge = 'all'):
  """mean - scale * sign(mean) * deviation, UA-FedRec's perturbation (arXiv 2202.06701)."""
  def craft(updates, present, malicious, key):
    del key
    mean, deviation = moments(updates, known(present, malicious, knowledge))
    return mean - scale * jnp.sign(mean) * deviation
  return from_update(craft)
