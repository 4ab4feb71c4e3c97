"""Robot data in the format LeRobot v2.1: parquet tables, videos and json files of one folder.

  meta/info.json, episodes.jsonl, tasks.jsonl, stats*.json or episodes_stats.jsonl
  data/chunk-000/episode_000000.parquet
  videos/chunk-000/<camera>/episode_000000.mp4
"""
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxlab.data import video


class LeRobot(NamedTuple):
  """A folder of episodes.

  Attributes:
    folder: its path.
    info: the object of meta/info.json.
    lengths: {episode: steps}.
    tasks: {task index: text}.
    stats: {column: {'min', 'max', 'mean', 'std', ...: array}}.
  """
  folder: pathlib.Path
  info: dict[str, Any]
  lengths: dict[int, int]
  tasks: dict[int, str]
  stats: dict[str, dict[str, np.ndarray]]


def open_folder(folder, *, action_dim=None):
  """Reads the json files of a folder.

  Args:
    folder: path.
    action_dim: A that is wanted, or None.

  Raises:
    ValueError: a file that is missing or ill-formed, another format version, no episode, no
      statistics, or actions of another width.
  """
  folder = pathlib.Path(folder)
  info = _read_json(folder / 'meta/info.json')
  version = str(info.get('codebase_version', ''))
  if not version.startswith('v2'):
    raise ValueError(f'{folder}/meta/info.json: codebase_version: expected v2.0 or v2.1, got '
                     f'{version!r}')
  for key in ('data_path', 'features', 'chunks_size'):
    if key not in info:
      raise ValueError(f'{folder}/meta/info.json: {key}: missing')
  if not isinstance(info['chunks_size'], int) or info['chunks_size'] < 1:
    raise ValueError(f'{folder}/meta/info.json: chunks_size: expected a number of episodes, got '
                     f'{info["chunks_size"]!r}')
  shape = info['features'].get('action', {}).get('shape')
  if not isinstance(shape, list) or len(shape) != 1:
    raise ValueError(f'{folder}/meta/info.json: features.action.shape: expected a list of one '
                     f'number, got {shape!r}')
  width = shape[0]
  if action_dim is not None and width != action_dim:
    raise ValueError(f'{folder}/meta/info.json: features.action.shape: expected {action_dim} '
                     f'numbers an action, as the config says, got {width}')
  lengths = {row['episode_index']: row['length']
             for row in _read_lines(folder / 'meta/episodes.jsonl', ('episode_index', 'length'))}
  if not lengths:
    raise ValueError(f'{folder}/meta/episodes.jsonl: expected a line for each episode, found none')
  tasks = {row['task_index']: row['task']
           for row in _read_lines(folder / 'meta/tasks.jsonl', ('task_index', 'task'))}
  return LeRobot(folder, info, lengths, tasks, _read_stats(folder))


def read_steps(data, episode):
  """Columns of an episode: {'action' [T, A], 'observation.state' [T, P], 'task_index' [T], ...}.

  Raises:
    ValueError: no such file, a missing column, a wrong number of rows or a ragged column.
  """
  import pyarrow
  import pyarrow.parquet as parquet
  path = _path(data, 'data_path', episode)
  try:
    table = parquet.read_table(path)
  except (OSError, pyarrow.ArrowInvalid) as error:
    raise ValueError(f'{path}: expected a parquet file: {error}') from error
  columns = {}
  for name in table.column_names:
    values = table[name].to_pylist()
    try:
      columns[name] = np.asarray(values)
    except ValueError as error:
      raise ValueError(f'{path}: {name}: expected rows of one length') from error
  for name in ('action', 'observation.state', 'task_index'):
    if name not in columns:
      raise ValueError(f'{path}: {name}: missing (columns: {", ".join(columns)})')
  if len(columns['action']) != data.lengths[episode]:
    raise ValueError(f'{path}: expected {data.lengths[episode]} rows, as meta/episodes.jsonl says, '
                     f'got {len(columns["action"])}')
  width = data.info['features']['action']['shape'][0]
  if columns['action'].shape[1:] != (width,):
    raise ValueError(f'{path}: action: expected {width} numbers a row, as meta/info.json says, got '
                     f'shape {columns["action"].shape[1:]}')
  return columns


def read_camera(data, episode, camera, rows):
  """Frames uint8 [len(rows), H, W, 3] of a camera.

  Args:
    data: LeRobot.
    episode: its number.
    camera: its column, such as 'observation.images.image'.
    rows: numbers of the frames; those past the end of the episode are its last.

  Raises:
    ValueError: no such camera, or a video that cannot be read or ends early.
  """
  if data.info['features'].get(camera, {}).get('dtype') != 'video':
    cameras = [name for name, f in data.info['features'].items() if f.get('dtype') == 'video']
    raise ValueError(f'{data.folder}/meta/info.json: features: expected the video {camera!r}, '
                     f'found {cameras}')
  return video.read_frames(_path(data, 'video_path', episode, video_key=camera),
                           np.minimum(rows, data.lengths[episode] - 1))


def _path(data, template, episode, **names):
  if not data.info.get(template):
    raise ValueError(f'{data.folder}/meta/info.json: {template}: missing')
  spelled = data.info[template].format(
      episode_chunk=episode // data.info['chunks_size'], episode_index=episode, **names)
  path = data.folder / spelled
  if not path.is_file():
    raise ValueError(f'{path}: no such file, though meta/episodes.jsonl lists episode {episode}')
  return path


def _read_json(path):
  if not path.is_file():
    raise ValueError(f'{path}: missing; expected a folder in the format LeRobot v2.1')
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: line {error.lineno}, column {error.colno}: expected json: '
                     f'{error.msg}') from error


def _read_lines(path, keys):
  if not path.is_file():
    raise ValueError(f'{path}: missing; expected a folder in the format LeRobot v2.1')
  rows = []
  for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f'{path}: line {number}, column {error.colno}: expected json: '
                       f'{error.msg}') from error
    for key in keys:
      if key not in row:
        raise ValueError(f'{path}: line {number}: {key}: missing')
    rows.append(row)
  return rows


def _read_stats(folder):
  """Statistics of the whole set; those of episodes (v2.1) are joined where they can be.

  Of several files of the whole set (stats.json, stats_gr00t.json) the first that has a number
  counts.
  """
  found, parts = sorted(folder.glob('meta/stats*.json')), folder / 'meta/episodes_stats.jsonl'
  if found:
    joined = {}
    for path in found:
      for name, stats in _read_json(path).items():
        try:
          own = {key: np.asarray(value, np.float32).reshape(-1) for key, value in stats.items()}
        except (AttributeError, TypeError, ValueError) as error:
          raise ValueError(f'{path}: {name}: expected numbers by name: {error}') from error
        joined[name] = {**own, **joined.get(name, {})}
    return joined
  if not parts.is_file():
    raise ValueError(f'{folder}/meta/stats.json: missing, and {parts.name} too; actions are scaled '
                     'by statistics')
  rows = [row['stats'] for row in _read_lines(parts, ('stats',))]
  join = {'min': np.min, 'max': np.max}
  return {name: {key: join[key]([np.asarray(row[name][key], np.float32).reshape(-1)
                                 for row in rows], axis=0) for key in join}
          for name in rows[0] if not name.startswith('observation.images')}
