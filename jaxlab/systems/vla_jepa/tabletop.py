"""A 2-D tabletop in pure JAX: reach the block that the instruction names.

The table is the unit square, seen from above. A pale square agent and coloured blocks lie on it. An
action (dx, dy) in [-1, 1]^2 moves the agent by up to `STEP` along each axis. An episode has `STEPS`
steps; it succeeds if the agent's centre is within `REACH` of the named block's at its end.
Everything is a pure function of a Scene, so that episodes are vmapped.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 16  # pixels
AGENT, BLOCK = 0.085, 0.11  # half sizes
STEP, STEPS, REACH = 0.08, 20, 0.10
COLOURS = ('red', 'green', 'blue', 'yellow')
NAMED = 3  # the first three lie on every table; yellow only disturbs
_RGB = np.array([[0.85, 0.15, 0.15], [0.15, 0.75, 0.2], [0.2, 0.3, 0.9], [0.9, 0.8, 0.15]],
                np.float32)
_PALE = np.array([0.95, 0.92, 0.85], np.float32)
_BORDER = np.array([0.05, 0.05, 0.05], np.float32)
_DISTANCE = 0.26  # between centres, as far as a random table allows


class Look(NamedTuple):
  """How a table looks; draws are uniform between the ends of a pair.

  Attributes:
    background: grey level or, where the ends differ, each channel's.
    light: brightness.
    tint: RGB factors of the light.
    shift: of the camera along each axis, with a random sign.
    zoom: of the camera.
    noise: standard deviation of each pixel and channel.
    bar: probability of a bright vertical bar that sweeps over the table.
    yellow: probability of the yellow block.
    spread: objects lie between spread and 1 - spread.
    agent: spread of the agent's tint.
  """
  background: tuple[float, float] = (0.25, 0.25)
  light: tuple[float, float] = (1.0, 1.0)
  tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
  shift: tuple[float, float] = (0.0, 0.0)
  zoom: tuple[float, float] = (1.0, 1.0)
  noise: tuple[float, float] = (0.0, 0.0)
  bar: float = 0.0
  yellow: float = 0.0
  spread: float = 0.2
  agent: float = 0.0


# The perturbations of the evaluation, after LIBERO-Plus; the demonstrations are all plain.
LOOKS = {
    'plain': Look(),
    'camera': Look(shift=(0.10, 0.10), zoom=(1.08, 1.08)),
    'light': Look(light=(0.45, 0.65), tint=(1.0, 0.9, 0.85)),
    'background': Look(background=(0.05, 0.6), bar=1.0),
    'noise': Look(noise=(0.12, 0.12)),
    'layout': Look(yellow=1.0, spread=0.1),
}
# What action-free video shows: all of it, more gently.
VIDEO = Look(background=(0.1, 0.45), light=(0.5, 1.15), shift=(0.0, 0.12), zoom=(0.92, 1.12),
             noise=(0.0, 0.02), bar=0.3, yellow=0.5, agent=0.1)


class Scene(NamedTuple):
  """One table at one moment; arrays of one episode.

  Attributes:
    agent: [2], (x, y) of its centre.
    blocks: [4, 2].
    target: int, the block that the instruction names, < NAMED.
    step: int, steps taken.
    background: [3].
    light: [3], factors of the channels.
    agent_rgb: [3].
    shift: [2].
    zoom: scalar.
    noise: scalar.
    bar: [2], where the bar starts and how far it moves a step; it is off the table where there is
      none.
    yellow: 1 where the yellow block is there, 0 where not.
  """
  agent: jax.Array
  blocks: jax.Array
  target: jax.Array
  step: jax.Array
  background: jax.Array
  light: jax.Array
  agent_rgb: jax.Array
  shift: jax.Array
  zoom: jax.Array
  noise: jax.Array
  bar: jax.Array
  yellow: jax.Array


def stack_looks(looks):
  """A Look whose leaves are arrays [len(looks), ...], to be indexed under jit."""
  return jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *map(tuple, looks))


def reset(key, look):
  """A random Scene.

  Args:
    key: PRNG key.
    look: Look, its leaves numbers or scalar arrays.
  """
  look = Look(*look)
  keys = jax.random.split(key, 13)
  between = lambda key, ends, shape=(): jax.random.uniform(
      key, shape, minval=ends[0], maxval=jnp.maximum(ends[1], ends[0] + 1e-6))
  tables = between(keys[0], (look.spread, 1 - look.spread), (24, len(COLOURS) + 1, 2))
  gaps = jnp.abs(tables[:, :, None] - tables[:, None]).max(-1) + jnp.eye(len(COLOURS) + 1)
  table = tables[jnp.argmax(jnp.minimum(gaps.min((1, 2)), _DISTANCE))]
  sign = jax.random.rademacher(keys[1], (2,), jnp.float32)
  has_bar = jax.random.bernoulli(keys[2], look.bar)
  bar = jnp.array([between(keys[3], (-0.2, 1.0)), between(keys[4], (0.03, 0.08))])
  tint = 1 + look.agent * between(keys[5], (-1.0, 1.0), (3,))
  return Scene(
      agent=table[-1], blocks=table[:-1],
      target=jax.random.randint(keys[6], (), 0, NAMED), step=jnp.zeros((), jnp.int32),
      background=between(keys[7], look.background, (3,)),
      light=between(keys[8], look.light) * jnp.array(look.tint),
      agent_rgb=jnp.clip(_PALE * tint, 0, 1), shift=sign * between(keys[9], look.shift, (2,)),
      zoom=between(keys[10], look.zoom), noise=between(keys[11], look.noise),
      bar=jnp.where(has_bar, bar, jnp.array([-9.0, 0.0])),
      yellow=jax.random.bernoulli(keys[12], look.yellow).astype(jnp.float32))


def step(scene, action):
  """The Scene after an action [2]."""
  moved = scene.agent + STEP * jnp.clip(action, -1, 1)
  return scene._replace(agent=jnp.clip(moved, 0.05, 0.95), step=scene.step + 1)


def expert(scene):
  """The action [2] straight to the named block."""
  return jnp.clip((scene.blocks[scene.target] - scene.agent) / STEP, -1, 1)


def success(scene):
  """Whether the agent is at the named block."""
  return jnp.linalg.norm(scene.blocks[scene.target] - scene.agent) <= REACH


def render(scene, key, side=SIDE):
  """The camera's image float32 [side, side, 3] in [0, 1]; edges cover their share of a pixel."""
  pixel = (jnp.arange(side) + 0.5) / side
  x, y = ((pixel - 0.5) / scene.zoom + 0.5 + shift for shift in scene.shift)
  scale = side * scene.zoom

  def cover(place, half):  # share [side, side] of each pixel under a square
    along = [jnp.clip((half - jnp.abs(axis - at)) * scale + 0.5, 0, 1)
             for axis, at in ((y, place[1]), (x, place[0]))]
    return along[0][:, None] * along[1]

  def paint(image, rgb, share):
    return image + share[..., None] * (rgb - image)

  middle = jnp.array([0.5, 0.5])
  image = jnp.broadcast_to(scene.background, (side, side, 3))
  at = scene.bar[0] + scene.bar[1] * scene.step
  image = image + 0.25 * jnp.clip((0.05 - jnp.abs(x - at)) * scale + 0.5, 0, 1)[:, None]
  for i, rgb in enumerate(_RGB):
    there = scene.yellow if i == len(_RGB) - 1 else 1.0
    image = paint(image, rgb, there * cover(scene.blocks[i], BLOCK))
  image = paint(image, scene.agent_rgb, cover(scene.agent, AGENT))
  image = paint(jnp.broadcast_to(_BORDER, image.shape), image, cover(middle, 0.5))
  noise = scene.noise * jax.random.normal(key, image.shape)
  return jnp.clip(image * scene.light + noise, 0, 1)


