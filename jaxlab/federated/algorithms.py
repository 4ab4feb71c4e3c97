"""The FedOpt family, made of gradients and optimizers, and the registry of all algorithms."""
import inspect
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab import config as config_lib
from jaxlab import optim
from jaxlab.federated.client import client_update, difference, full_gradient, optimizer_step
from jaxlab.federated.drift import feddyn, mime, mimelite, scaffold
from jaxlab.federated.local_adaptive import fedlada, fedlalr
from jaxlab.federated.types import Algorithm
from jaxlab.optim.factory import OUTER_KEYS
from jaxlab.optim.hyperparameters import check_range
from jaxlab.train.step import act_once


class ServerState(NamedTuple):
  """State of a server whose model moves by an optimizer.

  Attributes:
    params: the global model.
    opt_state: state of the server's optimizer.
  """
  params: Any
  opt_state: Any


def server_step(state, pseudo_gradient, optimizer):
  """One step of a server's optimizer on a ServerState."""
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), pseudo_gradient, state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  return ServerState(optax.apply_updates(state.params, updates), opt_state)


def fedopt(gradient, client_optimizer, server_optimizer, *, weighting='examples', proximal=0.0):
  """FedOpt (arXiv 2003.00295, algorithm 1): local steps, the mean difference fed to a server step.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}), such as
      `task_gradient(task)`.
    client_optimizer: GradientTransformation of the local steps; its state starts anew each round.
    server_optimizer: GradientTransformation fed with -Delta, Delta = mean of (client - server). A
      stock optax.adam is allowed but is not FedAdam (bias correction, start of the second moment):
      see `optim.scale_by_fedopt`.
    weighting: 'examples' or 'uniform'.
    proximal: mu of FedProx, added to the local gradient as mu * (y - x).

  Returns:
    Algorithm with one model down and one up.
  """
  client_optimizer = optax.with_extra_args_support(client_optimizer)

  def init(params):
    return ServerState(params, server_optimizer.init(params))

  def broadcast(state, cohort, table, key):
    del cohort, table, key
    return state.params, ()

  def client_init(payload, client_state, key):
    del client_state, key
    return payload, client_optimizer.init(payload), payload if proximal else ()

  def client_step(carry, batch, key):
    params, opt_state, anchor = carry

    batch, given = act_once(gradient, params, batch, key)

    def local_gradient(params, batch, key):
      grads, sums = given(params, batch, key)
      if proximal:
        grads = jax.tree.map(lambda g, y, x: g + proximal * (y - x), grads, params, anchor)
      return grads, sums

    params, opt_state, sums = optimizer_step(
        local_gradient, client_optimizer, params, opt_state, batch, key)
    return (params, opt_state, anchor), sums

  def client_final(payload, client_state, carry, num_steps):
    del num_steps
    return difference(carry[0], payload), client_state, {}

  def server(state, aux, aggregate, participants, key):
    del aux, participants, key
    return server_step(state, jax.tree.map(jnp.negative, aggregate), server_optimizer)

  return Algorithm(init, broadcast, client_update(client_init, client_step, client_final), server,
                   weighting)


def _rate(server_learning_rate):
  """A server's learning rate, once it is known to be possible."""
  check_range('learning_rate', server_learning_rate, 'server_learning_rate')
  return server_learning_rate


