"""Measures the central claims of a paper at small scale and prints: claim, paper's figure, measured
here, status.

  python -m launch.reproduce --system=fedlalr [--seed=7] [--workdir=DIR] [--ablate]

--ablate takes the paper's ingredient away; the claims must then not hold. The exit status is 1 if a
claim does not hold.
"""
import sys
import tempfile

from absl import flags

from jaxlab import cli, systems

_SYSTEM = flags.DEFINE_string('system', None, f'One of: {", ".join(systems.names())}; or all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the experiments.', lower_bound=0)
_ABLATE = flags.DEFINE_bool('ablate', False, 'Take the paper\'s ingredient away.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for results.json and the figure (default: a temporary one).')


def main():
  name = cli.require_flag(_SYSTEM)
  chosen = systems.names() if name == 'all' else [name]
  workdir = _WORKDIR.value or tempfile.mkdtemp(prefix='jaxlab-')
  held = [
      systems.load(system).reproduce.main(_SEED.value, f'{workdir}/{system}', _ABLATE.value)
      for system in chosen
  ]
  sys.exit(0 if all(held) else 1)


if __name__ == '__main__':
  cli.run(main, __doc__, all_cores=lambda: True)
