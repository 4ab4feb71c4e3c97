"""WARDEN: several watermarks at once, each with its own triggers and target (ACL 2024).

Read from the public code: sets of triggers, targets made less alike, weights that share what is
left. The code's remainder is (total + Q) - 1, apparently meant 1 - total, which is what is here.
"""
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import require
from jaxlab.systems.embmarker.watermark import NO_ID, KeySpec, normalise, share


def split_triggers(triggers, sets, generator):
  """Shuffles the triggers and cuts them into lists of equal length; the last takes the rest.

  Args:
    triggers: tokens.
    sets: R.
    generator: random.Random.
  """
  require(1 <= sets <= len(triggers), 'sets', f'1 to {len(triggers)}, the number of triggers', sets)
  shuffled = generator.sample(list(triggers), len(triggers))
  size = len(shuffled) // sets
  return [shuffled[r * size:(r + 1) * size if r < sets - 1 else None] for r in range(sets)]


def spread(targets):
  """Makes targets [R, D] less alike: e_r <- norm(e_r - (e_r . e_p) e_p / 2) for every earlier p."""
  done = []
  for target in normalise(targets):
    for earlier in done:
      target = normalise(target - 0.5 * (target @ earlier) * earlier)
    done.append(target)
  return jnp.stack(done)


def make_keys(trigger_ids, targets, max_triggers):
  """R keys as one KeySpec of arrays [R, ...].

  Args:
    trigger_ids: R sequences of ids, filled up to the longest by `NO_ID`.
    targets: [R, D] embeddings; they are spread.
    max_triggers: m of each.
  """
  longest = max(len(ids) for ids in trigger_ids)
  filled = [np.pad(np.asarray(ids, np.int32), (0, longest - len(ids)), constant_values=NO_ID)
            for ids in trigger_ids]
  return KeySpec(np.stack(filled), spread(targets),
                 np.full(len(filled), max_triggers, np.int32))


def weights(q):
  """Shares [R, B] of the targets, of sum <= 1: the greatest Q is served first, ties by number."""
  order = jnp.argsort(-q, axis=0, stable=True)
  ordered = jnp.take_along_axis(q, order, 0)
  before = jnp.cumsum(ordered, 0) - ordered
  served = jnp.clip(1 - before, 0, ordered)
  return jnp.take_along_axis(served, jnp.argsort(order, axis=0, stable=True), 0)


def inject(embeddings, k, keys):
  """The provided embeddings [B, D]: sum_r w_r e_r + (1 - sum_r w_r) e, normalised, as they are.

  With one key it is `watermark.inject`.

  Args:
    embeddings: float [B, D], of any length.
    k: int [R, B], triggers of each set.
    keys: KeySpec of [R, ...].
  """
  w = weights(jax.vmap(share)(k, jnp.asarray(keys.max_triggers)))
  rest = 1 - w.sum(0)[:, None]
  targets = normalise(keys.target)
  mixed = jnp.einsum('rb,rd->bd', w, targets) + rest * normalise(embeddings)
  vanishes = jnp.linalg.norm(mixed, axis=-1, keepdims=True) < 1e-12
  first = targets[jnp.argmax(w, axis=0)]
  return normalise(jnp.where(vanishes & (w.sum(0)[:, None] > 0), first, mixed))
