"""Early stopping: training ends when a metric has not become better for some evaluations.

What is best follows from the metric rows alone, which a run that goes on reads again.
"""
import dataclasses
import logging
import math
import shutil
from typing import Literal

import jax

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.train.checkpoints import Checkpointer, flatten, unflatten

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EarlyStop:
  """The mapping `early_stop` of a fit, a phase or `config.federated`.

  Attributes:
    metric: of an evaluation, such as 'dev/auc', or 'ema/dev/auc' of averaged parameters.
    patience: evaluations in a row without a better value that end the training.
    mode: 'max' where larger is better, 'min' where smaller is. NaN is never better.
  """
  metric: str
  patience: int
  mode: Literal['max', 'min'] = 'max'


def read(config, where, *, eval_every, eval_splits):
  """Reads and checks a mapping `early_stop`, which errors call `where`.

  Returns:
    EarlyStop, or None of an empty mapping.
  """
  if not config:
    return None
  settings = config_lib.call(EarlyStop, config, where, drop=())
  config_lib.at_least(1, {'patience': settings.patience}, where=where)
  config_lib.require(eval_every > 0, f'{where}', 'eval_every of at least 1 beside it', eval_every)
  split = settings.metric.removeprefix('ema/').partition('/')[0]
  config_lib.require(split in eval_splits, f'{where}.metric',
                     f'SPLIT/METRIC of one of the eval_splits {", ".join(eval_splits)}',
                     settings.metric)
  return settings


def standing(rows, settings, since=0):
  """Where training stands.

  Args:
    rows: metric rows, dicts with 'step', in order.
    settings: EarlyStop.
    since: rows up to this step do not count.

  Returns:
    (step of the best evaluation, or None without any, evaluations after it).
  """
  sign = 1 if settings.mode == 'max' else -1
  best, best_step, waited = -math.inf, None, 0
  for row in rows:
    if row['step'] > since and settings.metric in row:
      value, waited = sign * row[settings.metric], waited + 1
      if value > best:
        best, best_step, waited = value, row['step'], 0
  return best_step, waited


class Best:
  """The state of the best evaluation, in memory and in workdir/best. Use as a context manager.

  Args:
    settings: EarlyStop, or None: then nothing ends before its time, and any state is the best.
    run: the Run.
    since: step at which this stretch of training began; what was best before it is forgotten.

  Attributes:
    finished: whether the patience is at its end.
  """

  def __init__(self, settings, run, since):
    self._settings, self._run, self._since, self._state = settings, run, since, None
    self._step, waited = standing(run.rows, settings, since) if settings else (None, 0)
    self.finished = settings is not None and waited >= settings.patience
    folder = run.directory and run.directory / 'best'
    if self._step is None and folder:
      run.wait()  # for the checkpoint that ended the stretch before, which has its best state
      parallel.barrier('forget the best state')
      if jax.process_index() == 0 and folder.exists():
        shutil.rmtree(folder)
      parallel.barrier('forgot the best state')
    self._checkpointer = Checkpointer(folder if settings else None)

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    try:
      self._checkpointer.close()
    except OSError as failure:
      if kind is None:
        raise
      _log.warning('%s', failure)

  def see(self, step, state):
    """Looks at the evaluation of `state`, whose metrics are the newest row.

    Raises:
      ConfigError: the evaluation has no such metric.
    """
    if self._settings is None:
      return
    row, metric = self._run.rows[-1], self._settings.metric
    config_lib.require(metric in row, 'early_stop.metric',
                       f'one of {", ".join(sorted(name for name in row if "/" in name))}', metric)
    self._step, waited = standing(self._run.rows, self._settings, self._since)
    if self._step == step:
      self._state = unflatten(state, flatten(state))  # on the host, and the programs' no more
      self._checkpointer.save(step, self._state, None, {})
    self.finished = waited >= self._settings.patience
    if self.finished:
      _log.info('%s %d: %s has not become better in %d evaluations; the best was at %s',
                self._run.unit, step, metric, waited, self._step)

  def wait(self):
    """Waits for the write of the best state; before a checkpoint that counts on it."""
    self._checkpointer.wait()

  def take(self, state):
    """The best state as host arrays; `state` itself where none is known."""
    if self._state is None and self._step is not None:
      restored = self._checkpointer.restore(lambda meta: state, at=self._step)
      if restored:
        self._state = restored[1]
      else:
        _log.warning('%s: no whole checkpoint of the best %s %d; the last state takes its place',
                     self._run.directory / 'best', self._run.unit, self._step)
    return state if self._state is None else self._state
