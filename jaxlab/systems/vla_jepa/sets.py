"""The data sets of `config.data` by name, and robot folders as windows that are read on demand."""
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import grain
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import lerobot, rlds, video
from jaxlab.systems.vla_jepa import data as data_lib
from jaxlab.systems.vla_jepa import metaworld, normalise, tabletop
from jaxlab.systems.vla_jepa.data import Data
from jaxlab.systems.vla_jepa.experiment import Frames

GENERIC = 'something is done'  # the instruction of a clip without a label


class Episode(NamedTuple):
  """One episode, its pictures still unread.

  Attributes:
    action: raw float32 [T, A].
    state: float32 [T, P].
    instruction: text.
    frames: (camera, rows) -> uint8 [len(rows), H, W, 3].
  """
  action: np.ndarray
  state: np.ndarray
  instruction: str
  frames: Callable[[str, np.ndarray], np.ndarray]


class Windows(grain.MapDataset):
  """Examples of episodes, one a step that is no pause; pictures are decoded when asked for.

  Args:
    episodes: sequence of Episode.
    spec: RobotSpec.
    scales: normalise.Scales.
    instructions: texts by number.
  """

  def __init__(self, episodes, spec, scales, instructions):
    super().__init__()
    self._episodes, self._spec, self._scales = episodes, spec, scales
    self._numbers = {text: i for i, text in enumerate(instructions)}
    keep = lambda e: (normalise.keep_steps(e.action, spec.gripper) if spec.drop_pauses else
                      np.ones(len(e.action), bool))
    self._index = [(i, k) for i, e in enumerate(episodes) for k in np.flatnonzero(keep(e))]

  def __len__(self):
    return len(self._index)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    number, start = self._index[index % len(self)]
    episode, spec = self._episodes[number], self._spec
    seen, acted, mask = data_lib.window(len(episode.action), start, frames=spec.frames, spacing=1,
                                        horizon=spec.horizon)
    rows = np.minimum(seen, len(episode.action) - 1)
    clips = [video.resize(episode.frames(camera, rows), spec.size) for camera in spec.cameras]
    # Zero actions past the end, and only then into the network's units: as the release does it.
    actions = episode.action[acted] * mask[:, None]
    state = episode.state[start].astype(np.float32)
    if self._scales.state is not None:
      state = normalise.normalise(state, self._scales.state)
    return {'video': np.stack(clips), 'state': state,
            'instruction': np.int32(self._numbers[episode.instruction]),
            'actions': normalise.normalise(actions, self._scales.action),
            'action_mask': mask if spec.mask_padding else np.ones_like(mask)}


class Clips(grain.MapDataset):
  """Examples of video without actions: `frames` consecutive frames at a place that the row fixes.

  Args:
    paths: files.
    texts: the instruction of each.
    spec: RobotSpec, whose views a clip's single one is copied to.
    instructions: texts by number.
  """

  def __init__(self, paths, texts, spec, instructions):
    super().__init__()
    self._paths, self._texts, self._spec = paths, texts, spec
    self._numbers = {text: i for i, text in enumerate(instructions)}

  def __len__(self):
    return len(self._paths)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    row, spec = index % len(self), self._spec
    length = video.count_frames(self._paths[row])
    if length < spec.frames:
      raise ValueError(f'{self._paths[row]}: expected at least {spec.frames} frames, but the video '
                       f'ends after {length}')
    # `index` grows from epoch to epoch, and with it the place.
    start = np.random.default_rng([5, index]).integers(0, length - spec.frames + 1)
    frames = video.read_frames(self._paths[row], start + np.arange(spec.frames))
    clip = video.resize(frames, spec.size)
    return {'video': np.broadcast_to(clip, (len(spec.cameras), *clip.shape)).copy(),
            'instruction': np.int32(self._numbers[self._texts[row]])}


