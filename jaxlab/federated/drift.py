"""Algorithms that correct the drift of local SGD: SCAFFOLD, FedDyn, MIME and MIMELite."""
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.federated import aggregators
from jaxlab.federated.client import ClientData, client_update, difference, full_gradient
from jaxlab.federated.types import Algorithm
from jaxlab.optim.hyperparameters import check_range
from jaxlab.train.step import act_once, all_finite, tree_where


def _zeros(params):
  return jax.tree.map(jnp.zeros_like, params)


def _add(tree, other, scale=1.0):
  return jax.tree.map(lambda a, b: a + (scale * b).astype(a.dtype), tree, other)


class ScaffoldServer(NamedTuple):
  """State of the SCAFFOLD server: the global model x and the control c."""
  params: Any
  control: Any


def scaffold(gradient, *, num_clients, learning_rate: float, server_learning_rate: float = 1.0,
             option: Literal[1, 2] = 2, weighting: Literal['examples', 'uniform'] = 'uniform'):
  """SCAFFOLD (arXiv 1910.06378, algorithm 1): local SGD on g + c - c_i.

  After K local steps c_i becomes c_i - c + (x - y) / (K learning_rate) (option 2), or the client's
  full gradient at x (option 1, whose rounds must be whole passes, see `full_gradient`).
  x += server_learning_rate * mean of (y - x), and c += 1/N sum of the changes of c_i, N all
  clients, whatever their weights: the mean of all c_i stays c.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    num_clients: N.
    learning_rate: of the local SGD, > 0. Momentum would break option 2, so there is none.
    server_learning_rate: eta_g >= 0.
    option: 1 or 2.
    weighting: of the mean of (y - x): 'uniform' as published, or 'examples'.

  Returns:
    Algorithm whose clients keep c_i; two models down and two up. By examples it brings its own
    aggregator.
  """
  config_lib.require(learning_rate > 0, 'learning_rate', 'more than 0', learning_rate)
  check_range('learning_rate', server_learning_rate, 'server_learning_rate')

  def init(params):
    return ScaffoldServer(params, _zeros(params))

  def broadcast(state, cohort, table, key):
    del cohort, table, key
    return state._asdict(), ()

  def client_init(payload, own, key):
    del key
    return payload['params'], difference(payload['control'], own)

  def client_step(carry, batch, key):
    params, correction = carry
    grads, sums = gradient(params, batch, key)
    step = lambda p, g, c: p - learning_rate * (g + c)
    return (jax.tree.map(step, params, grads, correction), correction), sums

  def client_final(payload, own, carry, num_steps):
    delta = difference(carry[0], payload['params'])
    scale = -1 / (learning_rate * jnp.maximum(num_steps, 1))
    new = jax.tree.map(lambda i, c, d: i - c + scale.astype(d.dtype) * d, own,
                       payload['control'], delta)
    return {'params': delta, 'control': difference(new, own)}, new, {}

  local = client_update(client_init, client_step, client_final)

  def client(payload, own, data, key):
    message, new, metrics = local(payload, own, data, key)
    if option == 1:
      new, _ = full_gradient(gradient, payload['params'], data, key)
      message = {**message, 'control': difference(new, own)}
    return message, new, metrics

  def server(state, aux, aggregate, participants, key):
    del aux, key
    return ScaffoldServer(_add(state.params, aggregate['params'], server_learning_rate),
                          _add(state.control, aggregate['control'], participants / num_clients))

  aggregator = None
  if weighting == 'examples':
    aggregator = aggregators.by_part(params=aggregators.weighted_mean(),
                                     control=aggregators.uniform_mean())
  return Algorithm(init, broadcast, client, server, weighting, aggregator, init_client=_zeros,
                   needs_full_gradient=option == 1)


class FedDynServer(NamedTuple):
  """State of the FedDyn server: the global model x and the sum of corrections h."""
  params: Any
  h: Any


def feddyn(gradient, *, num_clients, learning_rate: float, alpha: float = 0.1):
  """FedDyn (arXiv 2111.04263, algorithm 1): local SGD on g + alpha (y - x) - lambda_i.

  Then lambda_i -= alpha (y_i - x), h -= alpha / N sum of (y_i - x), x = mean of y_i - h / alpha.
  All means are uniform: the one message of a client serves both, and the mean of all lambda_i stays
  h only if every client counts alike.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    num_clients: N, all clients.
    learning_rate: of the local SGD, > 0.
    alpha: weight of the dynamic regulariser, > 0.

  Returns:
    Algorithm whose clients keep lambda_i; one model down and one up.
  """
  config_lib.require(learning_rate > 0, 'learning_rate', 'more than 0', learning_rate)
  config_lib.require(alpha > 0, 'alpha', 'more than 0', alpha)

  def init(params):
    return FedDynServer(params, _zeros(params))

  def broadcast(state, cohort, table, key):
    del cohort, table, key
    return state.params, ()

  def client_init(payload, own, key):
    del key
    return payload, payload, own

  def client_step(carry, batch, key):
    params, anchor, own = carry
    grads, sums = gradient(params, batch, key)
    step = lambda y, g, x, i: y - learning_rate * (g + alpha * (y - x) - i)
    return (jax.tree.map(step, params, grads, anchor, own), anchor, own), sums

  def client_final(payload, own, carry, num_steps):
    del num_steps
    delta = difference(carry[0], payload)
    return delta, _add(own, delta, -alpha), {}

  def server(state, aux, aggregate, participants, key):
    del aux, key
    h = _add(state.h, aggregate, -alpha * participants / num_clients)
    return FedDynServer(_add(_add(state.params, aggregate), h, -1 / alpha), h)

  client = client_update(client_init, client_step, client_final)
  return Algorithm(init, broadcast, client, server, 'uniform', init_client=_zeros)


