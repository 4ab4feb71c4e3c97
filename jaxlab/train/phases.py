"""The settings of a fit and its phases: what is trained, how long, from which weights."""
import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax

from jaxlab import config as config_lib
from jaxlab import optim
from jaxlab.train import early_stop
from jaxlab.train.run import resolve_function


@dataclasses.dataclass(frozen=True)
class Phase:
  """One stretch of training.

  Attributes:
    steps: optimizer steps, >= 1; with `arms` a step is a whole cycle.
    optimizer: config for `optim.make_optimizer`; its schedules count steps.
    trainable: regex; parameters whose path 'a/b/kernel' it matches in full are trained, others stay
      as they are.
    init_from: checkpoint folder of another run whose parameters replace the current ones at the
      start.
    surgery: 'package.module:function', params -> params, applied at the start; may change shapes.
    arms: names of the Task's arms, a cycle of updates each on its own arm's batch; names may stand
      several times. Empty trains the Task's own loss.
    refresh_every: steps between calls of the Task's `refresh`, the first one at the start of the
      phase; 0 for a phase that trains on `dataset('train')`.
    early_stop: mapping for `early_stop.EarlyStop`, by which the phase may end before its steps; its
      result is then the state of its best evaluation. Empty for the last state after all steps.
  """
  steps: int
  optimizer: Mapping
  trainable: str = '.*'
  init_from: str | None = None
  surgery: str | None = None
  arms: Sequence[str] = ()
  refresh_every: int = 0
  early_stop: Mapping = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FitConfig:
  """The settings of `train.fit`.

  Attributes:
    batch_size: examples a step over all devices of all processes.
    steps: optimizer steps of a run without `phases`.
    optimizer: config for `optim.make_optimizer`; the default of the phases.
    phases: sequence of mappings with the fields of `Phase`; empty for one phase of `steps`.
    trainable: the default of the phases.
    init_from: checkpoint folder to start from: that of the first phase, if it names none.
    early_stop: the default of the phases.
    seed: of initialisation, data order and noise.
    accumulate: microbatches a step on each device.
    steps_per_call: steps scanned in one device program; `steps` and every interval must be
      multiples of it.
    log_every: steps between metric rows.
    eval_every: steps between evaluations of `eval_splits`; 0 for the end only.
    eval_splits: splits to evaluate.
    save_every: steps between checkpoints; 0 for the end only.
    keep: newest checkpoints that stay.
    max_bad_steps: non-finite updates in a row that end the run.
  """
  batch_size: int
  steps: int = 0
  optimizer: Mapping = dataclasses.field(default_factory=dict)
  phases: Sequence[Mapping] = ()
  trainable: str = '.*'
  init_from: str | None = None
  early_stop: Mapping = dataclasses.field(default_factory=dict)
  seed: int = 0
  accumulate: int = 1
  steps_per_call: int = 1
  log_every: int = 50
  eval_every: int = 0
  eval_splits: Sequence[str] = ('test',)
  save_every: int = 0
  keep: int = 2
  max_bad_steps: int = 10

  def __post_init__(self):
    config_lib.at_least(
        1, self, ('batch_size', 'accumulate', 'steps_per_call', 'log_every', 'max_bad_steps'))
    config_lib.at_least(0, self, ('eval_every', 'save_every', 'seed'))
    per_call = self.steps_per_call
    lengths = {f'phases[{i}].{name}': getattr(phase, name)
               for i, phase in enumerate(self.schedule()) for name in ('steps', 'refresh_every')}
    for name, value in {**lengths, 'log_every': self.log_every, 'eval_every': self.eval_every,
                        'save_every': self.save_every}.items():
      config_lib.require(value % per_call == 0, name, f'a multiple of steps_per_call={per_call}',
                         value)
    for i, phase in enumerate(self.schedule()):
      config_lib.require(phase.steps >= 1, f'phases[{i}].steps' if self.phases else 'steps',
                         'at least 1', phase.steps)
      config_lib.require(phase.refresh_every >= 0, f'phases[{i}].refresh_every', 'at least 0',
                         phase.refresh_every)
      make_optimizer(phase, f'phases[{i}].optimizer' if self.phases else 'optimizer')
      trainable_regex(phase)
      self.stopping(i)

  def schedule(self):
    """The phases, defaults filled in."""
    if not self.phases:
      return [Phase(self.steps, self.optimizer, self.trainable, self.init_from,
                    early_stop=self.early_stop)]
    defaults = {'optimizer': self.optimizer, 'trainable': self.trainable,
                'early_stop': self.early_stop}
    starts = [self.init_from, *[None] * (len(self.phases) - 1)]
    return [config_lib.call(Phase, {**defaults, 'init_from': start, **phase}, f'phases[{i}]',
                            drop=())
            for i, (start, phase) in enumerate(zip(starts, self.phases))]

  def stopping(self, index):
    """The EarlyStop of phase number `index`, or None."""
    return early_stop.read(
        self.schedule()[index].early_stop, f'phases[{index}].early_stop' if self.phases else
        'early_stop', eval_every=self.eval_every, eval_splits=self.eval_splits)

  @property
  def total_steps(self):
    """Optimizer steps of all phases."""
    return sum(phase.steps for phase in self.schedule())


FIT_KEYS = tuple(field.name for field in dataclasses.fields(FitConfig))


def fit_config(config):
  """Reads and checks the settings of `fit`; keys of other parts are left to their owners."""
  return config_lib.call(FitConfig, {key: config[key] for key in FIT_KEYS if key in config},
                         'config', drop=())


def make_optimizer(phase, where='optimizer'):
  """The optimizer of a phase; `where` is how errors call it."""
  return optim.make_optimizer(phase.optimizer, where, tick=max(len(phase.arms), 1))


def check_parts(task, schedule):
  """Raises ConfigError if a phase wants a part that the Task has not."""
  for i, phase in enumerate(schedule):
    for j, name in enumerate(phase.arms):
      config_lib.choose(name, task.arms or {}, f'phases[{i}].arms[{j}]')
    config_lib.require(not phase.refresh_every or task.refresh is not None,
                       f'phases[{i}].refresh_every', '0, for this task refreshes nothing',
                       phase.refresh_every)
    config_lib.require(not (phase.arms and phase.refresh_every), f'phases[{i}].refresh_every',
                       '0 in a phase with arms, which have data of their own', phase.refresh_every)


def check_splits(task, splits):
  """Raises ConfigError if the Task has no data set for a split that is evaluated at the end."""
  for split in splits:
    try:
      task.dataset(split)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'eval_splits: {error}') from error


def trainable_regex(phase):
  """The compiled `trainable` pattern; raises ConfigError if it is no regular expression."""
  try:
    return re.compile(phase.trainable)
  except re.error as error:
    raise config_lib.ConfigError(
        f'trainable: {phase.trainable!r} is no regular expression ({error})') from error


def trainable_mask(params, phase):
  """Pytree of bools: which parameters a phase trains. Raises ConfigError if it trains none."""
  pattern = trainable_regex(phase)
  path_name = lambda path: '/'.join(str(key.key) for key in path)
  mask = jax.tree_util.tree_map_with_path(
      lambda path, _: pattern.fullmatch(path_name(path)) is not None, params)
  if not any(jax.tree.leaves(mask)):
    paths = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    raise config_lib.ConfigError(f'trainable: {phase.trainable!r} matches none of {paths[:8]}')
  return mask


def operate(params, phase):
  """Applies the phase's surgery to the parameters, if it has one."""
  return resolve_function(phase.surgery, 'surgery')(params) if phase.surgery else params
