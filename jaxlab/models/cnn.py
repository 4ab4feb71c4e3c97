"""Small convolutional classifier of the federated-learning literature."""
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxlab.nn import PatchConv, max_pool


class CNN(nn.Module):
  """Convolutions, max pooling, one hidden dense layer: the EMNIST network of FedJAX by default.

  The defaults (two VALID 3 x 3 convolutions, one pooling, 128 units, dropout .25 and .5) are
  FedJAX's; LEAF's FEMNIST network is `kernel_size=5, padding='SAME', pool='each', hidden=2048,
  dropout=(0., 0.)`.

  Attributes:
    num_classes: width of the output.
    features: channels of the convolutions.
    kernel_size: side of the square kernels.
    padding: 'SAME' or 'VALID'.
    pool: 2 x 2 max pooling after 'each' convolution or after the 'last'.
    hidden: width of the dense layer.
    dropout: rates before the dense layer and before the output.
    dtype: compute dtype; parameters and logits are float32.
  """
  num_classes: int
  features: Sequence[int] = (32, 64)
  kernel_size: int = 3
  padding: Literal['SAME', 'VALID'] = 'VALID'
  pool: Literal['each', 'last'] = 'last'
  hidden: int = 128
  dropout: Sequence[float] = (0.25, 0.5)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train=False):
    """Maps images [B, H, W(, C)] to logits [B, num_classes]; `train` turns dropout on."""
    x = x[..., None] if x.ndim == 3 else x
    for i, width in enumerate(self.features):
      x = nn.relu(
          PatchConv(width, (self.kernel_size,) * 2, padding=self.padding, dtype=self.dtype)(x))
      if self.pool == 'each' or i == len(self.features) - 1:
        x = max_pool(x, 2)
    x = nn.Dropout(self.dropout[0], deterministic=not train)(x.reshape(x.shape[0], -1))
    x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
    x = nn.Dropout(self.dropout[1], deterministic=not train)(x)
    return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
