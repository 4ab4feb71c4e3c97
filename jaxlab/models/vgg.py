"""VGG16 for inference."""
import flax.linen as nn

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16(nn.Module):
  """Thirteen 3 x 3 convolutions and three dense layers (arXiv 1409.1556), without dropout.

  Attributes:
    num_classes: width of the output.
    width: multiplier of the channels and of the dense layers' 4096.
  """
  num_classes: int
  width: float = 1.0

  @nn.compact
  def __call__(self, x):
    """Maps images [B, H, W, C], H and W multiples of 32, to logits [B, num_classes]."""
    for depth, features in STAGES:
      for _ in range(depth):
        x = nn.relu(nn.Conv(max(int(features * self.width), 1), (3, 3))(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    for _ in range(2):
      x = nn.relu(nn.Dense(max(int(4096 * self.width), 1))(x))
    return nn.Dense(self.num_classes)(x)
