"""Runs a trained policy on the tabletop: success counts with intervals, and animations."""
import pathlib

import jax
import numpy as np

from jaxlab import config as config_lib
from jaxlab.systems.vla_jepa import data, model, rollout, tabletop
from jaxlab.systems.vla_jepa import experiment as experiment_lib
from jaxlab.systems.vla_jepa import task as task_lib
from jaxlab.train.sweep import format_table

CONDITIONS = tuple(tabletop.LOOKS)


def run(config, params, *, conditions, episodes, seed, output=None, movies=0):
  """Rolls a policy out.

  Args:
    config: of the run; its data are the tabletop's.
    params: trained parameters, or None for uniform random actions.
    conditions: keys of `tabletop.LOOKS`.
    episodes: of each condition.
    seed: of the tables.
    output: folder for the animations, or None.
    movies: animations a condition.

  Returns:
    {condition: (successes, episodes, low, high)}, the Wilson interval of 95 %.

  Raises:
    ConfigError: another data set, an unknown condition, more movies than episodes.
  """
  config_lib.require(config['data']['name'] == 'tabletop', 'data.name', 'tabletop',
                     config['data']['name'])
  for name in conditions:
    config_lib.choose(name, tabletop.LOOKS, '--conditions')
  config_lib.require(movies <= episodes, '--movies', f'at most --episodes={episodes}', movies)
  executed = task_lib.rollout_settings(**config.get('rollout', {}))['executed']
  config_lib.require(executed >= 1 and tabletop.STEPS % executed == 0, 'rollout.executed',
                     f'a divisor of {tabletop.STEPS}', executed)
  horizon = config['data'].get('horizon', 4)
  config_lib.require(executed <= horizon, 'rollout.executed', f'at most data.horizon={horizon}',
                     executed)
  policy = rollout.random_policy if params is None else task_lib.policy(config, params)
  keys = rollout.stack_keys(jax.random.key(seed), conditions, episodes)
  result = jax.jit(lambda keys: rollout.rollout(
      policy, rollout.looks_for(conditions, episodes), keys, executed=executed))(keys)
  success = np.asarray(result.success).reshape(len(conditions), episodes)
  if movies:
    pathlib.Path(output).mkdir(parents=True, exist_ok=True)
    frames = np.asarray(result.frames).reshape(len(conditions), episodes, *result.frames.shape[1:])
    for i, name in enumerate(conditions):
      for j in range(movies):
        verdict = 'reached' if success[i, j] else 'missed'
        rollout.write_gif(frames[i, j], pathlib.Path(output) / f'{name}_{j}_{verdict}.gif')
  counts = success.sum(1).tolist()
  return {name: (count, episodes, *rollout.wilson(count, episodes))
          for name, count in zip(conditions, counts)}


def template(config):
  """Shapes of the parameters of a tabletop run, without its data."""
  experiment = task_lib.check(config)
  _, places = experiment_lib.prompts(experiment, experiment.prompt.robot, data.INSTRUCTIONS)
  parts = experiment_lib.make_parts(experiment, places, places)
  shape = (1, tabletop.SIDE, tabletop.SIDE, 3)
  return jax.eval_shape(
      lambda: model.init(parts, jax.random.key(0), experiment.prompt.length, shape))


def table(counts):
  """The text of what `run` gave."""
  rows = [(name, f'{done}/{total}', f'{100 * done / total:.0f} %',
           f'{100 * low:.0f}-{100 * high:.0f} %') for name, (done, total, low, high) in
          counts.items()]
  return format_table(('condition', 'successes', 'rate', '95 % interval'), rows)
