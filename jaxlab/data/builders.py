"""How every data set is prepared and loaded.

A data set is a TFDS builder, written once as array_record files and read from them. Any number of
processes may ask for the same one at the same time: one prepares it while the others wait. TFDS
writes to a temporary folder and renames it at the end, and the lock is the kernel's, so a process
that is killed at any moment leaves nothing that the next one would trip over.
"""
import contextlib
import fcntl
import logging
import os
import pathlib
import pkgutil
import shutil

import numpy as np

from jaxlab import config as config_lib
from jaxlab.config import ConfigError

BUILDERS = {
    'adressa': 'jaxlab.data.adressa:Adressa',
    'adressa_news': 'jaxlab.data.adressa:AdressaNews',
    'cifar': 'jaxlab.data.cifar:Cifar',
    'digits': 'jaxlab.data.digits:Digits',
    'femnist': 'jaxlab.data.leaf:Femnist',
    'glue': 'jaxlab.data.glue:Glue',
    'mind': 'jaxlab.data.mind:Mind',
    'mind_entities': 'jaxlab.data.mind:MindEntities',
    'mind_news': 'jaxlab.data.mind:MindNews',
    'shakespeare': 'jaxlab.data.leaf:Shakespeare',
    'text_pairs': 'jaxlab.data.graph:TextPairs',
}

_columns = {}  # (folder, split) -> the columns that this process has read


def load(name, *, data_dir=None, config=None, manual_dir=None):
  """Returns the builder of a data set that is complete on disk; prepares it where it is not.

  Args:
    name: a key of `BUILDERS`.
    data_dir: folder of all data sets; by default that of TFDS, $TFDS_DATA_DIR or
      ~/tensorflow_datasets. Where the data set is complete, nothing is written.
    config: name of one of the builder's configs, by default its first.
    manual_dir: folder with the official files, for a data set that is made from files which the
      user fetches; by default `data_dir`/downloads/manual.

  Raises:
    ConfigError: there is no such data set or config, `data_dir` cannot be written, the official
      files are missing (the message says where to get them), or the data set on disk was made from
      those of another folder.
  """
  builder = _make(name, data_dir, config)
  if not _is_complete(builder):
    builder = prepare(name, data_dir=data_dir, config=config, manual_dir=manual_dir)
  _check_source(builder, manual_dir)
  return builder


def prepare(name, *, data_dir=None, config=None, manual_dir=None):
  """Writes a data set that is not complete on disk; what a killed process left goes first.

  Args, result and raised errors are those of `load`.
  """
  with _lock(_make(name, data_dir, config)):
    builder = _make(name, data_dir, config)  # anew: another process may have just written it
    if not _is_complete(builder):
      _remove_remains(builder)
      builder = _make(name, data_dir, config)
      _write(builder, manual_dir)
  return builder


def arrays(builder, split):
  """Reads a split into memory, once in each process.

  Args:
    builder: as by `load`; its features are flat and of fixed shapes.
    split: a TFDS split such as 'train', 'train[:1000]', 'train[80%:]' or 'train+test'.

  Returns:
    {feature: array [N, ...]}. The arrays are shared by all who ask, and read-only.

  Raises:
    ConfigError: there is no such split, or nothing in it.
  """
  key = builder.data_dir, split
  if key not in _columns:
    _columns[key] = _read(builder, split)
  return dict(_columns[key])


def _make(name, data_dir, config):
  if name not in BUILDERS:
    raise config_lib.unknown('data set', name, BUILDERS)
  builder_class = pkgutil.resolve_name(BUILDERS[name])
  if config is not None and config not in builder_class.builder_configs:
    raise config_lib.unknown('config', config, builder_class.builder_configs, where=name)
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)  # TFDS would make a folder called ~
  return builder_class(data_dir=data_dir, config=config)


def _is_complete(builder):
  """True if all records of all splits are there. Before it is written, a builder has no splits."""
  from array_record.python import array_record_module as array_record
  shards = [shard for split in builder.info.splits.values()
            for shard in zip(split.filepaths, split.shard_lengths, strict=True)]
  return bool(shards) and all(
      array_record.ArrayRecordReader(str(path)).num_records() == length for path, length in shards)


def _source(builder, manual_dir):
  """The folder with the official files."""
  folder = manual_dir or pathlib.Path(builder.data_dir_root, 'downloads', 'manual')
  return pathlib.Path(folder).expanduser().resolve()


def _source_record(builder):
  """The file that says which folder a data set was made from."""
  return pathlib.Path(builder.data_dir, 'manual_dir.txt')


def _check_source(builder, manual_dir):
  """Raises ConfigError if the data set was made from another folder than the one asked for."""
  record = _source_record(builder)
  if manual_dir and record.exists():
    made_from = record.read_text()
    config_lib.require(
        made_from == str(_source(builder, manual_dir)), f'{builder.name}: manual_dir',
        f'{made_from}, from which {builder.data_dir} was made (remove that, or change data_dir)',
        str(manual_dir))


@contextlib.contextmanager
def _lock(builder):
  """Keeps other processes from preparing the data set. The kernel unlocks when a process dies."""
  folder = pathlib.Path(builder.data_dir_root, builder.name)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / '.lock', 'w')
  except OSError as error:
    raise ConfigError(f'{builder.name}: cannot write to data_dir {builder.data_dir_root} '
                      f'({error.strerror}); give another, or set TFDS_DATA_DIR') from error
  with file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _remove_remains(builder):
  """Removes the temporary folders of killed processes and the data set's own incomplete one."""
  folder = pathlib.Path(builder.data_dir)
  for path in [*folder.parent.glob(f'incomplete.*_{folder.name}'), folder]:
    if path.exists():
      logging.warning('%s: removing %s, which is incomplete', builder.name, path)
      shutil.rmtree(path)


def _write(builder, manual_dir):
  import tensorflow_datasets as tfds
  options = tfds.download.DownloadConfig(manual_dir=manual_dir)
  try:
    builder.download_and_prepare(download_config=options)
  except AssertionError as error:  # how TFDS says that the official files are missing
    if 'Manual directory' not in str(error):
      raise
    raise ConfigError(f'{builder.name}: {error}') from error
  source = _source(builder, manual_dir)
  if source.is_dir():
    _source_record(builder).write_text(str(source))


def _read(builder, split):
  try:
    source = builder.as_data_source(split)
    size = len(source)
  except ValueError as error:
    known = ', '.join(f'{name} ({info.num_examples} examples)'
                      for name, info in builder.info.splits.items())
    reason = str(error).splitlines()[-1]
    raise ConfigError(f'{builder.name}: no examples in split {split!r} ({reason}); known splits: '
                      f'{known}; parts are written "train[:100]" or "train[90%:]"') from error
  examples = source.__getitems__(range(size))
  columns = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
  for column in columns.values():
    column.flags.writeable = False
  return columns