class RobotSpec(NamedTuple):
  """The mapping `config.data` of robot folders.

  Attributes:
    folders: of the sets, drawn from equally.
    cameras: names of the cameras, V of them; name one twice for a robot with a single one. Of
      three the world model has the first and the last, the trunk all.
    action_dim: A.
    state_dim: P.
    frames: T, consecutive.
    horizon: H.
    size: side that frames are resized to.
    state: whether the head sees the robot's state.
    normalise: see `normalise.make_scale`; 'quantile' scales the states too. Each folder has the
      scale of its own statistics.
    gripper: index of the gripper in an action, or None.
    drop_pauses: whether steps without motion are left out.
    mask_padding: whether padded actions count for nothing (CHOICE; the release counts them).
    held_out: episodes at the end of each set for the split 'test'.
    clips: folder of .webm or .mp4 clips without actions, or None.
    labels: file of 'id;text' lines for them.
  """
  folders: Sequence[str]
  cameras: Sequence[str]
  action_dim: int
  state_dim: int
  frames: int = 8
  horizon: int = 7
  size: int = 256
  state: bool = True
  normalise: Literal['minmax', 'quantile'] = 'minmax'
  gripper: int | None = None
  drop_pauses: bool = True
  mask_padding: bool = True
  held_out: int = 0
  clips: str | None = None
  labels: str | None = None


def check(config):
  """Checks `config.data` without reading anything; returns its Frames."""
  name = config_lib.choose_named(config, {key: key for key in ('tabletop', *_READERS)}, 'data')
  if name == 'tabletop':
    options = {'horizon': 4, 'frames': 4,
               **config_lib.check_arguments(data_lib.load_tabletop, config, 'data')}
    config_lib.require(1 <= options['horizon'] <= tabletop.STEPS, 'data.horizon',
                       f'1 to {tabletop.STEPS}', options['horizon'])
    return Frames(options['frames'], options['horizon'], 2, 0, 1)
  spec = config_lib.call(RobotSpec, config, 'data')
  config_lib.at_least(1, spec, ('frames', 'horizon', 'action_dim', 'state_dim', 'size'), 'data')
  config_lib.at_least(0, spec, ('held_out',), 'data')
  for key in ('folders', 'cameras'):
    config_lib.require(len(getattr(spec, key)) > 0, f'data.{key}', 'at least one', ())
  config_lib.require((spec.clips is None) == (spec.labels is None), 'data.clips, data.labels',
                     'both or none', (spec.clips, spec.labels))
  return Frames(spec.frames, spec.horizon, spec.action_dim, spec.state_dim if spec.state else 0,
                len(spec.cameras))


def load(config):
  """The Data of `config.data`.

  Raises:
    ValueError: files that cannot be read; the message names them and what was expected.
  """
  if config['name'] == 'tabletop':
    return config_lib.call(data_lib.load_tabletop, config, 'data')
  spec = config_lib.call(RobotSpec, config, 'data')
  read = _READERS[config['name']]
  sets = [read(folder, spec) for folder in spec.folders]
  labels, paths = ({}, []) if spec.clips is None else (video.read_labels(spec.labels),
                                                       _clips(spec.clips))
  texts = [labels.get(path.stem, GENERIC) for path in paths]
  for folder, (episodes, _) in zip(spec.folders, sets):
    config_lib.require(spec.held_out < len(episodes), 'data.held_out',
                       f'less than the {len(episodes)} episodes of {folder}', spec.held_out)
  instructions = tuple(dict.fromkeys(
      [episode.instruction for episodes, _ in sets for episode in episodes] + texts))
  windows = lambda part: _equally([
      Windows(part(episodes), spec, own, instructions) for episodes, own in sets])
  kept = lambda episodes: episodes[:len(episodes) - spec.held_out]
  held = lambda episodes: episodes[len(episodes) - spec.held_out:]
  return Data(windows(kept), Clips(paths, texts, spec, instructions) if paths else None,
              windows(held) if spec.held_out else None, instructions,
              tuple(own for _, own in sets), len(spec.cameras), (spec.size, spec.size))


