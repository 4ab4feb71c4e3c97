"""FedLALR (arXiv 2309.09719): local AMSGrad steps whose moments clients and server synchronise."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab import config
from jaxlab.optim.adasam import init_moments, update_moments
from jaxlab.optim.hyperparameters import check_range, check_ranges
from jaxlab.optim.leaves import to_updates


class FedLALRState(NamedTuple):
  """First moment, second moment (a client's scratch), and its running maximum."""
  mu: Any
  nu: Any
  nu_max: Any


def fedlalr(learning_rate: float | jax.Array, b1: float | jax.Array = 0.9,
            b2: float | jax.Array = 0.999, eps: float | jax.Array = 1e-8, *,
            adaptive: bool = True):
  """The local optimizer of FedLALR (arXiv 2309.09719, algorithm 1): x -= alpha * m / sqrt(vhat).

  The moments are AdaSAM's (`update_moments`), with v = vhat = eps^2 at the start. Two pure
  functions make it federated: `begin_round` on a client and `synchronize` on the server.

  >>> import jax.numpy as jnp, optax
  >>> optimizer = fedlalr(learning_rate=0.01)
  >>> x = jnp.zeros(2)
  >>> local = lambda grads: optimizer.update(grads, begin_round(optimizer.init(x)))
  >>> updates, states = jax.vmap(local)(jnp.array([[1.0, 0.0], [3.0, 0.0]]))  # two clients
  >>> server = synchronize(states, weights=jnp.ones(2))
  >>> print(updates[:, 0].round(4), server.mu, server.nu_max[0])
  [-0.0316 -0.0316] [0.2 0. ] 0.005

  Args:
    learning_rate: alpha >= 0; a number or a scalar array. No schedule: clients of one round take
      different numbers of steps, and the state has no counter.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: floor of sqrt(vhat), at least 1.1e-19: vhat starts at eps^2 in float32.
    adaptive: False is the ablation m = g, vhat = 1: plain SGD, whose round is FedAvg's.

  Returns:
    GradientTransformation with state `FedLALRState`; leaves that are not floating have no moments.

  Raises:
    ConfigError: a hyperparameter out of its range, or a schedule.
  """
  config.require(not callable(learning_rate), 'learning_rate', 'a number', learning_rate)
  check_ranges(learning_rate=learning_rate, b1=b1, b2=b2)
  check_range('squared_eps', eps, 'eps')
  if not adaptive:
    b1, b2, eps = 0.0, 1.0, 1.0  # v never moves from vhat = eps^2 = 1

  def init(params):
    return FedLALRState(*init_moments(params, eps, v_init='eps_sq'))

  def update(grads, state, params=None):
    direction, state = update_moments(grads, state, b1, b2)
    steps = jax.tree.map(lambda d: -learning_rate * d, direction)
    return to_updates(steps, grads if params is None else params), state

  return optax.GradientTransformation(init, update)


def begin_round(state):
  """The state of a client at the start of a round: v starts at the synchronised vhat.

  From v = 0 instead, v would stay below vhat for the whole round and the rates would freeze.
  """
  # A copy, because two leaves that share a buffer cannot both be donated.
  return state._replace(nu=jax.tree.map(jnp.copy, state.nu_max))


def synchronize(states, weights, vhat_agg='mean', sync_momentum=True):
  """The server's moments from those of the clients (arXiv 2309.09719, algorithm 1).

  Args:
    states: FedLALRState with leaves [C, ...] of C clients; nu is not looked at, and neither is mu
      without `sync_momentum`.
    weights: [C], >= 0, not all 0. A client of weight 0 (padding) has no part in mean or maximum,
      whatever its state holds.
    vhat_agg: weighted 'mean' of the vhat, or their element-wise 'max' (corollary 3).
    sync_momentum: False returns m = 0 (corollary 2).

  Returns:
    FedLALRState without the client axis, ready for the next round (nu = nu_max).

  Raises:
    ConfigError: an unknown `vhat_agg`.
  """
  config.require(vhat_agg in ('mean', 'max'), 'vhat_agg', "'mean' or 'max'", vhat_agg)
  weights = jnp.asarray(weights)
  share = weights / weights.sum()
  along = lambda values, x: jnp.expand_dims(values, range(1, x.ndim))
  present = lambda x: jnp.where(along(weights > 0, x), x, 0)
  mean = lambda x: jnp.sum(along(share, x).astype(x.dtype) * present(x), 0)
  maximum = lambda x: present(x).max(0)  # vhat > 0, so an absent client's 0 is never the largest
  nu_max = jax.tree.map(mean if vhat_agg == 'mean' else maximum, states.nu_max)
  mu = jax.tree.map(mean, states.mu) if sync_momentum else jax.tree.map(jnp.zeros_like, nu_max)
  return begin_round(FedLALRState(mu, nu_max, nu_max))
