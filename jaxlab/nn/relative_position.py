"""Relative positions in buckets that grow with the distance (T5, arXiv 1910.10683)."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np


def relative_position_bucket(delta, num_buckets, max_distance):
  """Buckets of key_position - query_position: exact when near, logarithmic when far.

  Args:
    delta: integers of any shape.
    num_buckets: B, even; half of them for keys after the query.
    max_distance: distance from which on all is one bucket.

  Returns:
    int32 in 0..B - 1. Logarithm and division are float32, as in the reference, which decides at the
    edges; they are taken on the host, for XLA's differ in the last bit.

  >>> relative_position_bucket(jnp.array([-300, -9, -1, 0, 1, 9, 300]), 32, 128).tolist()
  [15, 8, 1, 0, 17, 24, 31]
  """
  half = num_buckets // 2
  exact = half // 2
  distance = np.arange(max_distance + 1)
  ratio = (np.maximum(distance, exact) / exact).astype(np.float32)
  # By way of float64 the logarithm is rounded alike on every machine.
  log = lambda x: np.log(np.float64(x)).astype(np.float32)
  far = exact + (log(ratio) / log(max_distance / exact) * (half - exact)).astype(np.int32)
  table = np.where(distance < exact, distance, np.minimum(far, half - 1)).astype(np.int32)
  bucket = jnp.asarray(table)[jnp.minimum(jnp.abs(delta), max_distance)]
  return bucket + jnp.where(delta > 0, half, 0)


class RelativePositionBias(nn.Module):
  """A learned bias per bucket and head, which UniLM adds to the scaled scores of every layer.

  Attributes:
    num_buckets: B.
    max_distance: see `relative_position_bucket`.
    num_heads: H.
  """
  num_buckets: int
  max_distance: int
  num_heads: int

  @nn.compact
  def __call__(self, positions):
    """Maps positions [B, S], or [1, S] for all rows, to a bias float32 [B, H, S, S]."""
    table = self.param('kernel', nn.initializers.normal(0.02), (self.num_buckets, self.num_heads),
                       jnp.float32)
    buckets = relative_position_bucket(positions[:, None] - positions[:, :, None],
                                       self.num_buckets, self.max_distance)
    return table[buckets].transpose(0, 3, 1, 2)
