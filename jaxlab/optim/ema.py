"""Exponential moving average of the parameters, kept beside the optimizer's state."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.optim.hyperparameters import check_range
from jaxlab.optim.leaves import accumulators, to_updates


class EMAState(NamedTuple):
  """The averaged parameters, in float32 or wider."""
  average: Any


def ema(decay):
  """Averages the parameters after each step: average = decay * average + (1 - decay) * params.

  It changes no update; put it last in a chain. The average starts at the initial parameters.

  >>> import jax.numpy as jnp, optax
  >>> optimizer = optax.chain(optax.sgd(0.5), ema(decay=0.9))
  >>> state = optimizer.init(jnp.zeros(()))
  >>> _, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
  >>> print(averaged(state, jnp.zeros(())).round(3))
  -0.05

  Args:
    decay: in [0, 1); a number or a scalar array.

  Returns:
    GradientTransformation with state `EMAState`.

  Raises:
    ConfigError: decay out of its range.
    ValueError: in `update`, without `params`.
  """
  check_range('ema_decay', decay, 'decay')

  def init(params):
    return EMAState(jax.tree.map(jnp.copy, accumulators(params, params)))

  def update(updates, state, params=None):
    if params is None:
      raise ValueError('params: the average needs the parameters that are updated')
    new = accumulators(optax.apply_updates(params, updates), params)
    average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, new)
    return updates, EMAState(average)

  return optax.GradientTransformation(init, update)


def averaged(opt_state, params):
  """The averaged parameters that an optimizer's state holds, in the dtypes of `params`.

  Args:
    opt_state: state of an optimizer with `ema` somewhere inside.
    params: the current parameters; leaves that are not floating are taken from here.

  Returns:
    Pytree like `params`, or None if there is no `ema` inside.
  """
  is_ema = lambda node: isinstance(node, EMAState)
  found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ema) if is_ema(node)]
  if not found:
    return None
  smooth = to_updates(found[0].average, params)
  floating = lambda p: jnp.issubdtype(jnp.result_type(p), jnp.floating)
  return jax.tree.map(lambda a, p: a if floating(p) else p, smooth, params)
