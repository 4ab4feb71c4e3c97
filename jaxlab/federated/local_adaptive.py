"""Algorithms whose clients adapt their rates and synchronise moments: FedLALR and FedLADA."""
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab import config as config_lib
from jaxlab import optim
from jaxlab.federated import aggregators
from jaxlab.federated.client import client_update, difference, optimizer_step
from jaxlab.federated.types import Algorithm
from jaxlab.optim.hyperparameters import check_range
from jaxlab.optim.leaves import accumulators, constant


def _mean_log10(tree):
  """Mean over coordinates of log10: the client's rate vector is alpha * 10^(-log10(vhat) / 2)."""
  leaves = [jnp.log10(x).ravel() for x in jax.tree.leaves(tree)]
  return sum(x.sum() for x in leaves) / sum(x.size for x in leaves)


class FedLALRServer(NamedTuple):
  """State of the FedLALR server.

  Attributes:
    params: the global model x.
    mu: synchronised first moment m.
    nu_max: synchronised maximum vhat, at least eps^2 everywhere.
  """
  params: Any
  mu: Any
  nu_max: Any


def fedlalr(gradient, client_optimizer, *, vhat_agg: Literal['mean', 'max'] = 'mean',
            sync_momentum: bool = True, weighting: Literal['examples', 'uniform'] = 'uniform'):
  """FedLALR (arXiv 2309.09719, algorithm 1): local AMSGrad steps, synchronised moments.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    client_optimizer: `optim.fedlalr(learning_rate, ...)`.
    vhat_agg: the server takes the 'mean' of the clients' vhat, or the element-wise 'max' (corollary
      3).
    sync_momentum: False sends no momenta; each client then starts from m = 0 (corollary 2).
    weighting: 'uniform' as published, or 'examples'; the same weights serve all trees.

  Returns:
    Algorithm with three models down and three up (two without momentum).
  """
  def init(params):
    start = client_optimizer.init(params)
    return FedLALRServer(params, start.mu, start.nu_max)

  def broadcast(state, cohort, table, key):
    del cohort, table, key
    payload = {'params': state.params, 'mu': state.mu, 'nu_max': state.nu_max}
    return payload if sync_momentum else {k: v for k, v in payload.items() if k != 'mu'}, ()

  def client_init(payload, client_state, key):
    del client_state, key
    start = client_optimizer.init(payload['params'])
    start = start._replace(mu=payload.get('mu', start.mu), nu_max=payload['nu_max'])
    return payload['params'], optim.begin_round(start)

  def client_step(carry, batch, key):
    params, opt_state, sums = optimizer_step(
        gradient, optax.with_extra_args_support(client_optimizer), *carry, batch, key)
    return (params, opt_state), sums

  def client_final(payload, client_state, carry, num_steps):
    del num_steps
    params, moments = carry
    message = {
        'params': difference(params, payload['params']), 'mu': moments.mu, 'nu_max': moments.nu_max
    }
    metrics = {'log10_vhat': _mean_log10(moments.nu_max)}
    return {k: message[k] for k in payload}, client_state, metrics

  def server(state, aux, aggregate, participants, key):
    del aux, participants, key
    add = lambda p, d: p + d.astype(p.dtype)
    return FedLALRServer(
        jax.tree.map(add, state.params, aggregate['params']), aggregate.get('mu', state.mu),
        aggregate['nu_max'])

  aggregator = None
  if vhat_agg == 'max':
    mean = aggregators.weighted_mean()
    parts = {'params': mean, 'mu': mean} if sync_momentum else {'params': mean}
    aggregator = aggregators.by_part(**parts, nu_max=aggregators.maximum())
  client = client_update(client_init, client_step, client_final)
  return Algorithm(init, broadcast, client, server, weighting, aggregator)


class FedLADAServer(NamedTuple):
  """State of the FedLADA server: model; amended direction g_a and synchronised vhat, in float32 (or
  wider) whatever the model is."""
  params: Any
  direction: Any
  nu_max: Any


def fedlada(gradient, client_optimizer, *, learning_rate: float, amend: float = 0.1,
            server_learning_rate: float = 1.0,
            weighting: Literal['examples', 'uniform'] = 'uniform'):
  """FedLADA (arXiv 2308.00522): local AMSGrad steps amended by the last global direction.

  x -= learning_rate * (amend * m / sqrt(vhat) + (1 - amend) * g_a), where g_a is the mean of the
  clients' last (x_t - x_i) / (learning_rate * K_i). Written from a public port; the paper was not
  read.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    client_optimizer: `optim.scale_by_adasam(...)`, the direction m / sqrt(vhat) without a rate.
    learning_rate: the local rate, > 0.
    amend: share of the local direction, in [0, 1].
    server_learning_rate: x += server_learning_rate * mean of (client - server), >= 0.
    weighting: 'uniform' or 'examples'.

  Returns:
    Algorithm with three models down and three up.
  """
  config_lib.require(learning_rate > 0, 'learning_rate', 'more than 0', learning_rate)
  config_lib.require(0 <= amend <= 1, 'amend', 'a number in [0, 1]', amend)
  check_range('learning_rate', server_learning_rate, 'server_learning_rate')
  client_optimizer = optax.with_extra_args_support(client_optimizer)

  def init(params):
    start = client_optimizer.init(params)
    return FedLADAServer(params, constant(params, 0.0), start.nu_max)

  def broadcast(state, cohort, table, key):
    del cohort, table, key
    return state._asdict(), ()

  def client_init(payload, client_state, key):
    del client_state, key
    start = client_optimizer.init(payload['params'])
    moments = start._replace(nu=payload['nu_max'], nu_max=payload['nu_max'])
    return payload['params'], moments, payload['direction']

  def client_step(carry, batch, key):
    params, moments, direction = carry
    grads, sums = gradient(params, batch, key)
    local, moments = client_optimizer.update(grads, moments, params)
    step = lambda p, u, g: (p - learning_rate * (amend * u + (1 - amend) * g)).astype(p.dtype)
    return (jax.tree.map(step, params, local, direction), moments, direction), sums

  def client_final(payload, client_state, carry, num_steps):
    params, moments, _ = carry
    delta = difference(params, payload['params'])
    scale = -1 / (learning_rate * jnp.maximum(num_steps, 1))
    direction = jax.tree.map(lambda d: scale.astype(d.dtype) * d, accumulators(delta, delta))
    return {'params': delta, 'direction': direction,
            'nu_max': moments.nu_max}, client_state, {'log10_vhat': _mean_log10(moments.nu_max)}

  def server(state, aux, aggregate, participants, key):
    del aux, participants, key
    move = lambda p, d: p + server_learning_rate * d.astype(p.dtype)
    return FedLADAServer(
        jax.tree.map(move, state.params, aggregate['params']), aggregate['direction'],
        aggregate['nu_max'])

  return Algorithm(init, broadcast, client_update(client_init, client_step, client_final), server,
                   weighting)
