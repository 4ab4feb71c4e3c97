"""Plays requester, submitter and challenger over a model: who wins, rounds, bytes and gas.

  python -m launch.dispute --config=configs/agatha/dispute.py [--workdir=/tmp/jaxlab/agatha]

The config names the model, the arbiter ('evm': the contract in an in-process Ethereum virtual
machine; 'python': its twin) and the cheat. With --workdir the figure of the cost against the size
of the models of `config.sizes` is drawn there.
"""
from jaxlab import cli
from jaxlab.systems.agatha import report

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()


def main():
  config = cli.experiment(_CONFIG)
  report.check(config)
  print(report.dispute(config))
  if _WORKDIR.value:
    print(report.sizes(config, _WORKDIR.value))


if __name__ == '__main__':
  cli.run(main, __doc__)