def quantise(image):
  """uint8 of an image in [0, 1], as files hold it."""
  return jnp.round(image * 255).astype(jnp.uint8)


def demonstrate(key, look, noise):
  """One episode of the expert, whose execution is disturbed and whose labels are not.

  Args:
    key: PRNG key.
    look: Look.
    noise: standard deviation that is added to each executed action.

  Returns:
    {'image': uint8 [STEPS + 1, SIDE, SIDE, 3], 'state' (the agent's place): [STEPS + 1, 2],
    'action': [STEPS, 2], 'target': int, 'success': bool}.
  """
  start_key, loop_key = jax.random.split(key)
  start = reset(start_key, look)

  def one(scene, key):
    image_key, noise_key = jax.random.split(key)
    action = expert(scene)
    seen = quantise(render(scene, image_key)), scene.agent, action
    return step(scene, action + noise * jax.random.normal(noise_key, (2,))), seen

  last, (images, places, actions) = jax.lax.scan(one, start, jax.random.split(loop_key, STEPS))
  final = quantise(render(last, jax.random.fold_in(loop_key, STEPS)))
  return {'image': jnp.concatenate([images, final[None]]),
          'state': jnp.concatenate([places, last.agent[None]]), 'action': actions,
          'target': start.target, 'success': success(last)}
