"""Multi-layer perceptron."""
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp


class MLP(nn.Module):
  """ReLU multi-layer perceptron with He initialisation over the flattened input.

  Attributes:
    num_classes: width of the output.
    features: widths of the hidden layers; empty for a linear model.
    dtype: compute dtype; parameters and logits are float32.
  """
  num_classes: int
  features: Sequence[int] = (64,)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train=False):
    """Maps [B, ...] to logits [B, num_classes]; `train`, which every classifier takes, is moot."""
    del train
    x = x.reshape(x.shape[0], -1).astype(self.dtype)
    for width in self.features:
      x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x)
    return x.astype(jnp.float32)
