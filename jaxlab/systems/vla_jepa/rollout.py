"""Closed loop on the tabletop: many episodes at once, Wilson intervals, animations."""
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.vla_jepa import tabletop


class Result(NamedTuple):
  """Of a batch of episodes.

  Attributes:
    success: bool [N].
    frames: uint8 [N, plans, side, side, 3], what the policy saw each time that it planned.
  """
  success: jax.Array
  frames: jax.Array


def rollout(policy, looks, keys, *, executed=2):
  """Runs episodes side by side; a pure function.

  Args:
    policy: (images uint8 [N, 1, side, side, 3], target int [N], places [N, 2], key) -> chunk of
      actions [N, H, 2], H >= `executed`. It may look at the scene through these alone.
    looks: Look whose leaves are arrays [N, ...].
    keys: [N], of each episode's table and its camera's noise; the first draws for the policy too.
    executed: actions of a chunk that are carried out before the policy plans again, a divisor of
      `tabletop.STEPS`.

  Returns:
    Result.
  """
  tables, cameras, draws = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
  starts = jax.vmap(tabletop.reset)(tables, looks)

  def plan(scenes, number):
    frame_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(cameras, number)
    images = tabletop.quantise(jax.vmap(tabletop.render)(scenes, frame_keys))
    key = jax.random.fold_in(draws[0], number)
    chunk = policy(images[:, None], scenes.target, scenes.agent, key)
    for i in range(executed):
      scenes = jax.vmap(tabletop.step)(scenes, chunk[:, i])
    return scenes, images

  last, frames = jax.lax.scan(plan, starts, jnp.arange(tabletop.STEPS // executed))
  return Result(jax.vmap(tabletop.success)(last), frames.swapaxes(0, 1))


def random_policy(images, target, places, key):
  """Uniform random actions."""
  del target, places
  return jax.random.uniform(key, (len(images), tabletop.STEPS, 2), minval=-1.0)


def looks_for(names, episodes):
  """Look [len(names) * episodes, ...]: `episodes` rows of each named perturbation, in order."""
  stacked = tabletop.stack_looks([tabletop.LOOKS[name] for name in names])
  return jax.tree.map(lambda x: jnp.repeat(x, episodes, axis=0), stacked)


def stack_keys(key, names, episodes):
  """Keys [len(names) * episodes]: the same tables for every perturbation."""
  return jnp.tile(jax.random.split(key, episodes), len(names))


@functools.lru_cache
def random_success(episodes, names):
  """The function key -> success bool [len(names), episodes] of the random policy."""
  return jax.jit(lambda key: rollout(
      random_policy, looks_for(names, episodes), stack_keys(key, names, episodes)
  ).success.reshape(len(names), episodes))


def wilson(successes, trials, z=1.96):
  """(low, high) of the Wilson score interval of a success rate.

  >>> [round(x, 3) for x in wilson(8, 10)]
  [0.49, 0.943]
  """
  rate = successes / trials
  middle = rate + z * z / (2 * trials)
  half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
  scale = 1 + z * z / trials
  return (middle - half) / scale, (middle + half) / scale


def write_gif(frames, path, *, enlarge=8, seconds=0.15):
  """Writes an animation; the extra [robot] has what it needs.

  Args:
    frames: uint8 [T, H, W, 3].
    path: of the .gif file.
    enlarge: pixels a pixel becomes along each side.
    seconds: a frame is shown.
  """
  import imageio.v3 as imageio
  big = np.repeat(np.repeat(np.asarray(frames), enlarge, axis=1), enlarge, axis=2)
  imageio.imwrite(path, big, duration=round(1000 * seconds), loop=0)
