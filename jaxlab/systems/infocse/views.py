"""Hand-made changes of a sentence's tokens: crop, cutoff, shuffle. The rules the paper argues with.

Functions of one sentence, to be vmapped.
"""
import jax
import jax.numpy as jnp

VIEWS = ('none', 'crop', 'cutoff', 'shuffle')
CROP, CUTOFF = 0.5, 0.15  # the share that a crop keeps, and that a cutoff takes away


def view(name, key, ids, mask, ends):
  """A changed copy of a sentence.

  Args:
    name: 'none'; 'crop', a random contiguous half of the tokens; 'cutoff', the tokens but a random
      15 %, at least one, which are hidden (ConSERT, arXiv 2105.11741); 'shuffle', the tokens in
      another order (ConSERT).
    key: PRNG key.
    ids: int [T].
    mask: [T], ones then zeros.
    ends: whether the first and the last token are special ones, which stay.

  Returns:
    (ids, mask) of the same shapes and dtypes.
  """
  if name == 'none':
    return ids, mask
  place, first, length = jnp.arange(len(ids)), int(ends), jnp.sum(mask != 0)
  inner = (place >= first) & (place < length - first)
  n = jnp.sum(inner)
  if name == 'crop':
    keep = jnp.minimum(jnp.maximum(1, jnp.round(CROP * n).astype(jnp.int32)), n)
    start = jnp.floor(jax.random.uniform(key) * (n - keep + 1)).astype(jnp.int32)
    is_last = (place == first + keep) if ends else jnp.zeros(len(ids), bool)
    source = jnp.where(place < first, place, place + start)
    source = jnp.where(is_last, length - 1, source)
    there = place < keep + 2 * first
    return jnp.where(there, ids[source % len(ids)], 0), jnp.where(there, 1, 0).astype(mask.dtype)
  scores = jax.random.uniform(key, ids.shape)
  if name == 'cutoff':
    drop = jnp.minimum(jnp.maximum(1, jnp.round(CUTOFF * n).astype(jnp.int32)), n - 1)
    rank = jnp.argsort(jnp.argsort(jnp.where(inner, scores, 2.0)))
    return ids, jnp.where(inner & (rank < drop), 0, mask).astype(mask.dtype)
  order = jnp.argsort(jnp.where(inner, first + scores * jnp.maximum(n - 1, 0), place))
  return ids[jnp.where(inner, _ranked(order, inner), place)], mask


def _ranked(order, inner):
  """The inner places in the order given, each at an inner place."""
  chosen = order[jnp.argsort(~inner[order], stable=True)]  # inner ones first, in the drawn order
  return chosen[jnp.cumsum(inner) - 1]
