"""`fit`: trains a Task through its phases, and goes on after a kill to the bit-identical end."""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab import optim, parallel
from jaxlab.data import pipeline
from jaxlab.task import join_variables, split_variables
from jaxlab.train import phases as phases_lib
from jaxlab.train.checkpoints import fingerprint, load_collection
from jaxlab.train.early_stop import Best
from jaxlab.train.evaluation import Evaluator
from jaxlab.train.run import Run, check_bad_steps, check_hooks
from jaxlab.train.step import TrainState, merge, select, train_step
from jaxlab.train.telemetry import compile_program

_ARMS = 2**31 - 1  # keys of the arms are folded from here downwards, those of steps from 0 upwards
_REFRESH = 2**31 - 2  # folded into a step's key, where `train_step` folds in devices


class Hook(NamedTuple):
  """Host code between steps, with a state of its own in the checkpoint.

  Attributes:
    name: key of its state in `state.hooks`.
    init: params -> pytree, the hook's state at the start.
    apply: (state, step) -> state; reads and replaces `state.hooks[name]`.
    every: steps between calls.
  """
  name: str
  init: Callable[[Any], Any]
  apply: Callable[[Any, int], Any]
  every: int = 1


def fit(task, config, *, workdir=None, state=None, hooks=(), devices=None, profile_steps=None):
  """Trains a Task.

  With a workdir the run writes metrics, checkpoints and figures there, and the same call goes on
  from the newest good checkpoint. SIGTERM saves and raises `Preempted` (exit status 0).

  Args:
    task: Task.
    config: mapping with the fields of `phases.FitConfig`; other keys are ignored.
    workdir: folder of the run, or None to keep nothing.
    state: TrainState to start the first phase from (its params, running state and key); None
      initialises.
    hooks: sequence of `Hook`.
    devices: devices to train on, all by default.
    profile_steps: (first, last) steps to trace to workdir/profile, or None.

  Returns:
    The final TrainState, on the devices; with `early_stop` that of the best evaluation of the last
    phase, under the number of the last step.

  Raises:
    ConfigError: impossible settings, before anything compiles.
    FloatingPointError: `max_bad_steps` updates in a row were not finite.
    OSError: a checkpoint or metric could not be written; earlier checkpoints are kept.
  """
  settings = phases_lib.fit_config(config)
  check_devices(settings, devices)
  check_hooks(hooks, settings.steps_per_call, 'config.steps_per_call')
  schedule = settings.schedule()
  phases_lib.check_parts(task, schedule)
  phases_lib.check_splits(task, settings.eval_splits)
  build = functools.partial(_initial_state, task, schedule, settings.seed, hooks)
  parallel.check_fits(jax.eval_shape(build)[0], 'config.model')
  template = lambda phase, aux=None: jax.eval_shape(
      functools.partial(_template, task, schedule, settings.seed, hooks, phase))._replace(aux=aux)
  template(len(schedule) - 1)  # finds what does not fit together before anything compiles

  with Run(config, workdir, unit='step', total=settings.total_steps, keep=settings.keep,
           profile_steps=profile_steps) as run:
    fresh, constants = jax.jit(build)()
    restored = run.resume(
        lambda meta: template(meta['phase'], _described(meta['aux'])),
        lambda meta, state: iter(_train_batches(task, settings, meta['phase'], meta['round'],
                                                state.aux)))
    if restored:
      _, state, iterator, meta = restored
      config_lib.require(meta['constants'] == fingerprint(constants), 'constants',
                         'those of the checkpoint', 'others')
      first, start, refreshed = meta['phase'], meta['start'], (meta['round'], state.aux)
      state = state._replace(aux=None)
    else:
      state = fresh if state is None else fresh._replace(params=state.params, running=state.running,
                                                         key=state.key)
      first, start = 0, None
    constants = parallel.place(constants, devices=devices)
    evaluator = Evaluator(task, devices=devices)
    for index in range(first, len(schedule)):
      if start is None:
        state, refreshed = _begin_phase(state, schedule[index]), (0, None)
        iterator, start = iter(_train_batches(task, settings, index)), int(state.step)
      state = parallel.place(state, devices=devices)
      with Best(settings.stopping(index), run, start) as best:
        state = _run_phase(run, task, settings, index, start, state, constants, iterator, refreshed,
                           hooks, evaluator, best, devices)
      start = None
    run.draw()
    return state


