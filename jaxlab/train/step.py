"""One training step: global gradient, update, metrics. The same on one or many devices."""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab import parallel
from jaxlab.task import join_variables
from jaxlab.train import rows as rows_lib

_ACT = 2**31 - 1  # folded into a key where devices and microbatches fold in their small numbers


class TrainState(NamedTuple):
  """Everything that a run carries from step to step, and all that a checkpoint holds.

  Attributes:
    step: int32, steps taken since the start of the run.
    params: the Flax collection 'params'.
    running: the other collections, without 'constants'.
    opt_state: state of the optimizer over the trainable part of `params`.
    key: the run's PRNG key; step keys are folded from it and never stored.
    bad_steps: int32, steps skipped in a row because a gradient was not finite.
    skipped: int32, steps skipped in all.
    hooks: name -> state of the hook of that name.
    aux: what the Task's `refresh` gave last, in checkpoints only; None on the devices.
  """
  step: jax.Array
  params: Any
  running: Any
  opt_state: Any
  key: jax.Array
  bad_steps: jax.Array
  skipped: jax.Array
  hooks: Any
  aux: Any = None

  def with_params(self, params):
    """The state with other parameters."""
    return self._replace(params=params)


def select(tree, mask):
  """The leaves of `tree` where `mask` is True, and None (an empty subtree) elsewhere."""
  return jax.tree.map(lambda keep, x: x if keep else None, mask, tree)


def merge(mask, selected, others):
  """Puts the leaves of `selected` (mask True) and `others` (mask False) back into one tree."""
  pick = lambda keep, a, b: a if keep else b
  return jax.tree.map(pick, mask, selected, others, is_leaf=lambda x: x is None)


def tree_where(condition, new, old):
  """Leaf-wise `where(condition, new, old)` for a scalar condition; typed PRNG keys included."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def all_finite(tree):
  """Scalar bool: no NaN or Inf in any floating leaf."""
  return each_finite(tree, batch_dims=0)


def each_finite(tree, batch_dims=1):
  """Which entries have no NaN or Inf in any floating leaf.

  Args:
    tree: pytree of arrays, the floating ones with `batch_dims` leading axes in common.
    batch_dims: number of axes that count entries; 0 asks of the tree as a whole.

  Returns:
    bool with the shape of those axes.
  """
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  if not leaves:
    return jnp.ones((), bool)
  axes = lambda x: tuple(range(batch_dims, x.ndim))
  every = lambda test: functools.reduce(jnp.logical_and, map(test, leaves))
  exact = lambda: every(lambda x: jnp.isfinite(x).all(axes(x)))
  if jax.default_backend() != 'cpu':
    return exact()
  # A plain sum is vectorised on the CPU, a reduction of bools is not, and takes ten times as long.
  # A sum that is not finite may have overflowed: then everything is looked at.
  sums = every(lambda x: jnp.isfinite(x.sum(axes(x))))
  return jax.lax.cond(sums.all(), lambda: sums, exact)


def _positive(weight):
  """A weight that can be divided by; a sum over nothing but padding is 0 / tiny = 0."""
  return jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)


def _zeros_like_shapes(shapes):
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def summed_gradient(loss, params, running, batch, key, accumulate=1):
  """Sums of loss, weights, metrics and gradient of this device's rows, over equal microbatches.

  Args:
    loss: (params, running, batch, key) -> `task.Loss`.
    params: what is differentiated.
    running: running collections, threaded through the microbatches.
    batch: mapping of [B, ...] with B divisible by `accumulate`.
    key: PRNG key; microbatch i gets fold_in(key, i).
    accumulate: number of microbatches.

  Returns:
    (gradient of the sum of weighted losses, {name: (sum of weighted values, sum of weights)},
    running).
  """
  def micro(params, running, rows, index):
    def total(params):
      out = loss(params, running, rows, jax.random.fold_in(key, index))
      pairs = {'loss': (out.values, out.weights), **out.metrics}
      sums = {name: (jnp.sum(v.astype(jnp.float32) * w), jnp.sum(w.astype(jnp.float32)))
              for name, (v, w) in pairs.items()}
      return jnp.sum(out.values * out.weights), (sums, {**running, **out.state})
    gradient, (sums, new_running) = jax.grad(total, has_aux=True)(params)
    return gradient, sums, new_running

  if accumulate == 1:
    return micro(params, running, batch, 0)
  rows = jax.tree.map(lambda x: x.reshape((accumulate, -1) + x.shape[1:]), batch)
  shapes = jax.eval_shape(micro, params, running, jax.tree.map(lambda x: x[0], rows), 0)

  def body(carry, xs):
    gradient, sums, running = carry
    more_gradient, more_sums, running = micro(params, running, *xs)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    return (add(gradient, more_gradient), add(sums, more_sums), running), None

  start = (_zeros_like_shapes(shapes[0]), _zeros_like_shapes(shapes[1]), running)
  return jax.lax.scan(body, start, (rows, jnp.arange(accumulate)))[0]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskGradient:
  """The gradient of a Task off the device axis: (params, batch, key) -> (gradient, sums).

  Calling it acts and differentiates. Who takes several gradients of one batch acts once.

  Attributes:
    act: (params, batch, key) -> the batch that `given` wants; the Task's `act`.
    given: (params, acted batch, key) -> (gradient of the weighted mean loss, {metric: (sum,
      weight)}).
  """
  act: Callable[[Any, Any, jax.Array], Any]
  given: Callable[[Any, Any, jax.Array], tuple[Any, Any]]

  def __call__(self, params, batch, key):
    return self.given(params, self.act(params, batch, key), key)


def act_once(gradient, params, batch, key):
  """(batch, gradient) for who takes several gradients of one batch: what a Task acts out is done.

  Args:
    gradient: `task_gradient`'s, or any other function of (params, batch, key), which acts nothing.
    params: where the Task acts.
    batch: mapping of rows.
    key: PRNG key.
  """
  if isinstance(gradient, TaskGradient):
    return gradient.act(params, batch, key), gradient.given
  return batch, gradient


def task_gradient(task, constants=None, accumulate=1, touched=rows_lib.NOTHING):
  """The `TaskGradient` of a Task without running state.

  Args:
    task: Task without running state.
    constants: the Flax collection 'constants', or None.
    accumulate: microbatches of a batch.
    touched: `rows.Touched`; of its tables the parameters hold the rows that it gathers.
  """
  def act(params, batch, key):
    return _act(task, join_variables(touched.stand_in(params), {}, constants), batch, key)

  def loss(params, running, batch, key):
    variables = join_variables(touched.stand_in(params), running, constants)
    return task.loss(variables, batch, key)

  def gradient(params, batch, key):
    total, sums, _ = summed_gradient(loss, params, {}, batch, key, accumulate)
    scale = 1 / _positive(sums['loss'][1])
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), total), sums

  return TaskGradient(act, gradient)


def _act(task, variables, batch, key):
  """The batch after the Task's `act`, if it has one."""
  return batch if task.act is None else task.act(variables, batch, jax.random.fold_in(key, _ACT))


