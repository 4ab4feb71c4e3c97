"""Runs a trained policy on the tabletop or in Meta-World: successes with intervals, animations."""
import pathlib

import jax
import numpy as np

from jaxlab import config as config_lib
from jaxlab.systems.vla_jepa import experiment as experiment_lib
from jaxlab.systems.vla_jepa import metaworld, model, rollout, tabletop
from jaxlab.systems.vla_jepa import task as task_lib
from jaxlab.train.sweep import format_table

CONDITIONS = tuple(tabletop.LOOKS)


def run(config, params, *, conditions, episodes, seed, output=None, movies=0):
  """Rolls a policy out.

  Args:
    config: of the run; its data are the tabletop's or Meta-World's.
    params: trained parameters, or None for uniform random actions.
    conditions: keys of `tabletop.LOOKS`, or tasks of Meta-World; none for all.
    episodes: of each condition.
    seed: of the tables.
    output: folder for the animations, or None.
    movies: animations a condition.

  Returns:
    {condition: (successes, episodes, low, high)}, the Wilson interval of 95 %.

  Raises:
    ConfigError: another data set, an unknown condition, more movies than episodes.
  """
  name = config['data']['name']
  config_lib.require(name in ('tabletop', 'metaworld'), 'data.name', 'tabletop or metaworld', name)
  config_lib.require(movies <= episodes, '--movies', f'at most --episodes={episodes}', movies)
  executed = task_lib.rollout_settings(**config.get('rollout', {}))['executed']
  horizon = config['data'].get('horizon', 4)
  config_lib.require(executed >= 1, 'rollout.executed', 'at least 1', executed)
  config_lib.require(executed <= horizon, 'rollout.executed', f'at most data.horizon={horizon}',
                     executed)
  if name == 'metaworld':
    tasks = metaworld.read_tasks(config['data']['folders'][0])
    for task in conditions:
      config_lib.choose(task, tasks, '--conditions')
    results = {task: _metaworld(config, params, task, tasks[task], executed, episodes, seed)
               for task in conditions or tasks}
  else:
    results = _tabletop(config, params, conditions or CONDITIONS, executed, episodes, seed)
  for condition, (_, done) in results.items():
    for i, (success, frames) in enumerate(done[:movies]):
      pathlib.Path(output).mkdir(parents=True, exist_ok=True)
      verdict = 'reached' if success else 'missed'
      rollout.write_gif(frames, pathlib.Path(output) / f'{condition}_{i}_{verdict}.gif')
  return {condition: counts for condition, (counts, _) in results.items()}


def _tabletop(config, params, conditions, executed, episodes, seed):
  for name in conditions:
    config_lib.choose(name, tabletop.LOOKS, '--conditions')
  config_lib.require(tabletop.STEPS % executed == 0, 'rollout.executed',
                     f'a divisor of {tabletop.STEPS}', executed)
  policy = rollout.random_policy if params is None else task_lib.policy(config, params)
  keys = rollout.stack_keys(jax.random.key(seed), conditions, episodes)
  result = jax.jit(lambda keys: rollout.rollout(
      policy, rollout.looks_for(conditions, episodes), keys, executed=executed))(keys)
  success = np.asarray(result.success).reshape(len(conditions), episodes)
  frames = np.asarray(result.frames).reshape(len(conditions), episodes, *result.frames.shape[1:])
  counts = success.sum(1).tolist()
  return {name: ((counts[i], episodes, *rollout.wilson(counts[i], episodes)),
                 list(zip(success[i], frames[i]))) for i, name in enumerate(conditions)}


def _metaworld(config, params, task, instruction, executed, episodes, seed):
  if params is None:
    policy = metaworld.random_policy
  else:
    act = task_lib.policy(config, params, (instruction,))
    target = np.zeros(1, np.int32)
    policy = jax.jit(lambda images, state, key: act(images, target, state, key))
  return metaworld.run(policy, task, episodes=episodes, seed=seed, executed=executed)


def template(config):
  """Shapes of the parameters of a run on the tabletop or Meta-World's demonstrations."""
  experiment = task_lib.check(config)
  # Shapes depend neither on the texts nor on the size of the pictures.
  texts = (experiment.prompt.words[0],) if experiment.prompt.words else ('',)
  _, places = experiment_lib.prompts(experiment, experiment.prompt.robot, texts)
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
