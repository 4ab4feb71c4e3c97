"""The layer of a BERT-like encoder: attention and feed-forward, each added and then normalised."""
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxlab.nn.attention import MultiHeadAttention


class PostNormLayer(nn.Module):
  """y = LN(x + attention(x)); LN(y + W2 act(W1 y)) (arXiv 1706.03762, 1810.04805).

  Attributes:
    num_heads: heads of the attention.
    width: of the hidden layer of the feed-forward part.
    activation: of that layer.
    eps: of the layer norms, inside the root.
    dropout: rate on what is added to the stream.
    attention_dropout: rate on the attention weights.
    kernel_init: initialiser of all kernels.
    dtype: compute dtype; parameters, softmax and norms are float32.
  """
  num_heads: int
  width: int
  activation: Callable[..., Any]
  eps: float = 1e-12
  dropout: float = 0.0
  attention_dropout: float = 0.0
  kernel_init: Callable[..., Any] = nn.initializers.normal(0.02)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, bias=None, prefix=None, deterministic=True):
    """Maps [B, M, D] to ([B, M, D], this layer's keys and values); see `MultiHeadAttention`."""
    def dense(width, name):
      return nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name=name)

    def add_and_norm(x, y, name):
      y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
      return layer_norm(self.eps, self.dtype, name=name)(x + y)

    y, keys_values = MultiHeadAttention(
        self.num_heads, self.attention_dropout, self.kernel_init, self.dtype, name='attention')(
            x, bias, prefix, deterministic)
    x = add_and_norm(x, y, 'attention_norm')
    y = dense(x.shape[-1], 'output')(self.activation(dense(self.width, 'intermediate')(x)))
    return add_and_norm(x, y, 'output_norm'), keys_values


def layer_norm(eps, dtype=jnp.float32, name=None):
  """LayerNorm with scale and bias; its variance is that of x - mean(x), as the references have it.

  Flax's default, E[x^2] - E[x]^2, loses digits that tell in a parity test.
  """
  return nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)
