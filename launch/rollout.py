"""Runs a trained policy in closed loop, counts successes and writes animations.

  python -m launch.rollout --workdir=/tmp/jaxlab/vla_jepa --episodes=100 --movies=2

Conditions are the perturbations of the embedded tabletop, or tasks of Meta-World, all by default.
--random runs uniform random actions instead. Animations (GIF; the extra [robot]) go to --output.
"""
import pathlib

from absl import flags

from jaxlab import cli, systems
from jaxlab.config import require
from jaxlab.train import checkpoints

_WORKDIR = cli.define_workdir()
_CONDITIONS = flags.DEFINE_list('conditions', [], 'Names of perturbations or tasks (default: all).')
_EPISODES = flags.DEFINE_integer('episodes', 100, 'Episodes of each condition.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the tables.', lower_bound=0)
_MOVIES = flags.DEFINE_integer('movies', 0, 'Animations of each condition.', lower_bound=0)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to (default: WORKDIR/rollouts).')
_RANDOM = flags.DEFINE_bool('random', False, 'Random actions in place of the policy.')


def main():
  config = cli.workdir_config(_WORKDIR)
  module = systems.task_module(config)
  require(hasattr(module, 'evaluate'), '--workdir', 'a run of a system that acts', config['task'])
  params = None
  if not _RANDOM.value:
    params = checkpoints.load_collection(_WORKDIR.value, module.evaluate.template(config))
  output = _OUTPUT.value or str(pathlib.Path(_WORKDIR.value) / 'rollouts')
  counts = module.evaluate.run(
      config, params, conditions=_CONDITIONS.value, episodes=_EPISODES.value,
      seed=_SEED.value, output=output, movies=_MOVIES.value)
  print(module.evaluate.table(counts))


if __name__ == '__main__':
  cli.run(main, __doc__)
