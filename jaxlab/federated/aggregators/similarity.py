"""Rules that look at directions: FoolsGold between clients over time, FLTrust against a root."""
import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.distance import gram, squared_norms
from jaxlab.federated.aggregators.stack import (
  average,
  by_blocks,
  from_rule,
  products,
  sum_in_order,
  weighted_sum,
)


def foolsgold_weights(history, present):
  """How unlike the others each client's past is: [n] in [0, 1].

  Args:
    history: [n, d] sums of past updates.
    present: bool [n].
  """
  n = len(present)
  norms = jnp.sqrt(squared_norms(history, present))
  norms = jnp.where(norms > 0, norms, 1)
  alike = gram(history, present) / (norms[:, None] * norms[None, :])
  itself, both = jnp.eye(n, dtype=bool), present[:, None] & present[None, :]
  alike = jnp.where(itself, 0, alike)
  largest = jnp.where(both, alike, -jnp.inf).max(1)
  largest = jnp.where(present, largest, 0)
  # Honest clients are forgiven their likeness to those who are more alike themselves.
  ratio = largest[:, None] / jnp.where(largest == 0, 1, largest)[None, :]
  alike = jnp.where(largest[:, None] < largest[None, :], alike * ratio, alike)
  trust = jnp.clip(1 - jnp.where(both, alike, -jnp.inf).max(1), 0, 1)
  trust = jnp.where(present, trust, 0)
  highest = trust.max()
  trust = trust / jnp.where(highest > 0, highest, 1)
  trust = jnp.where(trust == 1, 0.99, trust)
  trust = jnp.clip(jnp.log(jnp.maximum(trust, 1e-30) / (1 - trust)) + 0.5, 0, 1)
  # All alike: 0/0 in the rule; then nobody is distinguished.
  return jnp.where(present, jnp.where((highest > 0) & (trust.max() > 0), trust, 1), 0)


def foolsgold(num_clients):
  """FoolsGold (Fung et al. 2018): clients whose pasts point the same way lose their say.

  The state is the sum of every client's updates, [num_clients + 1, d], the last row for padding.

  Args:
    num_clients: N of the federation.
  """
  def init(params):
    size = jax.flatten_util.ravel_pytree(params)[0]
    return {'history': jnp.zeros((num_clients + 1, *size.shape), size.dtype),
            'ids': jnp.zeros((0,), jnp.int32)}

  def begin(state, ids, root):
    del root
    return {**state, 'ids': ids}

  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    history, ids = state['history'], state['ids']
    past = history[ids] + jnp.where(present[:, None], updates, 0)
    trust = foolsgold_weights(past, present)
    # Only those who are there are written, so that padding rows cannot race with real ones.
    history = history.at[jnp.where(present, ids, num_clients)].set(past)
    history = history.at[num_clients].set(0)
    state = {'history': history, 'ids': jnp.zeros((0,), jnp.int32)}
    return average(updates, trust), state, {'scores': trust}
  return from_rule(rule, init=init)._replace(begin=begin)


def fltrust(*, root_examples: int = 100):
  """FLTrust (Cao et al. 2021): trust relu(cos) to the update of the server's own root data.

  Updates are scaled to the root's norm; without any trust the aggregate is 0. The state is the
  root's update of the round, which `begin` puts there; it is never averaged itself.

  Args:
    root_examples: training examples that the server holds; no client has them.
  """
  config_lib.require(root_examples >= 1, 'root_examples', 'at least 1', root_examples)
  flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]

  def init(params):
    return jnp.zeros_like(flat(params))

  def begin(state, ids, root):
    del ids
    return flat(root).astype(state.dtype)

  def rule(updates, weights, state, key):
    del key
    present, root = weights > 0, state
    step = lambda total, columns, own: (total + products(columns, own), None)
    zero = jnp.zeros((len(updates), 16), updates.dtype)
    dots = by_blocks(step, zero, updates, present, (root,))[0].sum(1)
    norms = jnp.sqrt(squared_norms(updates, present))
    length = jnp.sqrt(jnp.square(root).sum())
    trust = jnp.maximum(dots, 0) / jnp.maximum(norms * length, 1e-30)
    trust = jnp.where(present, trust, 0)
    shares = trust * length / jnp.maximum(norms, 1e-30) / jnp.maximum(sum_in_order(trust), 1e-30)
    return weighted_sum(updates, shares), state, {'scores': trust, 'keep': trust > 0}
  return from_rule(rule, init=init)._replace(begin=begin, root_examples=root_examples)