def _make_scales(action, state, spec, where):
  """The Scales of a folder, by the statistics of its actions and states."""
  make = functools.partial(normalise.make_scale, kind=spec.normalise)
  wanted = spec.state and spec.normalise == 'quantile'
  return normalise.Scales(
      make(action, spec.action_dim, gripper=spec.gripper, where=f'{where}: action'),
      make(state, spec.state_dim, where=f'{where}: observation.state') if wanted else None)


def read_lerobot(folder, spec):
  """([Episode], Scales) of a LeRobot v2.1 folder; frames are decoded when asked for."""
  data = lerobot.open_folder(folder, action_dim=spec.action_dim)
  scales = _make_scales(data.stats.get('action', {}), data.stats.get('observation.state', {}), spec,
                        f'{folder}/meta: stats')

  def episode(number):
    columns = lerobot.read_steps(data, number)
    state = columns['observation.state']
    if state.shape[1:] != (spec.state_dim,):
      raise ValueError(f'{folder}: episode {number}: observation.state: expected {spec.state_dim} '
                       f'numbers, as the config says, got {state.shape[1:]}')
    task = int(columns['task_index'][0])
    if task not in data.tasks:
      raise ValueError(f'{folder}/meta/tasks.jsonl: expected the task_index {task} of episode '
                       f'{number}, found {sorted(data.tasks)}')
    return Episode(columns['action'].astype(np.float32), state.astype(np.float32), data.tasks[task],
                   functools.partial(lerobot.read_camera, data, number))

  return [episode(number) for number in sorted(data.lengths)], scales


def read_rlds(folder, spec):
  """([Episode], Scales) of a folder of RLDS TFRecords; images stay encoded in memory.

  The statistics are those of the steps in the folder, as RLDS sets carry none.
  """
  episodes = []
  for number, raw in enumerate(rlds.read_episodes(
      folder, cameras=tuple(dict.fromkeys(spec.cameras)), action_dim=spec.action_dim,
      state_dim=spec.state_dim)):
    def frames(camera, rows, raw=raw, number=number):
      return rlds.decode_images([raw[camera][row] for row in rows], f'{folder}: episode {number}')
    episodes.append(Episode(raw['action'], raw['state'], raw['instruction'], frames))

  def stats(name):
    values = np.concatenate([getattr(episode, name) for episode in episodes])
    return {'min': values.min(0), 'max': values.max(0),
            'q01': np.quantile(values, 0.01, axis=0), 'q99': np.quantile(values, 0.99, axis=0)}

  return episodes, _make_scales(stats('action'), stats('state'), spec, f'{folder}: stats')


def read_metaworld(folder, spec):
  """([Episode], Scales) of a folder of Meta-World demonstrations, whose actions are in [-1, 1]."""
  for key, wanted in (('action_dim', 4), ('state_dim', metaworld.STATE)):
    config_lib.require(getattr(spec, key) == wanted, f'data.{key}', str(wanted),
                       getattr(spec, key))
  episodes = []
  for number, raw in enumerate(metaworld.read_demos(folder)):
    def frames(camera, rows, raw=raw, number=number):
      config_lib.choose(camera, {metaworld.CAMERA: 0}, 'data.cameras')
      return rlds.decode_images([raw['images'][row] for row in rows],
                                f'{folder}: episode {number}')
    episodes.append(Episode(raw['action'], raw['state'], raw['instruction'], frames))
  return episodes, data_lib.unit_scales(spec.action_dim)


_READERS = {'lerobot': read_lerobot, 'rlds': read_rlds, 'metaworld': read_metaworld}


def _equally(datasets: Sequence[Any]):
  """One data set that draws from all of them equally often; shorter ones are repeated."""
  if len(datasets) == 1:
    return datasets[0]
  longest = max(len(dataset) for dataset in datasets)
  repeated = [dataset.repeat(-(-longest // len(dataset))) for dataset in datasets]
  return grain.MapDataset.mix(repeated, [1 / len(datasets)] * len(datasets))


def _clips(folder):
  paths = sorted(
      path for path in pathlib.Path(folder).glob('*') if path.suffix in ('.webm', '.mp4'))
  if not paths:
    raise ValueError(f'{folder}: expected .webm or .mp4 files, found none')
  return paths
