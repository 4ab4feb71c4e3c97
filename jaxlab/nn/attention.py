"""Multi-head attention (arXiv 1706.03762) over sequences whose padding is hidden by a finite bias.
"""
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

# Score of a hidden key: finite, since a whole row may be hidden. Such a row attends to everything
# evenly; with -inf it would be NaN, also in the gradient.
HIDDEN = -1e9


def mask_bias(mask):
  """Bias float32 [B, 1, 1, N] of a mask [B, N]: 0 where a key is visible, `HIDDEN` where not."""
  return jnp.where(mask.astype(bool), 0.0, HIDDEN)[:, None, None]


def attention_weights(query, key, bias=None):
  """softmax(q k^T / sqrt(d) + bias) over the keys.

  Args:
    query: [B, M, H, d].
    key: [B, N, H, d].
    bias: finite float32, broadcastable to [B, H, M, N], or None.

  Returns:
    float32 [B, H, M, N].
  """
  query = query * jnp.asarray(query.shape[-1]**-0.5, query.dtype)
  scores = jnp.einsum('bmhd,bnhd->bhmn', query, key, preferred_element_type=jnp.float32)
  return nn.softmax(scores if bias is None else scores + bias)


class MultiHeadAttention(nn.Module):
  """Self-attention with biases on all four projections.

  The weights [B, H, M, N] before dropout are sown as 'intermediates/weights'.

  Attributes:
    num_heads: H, a divisor of the width of the input.
    dropout: rate on the attention weights.
    kernel_init: initialiser of all kernels.
    dtype: compute dtype; parameters, scores and softmax are float32.
  """
  num_heads: int
  dropout: float = 0.0
  kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, bias=None, prefix=None, deterministic=True):
    """Attends from each position of `x` to all of them and to those of `prefix`.

    Args:
      x: [B, M, D].
      bias: finite float32, broadcastable to [B, H, M, P + M], or None.
      prefix: (keys, values) [B, P, H, d] of another sequence, which come first; None for none.
      deterministic: False draws dropout from the rng 'dropout'.

    Returns:
      ([B, M, D], (keys, values) [B, M, H, d] of `x` itself).
    """
    def dense(name):
      return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init, name=name)

    heads = lambda name: dense(name)(x).reshape(*x.shape[:2], self.num_heads, -1)
    query, key, value = heads('query'), heads('key'), heads('value')
    own = key, value
    if prefix is not None:
      key, value = (jnp.concatenate(pair, axis=1) for pair in zip(prefix, own))
    weights = attention_weights(query, key, bias)
    self.sow('intermediates', 'weights', weights)
    weights = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
    out = jnp.einsum('bhmn,bnhd->bmhd', weights.astype(value.dtype), value)
    return dense('out')(out.reshape(x.shape)), own
