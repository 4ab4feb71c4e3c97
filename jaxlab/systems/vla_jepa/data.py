"""Windows of episodes as training examples: of the tabletop, of LeRobot and RLDS sets, of video.

An example is {'video': uint8 [V, T, H, W, 3], 'instruction': int, 'state': [P], 'actions': [H, A],
'action_mask': [H]}; one without actions has the first two only.
"""
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data import builders, pipeline
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.systems.vla_jepa import tabletop
from jaxlab.systems.vla_jepa.normalise import Scale, Scales

DEMO_NOISE, CLIP_NOISE = 0.2, 0.15  # of the executed actions of demonstrations and of video
SPACING = 3  # steps between the frames of a tabletop window
INSTRUCTIONS = tuple(f'{colour} block' for colour in tabletop.COLOURS[:tabletop.NAMED])


class Data(NamedTuple):
  """What a Task trains and tests on.

  Attributes:
    robot: grain.MapDataset of examples with actions.
    video: of examples without, or None.
    test: held-out examples with actions, or None.
    instructions: texts that 'instruction' numbers.
    scales: normalise.Scales of each folder, a single one of the tabletop. Examples are in the
      network's units already; a policy takes states and gives actions in them.
    views: V, cameras of an example.
    size: (H, W) of the frames.
  """
  robot: Any
  video: Any
  test: Any
  instructions: tuple[str, ...]
  scales: tuple[Scales, ...]
  views: int
  size: tuple[int, int]


def window(length, start, *, frames, spacing, horizon):
  """Rows of an episode for the sample at step `start`.

  Args:
    length: T, steps of the episode that have actions.
    start: k < T.
    frames: of the clip.
    spacing: steps between them.
    horizon: H.

  Returns:
    (frame rows int [frames], the last row repeated past the end of the T + 1 or T frames that there
    are is for the caller to cut; action rows int [H], clipped; mask float32 [H], 0 past the end).
  """
  actions = start + np.arange(horizon)
  return (start + spacing * np.arange(frames), np.minimum(actions, length - 1),
          (actions < length).astype(np.float32))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _episodes(keys, look, noise):
  return jax.vmap(lambda key: tabletop.demonstrate(key, look, noise))(keys)


def tabletop_episodes(seed, count, look=tabletop.LOOKS['plain'], noise=DEMO_NOISE):
  """Columns of `count` episodes of the expert, as by `tabletop.demonstrate`, NumPy."""
  keys = jax.random.split(jax.random.key(seed), count)
  return jax.tree.map(np.asarray, _episodes(keys, look, noise))


def demo_windows(episodes, *, starts=range(10), frames=4, horizon=4, mask_padding=True):
  """Examples with actions, all `starts` of all episodes.

  Args:
    episodes: columns as by `tabletop_episodes`.
    starts: steps k.
    frames: of a clip, `SPACING` steps apart.
    horizon: H.
    mask_padding: whether zero actions past the end count for nothing.
  """
  images, actions = episodes['image'], episodes['action']
  columns = {name: [] for name in ('video', 'instruction', 'state', 'actions', 'action_mask')}
  for start in starts:
    seen, acted, mask = window(actions.shape[1], start, frames=frames, spacing=SPACING,
                               horizon=horizon)
    columns['video'].append(images[:, np.minimum(seen, images.shape[1] - 1)][:, None])
    columns['instruction'].append(episodes['target'])
    columns['state'].append(episodes['state'][:, start])
    columns['actions'].append(actions[:, acted] * mask[:, None])
    weights = mask if mask_padding else np.ones_like(mask)
    columns['action_mask'].append(np.broadcast_to(weights, (len(images), horizon)))
  return {name: np.concatenate(parts) for name, parts in columns.items()}


def clip_windows(episodes, seed, *, frames=4):
  """Examples without actions: one clip at a random start of each episode.

  The agent's 'motion' [2] over the clip stands beside them, for probes; no loss looks at it.
  """
  images = episodes['image']
  last = images.shape[1] - SPACING * (frames - 1)
  starts = np.random.default_rng([seed, 3]).integers(0, last, len(images))
  rows = starts[:, None] + SPACING * np.arange(frames)
  episode = np.arange(len(images))
  places = episodes['state'][episode[:, None], rows]
  return {'video': images[episode[:, None], rows][:, None], 'instruction': episodes['target'],
          'motion': places[:, -1] - places[:, 0]}


class Tabletop(ArrayRecordBuilder):
  """Episodes of the tabletop's scripted expert.

  The config 'demos' has labelled episodes of one appearance; 'video' has many more, of random
  appearance, whose actions are not meant to be looked at. The record is what
  `tabletop.demonstrate` gives.
  """

  VERSION = tfds.core.Version('1.1.0')  # 1.0.0: yellow only where the camera is shifted right
  BUILDER_CONFIGS = [
      tfds.core.BuilderConfig(name='demos', description='240 demonstrations, 40 of them for test.'),
      tfds.core.BuilderConfig(name='video', description='4096 episodes of random appearance.'),
  ]

  def _info(self):
    side, steps = tabletop.SIDE, tabletop.STEPS
    tensor = lambda shape, dtype: tfds.features.Tensor(shape=shape, dtype=dtype)
    return tfds.core.DatasetInfo(
        builder=self, description='Reach the named block on a 2-D table.',
        features=tfds.features.FeaturesDict({
            'image': tensor((steps + 1, side, side, 3), np.uint8),
            'state': tensor((steps + 1, 2), np.float32),
            'action': tensor((steps, 2), np.float32),
            'target': tensor((), np.int32), 'success': tensor((), np.bool_)}),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to fetch
    if self.builder_config.name == 'video':
      return {'train': self._generate_examples(2, 4096, tabletop.VIDEO, CLIP_NOISE)}
    plain = tabletop.LOOKS['plain']
    return {'train': self._generate_examples(0, 200, plain, DEMO_NOISE),
            'test': self._generate_examples(1, 40, plain, DEMO_NOISE)}

  def _generate_examples(self, seed, count, look, noise):
    columns = tabletop_episodes(seed, count, look, noise)
    for row in range(count):
      yield row, {name: column[row] for name, column in columns.items()}


builders.BUILDERS.update({'tabletop': 'jaxlab.systems.vla_jepa.data:Tabletop'})


def load_tabletop(*, train: str = 'train[:80]', test: str = 'test', video: str = 'train',
                  horizon: int = 4, frames: int = 4, mask_padding: bool = True, seed: int = 0):
  """Windows of the embedded tabletop's prepared episodes.

  Args:
    train: TFDS split of the demonstrations.
    test: likewise, held out.
    video: TFDS split of the action-free episodes.
    horizon: H, actions of a chunk.
    frames: of a clip.
    mask_padding: whether padded actions count for nothing.
    seed: of the starts of the clips.

  Returns:
    Data.
  """
  demos = builders.load('tabletop', config='demos')
  windows = lambda split: pipeline.from_arrays(demo_windows(
      builders.arrays(demos, split), frames=frames, horizon=horizon, mask_padding=mask_padding))
  clips = clip_windows(builders.arrays(builders.load('tabletop', config='video'), video), seed,
                       frames=frames)
  return Data(windows(train), pipeline.from_arrays(clips), windows(test), INSTRUCTIONS,
              (unit_scales(2),), 1, (tabletop.SIDE, tabletop.SIDE))


def unit_scales(dims):
  """The Scales of actions that are in [-1, 1] already."""
  return Scales(Scale(-np.ones(dims, np.float32), np.ones(dims, np.float32), np.ones(dims, bool),
                      False))
