"""Normalisation layers."""
import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale over the last axis (arXiv 1910.07467), the mean in float32.

  Attributes:
    eps: added to the mean square.
    dtype: compute dtype of the result; the parameter is float32.
  """
  eps: float = 1e-6
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [..., D] to [..., D]."""
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
    return x.astype(self.dtype) * scale.astype(self.dtype)
