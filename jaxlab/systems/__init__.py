"""The published systems, one folder a paper, found by name."""
import importlib
import pkgutil

from jaxlab import config as config_lib
from jaxlab import tasks
from jaxlab.federated.settings import federated_config
from jaxlab.train.phases import FIT_KEYS, fit_config
from jaxlab.train.sweep import cells, sweep_config


def names():
  """Sorted names of the system folders."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def load(name):
  """Imports `jaxlab.systems.<name>`; raises ConfigError with the nearest name if there is none."""
  if name not in names():
    raise config_lib.unknown('system', name, names())
  return importlib.import_module(f'jaxlab.systems.{name}')


def task_module(config):
  """Imports what `config.task` names: a module of `jaxlab.tasks`, or a system that trains.

  Raises:
    ConfigError: no such task, or a config without one, which is of a verb of its system's own.
  """
  config_lib.require('task' in config, 'config.task', 'a task, as in configs that train',
                     f'system={config.get("system")}')
  shared = [module.name for module in pkgutil.iter_modules(tasks.__path__)]
  name = config['task']
  if name not in (*names(), *shared):
    raise config_lib.unknown('name', name, [*names(), *shared], 'config.task')
  room = 'tasks' if name in shared else 'systems'
  module = importlib.import_module(f'jaxlab.{room}.{name}')
  config_lib.require(hasattr(module, 'make_task'), 'config.task',
                     'a task, or a system with a task of its own', name)
  return module


def check(config):
  """Checks every part of an experiment config that can be checked without its data.

  A config with a `system` in place of a `task` is of a verb of that system's own, and its to check.

  Raises:
    ConfigError: the first unknown key, wrong type or impossible value, by its dotted name.
  """
  if 'system' in config:
    module = load(config['system'])
    config_lib.require(hasattr(module, 'check_verb'), 'config.system',
                       'a system with a verb of its own', config['system'])
    module.check_verb(config)
    return
  if 'task' not in config:
    raise config_lib.ConfigError('config.task: missing, and config.system: missing')
  module = task_module(config)
  config_lib.check_keys(config, ('task', 'federated', 'sweep', *FIT_KEYS, *module.CONFIG_KEYS))
  module.check(config)
  if 'federated' in config:
    getattr(module, 'federated_config', federated_config)(config)
  if 'batch_size' in config:
    fit_config(config)
  for cell in cells(config, sweep_config(config)) if 'sweep' in config else ():
    try:
      check(cell.config)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'sweep.arms.{cell.arm}: {error}') from error


def make_task(config):
  """Checks the config and makes the Task that it names; ConfigError if that cannot be done."""
  check(config)
  return task_module(config).make_task(config)
