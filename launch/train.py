"""Trains a Task from a config on all devices.

  python -m launch.train --config=configs/adasam/digits.py --workdir=/tmp/jaxlab/adasam

The run writes metrics, checkpoints and figures to the workdir. Killed or preempted, the same
command goes on from the newest checkpoint. --config.KEY=VALUE changes any number of the experiment.
"""
from jaxlab import cli, systems, train

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_PROFILE_STEPS = cli.define_profile_steps()


def main():
  config = cli.experiment(_CONFIG)
  train.fit(systems.make_task(config), config, workdir=cli.require_flag(_WORKDIR),
            profile_steps=cli.profile_steps(_PROFILE_STEPS))


if __name__ == '__main__':
  cli.run(main, __doc__)
