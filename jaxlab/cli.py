"""What the launch scripts share: flags, configs with overrides, one clear line for bad input."""
import contextlib
import logging
import os
import pathlib
import re
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jaxlab import config as config_lib

_COORDINATOR = flags.DEFINE_string('coordinator', None,
                                   'host:port of process 0 of a job with several processes.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes of the job.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None,
                                   'This process, 0 <= process_id < num_processes.')
_CPU_DEVICES = flags.DEFINE_integer('cpu_devices', None, lower_bound=1,
                                    help='Devices to split this host\'s CPU into (default 1).')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Folder of the prepared data sets (default: ~/tensorflow_datasets).')


def define_config():
  """Defines --config=FILE[:VARIANT] with --config.KEY=VALUE overrides; returns the holder."""
  return config_flags.DEFINE_config_file(
      'config', None,
      'Experiment: configs/SYSTEM/DATASET.py[:VARIANT]. Override any number of it with '
      '--config.KEY=VALUE, for example --config.optimizer.learning_rate=1e-3.')


def define_workdir():
  """Defines --workdir; returns the flag holder."""
  return flags.DEFINE_string(
      'workdir', None, 'Folder of the run: config.json, metrics.jsonl, TensorBoard events, '
      'checkpoints/, figures/. The same command goes on where it was stopped.')


def define_average():
  """Defines --average; returns the flag holder."""
  return flags.DEFINE_bool('average', False, 'Take the average of the parameters that a run with '
                           'optimizer.ema_decay keeps.')


def define_profile_steps():
  """Defines --profile_steps=FIRST:LAST; returns the flag holder."""
  return flags.DEFINE_string('profile_steps', None, 'FIRST:LAST steps or rounds to trace to '
                             'WORKDIR/profile, for TensorBoard or Perfetto.')


def profile_steps(holder):
  """The (first, last) of a --profile_steps flag, or None; ConfigError if it is ill-formed."""
  if holder.value is None:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', holder.value)
  if match is None or int(match.group(1)) >= int(match.group(2)):
    raise config_lib.ConfigError(
        f'--profile_steps: expected FIRST:LAST with FIRST < LAST, got {holder.value!r}')
  return int(match.group(1)), int(match.group(2))


def experiment(holder):
  """The experiment of a --config flag as plain dicts; ConfigError if the flag is missing."""
  return require_flag(holder).to_dict()


def workdir_config(holder):
  """The config of the run in the --workdir folder; ConfigError if it is missing or broken."""
  path = pathlib.Path(require_flag(holder)) / 'config.json'
  if not path.exists():
    raise config_lib.ConfigError(f'--workdir={holder.value}: no run there (config.json is missing)')
  return config_lib.read_saved(holder.value)


def run(main, description, all_cores=lambda: False):
  """Runs an absl script: parses flags, starts the devices, calls `main()`.

  Bad flags, a bad config or an impossible setting end with one line on stderr and exit status 2.

  Args:
    main: function without arguments.
    description: what --help says first.
    all_cores: called after the flags are parsed; whether the CPU, where it is the only device,
      becomes one device a core unless --cpu_devices says otherwise.
  """
  sys.modules['__main__'].__doc__ = description
  for flag in flags.FLAGS.get_key_flags_for_module(__name__):  # so that --help shows them
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

  def start(argv):
    with one_line_errors():
      if len(argv) > 1:
        raise config_lib.ConfigError(
            f'unexpected argument {argv[1]!r}; flags are written --name=value')
      from jaxlab import parallel  # pylint: disable=g-import-not-at-top
      log_to_stderr()
      if _DATA_DIR.value:
        os.environ['TFDS_DATA_DIR'] = _DATA_DIR.value
      cpu_devices = _CPU_DEVICES.value or (os.cpu_count() if all_cores() else None)
      parallel.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, cpu_devices)
      main()

  app.run(start, flags_parser=_parse)


def log_to_stderr():
  """Shows jaxlab's own lines; other libraries only speak up when something is wrong."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  logger = logging.getLogger('jaxlab')
  logger.setLevel(logging.INFO)
  logger.addHandler(handler)
  logger.propagate = False


@contextlib.contextmanager
def one_line_errors():
  """Turns a ConfigError into one line on stderr and exit status 2."""
  try:
    yield
  except config_lib.ConfigError as error:
    sys.stderr.write(f'error: {error}\n')
    sys.exit(2)


def _parse(argv):
  try:
    arguments = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
      _ = flags.FLAGS['config'].value.to_dict  # a file that could not be read says so only now
    return arguments
  except (flags.Error, AttributeError, LookupError, OSError, SyntaxError, TypeError,
          ValueError) as error:
    sys.stderr.write(f'error: {_first_line(error, argv)}\n')
    sys.exit(2)


def _first_line(error, argv):
  """The one line of a flag or override error that says what was wrong and what was meant."""
  if isinstance(error, (OSError, SyntaxError)):
    return '--config: ' + str(error).splitlines()[-1].split('failure to load: ')[-1].strip()
  if isinstance(error, (AttributeError, KeyError)):
    try:
      _check_overrides(argv)
    except config_lib.ConfigError as unknown_key:
      return str(unknown_key)
    except (AttributeError, KeyError) as missing:
      return f'--config: {missing} is unknown to the config file'
  text = str(error.args[0] if error.args else error).replace('\\n', '\n')
  if 'Traceback' in text:  # the config file's own get_config raised
    return '--config: ' + text.strip().splitlines()[-1].strip()
  return ' '.join(text.split())


def _check_overrides(argv):
  """Raises ConfigError for the first override of a key that the config does not have."""
  files = [argument.partition('=')[2] for argument in argv if re.match('--?config=', argument)]
  config = flags.FLAGS['config'].parser.parse(files[-1]) if files else {}
  for override in argv if files else ():
    node, where = config, '--config'
    if re.match('--?config[.]', override):
      for key in re.split(r'[=\[]', override)[0].split('.')[1:]:
        config_lib.require(hasattr(node, 'items'), where, 'a mapping', node)
        if key not in node:
          raise config_lib.unknown('key', key, node, where)
        node, where = node[key], f'{where}.{key}'


def require_flag(holder):
  """The value of a flag; raises ConfigError if it was not given."""
  if holder.value is None:
    raise config_lib.ConfigError(f'--{holder.name}: missing (see --help)')
  return holder.value
