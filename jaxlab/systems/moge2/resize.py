"""Resizing of maps: bilinear, nearest, and nearest among the valid pixels of a window."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def bilinear(x, height, width, *, antialias=False):
  """Resizes [B, H, W, C] with half-pixel centres."""
  if x.shape[1:3] == (height, width):
    return x
  return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), 'bilinear',
                          antialias=antialias)


@jax.custom_vjp
def pad_edge(x):
  """[B, H + 2, W + 2, C]: the maps [B, H, W, C] with their border replicated."""
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')


def _pad_edge_backward(_, g):
  # Autodiff makes four sums of padded copies of the whole map of this; the border alone is added.
  for axis in (1, 2):
    n = g.shape[axis] - 2
    cut = lambda start, stop: jax.lax.slice_in_dim(g, start, stop, axis=axis)
    if n == 1:
      g = cut(0, 1) + cut(1, 2) + cut(2, 3)
    else:
      g = jnp.concatenate([cut(0, 1) + cut(1, 2), cut(2, n), cut(n, n + 1) + cut(n + 1, n + 2)],
                          axis)
  return (g,)


pad_edge.defvjp(lambda x: (pad_edge(x), None), _pad_edge_backward)


def double(x):
  """`bilinear` to twice the size of [B, H, W, C], from shifted copies."""
  for axis in (1, 2):
    n = x.shape[axis]
    cut = lambda start, stop: jax.lax.slice_in_dim(x, start, stop, axis=axis)
    before = jnp.concatenate([cut(0, 1), cut(0, n - 1)], axis)
    after = jnp.concatenate([cut(1, n), cut(n - 1, n)], axis)
    pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    x = pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1:])
  return x


def nearest_indices(size, source):
  """Indices [size] into `source` pixels: floor(d * source / size), as float32 has it."""
  return np.floor(np.arange(size) * np.float32(source / size)).astype(np.int32)


class Cells(NamedTuple):
  """Windows of a coarse grid over an image, nearest pixel first, fixed by the sizes.

  Attributes:
    index: int32 [h * w, K], flat pixels of each cell; 0 where they would lie outside.
    inside: bool [h * w, K].
  """
  index: np.ndarray
  inside: np.ndarray


def _axis(source, size):
  """(window's pixels [size, k], 2 size x their distance to the cell's centre), integers."""
  k = -(-source // size) if source > size else 1
  cell = np.arange(size, dtype=np.int64)
  # The window begins at (cell's centre - half the window), rounded half to even.
  if source > size:
    numerator, denominator = cell * source, size
  else:
    numerator, denominator = (2 * cell + 1) * source - size, 2 * size
  start, rest = np.divmod(numerator, denominator)
  start += (2 * rest > denominator) | ((2 * rest == denominator) & (start % 2 == 1))
  pixels = start[:, None] + np.arange(k)
  return pixels, (2 * pixels + 1) * size - (2 * cell[:, None] + 1) * source


@functools.lru_cache(maxsize=64)
def cells(height, width, rows, columns):
  """The `Cells` of a grid [rows, columns] over an image [height, width].

  Ties and rounding are decided in integers: distances in units of 1 / (2 rows columns) pixel.
  """
  (i, di), (j, dj) = _axis(height, rows), _axis(width, columns)
  distance = ((di * columns)**2)[:, None, :, None] + ((dj * rows)**2)[None, :, None, :]
  i, j = i[:, None, :, None], j[None, :, None, :]
  inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
  flat = lambda x: np.broadcast_to(x, distance.shape).reshape(rows * columns, -1)
  order = np.argsort(flat(distance), axis=1, kind='stable')
  take = lambda x: np.take_along_axis(flat(x), order, axis=1)
  inside = take(inside)
  return Cells(np.where(inside, take(i * width + j), 0).astype(np.int32), inside)


def masked_nearest(mask, rows, columns):
  """For each cell of a grid the valid pixel that is nearest to its centre, if it has one.

  Args:
    mask: bool [H, W], which pixels are valid.
    rows: of the grid.
    columns: of the grid.

  Returns:
    (flat index int32 [rows, columns] into the pixels, bool [rows, columns]: is there one; else the
    index means nothing).
  """
  grid = cells(*mask.shape, rows, columns)
  valid = jnp.asarray(mask).reshape(-1)[grid.index] & grid.inside
  first = jnp.argmax(valid, axis=1)
  index = jnp.take_along_axis(jnp.asarray(grid.index), first[:, None], axis=1)
  return index.reshape(rows, columns), valid.any(1).reshape(rows, columns)


def gather(x, index):
  """Pixels of maps [H, W, ...] by flat index."""
  return jnp.asarray(x).reshape(-1, *x.shape[2:])[index]
