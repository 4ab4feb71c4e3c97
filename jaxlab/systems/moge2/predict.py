"""Geometry of the user's own pictures, as files."""
import functools
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import ConfigError
from jaxlab.systems.moge2 import export, files, geometry, recovery
from jaxlab.systems.moge2.task import check

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

_log = logging.getLogger(__name__)


def pictures(path):
  """The picture that a path names, or those in a folder by name; ConfigError if there is none."""
  path = pathlib.Path(path)
  if path.is_dir():
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
      raise ConfigError(f'--input={path}: no picture there ({", ".join(SUFFIXES)})')
    return found
  if not path.exists():
    raise ConfigError(f'--input={path}: no such file')
  return [path]


def shrunk(image, max_side):
  """The image [H, W, 3] with no side longer than `max_side` (0 leaves it as it is)."""
  from PIL import Image
  h, w = image.shape[:2]
  if not max_side or max(h, w) <= max_side:
    return image
  scale = max_side / max(h, w)
  size = max(round(w * scale), 2), max(round(h * scale), 2)
  return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def infer_images(model, params, images, num_tokens, fov_x):
  """recovery.Geometry of uint8 images [B, H, W, 3] of one size; every pixel has a normal.

  Args:
    model: MoGe.
    params: its parameters.
    images: uint8.
    num_tokens: patches of an image.
    fov_x: known field of view in degrees, or 0.
  """
  out = model.apply({'params': params}, images.astype(jnp.float32) / 255, num_tokens=num_tokens)
  fov = jnp.full(len(images), fov_x) if fov_x else None
  found = recovery.infer(out.points, jax.nn.sigmoid(out.mask_logit), out.normal, out.metric_scale,
                         fov)
  if found.normal is None:
    normal = jax.vmap(geometry.normals_from_points)(found.points, found.mask)[0]
    found = found._replace(normal=normal)
  return found


def predict_input(config, params, path, output):
  """Predicts pictures and writes what is known of each to `output`/<name of the picture>/.

  Files: geometry.npz (points, depth, mask, intrinsics, normal), depth.png (16 bits, MoGe's format),
  camera.json, points.ply, mesh.glb, and pictures. Where the mask leaves no triangle, there is no
  cloud and no mesh.

  Args:
    config: the experiment; `config.predict` has the options (task.PredictSpec).
    params: parameters of `config.model`.
    path: a picture, or a folder of pictures of any sizes.
    output: folder to write to.

  Returns:
    {folder: names of the files in it}.

  Raises:
    ConfigError: no picture there, or one that cannot be read.
  """
  model, _, spec = check(config)
  written, waiting = {}, {}

  def flush(shape):
    batch = waiting.pop(shape)
    images = np.stack([image for _, image in batch])
    padding = spec.batch_size - len(batch)  # so that each size is compiled once
    images = np.concatenate([images, np.repeat(images[-1:], padding, axis=0)])
    found = jax.device_get(infer_images(model, params, images, spec.tokens, spec.fov_x))
    for i, (name, image) in enumerate(batch):
      one = jax.tree.map(lambda x: x[i], found)
      folder = pathlib.Path(output, name)
      written[str(folder)] = export.write_all(folder, image, one, edge_rtol=spec.edge_rtol)
      if 'mesh.glb' not in written[str(folder)]:
        _log.warning('%s: the mask leaves no surface; no cloud and no mesh', name)

  for name, picture in _named(pictures(path)):
    try:
      image = shrunk(files.read_image(picture), spec.max_side)
    except ValueError as error:
      raise ConfigError(f'--input: {error}') from error
    waiting.setdefault(image.shape, []).append((name, image))
    if len(waiting[image.shape]) == spec.batch_size:
      flush(image.shape)
  for shape in list(waiting):
    flush(shape)
  return written


def _named(paths):
  """Pairs (name of the output folder, path): the stem, or the whole name where stems repeat."""
  stems = [path.stem for path in paths]
  return [(path.stem if stems.count(path.stem) == 1 else path.name, path) for path in paths]
