"""Coordinate-wise rules: median and trimmed mean, by bisection on ordered integer keys.

Floats are mapped to unsigned integers of the same order, and an order statistic is found byte by
byte: eight comparisons of single bytes each, which a core does many at a time, and no sort.
"""
import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.stack import by_blocks, from_rule


def keys_of(values):
  """Unsigned integers in the order of the floats; -0 comes before +0."""
  bits = values.dtype.itemsize * 8
  kind = jnp.dtype(f'uint{bits}')
  raw = jax.lax.bitcast_convert_type(values, kind)
  top = kind.type(1 << (bits - 1))
  return jnp.where(raw & top, ~raw, raw | top)


def values_of(keys, dtype):
  """The inverse of `keys_of`."""
  top = keys.dtype.type(1 << (keys.dtype.itemsize * 8 - 1))
  return jax.lax.bitcast_convert_type(jnp.where(keys & top, keys ^ top, ~keys), dtype)


def select(keys, rank):
  """The key of rank `rank` (0 is the smallest) along the leading axis.

  Args:
    keys: unsigned [n, ...].
    rank: integer scalar or [...], 0 <= rank < n.
  """
  count = jnp.uint8 if len(keys) < 256 else jnp.int32
  how_many = lambda condition: condition.astype(count).sum(0, dtype=count)
  byte = lambda x, shift: (x >> shift).astype(jnp.uint8)
  size = keys.dtype.itemsize
  shape = keys.shape[1:]

  def one_byte(i, loop):
    rank, prefix = loop
    shift = ((size - 1 - i) * 8).astype(keys.dtype)
    # Keys whose higher bytes differ from what was found are out: those below are counted off the
    # rank already, and those above are as good as the largest byte.
    alike = (keys >> shift) >> 8 == (prefix >> shift) >> 8
    digits = jnp.where(alike, byte(keys, shift), jnp.uint8(255))

    def one_bit(j, found):
      trial = found | (jnp.uint8(128) >> j.astype(jnp.uint8))
      return jnp.where(how_many(digits < trial) <= rank, trial, found)

    found = jax.lax.fori_loop(0, 8, one_bit, jnp.zeros(shape, jnp.uint8))
    rank = rank - how_many(digits < found)
    return rank, prefix | (found.astype(keys.dtype) << shift)

  start = jnp.broadcast_to(jnp.asarray(rank).astype(count), shape), jnp.zeros(shape, keys.dtype)
  return jax.lax.fori_loop(0, size, one_byte, start)[1]


def masked_keys(values, mask):
  """Keys of the values, the largest one where the mask (broadcast from the left) is False."""
  mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
  keys = keys_of(values)
  return jnp.where(mask, keys, ~keys.dtype.type(0))


