"""Files in the format of MoGe's data sets: depth in PNG, folders of instances, their index.

An instance is a folder with image.jpg (or .png), depth.png, meta.json {"intrinsics": 3 x 3,
normalised} and perhaps segmentation.png; a data set is a folder with `.index.txt`, one relative
folder a line. Pillow is imported when a picture is read or written.
"""
import json
import pathlib
from typing import NamedTuple

import numpy as np

_LEVELS = 65533  # of 16 bits; 0 is NaN and 65535 is inf


class Instance(NamedTuple):
  """An image and its ground truth.

  Attributes:
    image: uint8 [H, W, 3].
    depth: float32 [H, W]; NaN where unknown, inf in the sky.
    intrinsics: float32 [3, 3], normalised.
    segments: int [H, W] ids, or None.
    labels: {name: id}; empty without segments.
  """
  image: np.ndarray
  depth: np.ndarray
  intrinsics: np.ndarray
  segments: np.ndarray | None
  labels: dict


def encode_depth(depth):
  """(uint16 [H, W], near, far): logarithmic levels between the nearest and the farthest depth."""
  known = depth[np.isfinite(depth)]
  if known.size and known.min() < 0:
    raise ValueError(f'depth: expected at least 0, got {known.min()}')
  near = max(float(known.min()), 1e-5) if known.size else 1e-5
  far = max(1.1 * near, min(float(known.max()), 1e5 * near)) if known.size else 1.1 * near
  with np.errstate(divide='ignore', invalid='ignore'):
    q = np.log(np.clip(depth, near, far) / near) / np.log(far / near)
  level = np.where(np.isfinite(depth), 1 + np.round(np.nan_to_num(q) * _LEVELS), 0)
  return np.where(np.isposinf(depth), 65535, level).astype(np.uint16), near, far


def decode_depth(level, near, far):
  """The inverse of `encode_depth`, float32."""
  q = (level.astype(np.float64) - 1) / _LEVELS
  depth = near**(1 - q) * far**q
  depth = np.where(level == 0, np.nan, np.where(level == 65535, np.inf, depth))
  return depth.astype(np.float32)


def write_depth(path, depth):
  """Writes depth [H, W] (NaN and inf too) as a 16-bit PNG with the text chunks near and far."""
  from PIL import Image, PngImagePlugin
  level, near, far = encode_depth(np.asarray(depth))
  info = PngImagePlugin.PngInfo()
  info.add_text('near', repr(near))
  info.add_text('far', repr(far))
  Image.fromarray(level).save(path, pnginfo=info)


def read_depth(path):
  """Depth float32 [H, W] of a PNG that `write_depth` or the official code wrote.

  Raises:
    ValueError: no 16-bit grey PNG with near and far, or numbers there that are no depth.
  """
  with _open(path) as picture:
    text, level = getattr(picture, 'text', {}), np.asarray(picture)
  if level.ndim != 2 or level.dtype not in (np.uint16, np.int32):
    raise ValueError(f'{path}: expected a 16-bit grey PNG, got {level.dtype} {level.shape}')
  text = {'unit': '1', **text}  # of old files, in meters
  near, far, unit = (_positive(path, text, name) for name in ('near', 'far', 'unit'))
  return decode_depth(level, near, far) * np.float32(unit)


def _positive(path, text, name):
  """The number of a text chunk of a picture."""
  try:
    value = float(text[name])
  except (KeyError, ValueError):
    value = np.nan
  if not 0 < value < np.inf:
    raise ValueError(f'{path}: text chunk {name!r}: expected a positive number, got '
                     f'{text.get(name)!r}')
  return value


def read_segments(path):
  """(ids [H, W], {name: id}) of a PNG with the text chunk `labels`."""
  with _open(path) as picture:
    text, ids = getattr(picture, 'text', {}), np.asarray(picture)
  try:
    labels = json.loads(text['labels'])
  except (KeyError, ValueError):
    raise ValueError(f'{path}: text chunk \'labels\': expected JSON {{name: id}}, got '
                     f'{text.get("labels")!r}') from None
  return ids.astype(np.int32), labels


