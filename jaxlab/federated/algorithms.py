"""The FedOpt family, made of gradients and optimizers, and the registry of all algorithms."""
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax

from jaxlab import config as config_lib
from jaxlab import optim
from jaxlab.federated.client import client_update, difference, optimizer_step
from jaxlab.federated.local_adaptive import fedlada, fedlalr
from jaxlab.federated.types import Algorithm


class ServerState(NamedTuple):
  """State of a server whose model moves by an optimizer.

  Attributes:
    params: the global model.
    opt_state: state of the server's optimizer.
  """
  params: Any
  opt_state: Any


def fedopt(gradient, client_optimizer, server_optimizer, *, weighting='examples'):
  """FedOpt (arXiv 2003.00295, algorithm 1): local steps, the mean difference fed to a server step.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}), such as
      `task_gradient(task)`.
    client_optimizer: GradientTransformation of the local steps; its state starts anew each round.
    server_optimizer: GradientTransformation fed with -Delta, Delta = mean of (client - server). A
      stock optax.adam is allowed but is not FedAdam (bias correction, start of the second moment):
      see `optim.scale_by_fedopt`.
    weighting: 'examples' or 'uniform'.

  Returns:
    Algorithm with one model down and one up.
  """
  client_optimizer = optax.with_extra_args_support(client_optimizer)

  def init(params):
    return ServerState(params, server_optimizer.init(params))

  def broadcast(state, cohort, key):
    del cohort, key
    return state.params, ()

  def client_init(payload, client_state, key):
    del client_state, key
    return payload, client_optimizer.init(payload)

  def client_step(carry, batch, key):
    params, opt_state, sums = optimizer_step(gradient, client_optimizer, *carry, batch, key)
    return (params, opt_state), sums

  def client_final(payload, client_state, carry, num_steps):
    del num_steps
    return difference(carry[0], payload), client_state, {}

  def server(state, aux, aggregate, key):
    del aux, key
    pseudo_gradient = jax.tree.map(lambda d, p: -d.astype(p.dtype), aggregate, state.params)
    updates, opt_state = server_optimizer.update(pseudo_gradient, state.opt_state, state.params)
    return ServerState(optax.apply_updates(state.params, updates), opt_state)

  return Algorithm(init, broadcast, client_update(client_init, client_step, client_final), server,
                   weighting)


def fedavg(gradient, client_optimizer, *, server_learning_rate: float = 1.0,
           weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedAvg (arXiv 1602.05629): x += server_learning_rate * mean of (client - server)."""
  return fedopt(gradient, client_optimizer, optax.sgd(server_learning_rate), weighting=weighting)


def fedadam(gradient, client_optimizer, *, server_learning_rate: float, b1: float = 0.9,
            b2: float = 0.99, tau: float = 1e-3,
            weighting: Literal['examples', 'uniform'] = 'examples'):
  """FedAdam (arXiv 2003.00295): Adam-like server moments, no bias correction, v from tau^2."""
  server = optax.chain(
      optim.scale_by_fedopt('adam', b1=b1, b2=b2, tau=tau), optax.scale(-server_learning_rate))
  return fedopt(gradient, client_optimizer, server, weighting=weighting)


ALGORITHMS = {'fedavg': fedavg, 'fedadam': fedadam, 'fedlalr': fedlalr, 'fedlada': fedlada}

# Algorithms that synchronise the state of their client optimizer, and so know it.
CLIENT_OPTIMIZERS = {'fedlalr': 'fedlalr', 'fedlada': 'scale_by_adasam'}


def make_algorithm(config: Mapping, client_optimizer: Mapping, gradient):
  """Makes the algorithm that `config` ({name, ...keyword arguments}) asks for.

  Raises:
    ConfigError: unknown name or key, or an algorithm that needs another client optimizer.
  """
  maker = config_lib.choose_named(config, ALGORITHMS, 'federated.algorithm')
  needed = CLIENT_OPTIMIZERS.get(config['name'])
  if needed:
    config_lib.require(
        client_optimizer.get('name') == needed, 'federated.client_optimizer.name',
        f'{needed!r} under the algorithm {config["name"]}', client_optimizer.get('name'))
    config_lib.require(not {'clip_norm', 'groups'} & set(client_optimizer),
                       'federated.client_optimizer',
                       f'no clip_norm or groups under the algorithm {config["name"]}',
                       dict(client_optimizer))
  optimizer = optim.make_optimizer(client_optimizer, 'federated.client_optimizer')
  return config_lib.call(maker, config, 'federated.algorithm', gradient=gradient,
                         client_optimizer=optimizer)
