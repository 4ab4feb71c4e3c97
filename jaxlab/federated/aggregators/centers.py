"""Rules that move a center towards the updates: geometric median (RFA), centred clipping."""
import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.stack import average, from_rule, move, sum_in_order

_TINY = float(jnp.finfo(jnp.float32).tiny)


def rfa(*, iters: int = 10, nu: float = 1e-6, weighted: bool = True):
  """RFA (Pillutla et al. 2019): the geometric median by smoothed Weiszfeld steps.

  Args:
    iters: steps from the mean.
    nu: distances below it count as it.
    weighted: by the claimed sizes as published, which is open to lies about them, or evenly.
  """
  config_lib.require(iters >= 0, 'iters', 'at least 0', iters)
  config_lib.require(nu > 0, 'nu', 'more than 0', nu)

  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    shares = (weights if weighted else present).astype(updates.dtype)
    shares = shares / jnp.maximum(sum_in_order(shares), _TINY)

    def pull(distances):
      pulls = shares / jnp.maximum(nu, distances)
      return pulls / jnp.maximum(sum_in_order(pulls), _TINY)

    center, distances = move(updates, present, average(updates, shares), pull, iters)
    return center, state, {'scores': distances}
  return from_rule(rule)


def centered_clip(*, tau: float, iters: int = 3):
  """Centred clipping (Karimireddy et al. 2021): v += mean of (u_i - v) min(1, tau / |u_i - v|).

  The state is v, the last aggregate, from zero.

  Args:
    tau: radius of clipping.
    iters: steps a round.
  """
  config_lib.require(tau > 0, 'tau', 'more than 0', tau)
  config_lib.require(iters >= 1, 'iters', 'at least 1', iters)

  def init(params):
    return jnp.zeros_like(jax.flatten_util.ravel_pytree(params)[0])

  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    count = jnp.maximum(present.sum(), 1).astype(updates.dtype)
    clip = lambda distances: jnp.where(
        present, jnp.minimum(1, tau / jnp.maximum(distances, _TINY)) / count, 0)
    center, distances = move(updates, present, state, clip, iters)
    return center, center, {'scores': distances}
  return from_rule(rule, init=init)
