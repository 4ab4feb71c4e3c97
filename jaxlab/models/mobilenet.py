"""MobileNet v1 for inference."""
import flax.linen as nn
import jax.numpy as jnp

# (stride, channels) of the depthwise separable blocks at width 1.
BLOCKS = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *((1, 512),) * 5, (2, 1024),
          (1, 1024))


class MobileNet(nn.Module):
  """Depthwise separable convolutions (arXiv 1704.04861) with the running statistics of BatchNorm.

  Attributes:
    num_classes: width of the output.
    width: multiplier of the channels.
  """
  num_classes: int
  width: float = 1.0

  @nn.compact
  def __call__(self, x):
    """Maps images [B, H, W, C] to logits [B, num_classes]."""
    norm = lambda x: nn.relu(nn.BatchNorm(use_running_average=True)(x))
    channels = lambda n: max(int(n * self.width), 1)
    x = norm(nn.Conv(channels(32), (3, 3), (2, 2), use_bias=False)(x))
    for stride, features in BLOCKS:
      x = norm(nn.Conv(x.shape[-1], (3, 3), (stride,) * 2, feature_group_count=x.shape[-1],
                       use_bias=False)(x))
      x = norm(nn.Conv(channels(features), (1, 1), use_bias=False)(x))
    return nn.Dense(self.num_classes)(jnp.mean(x, (1, 2)))
