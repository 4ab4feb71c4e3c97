"""Sharpness-aware minimisation: the gradient at the worst point of a ball around the parameters.

SAM (arXiv 2010.01412) replaces the gradient s at x by the gradient at x + rho * s / ||s||, where
||.|| is one L2 norm over all parameters, and hands it to any optimizer.
"""
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab import config
from jaxlab.optim.hyperparameters import check_ranges, is_zero, value_at
from jaxlab.optim.leaves import accumulators, left_out

PERTURB = ('global', 'per_device')


def sam_gradient(ascent_grads, params, grad_fn, rho, norm_guard=1e-12, trainable_mask=None):
  """Gradient at x + rho * s / (||s|| + norm_guard) (arXiv 2010.01412, equations 2 and 3).

  Nothing here reduces over devices: in data-parallel training `grad_fn` returns the global
  gradient, and `ascent_grads` is the global one or the device's own.

  Args:
    ascent_grads: s, the gradient at `params`; a pytree of the shape of `params`. Its scale does not
      matter, and a zero gradient perturbs nothing.
    params: x. The perturbation is computed in float32 and the sum is cast back to their dtypes;
      leaves that are not floating stay as they are.
    grad_fn: params -> gradient, on the minibatch and with the random numbers of `ascent_grads`.
    rho: radius of the ball, >= 0; a number or a scalar array.
    norm_guard: > 0, added to the norm.
    trainable_mask: pytree of bools like `params` or a prefix of it, or a function from `params` to
      one; where it is False a leaf is neither perturbed nor counted in the norm.

  Returns:
    What `grad_fn` returns at the perturbed point.

  Raises:
    ConfigError: a negative rho.
  """
  check_ranges(rho=rho, norm_guard=norm_guard)
  ascent = accumulators(ascent_grads, params)
  if trainable_mask is not None:
    mask = trainable_mask(params) if callable(trainable_mask) else trainable_mask
    ascent = jax.tree.map(lambda keep, s: s if keep else optax.MaskedNode(), mask, ascent)
  scale = rho / (optax.tree.norm(ascent) + norm_guard)

  def perturb(s, p):
    return p if left_out(s) else (p + scale * s).astype(jnp.result_type(p))

  return grad_fn(jax.tree.map(perturb, ascent, params, is_leaf=left_out))


def sam_value_and_grad(loss_fn, rho, has_aux=False):
  """`jax.value_and_grad` with SAM's gradient; value and auxiliary output are those at `params`.

  Metrics and running statistics in the auxiliary output thus come from the unperturbed pass alone.
  Both passes see the same arguments, hence the same batch and the same random numbers.

  >>> import jax.numpy as jnp
  >>> loss = lambda params, x: jnp.sum(x * params**2)
  >>> value, grads = sam_value_and_grad(loss, rho=0.5)(jnp.array([3.0, 4.0]), jnp.array([1.0, 1.0]))
  >>> print(value, grads)
  25.0 [6.6 8.8]

  Args:
    loss_fn: (params, *args, **kwargs) -> scalar, or (scalar, aux).
    rho: radius of the perturbation, >= 0; a number or a scalar array.
    has_aux: whether `loss_fn` returns a pair.

  Returns:
    A function of the arguments of `loss_fn` that returns (value, gradient), or
    ((value, aux), gradient).
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)

  def function(params, *args, **kwargs):
    value, ascent_grads = value_and_grad(params, *args, **kwargs)
    grad_fn = lambda p: value_and_grad(p, *args, **kwargs)[1]
    return value, sam_gradient(ascent_grads, params, grad_fn, rho)

  return function


class SAMState(NamedTuple):
  """State of `sam`: steps taken (int32), and the state of the optimizer inside."""
  count: jax.Array
  inner_state: Any


def sam(optimizer, rho: optax.ScalarOrSchedule = 0.05, *, norm_guard: float | jax.Array = 1e-12,
        perturb: Literal['global', 'per_device'] = 'global', mask=None):
  """Feeds `optimizer` with the gradient at the perturbed point (SAM, arXiv 2010.01412).

  `update(grads, state, params, *, grad_fn, local_grads=None)` takes the gradient at `params` and
  calls `grad_fn` once inside, so a step is one update: schedules, running statistics and
  checkpoints never see the perturbed point, and no copy of the parameters is kept. With a Python
  `rho=0` there is no second gradient and `grad_fn` is not needed.

  Args:
    optimizer: GradientTransformation that takes the step.
    rho: radius, >= 0; a number, a scalar array, or a schedule of optimizer steps.
    norm_guard: > 0, added to the norm of the gradient.
    perturb: 'global' follows `grads`, to the same point on all devices. 'per_device' follows
      `local_grads`, the device's gradient before its psum ("m-sharpness", m the device's batch):
      each device hands its own point to `grad_fn`, whose psum gives the global gradient.
    mask: leaves that are perturbed and counted in the norm, as in `sam_gradient`; all by default.

  Returns:
    GradientTransformationExtraArgs with state `SAMState`.

  Raises:
    ConfigError: a negative rho, or an unknown `perturb`.
    ValueError: in `update`, without `params`, `grad_fn`, or the `local_grads` of 'per_device'.
  """
  check_ranges(rho=rho, norm_guard=norm_guard)
  config.require(perturb in PERTURB, 'perturb', ' or '.join(PERTURB), perturb)
  optimizer = optax.with_extra_args_support(optimizer)

  def init(params):
    return SAMState(jnp.zeros([], jnp.int32), optimizer.init(params))

  def update(grads, state, params=None, *, grad_fn=None, local_grads=None, **extra):
    if params is None:
      raise ValueError('params: update needs the parameters that the gradient was taken at')
    if not is_zero(rho):
      if grad_fn is None:
        raise ValueError('grad_fn: update needs a function from parameters to the gradient on the '
                         'same batch, update(grads, state, params, grad_fn=...)')
      if perturb == 'per_device' and local_grads is None:
        raise ValueError("local_grads: perturb='per_device' needs the gradient of this device")
      ascent_grads = local_grads if perturb == 'per_device' else grads
      radius = value_at(rho, state.count)
      grads = sam_gradient(ascent_grads, params, grad_fn, radius, norm_guard, mask)
    updates, inner_state = optimizer.update(grads, state.inner_state, params, **extra)
    return updates, SAMState(optax.safe_increment(state.count), inner_state)

  return optax.GradientTransformationExtraArgs(init, update)
