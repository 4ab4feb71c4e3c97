"""Compressed Interaction Network: explicit vector-wise crosses (arXiv 1803.05170, section 3.1).

Inside, vectors are [B, D, H]: a layer is then one matrix product over the last axis.
"""
import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib

ACTIVATIONS = {'identity': lambda x: x, 'relu': nn.relu, 'tanh': nn.tanh, 'sigmoid': nn.sigmoid,
               'elu': nn.elu}


def cross_outer(h, x, filters):
  """Maps [B, D, H'] of h [B, D, H], x [B, D, m] and filters [H', H, m], by all H m products."""
  products = (h[..., :, None] * x[..., None, :]).reshape(*h.shape[:2], -1)
  return products @ filters.reshape(filters.shape[0], -1).T.astype(h.dtype)


def cross_scan(h, x, filters):
  """`cross_outer` one field of x at a time: as many multiplications, a memory of [B, D, H']."""
  def add(total, field):
    column, weights = field  # [B, D], [H', H]
    return total + (h @ weights.T) * column[..., None], None

  start = jnp.zeros((*h.shape[:2], filters.shape[0]), h.dtype)
  fields = jnp.moveaxis(x, -1, 0), jnp.moveaxis(filters, -1, 0).astype(h.dtype)
  return jax.lax.scan(add, start, fields)[0]


def square_outer(x, filters):
  """`cross_outer(x, x, filters)` with half the products: x_i x_j and x_j x_i are one."""
  products = _shifted_products(x)
  return products.reshape(*x.shape[:2], -1) @ _shifted_filters(filters).T.astype(x.dtype)


def pooled_cross(h, x, filters):
  """float32 [B, H']: `cross_outer` summed over D. The sum goes first, D times fewer multiplications
  by the filters."""
  products = jnp.einsum('bdi,bdj->bij', h, x, preferred_element_type=jnp.float32)
  return products.reshape(len(x), -1) @ filters.reshape(len(filters), -1).T


def pooled_square(x, filters):
  """`pooled_cross(x, x, filters)` by the products of `square_outer`."""
  products = _shifted_products(x).sum(1, dtype=jnp.float32)
  return products.reshape(len(x), -1) @ _shifted_filters(filters).T


