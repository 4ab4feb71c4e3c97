"""Distils a student on its own answers, jumping ahead where a few prompts say that it pays.

  python -m launch.distill --config=configs/effopd/sorting.py --workdir=/tmp/jaxlab/effopd

It is launch.train with the hook of config.extrapolation; --config.extrapolation.max_k=0 is plain
distillation. Killed or preempted, the same command goes on from the newest checkpoint.
"""
from jaxlab import cli, train
from jaxlab.systems import effopd

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_PROFILE_STEPS = cli.define_profile_steps()


def main():
  config = cli.experiment(_CONFIG)
  train.fit(effopd.make_task(config), config, workdir=cli.require_flag(_WORKDIR),
            hooks=[effopd.make_hook(config)], profile_steps=cli.profile_steps(_PROFILE_STEPS))


if __name__ == '__main__':
  cli.run(main, __doc__)
