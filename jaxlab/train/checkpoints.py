"""Checkpoints: Orbax for the state, Grain for the data iterator, checksums that notice damage.

A checkpoint is taken from the host copy of the state, leaf by leaf under its key path, so it does
not depend on how a pytree is laid out over devices or processes. Orbax writes to a temporary folder
and renames it, so a run killed in the middle of a write finds the checkpoint before it.
"""
import logging
import pathlib
import re
import shutil
import zlib

import grain.python as grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxlab import parallel
from jaxlab.config import ConfigError

_log = logging.getLogger(__name__)


def flatten(tree):
  """{key path: leaf} of a pytree; typed PRNG keys become their raw data."""
  host = parallel.to_host(tree)
  return {
      jax.tree_util.keystr(path): leaf
      for path, leaf in jax.tree_util.tree_flatten_with_path(host)[0]
  }


def unflatten(template, leaves):
  """Puts {key path: array} back into the structure of `template`; the inverse of `flatten`."""
  def leaf(path, like):
    value = leaves[jax.tree_util.keystr(path)]
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(value)
    return value
  return jax.tree_util.tree_map_with_path(leaf, template)


def checksums(leaves):
  """{key path: CRC-32 of the leaf's shape, dtype and bytes} of what `flatten` gives."""
  return {path: zlib.crc32(np.ascontiguousarray(leaf).tobytes(),
                           zlib.crc32(f'{leaf.shape}{leaf.dtype}'.encode()))
          for path, leaf in leaves.items()}


def fingerprint(tree):
  """One number for a pytree that is not checkpointed: it changes when any leaf or path does."""
  return zlib.crc32(repr(sorted(checksums(flatten(tree)).items())).encode())


class Checkpointer:
  """Saves and restores (state, data iterator, meta) under a folder.

  Args:
    directory: folder of the checkpoints; None keeps nothing.
    keep: how many of the newest checkpoints stay. At least 2, or a damaged one would end the run.
  """

  def __init__(self, directory, keep=2):
    self._manager = None
    if directory is not None:
      options = ocp.CheckpointManagerOptions(max_to_keep=max(keep, 2), create=True)
      self._manager = ocp.CheckpointManager(directory, options=options)

  def save(self, step, state, iterator, meta):
    """Starts writing a checkpoint in the background; a step that is already there is left alone.

    Args:
      step: its number.
      state: pytree of arrays, replicated over the devices.
      iterator: Grain DatasetIterator, or None.
      meta: mapping that JSON can hold.

    Raises:
      OSError: this write, or the one before it, failed; earlier checkpoints are untouched.
    """
    if self._manager is None or step in self._manager.all_steps():
      return
    leaves = flatten(state)
    items = {'state': ocp.args.StandardSave(leaves),
             'meta': ocp.args.JsonSave(
                 {**meta, 'checksums': checksums(leaves), 'shapes': _shapes(leaves)})}
    if iterator is not None:
      items['data'] = grain.PyGrainCheckpointSave(iterator)
    try:
      self._manager.save(step, args=ocp.args.Composite(**items))
    except ValueError as error:
      raise _disk_error(step, error) from error

  def wait(self):
    """Waits for the write in flight; raises OSError if it failed."""
    if self._manager is not None:
      try:
        self._manager.wait_until_finished()
      except ValueError as error:
        raise _disk_error('the last', error) from error

  def restore(self, template, iterator=None, at=None):
    """Restores the newest undamaged checkpoint; damaged ones are reported and moved aside.

    Args:
      template: function of a checkpoint's meta that gives the pytree to fill (arrays or
        ShapeDtypeStructs).
      iterator: function of a checkpoint's meta and state that gives the Grain iterator to set, or
        None.
      at: the only step to look at; None for all.

    Returns:
      (step, state as host arrays, iterator, meta), or None when there is no checkpoint.

    Raises:
      ConfigError: a checkpoint is whole but of another structure; it is left where it is.
    """
    steps = self._manager.all_steps() if self._manager else ()
    return _newest_whole([step for step in steps if at in (None, step)],
                         lambda step: self._restore_step(step, template, iterator),
                         self._set_aside)

  def _set_aside(self, step):
    """Moves a damaged checkpoint out of the way, so that its step can be written again."""
    if jax.process_index() == 0:
      aside = pathlib.Path(f'{self._manager.directory}.damaged')
      aside.mkdir(exist_ok=True)
      shutil.rmtree(aside / str(step), ignore_errors=True)
      shutil.move(self._manager.directory / str(step), aside / str(step))
    parallel.barrier(f'set aside checkpoint {step}')
    self._manager.reload()

  def _restore_step(self, step, template, iterator):
    meta = self._part(step, meta=ocp.args.JsonRestore())
    wanted = template(meta)
    zeros = _host_zeros(wanted)
    _check_paths(zeros, meta['shapes'], step)
    for path, shape in _shapes(zeros).items():
      if meta['shapes'][path] != shape:
        raise ConfigError(f'checkpoint {step} has another structure: {path} is '
                          f'{meta["shapes"][path]}, expected {shape}')
    leaves = self._part(step, state=ocp.args.StandardRestore(zeros))
    leaves = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    _check_sums(leaves, meta)
    state, data = unflatten(wanted, leaves), None
    if iterator:
      data = self._part(step, data=grain.PyGrainCheckpointRestore(iterator(meta, state)))
    return step, state, data, meta

  def _part(self, step, **item):
    """One item of a checkpoint."""
    return self._manager.restore(step, args=ocp.args.Composite(**item))[next(iter(item))]

  def close(self):
    """Waits for the write in flight and frees the manager."""
    if self._manager is not None:
      self.wait()
      self._manager.close()


