"""What a client does: local steps over its own padded batches."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.train.step import act_once, tree_where


class ClientData(NamedTuple):
  """One client's local work as rows of a table.

  Attributes:
    table: mapping of columns [N, ...], shared by all clients of the device (no client axis).
    index: int32 [S, B] rows of the table; -1 is padding, and a step of nothing but padding is no
      step.
    bound: int32 scalar, steps to run; every step at or beyond it is padding (no client axis).
  """
  table: Any
  index: jax.Array
  bound: jax.Array


CLIENT_AXES = ClientData(table=None, index=0, bound=None)


def batch_rows(data, step):
  """The batch of a step: columns [B, ...] and 'weight' [B], 0 where padded."""
  rows = data.index[step]
  real = rows >= 0
  batch = jax.tree.map(lambda column: column[jnp.maximum(rows, 0)], data.table)
  return {**batch, 'weight': real * batch.get('weight', jnp.ones(()))}, real.any()


def client_update(init, step, final):
  """Makes an `Algorithm.client` of three functions, FedJAX's client triple.

  A padded step keeps the old carry: parameters, moments and counters. (A zero gradient would not:
  momentum moves on.)

  Args:
    init: (payload, client_state, key) -> carry.
    step: (carry, batch, key) -> (carry, {metric: (sum, weight)}).
    final: (payload, client_state, carry, num_steps) -> (message, client_state, {metric: scalar}).
  """
  def client(payload, client_state, data, key):
    carry = init(payload, client_state, key)
    shapes = jax.eval_shape(lambda c: step(c, batch_rows(data, 0)[0], key)[1], carry)
    sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(i, loop):
      batch, real = batch_rows(data, i)
      carry, sums, count = loop
      new_carry, pairs = step(carry, batch, jax.random.fold_in(key, i))
      new = (new_carry, jax.tree.map(jnp.add, sums, pairs), count + 1)
      return tree_where(real, new, loop)

    carry, sums, count = jax.lax.fori_loop(0, data.bound, body,
                                           (carry, sums, jnp.zeros((), jnp.int32)))
    message, client_state, metrics = final(payload, client_state, carry, count)
    means = {name: total / jnp.maximum(weight, 1e-30) for name, (total, weight) in sums.items()}
    return message, client_state, {**means, **metrics}

  return client


def full_gradient(gradient, params, data, key):
  """The mean gradient over all rows that the client visits in a round, and their weight.

  The client's full gradient, if the round is whole passes over its data: a fixed number of local
  steps may leave rows out, or visit some more often, and so may passes that drop the remainder. An
  Algorithm that calls this sets `needs_full_gradient`, under which a config with `local_steps` or
  `drop_remainder` is refused.

  Args:
    gradient: (params, batch, key) -> (gradient of the mean, {metric: (sum, weight)}); its weight is
      that of 'loss'.
    params: where.
    data: ClientData of whole passes, in which every row counts alike.
    key: PRNG key.

  Returns:
    (gradient, {metric: (sum, weight)}).
  """
  def one(step):
    batch, _ = batch_rows(data, step)
    grads, sums = gradient(params, batch, jax.random.fold_in(key, step))
    weight = sums['loss'][1]
    return jax.tree.map(lambda g: g * weight.astype(g.dtype), grads), sums

  shapes = jax.eval_shape(one, 0)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  add = lambda step, total: jax.tree.map(jnp.add, total, one(step))
  total, sums = jax.lax.fori_loop(0, data.bound, add, zeros)
  weight = jnp.maximum(sums['loss'][1], 1e-30)
  return jax.tree.map(lambda g: g / weight.astype(g.dtype), total), sums


def optimizer_step(gradient, optimizer, params, opt_state, batch, key):
  """One local step of any optax optimizer, AdaSAM's second gradient included.

  Returns:
    (params, opt_state, {metric: (sum, weight)}).
  """
  batch, gradient = act_once(gradient, params, batch, key)
  grads, sums = gradient(params, batch, key)
  updates, opt_state = optimizer.update(
      grads, opt_state, params, grad_fn=lambda p: gradient(p, batch, key)[0], local_grads=grads)
  return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates), opt_state, sums


def difference(new, old):
  """new - old, leaf by leaf."""
  return jax.tree.map(jnp.subtract, new, old)
