"""ResNet-50 for inference."""
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp


class ResNet50(nn.Module):
  """Bottleneck residual network (arXiv 1512.03385) with the running statistics of BatchNorm.

  Attributes:
    num_classes: width of the output.
    width: channels of the stem.
    stage_sizes: bottlenecks of each stage.
  """
  num_classes: int
  width: int = 64
  stage_sizes: Sequence[int] = (3, 4, 6, 3)

  @nn.compact
  def __call__(self, x):
    """Maps images [B, H, W, C] to logits [B, num_classes]."""
    def conv(x, features, side, stride=1):
      x = nn.Conv(features, (side, side), (stride, stride), use_bias=False)(x)
      return nn.BatchNorm(use_running_average=True)(x)

    x = nn.relu(conv(x, self.width, 7, 2))
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    for stage, blocks in enumerate(self.stage_sizes):
      features = self.width * 2**stage
      for block in range(blocks):
        stride = 2 if stage and not block else 1
        y = nn.relu(conv(x, features, 1))
        y = nn.relu(conv(y, features, 3, stride))
        y = conv(y, 4 * features, 1)
        x = nn.relu(y + (x if block else conv(x, 4 * features, 1, stride)))
    return nn.Dense(self.num_classes)(jnp.mean(x, (1, 2)))
