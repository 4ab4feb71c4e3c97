"""Rotary positions over several axes (image number, row, column), interleaved pairs."""
import jax.numpy as jnp
import numpy as np


def axial_frequencies(axes, theta=10000.0):
  """Angular frequencies float64 [axis][d / 2]: theta^(-2i / d) of each axis with d channels."""
  return [theta**(-np.arange(0, width, 2, dtype=np.float64) / width) for width in axes]


def axial_rotary(ids, axes, theta=10000.0):
  """(cos, sin) float32 [..., N, D / 2] of positions, the axes side by side.

  An angle is the sum of two float32 products, the first of them exact for |id| < 4096: at large ids
  a single product would be wrong in the fifth digit.

  Args:
    ids: [..., N, number of axes], integers or fractions, in units of tokens.
    axes: channels of each axis, even; their sum is D.
    theta: base.
  """
  tables = []
  for axis, frequencies in enumerate(axial_frequencies(axes, theta)):
    high = (frequencies.astype(np.float32).view(np.uint32) & 0xFFFFF000).view(np.float32)
    low = (frequencies - high).astype(np.float32)
    position = ids[..., axis, None].astype(jnp.float32)
    coarse, fine = position * high, position * low
    tables.append(
        (jnp.cos(coarse) * jnp.cos(fine) - jnp.sin(coarse) * jnp.sin(fine),
         jnp.sin(coarse) * jnp.cos(fine) + jnp.cos(coarse) * jnp.sin(fine)))
  cos, sin = zip(*tables)
  return jnp.concatenate(cos, -1), jnp.concatenate(sin, -1)


def rotate_pairs(x, cos, sin):
  """Rotates the channel pairs (2i, 2i + 1) of x by the angles of tables.

  Args:
    x: [B, N, H, D].
    cos: [N, D / 2] or [B, N, D / 2].
    sin: likewise.

  Returns:
    float32 [B, N, H, D].
  """
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  cos, sin = cos[..., None, :], sin[..., None, :]
  first, second = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.reshape(x.shape)