def fedavg(gradient, client_optimizer, *, server_learning_rate: float = 1.0,
           weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedAvg (arXiv 1602.05629): x += server_learning_rate * mean of (client - server)."""
  server = optax.sgd(_rate(server_learning_rate))
  return fedopt(gradient, client_optimizer, server, weighting=weighting)


def fedadam(gradient, client_optimizer, *, server_learning_rate: float, b1: float = 0.9,
            b2: float = 0.99, tau: float = 1e-3,
            weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedAdam (arXiv 2003.00295): Adam-like server moments, no bias correction, v from tau^2."""
  server = optax.chain(
      optim.scale_by_fedopt('adam', b1=b1, b2=b2, tau=tau),
      optax.scale(-_rate(server_learning_rate)))
  return fedopt(gradient, client_optimizer, server, weighting=weighting)


def fedavgm(gradient, client_optimizer, *, server_learning_rate: float = 1.0, momentum: float = 0.9,
            weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedAvgM (arXiv 1909.06335): m = momentum * m + Delta, x += server_learning_rate * m."""
  server = optax.sgd(_rate(server_learning_rate), momentum=momentum)
  return fedopt(gradient, client_optimizer, server, weighting=weighting)


def fedadagrad(gradient, client_optimizer, *, server_learning_rate: float, tau: float = 1e-3,
               weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedAdagrad (arXiv 2003.00295): v += Delta^2, without momentum as in the paper's runs."""
  server = optax.chain(
      optim.scale_by_fedopt('adagrad', b1=0.0, tau=tau), optax.scale(-_rate(server_learning_rate)))
  return fedopt(gradient, client_optimizer, server, weighting=weighting)


def fedyogi(gradient, client_optimizer, *, server_learning_rate: float, b1: float = 0.9,
            b2: float = 0.99, tau: float = 1e-3,
            weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedYogi (arXiv 2003.00295): v -= (1 - b2) Delta^2 sign(v - Delta^2)."""
  server = optax.chain(
      optim.scale_by_fedopt('yogi', b1=b1, b2=b2, tau=tau),
      optax.scale(-_rate(server_learning_rate)))
  return fedopt(gradient, client_optimizer, server, weighting=weighting)


def fedams(gradient, client_optimizer, *, server_learning_rate: float, b1: float = 0.9,
           b2: float = 0.99, tau: float = 1e-3, option: Literal[1, 2] = 1,
           weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedAMS (arXiv 2205.02719): FedAdam's moments with AMSGrad's maximum; formula not re-read.

  Option 1: vhat = max(vhat, v, tau), x += eta m / sqrt(vhat). Option 2: vhat = max(vhat, v),
  x += eta m / (sqrt(vhat) + tau).
  """
  server = optax.chain(
      optim.scale_by_fedams(b1=b1, b2=b2, tau=tau, option=option),
      optax.scale(-_rate(server_learning_rate)))
  return fedopt(gradient, client_optimizer, server, weighting=weighting)


def fedprox(gradient, client_optimizer, *, mu: float = 0.01, server_learning_rate: float = 1.0,
            weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedProx (arXiv 1812.06127): FedAvg whose local gradient is g + mu * (y - x).

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    client_optimizer: GradientTransformation of the local steps.
    mu: weight of the proximal term, >= 0.
    server_learning_rate: x += server_learning_rate * mean of (client - server).
    weighting: 'examples' or 'uniform'.
  """
  config_lib.require(mu >= 0, 'mu', 'at least 0', mu)
  server = optax.sgd(_rate(server_learning_rate))
  return fedopt(gradient, client_optimizer, server, weighting=weighting, proximal=mu)


def server_descent(gradient, server_optimizer, *, weighting='examples'):
  """FedSGD (arXiv 1602.05629) whose server steps by any optimizer.

  Each client sends its full-batch gradient, which takes whole passes over its data: with a fixed
  number of local steps a config is refused. With weights by examples the server sees the gradient
  of the pooled loss.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    server_optimizer: GradientTransformation fed with the mean gradient.
    weighting: 'examples' or 'uniform'.
  """
  def init(params):
    return ServerState(params, server_optimizer.init(params))

  def broadcast(state, cohort, table, key):
    del cohort, table, key
    return state.params, ()

  def client(payload, client_state, data, key):
    grads, sums = full_gradient(gradient, payload, data, key)
    means = {name: total / jnp.maximum(weight, 1e-30) for name, (total, weight) in sums.items()}
    return grads, client_state, means

  def server(state, aux, aggregate, participants, key):
    del aux, participants, key
    return server_step(state, aggregate, server_optimizer)

  return Algorithm(init, broadcast, client, server, weighting, needs_full_gradient=True)


def fedsgd(gradient, *, server_learning_rate: float,
           weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedSGD (arXiv 1602.05629): each client sends its full-batch gradient, the server steps.

  With weights by examples it is gradient descent on the pooled loss. A round must be whole passes
  over the data, see `full_gradient`.
  """
  return server_descent(gradient, optax.sgd(_rate(server_learning_rate)), weighting=weighting)


ALGORITHMS = {
    'fedadagrad': fedadagrad, 'fedadam': fedadam, 'fedams': fedams, 'fedavg': fedavg,
    'fedavgm': fedavgm, 'feddyn': feddyn, 'fedlada': fedlada, 'fedlalr': fedlalr,
    'fedprox': fedprox, 'fedsgd': fedsgd, 'fedyogi': fedyogi, 'mime': mime, 'mimelite': mimelite,
    'scaffold': scaffold}
# Algorithms whose message is more than an update of the model.
MESSAGES_OF_PARTS = ('fedlada', 'fedlalr', 'mime', 'mimelite', 'scaffold')
# Algorithms that know the state of their client optimizer, or whose identities hold for it alone.
CLIENT_OPTIMIZERS = {'fedlalr': 'fedlalr', 'fedlada': 'scale_by_adasam'}


def make_algorithm(config: Mapping, client_optimizer: Mapping, gradient, num_clients):
  """Makes the algorithm that `config` ({name, ...keyword arguments}) asks for.

  Args:
    config: {name, ...}.
    client_optimizer: config for `optim.make_optimizer`; empty for an algorithm that steps by a rule
      of its own.
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    num_clients: clients of the federation, N.

  Raises:
    ConfigError: unknown name or key, or an algorithm that needs another client optimizer.
  """
  maker = config_lib.choose_named(config, ALGORITHMS, 'federated.algorithm')
  accepts = inspect.signature(maker).parameters
  injected = {'gradient': gradient}
  if 'num_clients' in accepts:
    injected['num_clients'] = num_clients
  if 'client_optimizer' in accepts:
    injected['client_optimizer'] = _client_optimizer(config['name'], client_optimizer)
  else:
    config_lib.require(not client_optimizer, 'federated.client_optimizer',
                       f'none under the algorithm {config["name"]}, which has a rule of its own',
                       dict(client_optimizer))
  return config_lib.call(maker, config, 'federated.algorithm', **injected)


def _client_optimizer(algorithm, config):
  needed = CLIENT_OPTIMIZERS.get(algorithm)
  if needed:
    config_lib.require(config.get('name') == needed, 'federated.client_optimizer.name',
                       f'{needed!r} under the algorithm {algorithm}', config.get('name'))
    config_lib.require(
        not set(OUTER_KEYS) & set(config), 'federated.client_optimizer',
        f'none of {", ".join(OUTER_KEYS)} under the algorithm {algorithm}', dict(config))
  return optim.make_optimizer(config, 'federated.client_optimizer')
