"""Truncation of claimed sizes, in front of any rule that weights by them."""
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.stack import screen, sum_in_order


def quantity_cap(sizes, alpha, alpha_star):
  """The largest of the sizes at which the largest ceil(alpha n) clients hold alpha_star at most.

  Portnoy et al. 2020: with sizes cut to the cap. If no cap does it, the smallest size.

  Args:
    sizes: [n] >= 0; 0 means absent.
    alpha: share of the clients, in (0, 1].
    alpha_star: share of all examples, in (0, 1].
  """
  present = sizes > 0
  ordered = -jnp.sort(-sizes)
  count = jnp.ceil(alpha * present.sum() - 1e-6)  # alpha n of a whole number may round upwards
  capped = jnp.minimum(ordered[:, None], sizes[None, :])
  top = sum_in_order(jnp.where(jnp.arange(len(sizes))[:, None] < count, capped, 0))
  good = present & (top <= alpha_star * sum_in_order(capped))
  smallest = jnp.where(present, sizes, jnp.inf).min()
  return jnp.maximum(jnp.where(good, sizes, 0).max(), smallest)


def truncated(rule, *, alpha: float, alpha_star: float):
  """Cuts the sizes to `quantity_cap` before another aggregator sees them.

  Args:
    rule: Aggregator.
    alpha: share of the clients that may be malicious, in (0, 1].
    alpha_star: share of the examples that they may claim, in (0, 1].
  """
  for name, value in (('alpha', alpha), ('alpha_star', alpha_star)):
    config_lib.require(0 < value <= 1, name, 'in (0, 1]', value)

  def apply(state, messages, weights, key):
    weights = screen(messages, weights)
    cap = quantity_cap(weights, alpha, alpha_star)
    aggregate, state, info = rule.apply(state, messages, jnp.minimum(weights, cap), key)
    return aggregate, state, {**info, 'quantity_cap': cap}
  return rule._replace(apply=apply, stream=None)
