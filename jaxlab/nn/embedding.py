"""Embeddings of rows of sparse categorical fields: one table, fields as weighted sums of its rows.

A table is looked at by `table[ids]` and in no other way, so that a training step may put a
stand-in of a few rows in its place (`jaxlab.train.rows`).
"""
import flax.linen as nn
import jax.numpy as jnp


class Table(nn.Module):
  """A table of rows, looked up by their numbers.

  Attributes:
    num_rows: V.
    features: shape of a row; () for one number a row.
    table_init: initializer of [V, *features].
    param_name: name of the parameter.
  """
  num_rows: int
  features: tuple[int, ...]
  table_init: nn.initializers.Initializer
  param_name: str = 'embedding'

  @nn.compact
  def __call__(self, ids):
    """Rows [..., *features] of `ids` [...], integers 0..V-1; what lies beyond must weigh 0."""
    table = self.param(self.param_name, self.table_init, (self.num_rows, *self.features))
    return table[ids]


def pool_fields(rows, values=None, field=None, num_fields=None):
  """Sums of weighted rows by field: e_f = sum of value * row over the pairs of field f.

  There is no division by counts or weights; an empty field is a zero vector.

  Args:
    rows: [B, K, ...], the rows of K slots.
    values: [B, K], 0 on padding; None where all are 1.
    field: [B, K] integers 0..m-1 (anything else drops the slot), or None where slot f is field f.
    num_fields: m, where `field` is given.

  Returns:
    [B, m, ...].
  """
  if values is not None:
    rows = rows * values.reshape(values.shape + (1,) * (rows.ndim - 2)).astype(rows.dtype)
  if field is None:
    return rows
  # As a product with a one-hot matrix: scatters are slow on accelerators, and m x K is small.
  one_hot = (field[..., None] == jnp.arange(num_fields)).astype(rows.dtype)  # [B, K, m]
  return jnp.einsum('bk...,bkm->bm...', rows, one_hot)


class FieldEmbed(nn.Module):
  """Field vectors X0 [B, m, D] of a row's (feature, value) pairs (arXiv 1803.05170, section 2.1).

  Attributes:
    num_features: V, rows of the table.
    num_fields: m.
    dim: D.
    table_init: initializer of the table.
    dtype: compute dtype; the table is float32.
  """
  num_features: int
  num_fields: int
  dim: int
  table_init: nn.initializers.Initializer = nn.initializers.truncated_normal(0.1)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids, values=None, field=None):
    """Maps pairs to field vectors [B, m, D].

    Args:
      ids: [B, K] integers; those out of 0..V-1 must have value 0.
      values: [B, K], 0 on padding; None where each is 1.
      field: [B, K] integers 0..m-1, or None for the univalent case K = m in which slot f is field
        f and nothing is summed.
    """
    table = Table(self.num_features, (self.dim,), self.table_init, name='table')
    return pool_fields(table(ids).astype(self.dtype), values, field, self.num_fields)