def _host_zeros(template):
  """{key path: NumPy zeros} shaped as `flatten` gives; what Orbax restores into."""
  def raw(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.eval_shape(jax.random.key_data, leaf)
    return leaf
  paths = jax.tree_util.tree_flatten_with_path(jax.tree.map(raw, template))[0]
  return {jax.tree_util.keystr(path): np.zeros(leaf.shape, leaf.dtype) for path, leaf in paths}


def _shapes(leaves):
  """{key path: dtype and shape as text} of what `flatten` gives."""
  return {path: f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves.items()}


def _check_sums(leaves, meta):
  """Raises ValueError if the leaves of a checkpoint are not those that were saved."""
  found, saved = checksums(leaves), meta['checksums']
  broken = sorted(path for path in found.keys() | saved.keys()
                  if found.get(path) != saved.get(path))
  if broken:
    raise ValueError(f'checksum of {broken[0]} differs')


def _newest_whole(steps, read, damaged=lambda step: None):
  """What `read(step)` gives of the newest step that is whole, or None if none is.

  Those that it cannot read are reported, and `damaged(step)` is called for each.
  """
  for step in sorted(steps, reverse=True):
    try:
      return read(step)
    except ConfigError:
      raise
    except Exception as error:  # pylint: disable=broad-except  (Orbax and tensorstore raise many kinds)
      _log.warning('checkpoint %d is damaged (%s); going on from the one before', step,
                   str(error).splitlines()[0] if str(error) else type(error).__name__)
      damaged(step)
  return None


def _check_paths(wanted, saved, step):
  missing, extra = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
  if missing or extra:
    raise ConfigError(
        f'checkpoint {step} has another structure: missing {missing[:5]}, left over {extra[:5]}')


def _disk_error(step, error):
  reason = str(error).splitlines()[0]
  return OSError(f'checkpoint {step} could not be written ({reason}); earlier ones are kept')


def saved_steps(directory):
  """(folder of the checkpoints of a run, their numbers).

  Args:
    directory: the run's workdir or its checkpoint folder.
  """
  directory = pathlib.Path(directory).absolute()
  directory = directory / 'checkpoints' if (directory / 'checkpoints').is_dir() else directory
  return directory, ocp.utils.checkpoint_steps(directory) if directory.is_dir() else []


def read_leaves(directory):
  """{key path: array} of the newest undamaged checkpoint of a run; damaged ones are reported.

  Args:
    directory: the run's workdir or its checkpoint folder.

  Raises:
    ConfigError: there is no checkpoint, or none that is whole.
  """
  folder, steps = saved_steps(directory)
  if not steps:
    raise ConfigError(f'{directory}: no checkpoint there')

  def read(step):
    with ocp.StandardCheckpointer() as checkpointer:
      saved = checkpointer.restore(folder / str(step) / 'state')
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
      meta = checkpointer.restore(folder / str(step) / 'meta')
    leaves = {path: np.asarray(leaf) for path, leaf in saved.items()}
    _check_sums(leaves, meta)
    return leaves

  leaves = _newest_whole(steps, read)
  if leaves is None:
    raise ConfigError(f'{directory}: expected a whole checkpoint, found damaged ones: '
                      f'{", ".join(map(str, sorted(steps)))}')
  return leaves


def load_collection(directory, template, name='params', average=False):
  """Reads one collection of the newest checkpoint of another run, central or federated.

  Args:
    directory: its workdir or checkpoint folder.
    template: pytree of arrays; every path must be there with this shape.
    name: which collection, 'params' or 'running'.
    average: whether parameters are replaced by their average, where the optimizer keeps one.

  Returns:
    Pytree of NumPy arrays like `template`.

  Raises:
    ConfigError: no checkpoint there, paths or shapes that do not fit, or no average of any.
  """
  return load_collections(directory, {name: template}, average)[name]


def load_collections(directory, templates, average=False):
  """Reads several collections of one checkpoint: {name: template} -> {name: pytree}.

  See `load_collection`; only 'params' are ever averages.
  """
  saved = read_leaves(directory)
  return {name: _collection(saved, directory, template, name, average and name == 'params')
          for name, template in templates.items()}


def _collection(saved, directory, template, name, average):
  prefixes = (f'.{name}', f'.server.{name}')
  leaves = {path[len(prefix):]: leaf for path, leaf in saved.items()
            for prefix in prefixes if path.startswith(prefix + '[')}
  if average:
    kept = {match[1]: leaf for path, leaf in saved.items()
            if (match := re.fullmatch(r'(?:\.server)?\.opt_state.*?\.average(\[.*)', path))}
    if not kept:
      raise ConfigError(f'{directory}: expected a run that averages its parameters '
                        '(optimizer.ema_decay), found no average')
    leaves |= {path: leaf.astype(leaves[path].dtype) for path, leaf in kept.items()}
  wanted = _host_zeros(template)
  _check_paths(wanted, leaves, f'in {directory}')
  for path, leaf in wanted.items():
    if leaves[path].shape != leaf.shape:
      raise ConfigError(
          f'{directory}: {name}{path} has shape {leaves[path].shape}, expected {leaf.shape}')
  return unflatten(template, leaves)
