"""Trains a Task by federated rounds: clients vmapped, devices pmapped, one program a round.

  python -m launch.federate --config=configs/fedlalr/digits.py --workdir=/tmp/jaxlab/fedlalr

The run writes metrics, checkpoints and figures to the workdir. Killed or preempted, the same
command goes on from the newest checkpoint. --config.federated.KEY=VALUE changes any number of the
experiment.
"""
from jaxlab import cli, federated, systems

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_PROFILE_STEPS = cli.define_profile_steps()


def main():
  config = cli.experiment(_CONFIG)
  federated.simulate(systems.make_task(config), config, workdir=cli.require_flag(_WORKDIR),
                     profile_steps=cli.profile_steps(_PROFILE_STEPS))


if __name__ == '__main__':
  cli.run(main, __doc__, all_cores=lambda: True)
