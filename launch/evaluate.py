"""Evaluates the newest checkpoint of a run, central or federated, and prints its metrics as JSON.

  python -m launch.evaluate --workdir=/tmp/jaxlab/adasam --split=test

The config is the workdir's own.
"""
import json

from absl import flags

from jaxlab import cli, systems
from jaxlab.train import evaluation

_WORKDIR = cli.define_workdir()
_AVERAGE = cli.define_average()
_SPLIT = flags.DEFINE_string('split', 'test', 'Split of the task\'s data set.')


def main():
  config = cli.workdir_config(_WORKDIR)
  print(
      json.dumps(
          evaluation.evaluate_workdir(
              systems.make_task(config), config, _WORKDIR.value, _SPLIT.value,
              _AVERAGE.value)))


if __name__ == '__main__':
  cli.run(main, __doc__)
