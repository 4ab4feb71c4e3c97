"""Meta-World (arXiv 1910.10897): demonstrations for it, and its simulator in closed loop.

The extra [sim] has the simulator. It renders without a display where EGL is there.
"""
import json
import os
import pathlib

import jax
import numpy as np

from jaxlab import config as config_lib
from jaxlab.systems.vla_jepa import rollout

CAMERA, SIDE, STATE = 'corner2', 64, 4  # the state is the hand's place and the gripper's opening
MAX_STEPS = 200


def read_tasks(folder):
  """{task: instruction} of tasks.json in a folder of demonstrations.

  Raises:
    ValueError: no such file, or not as many instructions as tasks.
  """
  path = pathlib.Path(folder) / 'tasks.json'
  if not path.is_file():
    raise ValueError(f'{path}: missing; expected a folder with tasks.json and demos.npz')
  content = json.loads(path.read_text(encoding='utf-8'))
  tasks, texts = content.get('tasks'), content.get('language')
  if not tasks or not texts or len(tasks) != len(texts):
    raise ValueError(f'{path}: expected lists tasks and language of one length, got {content}')
  return dict(zip(tasks, texts))


def read_demos(folder):
  """Episodes {'action' [T, 4], 'state' [T, 4], 'instruction', 'images': T encoded pictures}.

  Raises:
    ValueError: a missing file or array.
  """
  texts, path = list(read_tasks(folder).values()), pathlib.Path(folder) / 'demos.npz'
  if not path.is_file():
    raise ValueError(f'{path}: missing; expected a folder with tasks.json and demos.npz')
  names = ('jpeg_bytes', 'jpeg_offsets', 'obs', 'action', 'episode_task', 'episode_start',
           'episode_end')
  with np.load(path) as file:
    missing = [name for name in names if name not in file]
    if missing:
      raise ValueError(f'{path}: expected the array {missing[0]}, found {", ".join(file)}')
    arrays = {name: file[name] for name in names}
  offsets, pictures = arrays['jpeg_offsets'], arrays['jpeg_bytes']
  episodes = []
  for task, start, end in zip(*(arrays[f'episode_{x}'] for x in ('task', 'start', 'end'))):
    episodes.append({
        'action': arrays['action'][start:end], 'state': arrays['obs'][start:end, :STATE],
        'instruction': texts[task],
        'images': [pictures[offsets[i]:offsets[i + 1]].tobytes() for i in range(start, end)]})
  return episodes


class Environment:
  """One task of Meta-World as an environment of `protocols`.

  Args:
    task: name, such as 'reach-v3'.
    seed: of the places of hand, objects and goals.

  Raises:
    ConfigError: no such task.
  """

  def __init__(self, task, seed):
    os.environ.setdefault('MUJOCO_GL', 'egl')
    import metaworld
    config_lib.choose(task, metaworld.ALL_V3_ENVIRONMENTS, '--conditions')
    benchmark = metaworld.MT1(task, seed=seed)
    self._places = benchmark.train_tasks
    self._env = benchmark.train_classes[task](
        render_mode='rgb_array', camera_name=CAMERA, width=SIDE, height=SIDE)
    quality = self._env.model.vis.quality
    quality.shadowsize = quality.offsamples = 0  # in software they cost most of a picture

  def reset(self, episode):
    """The observation {'image' uint8 [64, 64, 3], 'state' [4]} at the start of an episode."""
    self._env.set_task(self._places[episode % len(self._places)])
    return self._observe(self._env.reset()[0])

  def step(self, action):
    """(observation, reward, whether it has succeeded, info) after an action [4] in [-1, 1]."""
    observation, reward, _, _, info = self._env.step(np.clip(action, -1, 1).astype(np.float32))
    return self._observe(observation), reward, bool(info['success']), info

  def _observe(self, observation):
    return {'image': self._env.render()[::-1],  # it comes upside down
            'state': np.asarray(observation[:STATE], np.float32)}


def episode(env, policy, number, *, executed, key):
  """Runs one episode, `executed` actions of each chunk.

  Args:
    env: Environment, or one like it.
    policy: (images uint8 [1, 1, H, W, 3], state [1, 4], key) -> chunk [1, H, 4].
    number: of the episode.
    executed: actions carried out before the next plan.
    key: PRNG key.

  Returns:
    (whether it succeeded at any step, frames uint8 [plans, H, W, 3]).
  """
  observation, frames = env.reset(number), []
  for start in range(0, MAX_STEPS, executed):
    frames.append(observation['image'])
    chunk = np.asarray(policy(observation['image'][None, None], observation['state'][None],
                              jax.random.fold_in(key, start)))[0]
    for action in chunk[:executed]:
      observation, _, success, _ = env.step(action)
      if success:
        return True, np.stack(frames)
  return False, np.stack(frames)


def random_policy(images, state, key):
  """Uniform random actions."""
  del images, state
  return jax.random.uniform(key, (1, MAX_STEPS, STATE), minval=-1.0)


def run(policy, task, *, episodes, seed, executed):
  """Episodes of one task.

  Args:
    policy: of `episode`, for the task's instruction.
    task: name.
    episodes: number.
    seed: of the environment and the policy.
    executed: see `episode`.

  Returns:
    ((successes, episodes, low, high), [(success, frames)]), the Wilson interval of 95 %.
  """
  env, key = Environment(task, seed), jax.random.key(seed)
  done = [episode(env, policy, number, executed=executed, key=jax.random.fold_in(key, number))
          for number in range(episodes)]
  count = sum(success for success, _ in done)
  return (count, episodes, *rollout.wilson(count, episodes)), done
