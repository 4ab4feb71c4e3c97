"""What the robust rules share: the stack of updates, screened, and walked through in blocks.

A rule sees the whole cohort as `updates` [n, d], one flattened message a row, and `weights` [n]. A
row of weight 0 does not exist: whatever it holds, NaN included, and wherever it stands, it changes
no bit of the result. To that end sums over clients run client after client, and everything else
that looks at a row goes through `by_blocks`, which shows absent rows as zeros.
"""
import jax
import jax.numpy as jnp

from jaxlab.federated.types import Aggregator
from jaxlab.train.step import each_finite

# Columns seen at a time: enough work for a core, little enough for its second-level cache.
# No power of two, so that the rows of a block do not fall on the same cache lines.
BLOCK = 4000

# How far the square of an update's length must stay below overflow, so that squared distances,
# and sums of them over a cohort, cannot reach it: in float32 lengths end at 2^52.
_HEADROOM = 2.0**-24


def from_rule(rule, *, minimum=1, init=lambda params: ()):
  """The Aggregator of a rule over the flattened stack.

  Args:
    rule: (updates [n, d], weights [n], state, key) -> (aggregate [d], state, info). Weights are
      finite and >= 0; 0 means absent.
    minimum: clients that the rule needs to be defined.
    init: params -> state.

  Returns:
    Aggregator whose apply raises ValueError when traced with fewer than `minimum` clients. A
    message with a NaN or Inf, or too long to be compared, or a weight that is NaN, Inf or negative,
    gets the weight 0.
  """
  def apply(state, messages, weights, key):
    if len(weights) < minimum:
      raise ValueError(f'expected at least {minimum} clients, got {len(weights)}')
    updates, unflatten = flatten(messages)
    weights = _weights_of(comparable(updates), weights)
    aggregate, state, info = rule(updates, weights, state, key)
    return unflatten(aggregate), state, info
  return Aggregator(init, apply, minimum=minimum)


def flatten(messages):
  """A stack of messages as one matrix.

  Args:
    messages: pytree of [n, ...].

  Returns:
    (updates [n, d], float32 or wider; function from [d] to a message).
  """
  leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, messages))
  dtype = jnp.result_type(jnp.float32, *leaves)
  rows = [x.reshape(len(x), -1).astype(dtype) for x in leaves]
  ends = [0]
  for row in rows:
    ends.append(ends[-1] + row.shape[1])

  def unflatten(vector):
    parts = [vector[a:b].reshape(x.shape[1:]) for a, b, x in zip(ends, ends[1:], leaves)]
    return treedef.unflatten(parts)

  return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1), unflatten


def comparable(updates):
  """bool [n], which updates [n, d] are finite and so short that no rule's distances overflow."""
  # NaN is not less than anything. One plain sum a row, which is vectorised on the CPU.
  return jnp.square(updates).sum(1) < float(jnp.finfo(updates.dtype).max) * _HEADROOM


def _weights_of(good, weights):
  return jnp.where(good & jnp.isfinite(weights) & (weights >= 0), weights, 0)


def screen(messages, weights):
  """The weights, 0 where a message or its weight is not finite or the weight is negative.

  Args:
    messages: pytree of [n, ...].
    weights: [n].
  """
  return _weights_of(each_finite(messages), weights)


def sum_in_order(rows):
  """Sum over the leading axis, row after row, so that rows of zeros change no bit."""
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), rows)
  return jax.lax.scan(lambda total, row: (jax.tree.map(jnp.add, total, row), None), zero, rows)[0]


def weighted_sum(updates, weights):
  """sum_i w_i u_i [d], client after client; rows of weight 0 may hold anything."""
  def add(total, row):
    update, weight = row
    return total + jnp.where(weight > 0, weight * update, 0), None
  weights = weights.astype(updates.dtype)
  return jax.lax.scan(add, jnp.zeros(updates.shape[1:], updates.dtype), (updates, weights))[0]


def average(updates, weights):
  """sum_i w_i u_i / sum_i w_i [d]; 0 where nobody has a weight."""
  weights = weights.astype(updates.dtype)
  total = jnp.maximum(sum_in_order(weights), jnp.finfo(jnp.float32).tiny)
  return weighted_sum(updates, weights / total)


def by_blocks(step, carry, updates, present, vectors=(), *, output=None, block=BLOCK):
  """Folds a function over blocks of columns, each of which is read from memory once.

  Args:
    step: (carry, columns [n, B], blocks [B] of the vectors) -> (carry, [..., B] or None). Absent
      rows are zeros; so are columns that do not belong to the block, and they must leave the
      carry alone.
    carry: what `step` accumulates.
    updates: [n, d].
    present: bool [n].
    vectors: tuple of [d].
    output: leading shape of what `step` returns, () for [B]; None if it returns None.
    block: B, columns of a block.

  Returns:
    (carry, output [..., d] or None).
  """
  size = updates.shape[1]
  block = min(block, size)
  column = jnp.arange(block)

  def body(i, loop):
    carry, made = loop
    start = jnp.minimum(i * block, size - block)  # the last block overlaps the one before
    own = start + column >= i * block
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block, axis=-1)
    columns = jnp.where(present[:, None] & own, cut(updates), 0)
    carry, new = step(carry, columns, *(jnp.where(own, cut(v), 0) for v in vectors))
    if output is not None:
      new = jnp.where(own, new, cut(made))
      made = jax.lax.dynamic_update_slice_in_dim(made, new, start, axis=-1)
    return carry, made

  empty = None if output is None else jnp.zeros((*output, size), updates.dtype)
  return jax.lax.fori_loop(0, -(-size // block), body, (carry, empty))


def products(columns, other):
  """Row-wise inner products [n, 16] of [n, B] and [n, B] or [B], to be summed over the last axis.

  Sixteen running sums, because one alone would wait for each addition. A row's bits do not depend
  on how many rows there are, as those of a matrix product do.
  """
  lanes = 16
  padded = jnp.pad(columns * other, ((0, 0), (0, -columns.shape[1] % lanes)))
  return padded.reshape(len(columns), -1, lanes).sum(1)


def squares(columns):
  """Row-wise sums of squares [n, 16] of [n, B], see `products`."""
  return products(columns, columns)


def move(updates, present, center, weights_of, steps):
  """Repeats center <- center + sum_i a_i (u_i - center) with a = weights_of(distances [n]).

  One pass over the stack a step: a block of the new center is made and its distances to the
  updates are taken while the block is in the cache.

  Args:
    updates: [n, d].
    present: bool [n].
    center: [d] start.
    weights_of: distances [n] -> a [n], 0 for the absent; sum 1 for a weighted mean.
    steps: static number of steps.

  Returns:
    (center [d], distances [n] of the updates from it).
  """
  lanes = jnp.zeros((len(updates), 16), updates.dtype)

  def one(shares, center):
    def step(total, columns, old):
      differences = jnp.where(present[:, None], columns - old, 0)
      shift = sum_in_order(shares[:, None] * differences)
      return total + squares(jnp.where(present[:, None], differences - shift, 0)), old + shift
    total, center = by_blocks(step, lanes, updates, present, (center,), output=())
    return center, jnp.sqrt(total.sum(1))

  def body(_, loop):
    center, distances = loop
    return one(weights_of(distances), center)

  start = one(jnp.zeros(len(updates), updates.dtype), center)
  return jax.lax.fori_loop(0, steps, body, start)
