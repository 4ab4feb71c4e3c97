"""Measures the central claims of a paper at small scale and prints: claim, paper's figure, measured
here, status.

  python -m launch.reproduce --system=fedlalr [--seed=7] [--workdir=DIR] [--ablate]
      [--real_data=DIR]

--ablate takes the paper's ingredient away; the claims must then not hold. The exit status is 1 if a
claim does not hold. --real_data names a folder of real files for the systems that can use one; the
README of the system says which files.
"""
import inspect
import sys
import tempfile

from absl import flags

from jaxlab import cli, config, systems

_SYSTEM = flags.DEFINE_string('system', None, f'One of: {", ".join(systems.names())}; or all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the experiments.', lower_bound=0)
_ABLATE = flags.DEFINE_bool('ablate', False, 'Take the paper\'s ingredient away.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for results.json and the figure (default: a temporary one).')
_REAL_DATA = flags.DEFINE_string('real_data', None,
                                 'Folder of real files, where a system takes one.')


def run(system, workdir):
  """Runs one system's experiments; True unless a claim does not hold."""
  reproduce = systems.load(system).reproduce.main
  options = {}
  if _REAL_DATA.value is not None:
    config.require('data_dir' in inspect.signature(reproduce).parameters, '--real_data',
                   f'no folder: {system} makes or bundles its data', _REAL_DATA.value)
    options['data_dir'] = _REAL_DATA.value
  return reproduce(_SEED.value, workdir, _ABLATE.value, **options)


def main():
  name = cli.require_flag(_SYSTEM)
  chosen = systems.names() if name == 'all' else [name]
  workdir = _WORKDIR.value or tempfile.mkdtemp(prefix='jaxlab-')
  held = [run(system, f'{workdir}/{system}') for system in chosen]
  sys.exit(0 if all(held) else 1)


if __name__ == '__main__':
  cli.run(main, __doc__, all_cores=lambda: True)