def train_step(state, constants, batch, *, task, optimizer, trainable, accumulate=1,
               axis=parallel.BATCH):
  """Takes one optimizer step.

  The gradient is that of the global weighted mean: local sums are differentiated, `psum`med and
  divided by the global sum of weights, so padding and the number of devices change nothing.
  `grad_fn` (params -> the same global gradient elsewhere) and `local_grads` (this device's share)
  are handed to every optimizer that wants them. A step whose gradient or update is not finite
  changes nothing but the counters. The Task's `act` runs once, before all of it; its `rows`, where
  it has them, name all that the step touches of their tables.

  Args:
    state: TrainState.
    constants: the Flax collection 'constants', or {}.
    batch: mapping of this device's rows [B, ...], with B divisible by `accumulate`.
    task: Task; only its `loss`, `act` and `rows` are used.
    optimizer: GradientTransformation(ExtraArgs) over the trainable part of the parameters.
    trainable: pytree of bools shaped like `state.params`.
    accumulate: microbatches a step; exact, also for a second gradient.
    axis: name of the device axis.

  Returns:
    (new state, {metric: float32 global mean}), with 'grad_norm', 'bad_steps' and 'skipped' among
    the metrics.
  """
  step_key = jax.random.fold_in(state.key, state.step)
  key = jax.random.fold_in(step_key, parallel.axis_index(axis))
  batch = _act(task, join_variables(state.params, state.running, constants), batch, step_key)
  frozen = select(state.params, jax.tree.map(lambda keep: not keep, trainable))
  touched = rows_lib.touched(task, batch, state.params, trainable, axis)

  def loss(params, running, rows, key):
    params = touched.stand_in(merge(trainable, params, frozen))
    return task.loss(join_variables(params, running, constants), rows, key)

  def local_and_global(params):
    gradient, sums, running = summed_gradient(loss, params, state.running, batch, key, accumulate)
    total, sums = parallel.psum((gradient, sums), axis)
    scale = 1 / _positive(sums['loss'][1])
    divide = lambda tree: jax.tree.map(lambda g: g * scale.astype(g.dtype), tree)
    return divide(gradient), divide(total), sums, running

  optimizer = optax.with_extra_args_support(optimizer)
  whole = select(state.params, trainable), state.opt_state
  touched.check(optimizer, whole[0])
  params, opt_state = touched.gather(whole)
  local, gradient, sums, running = local_and_global(params)
  updates, new_opt_state = optimizer.update(
      gradient, opt_state, params, grad_fn=lambda p: local_and_global(p)[1], local_grads=local)
  good = all_finite((gradient, updates, sums['loss']))
  new = (optax.apply_updates(params, updates), new_opt_state), running
  changed, running = tree_where(good, new, ((params, opt_state), state.running))
  params, opt_state = touched.scatter(whole, changed)
  state = state._replace(
      step=state.step + 1, params=merge(trainable, params, frozen), running=running,
      opt_state=opt_state, bad_steps=jnp.where(good, 0, state.bad_steps + 1),
      skipped=state.skipped + ~good)
  metrics = {name: value / _positive(weight) for name, (value, weight) in sums.items()}
  metrics.update(
      grad_norm=optax.tree.norm(gradient), bad_steps=state.bad_steps, skipped=state.skipped)
  return state, metrics