class MimeServer(NamedTuple):
  """State of the MIME server: the global model x and the momentum s."""
  params: Any
  momentum: Any


def mime(gradient, *, learning_rate: float, momentum: float = 0.9,
         weighting: Literal['examples', 'uniform'] = 'examples'):
  """MIME (arXiv 2008.03606) with momentum SGD: MIMELite plus an SVRG-type correction of each step.

  Local steps use g_i(y) - g_i(x) + c for the gradient, where c is the mean of the participants'
  full gradients at x; it takes a trip of its own before the local work, counted in the payload.
  Arguments are those of `mimelite`, and so is the need of whole passes. Three models down and two
  up.
  """
  return _mime(gradient, learning_rate, momentum, weighting, corrected=True)


def mimelite(gradient, *, learning_rate: float, momentum: float = 0.9,
             weighting: Literal['examples', 'uniform'] = 'examples'):
  """MIMELite (arXiv 2008.03606) with momentum SGD: y -= lr ((1 - b) g_i(y) + b s), s held fixed.

  After the round s = b s + (1 - b) c, c the mean of the participants' full gradients at x. A round
  must be whole passes over the data, see `full_gradient`.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    learning_rate: lr of the local steps, > 0.
    momentum: b, in [0, 1).
    weighting: 'examples' or 'uniform'.

  Returns:
    Algorithm with two models down and two up.
  """
  return _mime(gradient, learning_rate, momentum, weighting, corrected=False)


def _mime(gradient, learning_rate, momentum, weighting, corrected):
  config_lib.require(learning_rate > 0, 'learning_rate', 'more than 0', learning_rate)
  config_lib.require(0 <= momentum < 1, 'momentum', 'a number in [0, 1)', momentum)

  def init(params):
    return MimeServer(params, _zeros(params))

  def cohort_gradient(params, cohort, table, key):
    """The weighted mean of the clients' full gradients, over all devices."""
    def add(carry, client):
      index, weight, own_key = client
      data = ClientData(table, index, jnp.int32(index.shape[0]))
      grads, _ = full_gradient(gradient, params, data, own_key)
      good = all_finite(grads)  # a client that will be rejected has no part in c either
      nothing = jax.tree.map(jnp.zeros_like, (grads, weight))
      grads, weight = tree_where(good, (grads, weight), nothing)
      return (_add(carry[0], grads, weight), carry[1] + weight), None

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(cohort.ids)
    start = (_zeros(params), jnp.zeros((), cohort.weights.dtype))
    total = jax.lax.scan(add, start, (cohort.index, cohort.weights, keys))[0]
    grads, weight = parallel.psum(total, parallel.CLIENTS)
    return jax.tree.map(lambda g: (g / jnp.maximum(weight, 1e-30)).astype(g.dtype), grads)

  def broadcast(state, cohort, table, key):
    payload = state._asdict()
    if corrected:
      payload['gradient'] = cohort_gradient(state.params, cohort, table, key)
    return payload, ()

  def client_init(payload, client_state, key):
    del client_state, key
    return payload['params'], payload

  def client_step(carry, batch, key):
    params, payload = carry
    batch, given = act_once(gradient, params, batch, key)
    grads, sums = given(params, batch, key)
    if corrected:
      here, _ = given(payload['params'], batch, key)
      grads = jax.tree.map(lambda g, x, c: g - x + c, grads, here, payload['gradient'])
    step = lambda y, g, s: y - learning_rate * ((1 - momentum) * g + momentum * s)
    return (jax.tree.map(step, params, grads, payload['momentum']), payload), sums

  def client_final(payload, client_state, carry, num_steps):
    del num_steps
    return difference(carry[0], payload['params']), client_state, {}

  local = client_update(client_init, client_step, client_final)

  def client(payload, client_state, data, key):
    delta, client_state, metrics = local(payload, client_state, data, key)
    grads, _ = full_gradient(gradient, payload['params'], data, key)
    return {'params': delta, 'gradient': grads}, client_state, metrics

  def server(state, aux, aggregate, participants, key):
    del aux, participants, key
    new = jax.tree.map(lambda s, c: momentum * s + (1 - momentum) * c.astype(s.dtype),
                       state.momentum, aggregate['gradient'])
    return MimeServer(_add(state.params, aggregate['params']), new)

  return Algorithm(init, broadcast, client, server, weighting, needs_full_gradient=True)