def check_devices(settings, devices=None):
  """Raises ConfigError unless the batch divides over the devices and microbatches."""
  count = len(devices or jax.devices())
  config_lib.require(settings.batch_size % (count * settings.accumulate) == 0, 'config.batch_size',
                     f'a multiple of {count} devices x accumulate={settings.accumulate}',
                     settings.batch_size)


def _initial_state(task, schedule, seed, hooks):
  """(state before the first phase, constants)."""
  init_key, key = jax.random.split(jax.random.key(seed))
  params, running, constants = split_variables(task.init(init_key))
  zero = jnp.zeros((), jnp.int32)
  mask = phases_lib.trainable_mask(params, schedule[0])
  opt_state = phases_lib.make_optimizer(schedule[0]).init(select(params, mask))
  state = TrainState(step=zero, params=params, running=running, opt_state=opt_state, key=key,
                     bad_steps=zero, skipped=zero,
                     hooks={hook.name: hook.init(params) for hook in hooks})
  return state, constants


def _template(task, schedule, seed, hooks, phase):
  """The state inside phase number `phase`; for `jax.eval_shape`."""
  state, _ = _initial_state(task, schedule, seed, hooks)
  for i in range(phase + 1):
    state = _with_params(state, phases_lib.operate(state.params, schedule[i]), schedule[i])
  return state


def _with_params(state, params, phase):
  mask = phases_lib.trainable_mask(params, phase)
  opt_state = phases_lib.make_optimizer(phase).init(select(params, mask))
  return state._replace(params=params, opt_state=opt_state)


def _begin_phase(state, phase):
  """Other weights, surgery, a fresh optimizer state."""
  params = parallel.to_host(state.params)
  if phase.init_from:
    params = load_collection(phase.init_from, params)
  return _with_params(state, phases_lib.operate(params, phase), phase)


def _train_batches(task, settings, index, round=0, aux=None):
  """The batches of a phase; with arms, tuples of a batch for each entry of the cycle."""
  def batches(dataset, entry):
    return pipeline.train_batches(
        dataset, batch_size=settings.batch_size,
        seed=settings.seed + 1000 * index + 100_000 * entry + 10_000_000 * round,
        process_index=jax.process_index(), process_count=jax.process_count())

  arms = settings.schedule()[index].arms
  if arms:
    return grain.experimental.ZipIterDataset(
        [batches(task.arms[name].dataset(), entry) for entry, name in enumerate(arms)])
  return batches(task.dataset('train') if aux is None else task.dataset('train', aux), 0)


def _description(aux):
  """What JSON keeps of the shapes of `aux`; `_described` is its inverse."""
  return aux and {name: [str(x.dtype), list(x.shape)] for name, x in aux.items()}


def _described(description):
  return description and {name: jax.ShapeDtypeStruct(shape, dtype)
                          for name, (dtype, shape) in description.items()}


def _next_batch(iterator, steps, devices):
  """The rows of the next `steps` batches, on the devices: [local devices, (steps,) B, ...]."""
  batches = [parallel.split(next(iterator), devices) for _ in range(steps)]
  batch = batches[0] if steps == 1 else jax.tree.map(lambda *x: np.stack(x, axis=1), *batches)
  return parallel.shard(batch, devices=devices)


def _evaluate(evaluator, state, constants, splits, trainable):
  """Metrics of the parameters, and as 'ema/...' of their average where the optimizer keeps one."""
  row = {}
  average = optim.averaged(state.opt_state, select(state.params, trainable))
  for split in splits:
    row.update(evaluator(state, constants, split))
    if average is not None:
      frozen = select(state.params, jax.tree.map(lambda keep: not keep, trainable))
      smooth = state.with_params(merge(trainable, average, frozen))
      row.update(evaluator(smooth, constants, split, f'ema/{split}'))
  return row


def many_steps(state, constants, batches, *, step):
  """Scans `step` over batches [S, B, ...]; metrics of the last step, 'bad_steps' the worst."""
  state, metrics = jax.lax.scan(lambda carry, batch: step(carry, constants, batch), state, batches)
  return state, {**jax.tree.map(lambda x: x[-1], metrics), 'bad_steps': metrics['bad_steps'].max()}


