"""Writes the outputs of a run's newest checkpoint for a whole split, central or federated.

  python -m launch.predict --workdir=/tmp/jaxlab/adasam --split=test --output=/tmp/predictions.npz

The file holds an array [N, ...] for each output of the Task, in the order of the split; the config
is the workdir's own.
"""
import numpy as np
from absl import flags

from jaxlab import cli, systems
from jaxlab.train import evaluation

_WORKDIR = cli.define_workdir()
_SPLIT = flags.DEFINE_string('split', 'test', 'Split of the task\'s data set.')
_OUTPUT = flags.DEFINE_string('output', None, 'The .npz file to write.')


def main():
  config, path = cli.workdir_config(_WORKDIR), cli.require_flag(_OUTPUT)
  outputs = evaluation.predict_workdir(
      systems.make_task(config), config, _WORKDIR.value, _SPLIT.value)
  np.savez(path, **outputs)
  print(', '.join(f'{name} {list(x.shape)}' for name, x in outputs.items()), 'in', path)


if __name__ == '__main__':
  cli.run(main, __doc__)