def read_image(path):
  """RGB uint8 [H, W, 3] of a picture, upright as its EXIF orientation says.

  Transparency is laid on white, 16 bits become 8, grey becomes RGB.

  Raises:
    ValueError: no picture, a truncated one, or one below 2 x 2 pixels.
  """
  from PIL import Image, ImageOps
  with _open(path) as picture:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith('I') or picture.mode == 'F':
      grey = np.asarray(picture)
      picture = Image.fromarray(np.clip(np.round(grey / 257), 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
      rgba = picture.convert('RGBA')
      picture = Image.alpha_composite(Image.new('RGBA', rgba.size, 'white'), rgba)
    image = np.asarray(picture.convert('RGB'))
  if min(image.shape[:2]) < 2:
    raise ValueError(f'{path}: expected at least 2 x 2 pixels, got {image.shape[1]} x '
                     f'{image.shape[0]}')
  return image


def _open(path):
  """An open picture whose pixels are read; ValueError if that cannot be done."""
  try:
    from PIL import Image
  except ImportError as error:
    raise ValueError("pictures need: pip install 'jaxlab[vision]'") from error
  try:
    picture = Image.open(path)
    picture.load()
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise ValueError(f'{path}: expected a whole picture, got {error}') from error
  return picture


def read_instance(folder):
  """The `Instance` of a folder; ValueError names the file and what is wrong with it."""
  folder = pathlib.Path(folder)
  images = [path for path in (folder / 'image.jpg', folder / 'image.png') if path.exists()]
  if not images:
    raise ValueError(f'{folder}/image.jpg: expected a picture, got none')
  image, depth = read_image(images[0]), read_depth(folder / 'depth.png')
  if image.shape[:2] != depth.shape:
    raise ValueError(f'{folder}/depth.png: expected the size of the image, {image.shape[:2]}, got '
                     f'{depth.shape}')
  try:
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    intrinsics = np.asarray(meta['intrinsics'], np.float32).reshape(3, 3)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{folder}/meta.json: expected {{"intrinsics": 3 x 3 numbers}}, got '
                     f'{error!r}') from error
  focal, center = np.diag(intrinsics)[:2], intrinsics[:2, 2]
  if not (np.isfinite(intrinsics).all() and (focal > 0).all() and (abs(center - 0.5) < 0.5).all()):
    raise ValueError(f'{folder}/meta.json: intrinsics: expected positive focal lengths and a '
                     f'principal point between 0 and 1, got {intrinsics.tolist()}')
  segments = folder / 'segmentation.png'
  ids, labels = read_segments(segments) if segments.exists() else (None, {})
  if ids is not None and ids.shape != depth.shape:
    raise ValueError(f'{segments}: expected the size of the image, {depth.shape}, got {ids.shape}')
  return Instance(image, depth, intrinsics, ids, labels)


def read_index(folder):
  """Folders of the instances of a data set, in the order of its `.index.txt`."""
  index = pathlib.Path(folder, '.index.txt')
  try:
    lines = index.read_text(encoding='utf-8').splitlines()
  except OSError as error:
    raise ValueError(f'{index}: expected a line for each instance, got {error}') from error
  found = [pathlib.Path(folder, line.strip()) for line in lines if line.strip()]
  for number, path in enumerate(found):
    if not path.is_dir():
      raise ValueError(f'{index}, entry {number + 1}: expected a folder, got {path}')
  return found


def center_view(instance, height, width):
  """The instance seen by a centred camera with H x W pixels, as large a part of it as fits.

  Pixels are sampled bilinearly for the picture and nearest for depth and segments; the picture is
  averaged first where it shrinks.
  """
  from PIL import Image
  h, w = instance.depth.shape
  fx, fy = instance.intrinsics[0, 0] * w, instance.intrinsics[1, 1] * h  # in pixels
  cx, cy = instance.intrinsics[0, 2] * w, instance.intrinsics[1, 2] * h
  # Half sizes at the depth of one focal length: what fits on both sides of the principal point.
  half_x, half_y = min(cx, w - cx) / fx, min(cy, h - cy) / fy
  half_x, half_y = min(half_x, half_y * width / height), min(half_y, half_x * height / width)
  box = (cx - half_x * fx, cy - half_y * fy, cx + half_x * fx, cy + half_y * fy)
  resized = Image.fromarray(instance.image).resize((width, height), Image.Resampling.LANCZOS, box)
  pick = lambda low, high, n, size: np.clip(
      np.floor(low + (np.arange(n) + .5) * (high - low) / n).astype(int), 0, size - 1)
  rows, columns = pick(box[1], box[3], height, h), pick(box[0], box[2], width, w)
  segments = None if instance.segments is None else instance.segments[rows][:, columns]
  intrinsics = np.array([[.5 / half_x, 0, .5], [0, .5 / half_y, .5], [0, 0, 1]], np.float32)
  return instance._replace(image=np.asarray(resized), depth=instance.depth[rows][:, columns],
                           intrinsics=intrinsics, segments=segments)
