"""The layer of a Llama-like decoder: grouped-query attention with rotary positions, SwiGLU.

Sources: arXiv 2302.13971 (LLaMA), 2305.13245 (grouped queries), 2002.05202 (SwiGLU).
"""
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.nn.norms import RMSNorm
from jaxlab.nn.rotary import apply_rotary

_HIDDEN = -1e9  # score of a key that a query may not see; finite, since whole rows may be hidden


def grouped_attention(query, key, value, visible):
  """Attention in which H / KV consecutive query heads share a key head.

  Args:
    query: [B, T, H, D].
    key: [B, KV, S, D], of which H is a multiple of KV.
    value: like `key`.
    visible: bool [B, T, S]; a query that sees nothing gets the mean of all values.

  Returns:
    [B, T, H, D] in the dtype of `value`; scores and softmax are float32.
  """
  batch, length, heads, depth = query.shape
  groups = heads // key.shape[1]
  query = query.reshape(batch, length, key.shape[1], groups, depth).transpose(0, 2, 3, 1, 4)
  rows = query.reshape(batch, key.shape[1], groups * length, depth)
  scores = jnp.einsum('bkqd,bksd->bkqs', rows, key, preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, key.shape[1], groups, length, -1) * depth**-0.5
  weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _HIDDEN), axis=-1)
  weights = weights.astype(value.dtype).reshape(batch, key.shape[1], groups * length, -1)
  out = jnp.einsum('bkqs,bksd->bkqd', weights, value)
  out = out.reshape(batch, key.shape[1], groups, length, depth).transpose(0, 3, 1, 2, 4)
  return out.reshape(batch, length, heads, depth)


class DecoderAttention(nn.Module):
  """Causal self-attention with grouped queries, rotary positions and an optional cache.

  Attributes:
    num_heads: H.
    num_kv_heads: KV, a divisor of H.
    head_dim: D; H * D need not be the width of the input.
    qkv_bias: whether the query, key and value projections have a bias.
    out_bias: whether the output projection has one.
    qk_norm: whether queries and keys are RMS-normalised over D before the rotation.
    eps: of these norms.
    kernel_init: initialiser of the q, k and v kernels.
    out_init: initialiser of the o kernel.
    dtype: compute dtype.
  """
  num_heads: int
  num_kv_heads: int
  head_dim: int
  qkv_bias: bool
  out_bias: bool
  qk_norm: bool
  eps: float
  kernel_init: Callable[..., Any]
  out_init: Callable[..., Any]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, tables, visible, cache=None, slot=None):
    """Attends.

    Args:
      x: [B, T, d].
      tables: (cos, sin) [B, T, D].
      visible: bool [B, T, S], S = T without a cache.
      cache: (keys, values) [B, KV, S, D], rotated; None for none.
      slot: int scalar, the cache slot of the first of the T tokens.

    Returns:
      ([B, T, d], the new cache or None).
    """
    def project(name, heads):
      y = nn.Dense(heads * self.head_dim, use_bias=self.qkv_bias, dtype=self.dtype,
                   kernel_init=self.kernel_init, name=f'{name}_proj')(x)
      y = y.reshape(*x.shape[:2], heads, self.head_dim)
      if self.qk_norm and name != 'v':
        y = RMSNorm(self.eps, self.dtype, name=f'{name}_norm')(y)
      return y if name == 'v' else apply_rotary(y, *tables)

    query = project('q', self.num_heads)
    key, value = (project(name, self.num_kv_heads).transpose(0, 2, 1, 3) for name in 'kv')
    if cache is not None:
      write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
          old, new.astype(old.dtype), slot, axis=2)
      key, value = cache = (write(cache[0], key), write(cache[1], value))
    out = grouped_attention(query, key, value, visible)
    out = nn.Dense(x.shape[-1], use_bias=self.out_bias, dtype=self.dtype, name='o_proj',
                   kernel_init=self.out_init)(out.reshape(*x.shape[:2], -1))
    return out, cache


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x)) (arXiv 2002.05202).

  Attributes:
    width: F, of the hidden layer.
    use_bias: whether the three projections have biases.
    kernel_init: initialiser of gate and up.
    out_init: initialiser of down.
    dtype: compute dtype.
  """
  width: int
  use_bias: bool
  kernel_init: Callable[..., Any]
  out_init: Callable[..., Any]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, T, d] to [B, T, d]."""
    dense = lambda width, init, name: nn.Dense(
        width, use_bias=self.use_bias, dtype=self.dtype, kernel_init=init, name=name)
    hidden = nn.silu(dense(self.width, self.kernel_init, 'gate_proj')(x))
    hidden = hidden * dense(self.width, self.kernel_init, 'up_proj')(x)
    return dense(x.shape[-1], self.out_init, 'down_proj')(hidden)
