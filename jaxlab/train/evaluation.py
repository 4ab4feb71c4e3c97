"""Prediction over a whole split and its evaluation on the host."""
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab import parallel
from jaxlab.data import pipeline
from jaxlab.task import join_variables, split_variables
from jaxlab.train.checkpoints import load_collections


class Snapshot(NamedTuple):
  """The part of a state that prediction looks at."""
  params: Any
  running: Any
  key: jax.Array
  step: int


class Evaluator:
  """Predicts a split with all devices of all processes and evaluates it on the host.

  Args:
    task: Task.
    batch_size: examples a device and call.
    devices: devices of the pmap, all by default.
  """

  def __init__(self, task, *, batch_size=256, devices=None):
    self._task, self._devices = task, devices
    self._rows = batch_size * len(parallel.local_devices(devices))
    self._predict = jax.pmap(functools.partial(_predict, task.predict), axis_name=parallel.BATCH,
                             in_axes=((None, None, None), 0, None), devices=devices)

  def __call__(self, state, constants, split, prefix=None):
    """Returns {f'{prefix}/{metric}': float}; the prefix is the split's name unless given."""
    pairs = list(self.predict(state, constants, split))
    return {
        f'{prefix or split}/{name}': value for name, value in self._task.evaluate(pairs).items()
    }

  def predict(self, state, constants, split):
    """Yields (outputs, batch) of the real rows of the split as NumPy arrays, on every process.

    Args:
      state: has fields `params`, `running` and `key`.
      constants: the Flax collection, or {}.
      split: name for `task.dataset`, or a grain.MapDataset of examples.
    """
    dataset = self._task.dataset(split) if isinstance(split, str) else split
    key = jax.random.fold_in(state.key, state.step)
    batches = pipeline.eval_batches(dataset, batch_size=self._rows * jax.process_count(),
                                    process_index=jax.process_index(),
                                    process_count=jax.process_count())
    for number, batch in enumerate(batches):
      outputs = self._predict(
          (state.params, state.running, constants),
          parallel.shard(parallel.split(batch, self._devices), devices=self._devices),
          jax.random.fold_in(key, number))
      local = jax.tree.map(lambda x: x[None], batch)
      outputs, batch = parallel.gather_rows((outputs, local))
      real = batch['weight'] > 0
      yield jax.tree.map(lambda x: x[real], (outputs, batch))


def _predict(predict, collections, batch, key):
  key = jax.random.fold_in(key, parallel.axis_index())
  return predict(join_variables(*collections), batch, key)


def restored(task, config, workdir, average=False):
  """(Snapshot, constants) of the newest checkpoint of a run, on the devices.

  Args:
    task: Task.
    config: of the run.
    workdir: its folder.
    average: whether to take the parameters' average, which the run's optimizer must have kept.

  Raises:
    ConfigError: no checkpoint there, one of another model, or one without an average.
  """
  key = jax.random.key(config.get('seed', 0))
  params, running, constants = split_variables(jax.jit(task.init)(jax.random.split(key)[0]))
  templates = {'params': params, 'running': running} if running else {'params': params}
  found = {'running': running, **load_collections(workdir, templates, average)}
  return parallel.place(Snapshot(**found, key=key, step=0)), parallel.place(constants)


def evaluate_workdir(task, config, workdir, split, average=False):
  """Evaluates the newest checkpoint of a run: {f'{split}/{metric}': float}; see `restored`."""
  return Evaluator(task)(*restored(task, config, workdir, average), split)


def predict_workdir(task, config, workdir, split, average=False):
  """The outputs of the newest checkpoint for a split or a data set, in its order; see `restored`.

  Returns:
    {name: array [N, ...]} with the leaves of the outputs by their paths, 'output' for a bare array.
  """
  pairs = Evaluator(task).predict(*restored(task, config, workdir, average), split)
  outputs = jax.tree.map(lambda *x: np.concatenate(x), *(outputs for outputs, _ in pairs))
  leaves = jax.tree_util.tree_flatten_with_path(outputs)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/') or 'output': leaf
          for path, leaf in leaves}
