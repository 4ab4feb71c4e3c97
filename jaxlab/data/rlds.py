"""Robot episodes in TFDS' RLDS layout (arXiv 2111.02767), read from TFRecord files.

A record is an episode: 'steps/action', 'steps/observation/state', 'steps/observation/<camera>' (PNG
or JPEG bytes), 'steps/language_instruction', one entry a step.
"""
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxlab.data import tfrecord


def read_episodes(folder, *, cameras: Sequence[str], action_dim, state_dim):
  """Yields the episodes of all TFRecord files of a folder, in the order of the files' names.

  Args:
    folder: with files that have 'tfrecord' in their name.
    cameras: names of the observations that are images.
    action_dim: A.
    state_dim: P.

  Yields:
    {'action': float32 [T, A], 'state': float32 [T, P], 'instruction': text, and for each camera its
    T encoded images}.

  Raises:
    ValueError: no such file, a damaged record, a missing key or arrays of other widths.
  """
  paths = sorted(path for path in pathlib.Path(folder).glob('*tfrecord*') if path.is_file())
  if not paths:
    raise ValueError(f'{folder}: expected files of TFRecords, found none')
  observed = lambda name: f'steps/observation/{name}'
  specs = {'steps/action': ((None, action_dim), np.float32),
           observed('state'): ((None, state_dim), np.float32),
           'steps/language_instruction': ((None,), np.object_),
           **{observed(camera): ((None,), np.object_) for camera in cameras}}
  for path in paths:
    for number, example in enumerate(tfrecord.read_examples(path, specs)):
      length = len(example['steps/action'])
      for name, values in example.items():
        if len(values) != length:
          raise ValueError(f'{path}: record {number}: {name}: expected {length} steps, as the '
                           f'actions have, got {len(values)}')
      yield {'action': example['steps/action'], 'state': example[observed('state')],
             'instruction': example['steps/language_instruction'][0].decode(),
             **{camera: list(example[observed(camera)]) for camera in cameras}}


def decode_images(encoded, where):
  """uint8 [n, H, W, 3] of n PNG or JPEG files.

  Raises:
    ValueError: names `where` and the number of the image that cannot be read.
  """
  from PIL import Image, UnidentifiedImageError
  images = []
  for number, data in enumerate(encoded):
    try:
      images.append(np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))
    except (UnidentifiedImageError, OSError) as error:
      raise ValueError(f'{where}: image {number}: expected PNG or JPEG: {error}') from error
  return np.stack(images)
