"""The folder of a run: config.json, metrics.jsonl, TensorBoard events, checkpoints/, figures/."""
import json
import os
import pathlib

import jax

from jaxlab import parallel
from jaxlab.config import ConfigError, read_saved


def plain(config):
  """A config as nested plain dicts and lists, the form that config.json holds."""
  if hasattr(config, 'items'):
    return {key: plain(value) for key, value in sorted(config.items())}
  if isinstance(config, (list, tuple)):
    return [plain(value) for value in config]
  return config


def first_difference(a, b, path='config'):
  """Dotted path of the first key at which two plain configs differ, or None."""
  if isinstance(a, dict) and isinstance(b, dict):
    for key in sorted(set(a) | set(b)):
      if key not in a or key not in b:
        return f'{path}.{key}'
      found = first_difference(a[key], b[key], f'{path}.{key}')
      if found:
        return found
    return None
  return None if a == b else path


def write_atomically(path, text):
  """Writes a text file so that whoever reads it sees the old content or the new one."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.write_text(text)
  os.replace(temporary, path)


def check_writable(directory):
  """Raises ConfigError naming the folder if it can neither be made nor written to."""
  try:
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f'.probe.{os.getpid()}'
    probe.write_text('')
    probe.unlink()
  except OSError as error:
    raise ConfigError(f'--workdir={directory}: cannot be written to ({error.strerror})') from error


def open_workdir(directory, config):
  """Makes the folder of a run, or checks that it belongs to this config.

  Args:
    directory: path.
    config: the resolved config.

  Returns:
    pathlib.Path of the folder.

  Raises:
    ConfigError: it cannot be written to, holds a run of another config (the first differing key is
      named), or a config.json that is damaged.
  """
  check_writable(directory)
  directory = pathlib.Path(directory).absolute()
  path, mine = directory / 'config.json', json.loads(json.dumps(plain(config)))
  if path.exists():
    key = first_difference(mine, read_saved(directory))
    if key:
      raise ConfigError(
          f'--workdir={directory}: holds a run of another config; first difference at {key}')
  elif jax.process_index() == 0:
    write_atomically(path, json.dumps(mine, indent=2) + '\n')
  parallel.barrier('workdir')
  return directory
