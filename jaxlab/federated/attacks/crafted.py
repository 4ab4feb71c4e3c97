"""What the attacks on updates share: who knows what, and how a crafted update replaces the clean.

Updates are what the server adds (client minus server), or gradients where the algorithm sends
those; every attack here pushes against the mean of whatever is sent.
"""
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlab.federated.aggregators.stack import flatten, weighted_sum
from jaxlab.federated.types import Attack

Knowledge = Literal['all', 'own']


def from_update(craft):
  """The Attack of a function that makes the malicious update.

  Args:
    craft: (updates [n, d], present bool [n], malicious bool [n], key) -> [d] for all, or [n, d].
  """
  def apply(state, payload, messages, weights, malicious, key):
    del payload
    updates, unflatten = flatten(messages)
    present = weights > 0
    malicious = malicious & present
    made = craft(updates, present, malicious, key)
    if made.ndim == 2:
      return replace(messages, jax.vmap(unflatten)(made), malicious), weights, state
    made = jax.tree.map(lambda x: x[None], unflatten(made))
    return replace(messages, made, malicious), weights, state
  return Attack(lambda params: (), apply)


def replace(messages, made, malicious):
  """The messages with those of the malicious replaced."""
  mine = lambda x: malicious.reshape((-1,) + (1,) * (x.ndim - 1))
  return jax.tree.map(lambda old, new: jnp.where(mine(old), new.astype(old.dtype), old), messages,
                      made)


def known(present, malicious, knowledge):
  """bool [n]: whose clean updates the attacker sees, all benign ones or those of its own."""
  return present & (~malicious if knowledge == 'all' else malicious)


def moments(updates, mask):
  """Mean and standard deviation [d] over masked rows (ddof 1; 0 where fewer than two)."""
  count = mask.sum().astype(updates.dtype)
  mean = weighted_sum(updates, mask) / jnp.maximum(count, 1)

  def add(total, row):
    update, here = row
    return total + jnp.where(here, jnp.square(update - mean), 0), None

  squares, _ = jax.lax.scan(add, jnp.zeros_like(mean), (updates, mask))
  return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))
