"""Compressed Interaction Network: explicit vector-wise crosses (arXiv 1803.05170, section 3.1).

Inside, vectors are [H, D, B]: products of maps are then products of long rows, and a layer is one
matrix product from the left. On a CPU the rows go through in blocks, whose products stay in cache.
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
BLOCK = 64  # rows at a time on a CPU


def cross_outer(h, x, filters):
  """Maps [H', D, B] of h [H, D, B], x [m, D, B] and filters [H', H, m], by all H m products."""
  return _filtered(filters.reshape(len(filters), -1), _products(h, x))


def cross_scan(h, x, filters):
  """`cross_outer` one field of x at a time: as many multiplications, a memory of [H', D, B]."""
  def add(total, field):
    column, weights = field  # [D, B], [H', H]
    return total + jnp.tensordot(weights, h, 1) * column, None

  start = jnp.zeros((len(filters), *h.shape[1:]), h.dtype)
  return jax.lax.scan(add, start, (x, jnp.moveaxis(filters, -1, 0).astype(h.dtype)))[0]


def square_outer(x, filters):
  """`cross_outer(x, x, filters)` with half the products: x_i x_j and x_j x_i are one."""
  return _filtered(_shifted_filters(filters), _shifted_products(x))


def pooled_cross(h, x, filters):
  """float32 [H', B]: `cross_outer` summed over D. The sum goes first, D times fewer multiplications
  by the filters."""
  wide = lambda y: y.astype(jnp.float32)
  return _filtered(filters.reshape(len(filters), -1), _pooled_products(wide(h), wide(x)))


def pooled_square(x, filters):
  """`pooled_cross(x, x, filters)` by the products of `square_outer`."""
  return _filtered(_shifted_filters(filters), _pooled_shifted_products(x.astype(jnp.float32)))


def _filtered(filters, products):
  """[H', ...] of filters [H', P] and products [P1, P2, ...], P = P1 P2, in the products' dtype."""
  flat = products.reshape(filters.shape[1], -1)
  return (filters.astype(flat.dtype) @ flat).reshape(-1, *products.shape[2:])


def _shifts(m):
  """Both fields [m // 2 + 1, m] of the pairs that `square_outer` multiplies.

  The pairs are (i, i + s modulo m) for the shifts s = 0..m // 2.
  """
  first = np.tile(np.arange(m), (m // 2 + 1, 1))
  return first, (first + np.arange(len(first))[:, None]) % m


def _shifted(x):
  """x [m, ...] as the second field of the pairs of `_shifts`, [m // 2 + 1, m, ...]; m + 1 rows of
  repeated fields shift each row of a reshape by one, which needs no gather."""
  m, shifts = len(x), len(x) // 2 + 1
  repeated = jnp.tile(x, (shifts + 1, *(1,) * (x.ndim - 1)))[:shifts * (m + 1)]
  return repeated.reshape(shifts, m + 1, *x.shape[1:])[:, :m]


def _total(count, term):
  """term(0) + ... + term(count - 1), float32 at least. On a CPU a loop of long rows is several
  times as fast as a reduction; elsewhere it is unrolled, to be one kernel."""
  def wide(i):
    value = term(i)
    return value.astype(jnp.promote_types(jnp.float32, value.dtype))

  shape = jax.eval_shape(wide, 0)
  return jax.lax.fori_loop(0, count, lambda i, total: total + wide(i),
                           jnp.zeros(shape.shape, shape.dtype),
                           unroll=jax.default_backend() != 'cpu')


_row = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)


@jax.custom_vjp
def _products(h, x):
  """h_i x_j [H, m, D, B] of h [H, D, B] and x [m, D, B]."""
  return h[:, None] * x


@jax.custom_vjp
def _pooled_products(h, x):
  """[H, m, B]: `_products` summed over D."""
  return _total(x.shape[1], lambda d: _row(h, d, 1)[:, None] * _row(x, d, 1))


@jax.custom_vjp
def _shifted_products(x):
  """x_i x_j [m // 2 + 1, m, D, B] of the pairs of `_shifts`."""
  return x * _shifted(x)


@jax.custom_vjp
def _pooled_shifted_products(x):
  """[m // 2 + 1, m, B]: `_shifted_products` summed over D."""
  return _total(x.shape[1], lambda d: _row(x, d, 1) * _shifted(_row(x, d, 1)))


def _products_back(kept, slope):
  """Gradients of h and x; `slope` is [H, m, D or 1, B]."""
  h, x = kept
  of_h = _total(len(x), lambda j: _row(slope, j, 1) * _row(x, j, 0))
  of_x = _total(len(h), lambda i: _row(slope, i, 0) * _row(h, i, 0))
  return of_h.astype(h.dtype), of_x.astype(x.dtype)


def _shifted_back(x, slope):
  """The gradient of x; `slope` is [m // 2 + 1, m, D or 1, B]."""
  def of_shift(s):
    row = _row(slope, s, 0)
    return row * jnp.roll(x, -s, 0) + jnp.roll(row * x, s, 0)

  return (_total(len(slope), of_shift).astype(x.dtype),)


_products.defvjp(lambda h, x: (_products(h, x), (h, x)), _products_back)
_pooled_products.defvjp(lambda h, x: (_pooled_products(h, x), (h, x)),
                        lambda kept, slope: _products_back(kept, slope[:, :, None]))
_shifted_products.defvjp(lambda x: (_shifted_products(x), x), _shifted_back)
_pooled_shifted_products.defvjp(lambda x: (_pooled_shifted_products(x), x),
                                lambda x, slope: _shifted_back(x, slope[:, :, None]))


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
    """Maps field vectors [B, m, D] to the pooled maps of all layers [B, P] (equation 8).

    Raises:
      ConfigError: there are no layers, or odd sizes where they are cut in half.
    """
    check_layers(self.layer_sizes, self.split_half, 'CIN')
    parameters, width = [], x0.shape[1]
    for k, size in enumerate(self.layer_sizes, 1):
      filters = self._filters(k, (size, width, x0.shape[1]))
      bias = self.param(f'b{k}', nn.initializers.zeros, (size,)) if self.use_bias else None
      parameters.append((filters, bias))
      width = size // 2 if self.split_half else size
    rows, block = len(x0), BLOCK if jax.default_backend() == 'cpu' else len(x0)
    if rows <= block:
      return self._stack(parameters, x0)
    blocks = jnp.pad(x0, ((0, -rows % block), (0, 0), (0, 0))).reshape(-1, block, *x0.shape[1:])
    pooled = jax.lax.map(functools.partial(self._stack, parameters), blocks)
    return pooled.reshape(-1, pooled.shape[-1])[:rows]

  def _stack(self, parameters, x0):
    """The pooled maps of rows, by the (filters, bias) of the layers."""
    x = jnp.moveaxis(x0, 0, 2).astype(self.dtype)
    maps, pooled = x, []
    for k, (filters, bias) in enumerate(parameters, 1):
      layer = functools.partial(self._layer, first=k == 1, last=k == len(parameters))
      maps, out = (jax.checkpoint(layer) if self.remat else layer)(maps, x, filters, bias)
      pooled.append(out)
    return jnp.concatenate(pooled).T

  def _filters(self, k, shape):
    if self.rank is None:
      return self.param(f'W{k}', self.kernel_init, shape)
    u = self.param(f'U{k}', self.kernel_init, (*shape[:2], self.rank))
    v = self.param(f'V{k}', self.kernel_init, (shape[0], shape[2], self.rank))
    return jnp.einsum('hil,hjl->hij', u, v)

  def _layer(self, maps, x, filters, bias, first, last):
    """(maps [..., D, B] that go on, None of the last; pooled maps float32 [..., B])."""
    if first and self.mask_self:
      filters = 2 * jnp.triu(filters, 1)
    half = len(filters) // 2
    whole = last or not self.split_half  # whether all maps are pooled
    on = 0 if last else half if self.split_half else len(filters)
    if self.activation != 'identity':
      out = self._cross(maps, x, filters, bias, first)
      return out[:on], (out if whole else out[half:]).sum(1, dtype=jnp.float32)
    part = lambda start, stop: (filters[start:stop], None if bias is None else bias[start:stop])
    forward = None if last else self._cross(maps, x, *part(0, on), first)
    if whole and not last:
      return forward, forward.sum(1, dtype=jnp.float32)
    # Of maps that are pooled only, a linear sum can be taken before the filters.
    filters, bias = part(0 if last else half, None)
    square = first and self.formulation == 'outer'
    out = pooled_square(x, filters) if square else pooled_cross(maps, x, filters)
    return forward, out if bias is None else out + x.shape[1] * bias[:, None]

  def _cross(self, maps, x, filters, bias, first):
    if self.formulation == 'scan':
      out = cross_scan(maps, x, filters)
    else:
      out = square_outer(x, filters) if first else cross_outer(maps, x, filters)
    if bias is not None:
      out = out + bias.astype(out.dtype)[:, None, None]
    return ACTIVATIONS[self.activation](out)


def check_layers(layer_sizes, split_half, where):
  """Raises ConfigError unless there are layers, and even sizes where they are cut in half."""
  config_lib.require(len(layer_sizes) and min(layer_sizes) >= 1, f'{where}.layer_sizes',
                     'some sizes of at least 1', layer_sizes)
  config_lib.require(
      not split_half or all(size % 2 == 0 for size in layer_sizes[:-1]), f'{where}.layer_sizes',
      'even sizes but for the last, which split_half cuts in two', layer_sizes)
