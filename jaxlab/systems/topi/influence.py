"""Influence of reference tokens on the target, and which of them stay (arXiv 2602.01609)."""
import jax
import jax.numpy as jnp


def influence(scores, layers):
  """I_j = sum over layers and heads of |v_j| * (attention from all target queries to j), [B, n_c].

  Args:
    scores: {layer: Score}.
    layers: the pivotal ones.
  """
  return sum((scores[layer].received * scores[layer].value_norm).sum(1) for layer in layers)


def ranking(values):
  """Token numbers by falling value int32 [B, n_c]; ties by position."""
  return jnp.argsort(-values, axis=-1, stable=True).astype(jnp.int32)


def ranks(values):
  """Place of each token in `ranking` [B, n_c]: 0 is the most influential."""
  return jnp.argsort(ranking(values), axis=-1).astype(jnp.int32)


def cumulative_share(values):
  """Share of the total that the first k tokens of the ranking hold, for k = 1 .. n_c: [B, n_c]."""
  falling = jnp.take_along_axis(values, ranking(values), axis=-1).astype(jnp.float32)
  total = falling.sum(-1, keepdims=True)
  return jnp.cumsum(falling, axis=-1) / jnp.where(total > 0, total, 1)


def count_for_share(values, tau):
  """Smallest number of tokens that hold a share of at least `tau`, int32 [B]; all at tau >= 1."""
  count = 1 + (cumulative_share(values) < tau).sum(-1)
  everything = (tau >= 1) | (values.sum(-1) <= 0)
  return jnp.minimum(jnp.where(everything, values.shape[-1], count), values.shape[-1])


def keep_mask(values, count):
  """bool [B, n_c]: whether a token is among the first `count` (scalar or [B]) of the ranking."""
  return ranks(values) < jnp.broadcast_to(count, len(values))[:, None]


def keep_indices(order, count):
  """The first `count` (static) tokens of a ranking [B, n_c], in their original order."""
  return jnp.sort(order[:, :count], axis=-1)


def bucketed(count, bucket, total):
  """`count` rounded up to a multiple of `bucket`, at most `total`: few shapes to compile."""
  return min(-(-count // bucket) * bucket, total)


def best_of_each(values, owner, count):
  """bool [B, n_c]: whether a token is among the `count` best of its reference image.

  Args:
    values: influence [B, n_c].
    owner: [n_c], which image a token belongs to.
    count: tokens of each image.
  """
  place = ranks(values)
  same = owner[:, None] == owner
  better = same & (place[:, None, :] < place[:, :, None])
  return better.sum(-1) < count


def shuffle(values, key):
  """The values dealt at random among the tokens of each row: the ablation."""
  return jax.random.permutation(key, values, axis=-1, independent=True)
