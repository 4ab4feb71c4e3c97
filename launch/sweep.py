"""Runs the sweep of a config, arms x grid x seeds, and prints one table and one figure.

  python -m launch.sweep --config=configs/fedlalr/digits.py --workdir=/tmp/jaxlab/fedlalr

Each run has a folder of its own under the workdir. Killed, the same command repeats no finished
run.
"""
from jaxlab import cli, federated, systems, train
from jaxlab.train import sweep

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()


def main():
  config = cli.experiment(_CONFIG)
  systems.check(config)
  settings = sweep.sweep_config(config)
  loop = federated.simulate if 'federated' in config else train.fit
  run_one = lambda cell, folder: loop(systems.make_task(cell), cell, workdir=folder)
  results = sweep.run_sweep(config, run_one, cli.require_flag(_WORKDIR))
  print(sweep.table(results, settings))
  print(f'figure: {_WORKDIR.value}/figures/sweep.png')


if __name__ == '__main__':
  cli.run(main, __doc__, all_cores=lambda: 'federated' in (_CONFIG.value or {}))
