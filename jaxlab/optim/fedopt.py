"""Server optimizers of federated learning: FedAdam, FedYogi and FedAdagrad (arXiv 2003.00295)."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab import config
from jaxlab.optim.hyperparameters import check_ranges
from jaxlab.optim.leaves import accumulators, constant, to_updates


class ScaleByFedOptState(NamedTuple):
  """First and second moment of the pseudo-gradient; pytrees shaped like the parameters."""
  mu: Any
  nu: Any


_SECOND_MOMENTS = {
    'adam': lambda v, square, b2: b2 * v + (1 - b2) * square,
    'yogi': lambda v, square, b2: v - (1 - b2) * square * jnp.sign(v - square),
    'adagrad': lambda v, square, b2: v + square,
}


def scale_by_fedopt(kind='adam', b1=0.9, b2=0.99, tau=1e-3):
  """The direction m / (sqrt(v) + tau) of FedOpt (arXiv 2003.00295, algorithm 2).

  It takes the pseudo-gradient -Delta, Delta the mean of (client - server): then
  `optax.chain(scale_by_fedopt(...), optax.scale(-eta))` is the server step
  x += eta m / (sqrt(v) + tau) with m and v the moments of Delta. `optax.adam` on -Delta is another
  algorithm: it corrects the bias, and starts v at 0 and not at tau^2.

  Args:
    kind: how v accumulates the square: 'adam', 'yogi' or 'adagrad'.
    b1: decay of the first moment, in [0, 1); FedAdagrad has 0 in the paper's runs.
    b2: decay of the second moment, in [0, 1); 'adagrad' has none and ignores it.
    tau: degree of adaptivity, > 0; small is adaptive.

  Returns:
    GradientTransformation with state `ScaleByFedOptState`.

  Raises:
    ConfigError: an unknown kind, or a hyperparameter out of its range.
  """
  check_ranges(b1=b1, b2=b2, tau=tau)
  second_moment = config.choose(kind, _SECOND_MOMENTS, 'kind')

  def init(params):
    return ScaleByFedOptState(constant(params, 0.0), constant(params, tau**2))

  def update(grads, state, params=None):
    floats = accumulators(grads, state.nu)
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, floats)
    nu = jax.tree.map(lambda v, g: second_moment(v, g * g, b2), state.nu, floats)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), mu, nu)
    return to_updates(direction, grads if params is None else params), ScaleByFedOptState(mu, nu)

  return optax.GradientTransformation(init, update)


class ScaleByFedAMSState(NamedTuple):
  """First moment, second moment, and its running maximum of the pseudo-gradient."""
  mu: Any
  nu: Any
  nu_max: Any


def scale_by_fedams(b1=0.9, b2=0.99, tau=1e-3, option=1):
  """The direction of FedAMS (arXiv 2205.02719; formula from general knowledge, not re-read).

  Option 1: vhat = max(vhat, v, tau), m / sqrt(vhat). Option 2: vhat = max(vhat, v),
  m / (sqrt(vhat) + tau). v starts at tau^2 and vhat at 0; fed as `scale_by_fedopt` is.

  Args:
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    tau: floor or addend of the denominator, > 0.
    option: 1 or 2.

  Returns:
    GradientTransformation with state `ScaleByFedAMSState`.

  Raises:
    ConfigError: a hyperparameter out of its range.
  """
  check_ranges(b1=b1, b2=b2, tau=tau)
  config.require(option in (1, 2), 'option', '1 or 2', option)
  floor, addend = (tau, 0.0) if option == 1 else (0.0, tau)

  def init(params):
    return ScaleByFedAMSState(constant(params, 0.0), constant(params, tau**2),
                              constant(params, 0.0))

  def update(grads, state, params=None):
    floats = accumulators(grads, state.nu)
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, floats)
    nu = jax.tree.map(lambda v, g: _SECOND_MOMENTS['adam'](v, g * g, b2), state.nu, floats)
    nu_max = jax.tree.map(lambda m, v: jnp.maximum(jnp.maximum(m, v), floor), state.nu_max, nu)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + addend), mu, nu_max)
    updates = to_updates(direction, grads if params is None else params)
    return updates, ScaleByFedAMSState(mu, nu, nu_max)

  return optax.GradientTransformation(init, update)
