"""Baselines that merge tokens: ToMe (arXiv 2303.17604), ToFu (2312.01026), SiTo (AAAI 2025).

Each makes the function `merge` of DiT: in every layer from `prune_from` on, fewer tokens run, and
what the layer adds to them is copied back to the tokens that they stand for. `scope` is 'reference'
or, as ToMe and SiTo are published, 'all' image tokens. Survivors keep their positions.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Plan(NamedTuple):
  """Who stays and for whom.

  Attributes:
    keep: int [B, k], surviving tokens, rising.
    slot: int [B, n], the place in `keep` of the token that stands for each token.
  """
  keep: jax.Array
  slot: jax.Array


def cells(grids):
  """Tokens of each 2 x 2 cell of token grids, repeated at ragged edges: NumPy [cells, 4].

  Args:
    grids: (rows, columns) of the images, whose tokens follow one another.
  """
  found, first = [], 0
  for rows, columns in grids:
    number = first + np.arange(rows * columns).reshape(rows, columns)
    first += rows * columns
    for y in range(0, rows, 2):
      for x in range(0, columns, 2):
        found.append(np.resize(number[y:y + 2, x:x + 2], 4))
  return np.array(found)


def plan(features, destination, count):
  """Merges the sources that are most like a destination until `count` tokens are left.

  Args:
    features: [B, n, D].
    destination: int [B, m], tokens that stay; m <= count.
    count: tokens that stay in all.
  """
  batch, total, _ = features.shape
  unit = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
  picked = jnp.take_along_axis(unit, destination[..., None], axis=1)
  alike = jnp.einsum('bnd,bmd->bnm', unit, picked)
  stays = jnp.zeros((batch, total), bool).at[jnp.arange(batch)[:, None], destination].set(True)
  likeness = jnp.where(stays, -2.0, alike.max(-1))  # a cosine is at least -1
  order = jnp.argsort(-likeness, axis=-1, stable=True)
  keep = jnp.sort(order[:, total - count:], axis=-1)
  kept = jnp.zeros((batch, total), bool).at[jnp.arange(batch)[:, None], keep].set(True)
  best = jnp.take_along_axis(destination, alike.argmax(-1), axis=1)
  stands = jnp.where(kept, jnp.arange(total), best)
  return Plan(keep, jax.vmap(jnp.searchsorted)(keep, stands))


def _take(x, index):
  return jnp.take_along_axis(x, index[..., None], axis=1)


def average(x, plan_):
  """Mean of the tokens that each survivor stands for [B, k, D]."""
  sums = lambda values, slot: jax.ops.segment_sum(values, slot, plan_.keep.shape[1])
  return (jax.vmap(sums)(x, plan_.slot) /
          jax.vmap(sums)(jnp.ones_like(x[..., :1]), plan_.slot))


def norm_preserving(x, plan_):
  """Direction of the mean, length of the longest (ToFu) [B, k, D]."""
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  longest = jax.vmap(lambda values, slot: jax.ops.segment_max(values, slot, plan_.keep.shape[1]))(
      length, plan_.slot)
  mean = average(x, plan_)
  return mean * longest / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def survivors(x, plan_):
  """The surviving tokens as they are: pruning."""
  return _take(x, plan_.keep)


def _random_of_cells(features, grid_cells, key):
  """ToMe's destinations: a random token of each cell, the same for the whole batch."""
  column = jax.random.randint(key, (len(grid_cells),), 0, grid_cells.shape[1])
  chosen = jnp.take_along_axis(jnp.asarray(grid_cells), column[:, None], axis=1)[:, 0]
  return jnp.broadcast_to(chosen, (len(features), len(chosen)))


def _central_of_cells(features, grid_cells, key, noise=0.01):
  """SiTo's base tokens: of each cell the one most like all tokens, up to a small noise."""
  unit = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
  likeness = jnp.einsum('bnd,bd->bn', unit, unit.mean(1))
  likeness = likeness + noise * jax.random.normal(key, likeness.shape)
  column = likeness[:, grid_cells].argmax(-1)
  return jnp.take_along_axis(jnp.asarray(grid_cells)[None], column[..., None], axis=2)[..., 0]


def _merge(choose, reduce, *, grids, n_target, count, key, scope):
  """The function for `DiT`; `reduce` is (layer) -> how tokens become fewer."""
  first = n_target if scope == 'reference' else 0
  grid_cells = cells(grids[1:] if scope == 'reference' else grids)

  def merge(layer, img, tables):
    head, x = img[:, :first], img[:, first:]
    made = plan(x, choose(x, grid_cells, jax.random.fold_in(key, layer)), count)
    some = jnp.concatenate([head, reduce(layer)(x, made)], axis=1)
    tables = [jnp.concatenate([table[:, :first], _take(table[:, first:], made.keep)], axis=1)
              for table in tables]
    restore = lambda added: jnp.concatenate(
        [added[:, :first], _take(added[:, first:], made.slot)], axis=1)
    return some, tables, restore

  return merge


def tome(*, grids, n_target, count, key, scope='reference'):
  """Token merging: sources are averaged into a random destination of each 2 x 2 cell.

  Args:
    grids: (rows, columns) of target and references.
    n_target: target tokens.
    count: tokens of the scope that run, at least one a cell.
    key: PRNG key of the destinations.
    scope: 'reference' or 'all'.
  """
  return _merge(_random_of_cells, lambda layer: average, grids=grids, n_target=n_target,
                count=count, key=key, scope=scope)


def tofu(*, grids, n_target, count, key, merge_from, scope='reference'):
  """Token fusion: prunes in the layers before `merge_from`, then merges norm-preserving."""
  how = lambda layer: norm_preserving if layer >= merge_from else survivors
  return _merge(_random_of_cells, how, grids=grids, n_target=n_target, count=count, key=key,
                scope=scope)


def sito(*, grids, n_target, count, key, scope='reference'):
  """Similarity-based pruning: the tokens most like a base token are pruned and copied back."""
  return _merge(_central_of_cells, lambda layer: survivors, grids=grids, n_target=n_target,
                count=count, key=key, scope=scope)
