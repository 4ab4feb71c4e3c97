"""ResNet with group normalisation, for small images."""
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxlab.nn import PatchConv


def num_groups(channels, groups):
  """The largest divisor of `channels` that is at most `groups`."""
  return max(g for g in range(1, min(channels, groups) + 1) if channels % g == 0)


class ResidualBlock(nn.Module):
  """Two 3 x 3 convolutions beside a shortcut (arXiv 1512.03385), normalised by groups.

  Attributes:
    features: number of output channels.
    stride: of the first convolution and the shortcut.
    groups: most groups of a normalisation.
    dtype: compute dtype; parameters are float32.
  """
  features: int
  stride: int
  groups: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    strides = (self.stride, self.stride)
    y = PatchConv(self.features, strides=strides, use_bias=False, dtype=self.dtype)(x)
    y = nn.relu(self._norm()(y))
    y = self._norm()(PatchConv(self.features, use_bias=False, dtype=self.dtype)(y))
    if x.shape != y.shape:
      x = PatchConv(self.features, (1, 1), strides, use_bias=False, dtype=self.dtype)(x)
      x = self._norm()(x)
    return nn.relu(x + y)

  def _norm(self):
    return nn.GroupNorm(num_groups(self.features, self.groups), epsilon=1e-5, dtype=self.dtype)


class ResNetGN(nn.Module):
  """ResNet with GroupNorm and the 3 x 3 stem of CIFAR; ResNet-18 by default.

  GroupNorm, because the statistics of BatchNorm differ between clients of unlike labels, and their
  average fits none of them (arXiv 1910.00189). Each stage after the first halves the sides and
  doubles the channels.

  Attributes:
    num_classes: width of the output.
    stage_sizes: residual blocks of each stage.
    width: channels of the stem and the first stage.
    groups: groups of a normalisation; where they do not divide the channels, the largest smaller
      number that does.
    dtype: compute dtype; parameters, statistics and logits are float32.
  """
  num_classes: int
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  groups: int = 32
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train=False):
    """Maps images [B, H, W(, C)] to logits [B, num_classes]; `train` is moot without dropout."""
    del train
    x = x[..., None] if x.ndim == 3 else x
    x = PatchConv(self.width, use_bias=False, dtype=self.dtype)(x)
    x = nn.relu(nn.GroupNorm(num_groups(self.width, self.groups), epsilon=1e-5,
                             dtype=self.dtype)(x))
    for stage, blocks in enumerate(self.stage_sizes):
      for block in range(blocks):
        stride = 2 if stage and not block else 1
        x = ResidualBlock(self.width * 2**stage, stride, self.groups, self.dtype)(x)
    x = x.astype(jnp.float32).mean((1, 2))
    return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
