"""Convolution as patches and a matrix product: fast inside scan and under vmap on the CPU."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def _pads(size, kernel, stride, padding):
  if padding == 'VALID':
    return 0, 0
  if padding != 'SAME':
    raise ValueError(f"padding: expected 'SAME' or 'VALID', got {padding!r}")
  total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


@jax.custom_vjp
def _product(x, kernel):
  """x [..., K] @ kernel [K, F], whose kernel gradient sums over many rows.

  XLA's CPU product of a transposed left side takes twice the time of a transposed copy's.
  """
  return x @ kernel


def _product_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _product_backward(saved, dy):
  x, kernel = saved
  rows = dy.reshape(-1, dy.shape[-1])
  return dy @ kernel.T, (rows.T.copy() @ x.reshape(-1, x.shape[-1])).T


_product.defvjp(_product_forward, _product_backward)


class PatchConv(nn.Module):
  """2-D convolution with the parameters of `flax.linen.Conv`, computed as pad, slice, concatenate,
  matmul.

  XLA's CPU convolution loses its fast path inside a while loop, and a convolution vmapped over
  per-client kernels becomes a grouped convolution, slow everywhere; a matrix product stays one. The
  patches cost kernel_h * kernel_w times the input's memory.

  Attributes:
    features: number of output channels.
    kernel_size: (height, width).
    strides: (height, width).
    padding: 'SAME' or 'VALID'.
    use_bias: whether to add a bias.
    dtype: compute dtype; parameters are float32.
  """
  features: int
  kernel_size: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  padding: str = 'SAME'
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H', W', features]."""
    (kernel_h, kernel_w), (stride_h, stride_w) = self.kernel_size, self.strides
    kernel = self.param('kernel', nn.initializers.lecun_normal(),
                        (kernel_h, kernel_w, x.shape[-1], self.features), jnp.float32)
    pads = (_pads(x.shape[1], kernel_h, stride_h,
                  self.padding), _pads(x.shape[2], kernel_w, stride_w, self.padding))
    x = jnp.pad(x.astype(self.dtype), ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - kernel_h + 1, x.shape[2] - kernel_w + 1
    patches = jnp.concatenate([
        x[:, i:i + rows:stride_h, j:j + columns:stride_w] for i in range(kernel_h)
        for j in range(kernel_w)
    ], axis=-1)
    y = _product(patches, kernel.reshape(-1, self.features).astype(self.dtype))
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros,
                         (self.features,), jnp.float32).astype(self.dtype)
    return y


def max_pool(x, window):
  """Non-overlapping max pooling of [B, H, W, C] by `window` x `window`; a ragged edge is dropped
  (VALID).

  Written as a reshape and a maximum: its gradient needs no select-and-scatter, which is slow on the
  CPU. At ties the gradient is shared evenly.
  """
  b, h, w, c = x.shape
  x = x[:, :h // window * window, :w // window * window]
  return jnp.max(x.reshape(b, h // window, window, w // window, window, c), axis=(2, 4))