def cycle_steps(state, constants, batches, *, steps):
  """Takes a step of each arm in turn, which together count as one step.

  Args:
    state: TrainState.
    constants: the Flax collection 'constants', or {}.
    batches: tuple with a batch for each entry of the cycle.
    steps: [(name, (state, constants, batch) -> (state, metrics))] of the entries.

  Returns:
    (state, {f'{name}/{metric}': of the last entry of that name}), beside 'bad_steps', the worst
    count of the cycle, and 'skipped'.
  """
  start, metrics, bad_steps = state, {}, 0
  for entry, ((name, step), batch) in enumerate(zip(steps, batches)):
    key = jax.random.fold_in(start.key, _ARMS - entry)
    state, found = step(state._replace(step=start.step, key=key), constants, batch)
    bad_steps = jnp.maximum(bad_steps, found.pop('bad_steps'))
    skipped = found.pop('skipped')
    metrics.update({f'{name}/{metric}': value for metric, value in found.items()})
  return state._replace(key=start.key), {**metrics, 'bad_steps': bad_steps, 'skipped': skipped}


def _phase_step(task, settings, phase, trainable):
  """(state, constants, batch) -> (state, metrics) of one step of a phase."""
  step = functools.partial(train_step, optimizer=phases_lib.make_optimizer(phase),
                           accumulate=settings.accumulate, trainable=trainable)
  if not phase.arms:
    return functools.partial(step, task=task)
  # A name that stands several times is one function, which jit traces once.
  arms = {name: jax.jit(functools.partial(
      step, task=dataclasses.replace(task, loss=task.arms[name].loss, act=task.arms[name].act)))
          for name in dict.fromkeys(phase.arms)}
  return functools.partial(cycle_steps, steps=[(name, arms[name]) for name in phase.arms])


def _run_phase(run, task, settings, index, start, state, constants, iterator, refreshed, hooks,
               evaluator, best, devices):
  phase = settings.schedule()[index]
  end = start + phase.steps
  trainable = phases_lib.trainable_mask(state.params, phase)
  step = _phase_step(task, settings, phase, trainable)
  if settings.steps_per_call > 1:
    step = functools.partial(many_steps, step=step)
  program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None),
                     donate_argnums=0, devices=devices)
  position, compiled, pending = int(state.step), None, None
  (number, aux), fixed = refreshed, {'phase': index, 'start': start,
                                     'constants': fingerprint(constants)}

  def checkpoint():
    best.wait()
    meta = {**fixed, 'round': number, 'aux': _description(aux)}
    return position, state._replace(aux=aux), iterator, meta

  def due(every):
    return every and position % every == 0 or position == end

  while position < end and not best.finished:
    since = position - start
    if phase.refresh_every and since % phase.refresh_every == 0:
      number = since // phase.refresh_every
      variables = join_variables(state.params, state.running, constants)
      key = jax.random.fold_in(jax.random.fold_in(state.key, position), _REFRESH)
      aux = jax.tree.map(np.asarray, task.refresh(variables, key, number))
      iterator = iter(_train_batches(task, settings, index, number, aux))
    batch = _next_batch(iterator, settings.steps_per_call, devices)
    if compiled is None:
      compiled = compile_program(program, (state, constants, batch), settings.steps_per_call)
    run.trace(position, state)
    state, metrics = compiled.run(state, constants, batch)
    position += settings.steps_per_call
    if pending is not None:  # one call behind, so that the device is never waited for
      check_bad_steps(int(pending[1]['bad_steps']), settings.max_bad_steps, pending[0])
    pending = (position, metrics)
    for hook in hooks:
      if position % hook.every == 0:
        state = parallel.place(hook.apply(state, position), devices=devices)
    row = {}
    if due(settings.log_every):
      row = {name: value.item() for name, value in jax.device_get(metrics).items()}
      row.update(compiled.speed(run.rate(position), settings.batch_size))
    if due(settings.eval_every):
      row.update(_evaluate(evaluator, state, constants, settings.eval_splits, trainable))
    if row:
      run.log(position, row)
    if due(settings.eval_every):
      best.see(position, state)
    if position == end or best.finished:
      result = best.take(state)
      if result is not state:
        state = parallel.place(result._replace(step=state.step), devices=devices)
    if due(settings.save_every) or best.finished:
      check_bad_steps(int(metrics['bad_steps']), settings.max_bad_steps, position)
      run.save(*checkpoint())
    if run.stop_requested(position):
      run.leave(*checkpoint())
  return state
