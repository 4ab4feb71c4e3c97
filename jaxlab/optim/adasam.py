"""AdaSAM (arXiv 2303.00565): SAM's gradient in an AMSGrad-type step with momentum."""
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab import config
from jaxlab.optim.hyperparameters import check_range, check_ranges, value_at
from jaxlab.optim.leaves import accumulators, constant, to_updates
from jaxlab.optim.sam import SAMState, sam


class ScaleByAdaSAMState(NamedTuple):
  """First moment, second moment, and its running maximum; pytrees shaped like the parameters."""
  mu: Any
  nu: Any
  nu_max: Any


class AdaSAMState(NamedTuple):
  """Steps taken (int32), first moment, second moment, and its running maximum."""
  count: jax.Array
  mu: Any
  nu: Any
  nu_max: Any


def init_moments(params, eps, v_init='zero', mu_dtype=None):
  """m = 0, vhat = eps^2, and v = 0 or eps^2, in float32 whatever the parameters are.

  eps^2 is 1e-16 by default, which float16 cannot hold; a vhat of 0 would divide 0 by 0.
  """
  start = {'zero': 0.0, 'eps_sq': eps**2}[v_init]
  return ScaleByAdaSAMState(
      constant(params, 0.0, mu_dtype), constant(params, start), constant(params, eps**2))


def update_moments(grads, moments, b1, b2):
  """One step of the moments that AdaSAM and FedLALR share (arXiv 2303.00565, algorithm 1).

  m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  vhat = max(vhat, v). No bias correction and no
  epsilon in the denominator: vhat never falls below where it started.

  Args:
    grads: pytree of gradients.
    moments: NamedTuple with fields mu, nu and nu_max.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).

  Returns:
    (m / sqrt(vhat), moments); exactly 0 for a coordinate that never received a gradient.
  """
  grads = accumulators(grads, moments.nu)
  mu = jax.tree.map(lambda m, g: b1 * m.astype(g.dtype) + (1 - b1) * g, moments.mu, grads)
  nu = jax.tree.map(lambda v, g: (b2 * v + (1 - b2) * g * g).astype(v.dtype), moments.nu, grads)
  nu_max = jax.tree.map(jnp.maximum, moments.nu_max, nu)
  direction = jax.tree.map(lambda m, v: m / jnp.sqrt(v), mu, nu_max)
  mu = jax.tree.map(lambda m, old: m.astype(old.dtype), mu, moments.mu)
  return direction, moments._replace(mu=mu, nu=nu, nu_max=nu_max)


def _check(v_init, eps, **hyperparameters):
  check_range('squared_eps', eps, 'eps')
  check_ranges(**hyperparameters)
  config.require(v_init in ('zero', 'eps_sq'), 'v_init', "'zero' or 'eps_sq'", v_init)


def scale_by_adasam(b1=0.9, b2=0.999, eps=1e-8, *, v_init='zero', mu_dtype=None):
  """The direction m / sqrt(vhat) of AdaSAM from any gradients: AMSGrad as in the paper.

  It differs from `optax.scale_by_amsgrad`: no bias correction, no epsilon added, vhat starts at
  eps^2. The first step is (1 - b1) / sqrt(1 - b2) = 3.16 long with the defaults, not 1 as in Adam.

  Args:
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: floor of sqrt(vhat), at least 1.1e-19: vhat starts at eps^2 in float32.
    v_init: the second moment starts at 'zero' or at eps^2 ('eps_sq').
    mu_dtype: dtype in which the first moment is stored; float32 by default.

  Returns:
    GradientTransformation with state `ScaleByAdaSAMState`.

  Raises:
    ConfigError: a hyperparameter out of its range.
  """
  _check(v_init, eps, b1=b1, b2=b2)

  def init(params):
    return init_moments(params, eps, v_init, mu_dtype)

  def update(grads, state, params=None):
    direction, state = update_moments(grads, state, b1, b2)
    return to_updates(direction, grads if params is None else params), state

  return optax.GradientTransformation(init, update)


