"""Adaptive layer normalisation, and the embedding of time that drives it (arXiv 2212.09748)."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYER_NORM_EPS = 1e-6


def modulate(x, shift, scale):
  """LayerNorm(x) * (1 + scale) + shift in float32; the norm has no parameters.

  Args:
    x: [B, N, D].
    shift: [B, 1, D].
    scale: [B, 1, D].
  """
  x = x.astype(jnp.float32)
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * (1 + scale) + shift


def sinusoid(t, width=256, max_period=10000.0):
  """cos(t f_i) and then sin(t f_i), f_i = max_period^(-2i / width): [B] -> float32 [B, width]."""
  half = width // 2
  frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = t.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class EmbedMLP(nn.Module):
  """Linear, SiLU, linear, drawn from N(0, 0.02^2); float32.

  Attributes:
    features: width of both layers.
  """
  features: int

  @nn.compact
  def __call__(self, x):
    """Maps [B, F] to [B, features]."""
    init = nn.initializers.normal(0.02)
    x = nn.silu(nn.Dense(self.features, kernel_init=init, name='linear_1')(x))
    return nn.Dense(self.features, kernel_init=init, name='linear_2')(x)


class Modulation(nn.Module):
  """SiLU, linear, cut into `parts`: shifts, scales and gates, all zero at the start (adaLN-zero).

  Float32 whatever the compute dtype is.

  Attributes:
    parts: number of vectors.
  """
  parts: int

  @nn.compact
  def __call__(self, conditioning):
    """Maps the time embedding [B, D] to `parts` arrays [B, 1, D]."""
    linear = nn.Dense(self.parts * conditioning.shape[-1], kernel_init=nn.initializers.zeros,
                      name='linear')
    return jnp.split(linear(nn.silu(conditioning))[:, None], self.parts, axis=-1)
