"""Tiny robot folders with the same episodes: LeRobot v2.1, RLDS TFRecords, clips with labels."""
import io
import json

import numpy as np

CAMERA = 'observation.images.image'
LENGTHS, SIDE = (5, 4), 16
TASKS = ('open the drawer', 'push the block')


def episode(number):
  """{'action' [T, 3], 'state' [T, 2], 'image' uint8 [T, 16, 16, 3]}; the last action is a gripper.
  """
  rng, length = np.random.default_rng(number), LENGTHS[number]
  action = rng.normal(size=(length, 3)).astype(np.float32)
  action[:, 2] = np.arange(length) % 2
  return {'action': action, 'state': rng.normal(size=(length, 2)).astype(np.float32),
          'image': rng.integers(0, 256, (length, SIDE, SIDE, 3)).astype(np.uint8)}


def write_video(path, frames):
  """A lossless video file, whatever its ending."""
  import av
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w', format='matroska') as container:
    stream = container.add_stream('ffv1', rate=10)
    stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], 'bgr0'
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode())


def write_lerobot(folder, stats=True, width=3):
  """Writes the episodes to a folder."""
  import pyarrow
  import pyarrow.parquet as parquet
  meta = folder / 'meta'
  meta.mkdir(parents=True)
  features = {'action': {'dtype': 'float32', 'shape': [width]},
              'observation.state': {'dtype': 'float32', 'shape': [2]},
              CAMERA: {'dtype': 'video', 'shape': [SIDE, SIDE, 3]}}
  meta.joinpath('info.json').write_text(json.dumps({
      'codebase_version': 'v2.1', 'fps': 10, 'chunks_size': 1000, 'features': features,
      'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
      'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/'
                    'episode_{episode_index:06d}.mp4'}))
  lines = lambda rows: '\n'.join(map(json.dumps, rows)) + '\n'
  meta.joinpath('tasks.jsonl').write_text(lines(
      {'task_index': i, 'task': text} for i, text in enumerate(TASKS)))
  meta.joinpath('episodes.jsonl').write_text(lines(
      {'episode_index': i, 'length': length} for i, length in enumerate(LENGTHS)))
  actions = np.concatenate([episode(i)['action'] for i in range(2)])
  if stats:
    meta.joinpath('episodes_stats.jsonl').write_text(lines(
        {'episode_index': i, 'stats': {'action': {
            'min': actions.min(0).tolist(), 'max': actions.max(0).tolist()}}} for i in range(2)))
  for i in range(2):
    columns = episode(i)
    path = folder / f'data/chunk-000/episode_{i:06d}.parquet'
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({
        'action': columns['action'].tolist(), 'observation.state': columns['state'].tolist(),
        'task_index': [i] * LENGTHS[i], 'frame_index': list(range(LENGTHS[i]))}), path)
    write_video(folder / f'videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4', columns['image'])


def write_rlds(folder):
  """Writes the episodes as TFRecords, in two files."""
  from PIL import Image
  from tensorboard.summary.writer.record_writer import RecordWriter
  from tensorflow_datasets.proto import tf_example_pb2
  folder.mkdir(parents=True)

  def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG')
    return buffer.getvalue()

  for i in range(2):
    columns, example = episode(i), tf_example_pb2.Example()
    feature = example.features.feature
    feature['steps/action'].float_list.value.extend(columns['action'].ravel())
    feature['steps/observation/state'].float_list.value.extend(columns['state'].ravel())
    feature['steps/observation/image'].bytes_list.value.extend(map(png, columns['image']))
    feature['steps/language_instruction'].bytes_list.value.extend(
        [TASKS[i].encode()] * LENGTHS[i])
    with open(folder / f'toy-train.tfrecord-0000{i}-of-00002', 'wb') as file:
      RecordWriter(file).write(example.SerializeToString())


def write_clips(folder):
  """Writes the pictures as clips 7.webm and 8.webm; returns the file of labels, which knows 7."""
  for i in range(2):
    write_video(folder / f'{7 + i}.webm', episode(i)['image'])
  labels = folder / 'labels.csv'
  labels.write_text('7;moving something up\n')
  return labels