def adasam(learning_rate: optax.ScalarOrSchedule, rho: optax.ScalarOrSchedule = 0.05,
           b1: float | jax.Array = 0.9, b2: float | jax.Array = 0.999,
           eps: float | jax.Array = 1e-8, *, v_init: Literal['zero', 'eps_sq'] = 'zero',
           norm_guard: float | jax.Array = 1e-12,
           perturb: Literal['global', 'per_device'] = 'global',
           max_norm: float | jax.Array | None = None, weight_decay: float | jax.Array = 0.0,
           decoupled: bool = True, mask=None, mu_dtype=None):
  """AdaSAM (arXiv 2303.00565, algorithm 1): SAM with an AMSGrad-type adaptive step and momentum.

  With s the gradient at x and g the gradient at x + rho s / ||s|| on the same minibatch, only g
  enters the moments m, v and vhat (see `update_moments`), and x -= learning_rate * m / sqrt(vhat).

  >>> import jax, jax.numpy as jnp, optax
  >>> loss = lambda x: jnp.sum((x - 1.0) ** 2)
  >>> optimizer = adasam(learning_rate=0.1, rho=0.05)
  >>> x = jnp.zeros(3)
  >>> state = optimizer.init(x)
  >>> for _ in range(100):
  ...   updates, state = optimizer.update(jax.grad(loss)(x), state, x, grad_fn=jax.grad(loss))
  ...   x = optax.apply_updates(x, updates)
  >>> bool(loss(x) < 1e-3)
  True

  `update(grads, state, params, *, grad_fn, local_grads=None)` is `sam`'s, and so are the errors it
  raises. On several devices `grads` and the result of `grad_fn` are already global. Three wrappers
  of optax need care:
  - `optax.MultiSteps` hands over the mean gradient of its microbatches, so `grad_fn` must run over
    all of them too.
  - `optax.masked` hands `grad_fn` a tree with `optax.MaskedNode` in place of the frozen leaves;
    `sam` with a mask, or the groups of `make_optimizer`, freeze leaves without that.
  - `optax.inject_hyperparams` casts to the dtype of the parameters, and bfloat16 rounds b2 to 1:
    give it hyperparam_dtype=jnp.float32.

  Args:
    learning_rate: >= 0; a number, a scalar array, or a schedule of optimizer steps. The first step
      is 3.16 times as long as Adam's (see `scale_by_adasam`).
    rho: radius of the perturbation, >= 0, likewise. A Python 0 leaves out the second gradient; what
      remains is `scale_by_adasam` on the plain gradients.
    b1: decay of the first moment, in [0, 1); 0 is the paper's variant without momentum.
    b2: decay of the second moment, in [0, 1).
    eps: floor of sqrt(vhat), at least 1.1e-19: vhat starts at eps^2 in float32.
    v_init: the second moment starts at 'zero' or at eps^2 ('eps_sq').
    norm_guard: > 0, added to the norm in the perturbation.
    perturb: 'global' or 'per_device', see `sam`.
    max_norm: clips g to this global norm before the moments. Clipping in front of AdaSAM is
      pointless: it clips s, which is normalised.
    weight_decay: >= 0; the update becomes -learning_rate * (m / sqrt(vhat) + weight_decay * x).
    decoupled: False adds weight_decay * x to g before the moments instead.
    mask: leaves that decay, as in `optax.add_decayed_weights`; all by default.
    mu_dtype: dtype in which the first moment is stored; float32 by default.

  Returns:
    GradientTransformationExtraArgs with state `AdaSAMState`.

  Raises:
    ConfigError: a hyperparameter out of its range.
  """
  _check(v_init, eps, learning_rate=learning_rate, b1=b1, b2=b2, max_norm=max_norm,
         weight_decay=weight_decay)
  clip = optax.identity() if max_norm is None else optax.clip_by_global_norm(max_norm)
  decay = optax.add_decayed_weights(weight_decay, mask)
  before, after = (clip, decay) if decoupled else (optax.chain(clip, decay), optax.identity())

  def init(params):
    moments = init_moments(params, eps, v_init, mu_dtype)
    return AdaSAMState(jnp.zeros([], jnp.int32), *moments)

  def descend(grads, state, params):
    x = accumulators(params, params)
    stateless = lambda transform, tree: transform.update(tree, transform.init(x), x)[0]
    grads = stateless(before, accumulators(grads, params))
    direction, new_state = update_moments(grads, state, b1, b2)
    rate = value_at(learning_rate, state.count)
    steps = jax.tree.map(lambda d: -rate * d, stateless(after, direction))
    return to_updates(steps, params), new_state._replace(count=optax.safe_increment(state.count))

  descent = optax.GradientTransformation(init, descend)
  ascent = sam(descent, rho, norm_guard=norm_guard, perturb=perturb)

  def update(grads, state, params=None, **extra):
    # One counter serves both: `sam` is given the state that it would have kept around the descent.
    updates, sam_state = ascent.update(grads, SAMState(state.count, state), params, **extra)
    return updates, sam_state.inner_state

  return optax.GradientTransformationExtraArgs(init, update)
