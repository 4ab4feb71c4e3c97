"""Frames of video files, and folders of labelled clips such as Something-Something-v2."""
import pathlib

import numpy as np


def read_frames(path, rows):
  """Frames of a video file, RGB.

  Args:
    path: of the file.
    rows: numbers of the frames, from 0, in any order; None for all.

  Returns:
    uint8 [len(rows), H, W, 3].

  Raises:
    ValueError: no video, or one that ends before the last of `rows`.
  """
  import av
  wanted = None if rows is None else set(int(row) for row in rows)
  last, found, count = None if wanted is None else max(wanted), {}, 0
  try:
    with av.open(str(path)) as container:
      for frame in container.decode(video=0):
        if wanted is None or count in wanted:
          found[count] = frame.to_ndarray(format='rgb24')
        count += 1
        if count - 1 == last:
          break
  except (OSError, av.error.FFmpegError, IndexError) as error:
    raise ValueError(f'{path}: expected a video that can be decoded: {error}') from error
  if count == 0 or (last is not None and last not in found):
    least = 1 if last is None else last + 1
    raise ValueError(f'{path}: expected at least {least} frames, but the video ends after {count}')
  return np.stack([found[i] for i in (range(count) if rows is None else map(int, rows))])


def count_frames(path):
  """Number of frames of a video file; ValueError if it is none."""
  import av
  try:
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      return stream.frames or sum(1 for _ in container.decode(stream))
  except (OSError, av.error.FFmpegError, IndexError) as error:
    raise ValueError(f'{path}: expected a video that can be decoded: {error}') from error


def read_labels(path):
  """{id: text} of a label file with 'id;text' on each line.

  Raises:
    ValueError: a line without a semicolon.
  """
  labels = {}
  for number, line in enumerate(pathlib.Path(path).read_text(encoding='utf-8').splitlines(), 1):
    name, separator, text = line.partition(';')
    if not separator or not name:
      raise ValueError(f'{path}: line {number}: expected id;text, got {line!r}')
    labels[name.strip()] = text.strip()
  return labels


def resize(images, size):
  """uint8 [..., size, size, 3] of uint8 images, bilinear, by pillow."""
  from PIL import Image
  flat = images.reshape(-1, *images.shape[-3:])
  if flat.shape[1:3] != (size, size):
    flat = np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.BILINEAR))
                     for x in flat])
  return flat.reshape(*images.shape[:-3], size, size, 3)