def _shifts(m):
  """Both fields [m // 2 + 1, m] of the pairs that `square_outer` multiplies.

  The pairs are (i, i + s modulo m) for the shifts s = 0..m // 2.
  """
  first = np.tile(np.arange(m), (m // 2 + 1, 1))
  return first, (first + np.arange(len(first))[:, None]) % m


def _shifted_products(x):
  """x_i x_j [B, D, m // 2 + 1, m] of the pairs of `_shifts`; m + 1 columns of repeated fields shift
  each row of a reshape by one, which needs no gather."""
  m = x.shape[-1]
  shifts = m // 2 + 1
  repeated = jnp.tile(x, (1, 1, shifts + 1))[..., :shifts * (m + 1)]
  return repeated.reshape(*x.shape[:2], shifts, m + 1)[..., :m] * x[..., None, :]


def _shifted_filters(filters):
  """Filters [H', pairs of `_shifts`] of the sum of both orders."""
  m = filters.shape[-1]
  first, second = _shifts(m)
  # A field with itself comes once in the sum of both orders, and so, for even m, does the last
  # shift, in which every pair stands twice.
  share = np.ones((len(first), 1), np.float32)
  share[0] = 0.5
  if m % 2 == 0:
    share[-1] = 0.5
  weights = (filters[:, first, second] + filters[:, second, first]) * share
  return weights.reshape(len(weights), -1)


class CIN(nn.Module):
  """Stack of interaction layers X^k = phi(sum_ij W^k_hij X^{k-1}_i * X^0_j), sum-pooled over D.

  Layer k has polynomials of degree k + 1 of X0. Parameters are W{k} [H_k, H, m], or U{k} [H_k, H,
  rank] and V{k} [H_k, m, rank] with W = U V^T, and b{k} [H_k].

  Attributes:
    layer_sizes: H_k of the layers.
    split_half: the first half of a layer's maps goes on and the second half is pooled; the last
      layer is pooled whole. Otherwise all maps do both (equation 6).
    activation: phi; the paper finds the identity best.
    use_bias: a bias a map, before phi.
    rank: L of the low-rank form, or None for full filters.
    mask_self: layer 1 keeps the pairs i < j only, times 2.
    formulation: 'outer' builds all products, 'scan' goes field by field with less memory; the same
      numbers up to rounding.
    remat: computes the products again in the backward pass instead of keeping them.
    kernel_init: initializer of filters.
    dtype: compute dtype; the pooled sums are float32.
  """
  layer_sizes: Sequence[int]
  split_half: bool = True
  activation: Literal['identity', 'relu', 'tanh', 'sigmoid', 'elu'] = 'identity'
  use_bias: bool = False
  rank: int | None = None
  mask_self: bool = False
  formulation: Literal['outer', 'scan'] = 'outer'
  remat: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.truncated_normal(0.1)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x0):
    """Maps field vectors [B, m, D] to the pooled maps of all layers [B, P] (equation 8)."""
    x = jnp.swapaxes(x0, 1, 2).astype(self.dtype)
    maps, pooled = x, []
    for k, size in enumerate(self.layer_sizes, 1):
      filters = self._filters(k, (size, maps.shape[-1], x.shape[-1]))
      bias = self.param(f'b{k}', nn.initializers.zeros, (size,)) if self.use_bias else None
      layer = functools.partial(self._layer, first=k == 1, last=k == len(self.layer_sizes))
      maps, out = (jax.checkpoint(layer) if self.remat else layer)(maps, x, filters, bias)
      pooled.append(out)
    return jnp.concatenate(pooled, -1)

  def _filters(self, k, shape):
    if self.rank is None:
      return self.param(f'W{k}', self.kernel_init, shape)
    u = self.param(f'U{k}', self.kernel_init, (*shape[:2], self.rank))
    v = self.param(f'V{k}', self.kernel_init, (shape[0], shape[2], self.rank))
    return jnp.einsum('hil,hjl->hij', u, v)

  def _layer(self, maps, x, filters, bias, first, last):
    """(maps [B, D, ...] that go on, None of the last; pooled maps float32 [B, ...])."""
    if first and self.mask_self:
      filters = 2 * jnp.triu(filters, 1)
    half = len(filters) // 2
    whole = last or not self.split_half  # whether all maps are pooled
    on = 0 if last else half if self.split_half else len(filters)
    if self.activation != 'identity':
      out = self._cross(maps, x, filters, bias, first)
      return out[..., :on], (out if whole else out[..., half:]).sum(1, dtype=jnp.float32)
    part = lambda start, stop: (filters[start:stop], None if bias is None else bias[start:stop])
    forward = None if last else self._cross(maps, x, *part(0, on), first)
    if whole and not last:
      return forward, forward.sum(1, dtype=jnp.float32)
    # Of maps that are pooled only, a linear sum can be taken before the filters.
    filters, bias = part(0 if last else half, None)
    square = first and self.formulation == 'outer'
    out = pooled_square(x, filters) if square else pooled_cross(maps, x, filters)
    return forward, out if bias is None else out + x.shape[1] * bias

  def _cross(self, maps, x, filters, bias, first):
    if self.formulation == 'scan':
      out = cross_scan(maps, x, filters)
    else:
      out = square_outer(x, filters) if first else cross_outer(maps, x, filters)
    if bias is not None:
      out = out + bias.astype(out.dtype)
    return ACTIVATIONS[self.activation](out)


def check_layers(layer_sizes, split_half, where):
  """Raises ConfigError unless there are layers, and even sizes where they are cut in half."""
  config_lib.require(len(layer_sizes) and min(layer_sizes) >= 1, f'{where}.layer_sizes',
                     'some sizes of at least 1', layer_sizes)
  config_lib.require(
      not split_half or all(size % 2 == 0 for size in layer_sizes[:-1]), f'{where}.layer_sizes',
      'even sizes but for the last, which split_half cuts in two', layer_sizes)