def middle(values, mask, *, lower=False, skip=0):
  """Median along the leading axis of the values where `mask` holds.

  Args:
    values: [n, ...].
    mask: bool [n] or [n, ...].
    lower: the lower of the two middle values of an even count, instead of their mean.
    skip: leaves out so many of the smallest values.
  """
  count = mask.sum(0, dtype=jnp.int32) - skip
  keys = masked_keys(values, mask)
  first = select(keys, skip + jnp.maximum(count - 1, 0) // 2)
  if lower:
    return values_of(first, values.dtype)
  covered = (keys <= first).sum(0, dtype=jnp.int32) > skip + count // 2
  above = jnp.where(keys > first, keys, ~keys.dtype.type(0)).min(0)
  second = jnp.where(covered | (count % 2 == 1), first, above)
  return (values_of(first, values.dtype) + values_of(second, values.dtype)) / 2


def median(*, lower: bool = False):
  """Coordinate-wise median; sizes only say who is there.

  Args:
    lower: of an even number of clients take the lower of the two middle values (torch.median)
      instead of their mean.
  """
  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    step = lambda carry, columns: (carry, middle(columns, present, lower=lower))
    return by_blocks(step, (), updates, present, output=())[1], state, {}
  return from_rule(rule)


def window_mean(columns, present, first, last, weights=None):
  """Mean of the values of ranks first <= rank < last in each column; ties rank by lower index.

  Args:
    columns: [n, B].
    present: bool [n], who has a rank.
    first: integer scalar.
    last: integer scalar, more than `first`.
    weights: [n], of the mean; None for an even one, which needs no rank of a tie.
  """
  keys = masked_keys(columns, present)
  ends = [select(keys, first), select(keys, last - 1)]
  if weights is not None:
    return _weighted_window(columns, keys, present, first, last, ends, weights)
  low, high = (values_of(end, columns.dtype) for end in ends)
  inside = jnp.where((keys > ends[0]) & (keys < ends[1]), columns, 0).sum(0)
  at_low = (keys <= ends[0]).sum(0, dtype=jnp.int32) - first
  at_high = last - (keys < ends[1]).sum(0, dtype=jnp.int32)
  mean = (inside + at_low * low + at_high * high) / (last - first).astype(columns.dtype)
  return jnp.where(ends[0] == ends[1], low, mean)


def _weighted_window(columns, keys, present, first, last, ends, weights):
  below = [(keys < end).sum(0, dtype=jnp.int32) for end in ends]

  def add(loop, row):
    total, weight, seen = loop
    value, key, w, here = row
    at = [key == end for end in ends]
    ranks = [b + s for b, s in zip(below, seen)]
    inside = (key > ends[0]) & (key < ends[1])
    for tied, rank in zip(at, ranks):
      inside |= tied & (rank >= first) & (rank < last)
    inside &= here
    seen = tuple(s + (tied & here) for s, tied in zip(seen, at))
    return (total + jnp.where(inside, w * value, 0), weight + jnp.where(inside, w, 0), seen), None

  zero = jnp.zeros(columns.shape[1], columns.dtype)
  none = jnp.zeros(columns.shape[1], jnp.int32)
  start = (zero, zero, (none, none))
  (total, weight, _), _ = jax.lax.scan(add, start, (columns, keys, weights, present))
  return total / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)


def trimmed_mean(*, beta: int, weighted: bool = False):
  """Coordinate-wise mean without the `beta` largest and the `beta` smallest values.

  Args:
    beta: values cut at each end; needs more than 2 beta clients.
    weighted: weight what is left by the clients' sizes, as goes with truncated quantities, instead
      of evenly.
  """
  config_lib.require(beta >= 0, 'beta', 'at least 0', beta)

  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    count = present.sum()
    cut = jnp.minimum(beta, jnp.maximum(count - 1, 0) // 2)  # where few clients came
    shares = weights.astype(updates.dtype) if weighted else None
    step = lambda carry, columns: (carry, window_mean(
        columns, present, cut, jnp.maximum(count - cut, cut + 1), shares))
    return by_blocks(step, (), updates, present, output=())[1], state, {}
  return from_rule(rule, minimum=2 * beta + 1)


def mean_around_median(columns, mask, count):
  """Mean of the `count` masked values nearest to the median of each column [n, B] -> [B]."""
  center = middle(columns, mask)
  away = jnp.abs(columns - center)
  keys = masked_keys(away, mask)
  edge = select(keys, count - 1)
  spare = count - (keys < edge).sum(0, dtype=jnp.int32)  # ties at the edge go to the lower index

  def add(loop, row):
    total, taken = loop
    value, key, here = row
    tied = (key == edge) & here
    inside = here & (key < edge) | tied & (taken < spare)
    return (total + jnp.where(inside, value, 0), taken + tied), None

  start = jnp.zeros_like(center), jnp.zeros(center.shape, jnp.int32)
  (total, _), _ = jax.lax.scan(add, start, (columns, keys, mask))
  return total / count.astype(columns.dtype)
