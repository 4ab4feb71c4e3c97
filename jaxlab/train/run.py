"""What every loop needs around its program: workdir, checkpoints, metrics, preemption."""
import importlib
import logging
import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

from jaxlab.config import ConfigError, require
from jaxlab.train import figures, writers
from jaxlab.train.checkpoints import Checkpointer
from jaxlab.train.workdir import open_workdir

_log = logging.getLogger(__name__)


class Preempted(SystemExit):
  """Raised, with exit status 0, after SIGTERM was answered by a checkpoint."""


class Run:
  """One run of a loop in a workdir. Use as a context manager.

  Args:
    config: the resolved config of the experiment, stored in the workdir.
    workdir: its folder, or None: then nothing is written and nothing resumes.
    unit: 'step' or 'round', for messages.
    total: number of units of the run.
    keep: newest checkpoints that stay.
    profile_steps: (first, last) units to trace to workdir/profile, or None.
  """

  def __init__(self, config, workdir, *, unit, total, keep, profile_steps=None):
    self.directory = open_workdir(workdir, config) if workdir else None
    self.unit, self.total = unit, total
    self._checkpointer = Checkpointer(self.directory / 'checkpoints' if workdir else None, keep)
    self._writer = self._progress = self._handler = None
    self._stop = threading.Event()
    self._mark = None
    self._profile, self._tracing = profile_steps, False
    if profile_steps is not None:
      require(workdir is not None, 'profile_steps', 'a workdir to write the trace to', workdir)

  def __enter__(self):
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._handler = signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
    return self

  def __exit__(self, kind, error, traceback):
    if self._handler is not None:
      signal.signal(signal.SIGTERM, self._handler)
    if self._tracing:
      jax.profiler.stop_trace()
    for part in (self._progress, self._writer):
      if part is not None:
        part.close()
    try:
      self._checkpointer.close()  # also after an error: the checkpoint in flight is finished first
    except OSError as failure:
      if kind is None:
        raise
      _log.warning('%s', failure)

  def resume(self, template, iterator=None):
    """Restores as `Checkpointer.restore` does, and opens the metric files where that ends."""
    restored = self._checkpointer.restore(template, iterator)
    start = restored[0] if restored else 0
    if restored:
      _log.info('resumed from %s %d', self.unit, start)
    self._writer = writers.MetricWriter(self.directory, start)
    self._progress = writers.Progress(self.total, start, self.unit)
    self._mark = (start, time.perf_counter())
    return restored

  @property
  def rows(self):
    """The metric rows so far, as dicts with 'step'."""
    return self._writer.rows

  def log(self, step, values):
    """Writes a row of metrics and shows it."""
    self._writer.write(step, values)
    self._progress.update(step, values)

  def trace(self, step, state):
    """Starts or stops the profiler before the call at `step`; `state` is waited for first."""
    if self._profile is None:
      return
    inside = self._profile[0] <= step < self._profile[1]
    if inside != self._tracing:
      jax.block_until_ready(state)
      if inside:
        jax.profiler.start_trace(str(self.directory / 'profile'))
      else:
        jax.profiler.stop_trace()
        _log.info('trace of %s %d to %d: %s/profile', self.unit, *self._profile, self.directory)
      self._tracing = inside

  def rate(self, step):
    """Units a second since the last call."""
    (last, then), now = self._mark, time.perf_counter()
    self._mark = (step, now)
    return (step - last) / max(now - then, 1e-9)

  def save(self, step, state, iterator, meta):
    """Starts a checkpoint in the background."""
    self._checkpointer.save(step, state, iterator, meta)

  def wait(self):
    """Waits for the checkpoint in flight."""
    self._checkpointer.wait()

  def stop_requested(self, step):
    """True once SIGTERM has come; with several processes, at the same step on all of them."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._stop.is_set()

  def leave(self, step, state, iterator, meta):
    """Saves and raises `Preempted`."""
    self.save(step, state, iterator, meta)
    self.wait()
    _log.info('stopped by SIGTERM: saved %s %d; the same command goes on from there', self.unit,
              step)
    raise Preempted(0)

  def draw(self):
    """Writes figures/curves.png from the metric rows (process 0)."""
    if self.directory is not None and jax.process_index() == 0:
      figures.curves(self.rows, self.directory / 'figures' / 'curves.png', self.unit)


def check_hooks(hooks, per_call, key):
  """Raises ConfigError if a hook would fall between two calls of the program."""
  for hook in hooks:
    require(hook.every % per_call == 0, key, f'a divisor of {hook.every}, every how many the hook '
            f'{hook.name!r} is called', per_call)


def check_bad_steps(bad_steps, limit, step, unit='step'):
  """Raises FloatingPointError naming the step once `bad_steps` updates in a row were not finite."""
  if bad_steps >= limit:
    raise FloatingPointError(
        f'{unit} {step}: the last {bad_steps} updates in a row were not finite and were skipped; '
        f'stopping (max_bad_steps={limit})')


def resolve_function(path, where):
  """Imports 'package.module:function'; ConfigError naming the key if there is none."""
  module, _, name = path.partition(':')
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ConfigError(
        f'{where}: expected package.module:function, got {path!r} ({error})') from error
