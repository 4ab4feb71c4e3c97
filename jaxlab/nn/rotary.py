"""Rotary position embedding (arXiv 2104.09864), half-split layout, with long-context scalings."""
import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How the frequencies of a longer context follow from those of the original one.

  Attributes:
    kind: 'linear' divides all frequencies by `factor`; 'llama3' only those of long wavelengths,
      with a ramp between the two limits.
    factor: >= 1.
    low_freq_factor: wavelengths above original_context / low_freq_factor are divided ('llama3').
    high_freq_factor: those below original_context / high_freq_factor are not ('llama3').
    original_context: tokens of the original training ('llama3').
  """
  kind: Literal['linear', 'llama3']
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_context: int = 8192


def rotary_frequencies(head_dim, theta=10000.0, scaling=None):
  """Angular frequencies float32 [head_dim / 2]: theta^(-2j / head_dim), scaled.

  Args:
    head_dim: D, even.
    theta: base.
    scaling: RopeScaling, or None.

  Returns:
    NumPy array, a constant of the program.
  """
  frequencies = theta**(-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if scaling is None:
    return frequencies.astype(np.float32)
  slowed = frequencies / scaling.factor
  if scaling.kind == 'linear':
    return slowed.astype(np.float32)
  turns = scaling.original_context * frequencies / (2 * math.pi)  # in the original context
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return ((1 - kept) * slowed + kept * frequencies).astype(np.float32)


def rotary_tables(positions, frequencies):
  """(cos, sin) float32 [..., D] of integer positions [...]; both halves of D hold the same D / 2.

  float32 whatever the compute dtype is: bfloat16 cannot tell long positions apart.
  """
  angles = positions[..., None].astype(jnp.float32) * frequencies
  angles = jnp.concatenate([angles, angles], axis=-1)
  return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x, cos, sin):
  """Rotates x [B, T, H, D] by the angles of tables [B, T, D]; returns the dtype of x."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return (x * cos + turned * sin).astype(x.dtype)
