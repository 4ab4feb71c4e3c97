"""Divide-and-conquer (DnC): outliers along the direction in which the updates vary most."""
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.distance import ranks
from jaxlab.federated.aggregators.stack import average, from_rule, sum_in_order


def dnc_scores(columns, present):
  """Squared projection [n] on the top right singular vector of the centred columns [n, b]."""
  columns = jnp.where(present[:, None], columns, 0)
  mean = sum_in_order(columns) / jnp.maximum(present.sum(), 1).astype(columns.dtype)
  centred = jnp.where(present[:, None], columns - mean, 0)
  # u_i = <row_i, v> = s * (left singular vector)_i, and that is an eigenvector of a small matrix.
  values, vectors = jnp.linalg.eigh(
      jnp.matmul(centred, centred.T, precision=jax.lax.Precision.HIGHEST))
  return values[-1] * jnp.square(vectors[:, -1])


def dnc_keep(updates, present, coordinates, remove):
  """Who is never among the `remove` highest scores of any set of coordinates.

  Args:
    updates: [n, d].
    present: bool [n].
    coordinates: int [iterations, b].
    remove: how many are marked an iteration.

  Returns:
    (keep bool [n], of the lowest score alone where nobody would be left; last scores [n]).
  """
  def one(marked, index):
    scores = dnc_scores(updates[:, index], present)
    position = ranks(jnp.where(present, scores, -jnp.inf))
    return marked | (position >= len(present) - remove), scores

  marked, scores = jax.lax.scan(one, jnp.zeros(len(present), bool), coordinates)
  keep = present & ~marked
  lowest = ranks(jnp.where(present, scores[-1], jnp.inf)) == 0
  return jnp.where(keep.any(), keep, lowest & present), scores[-1]


def draw_coordinates(key, size, count):
  """int32 [count] distinct coordinates, one from each of `count` equal stretches of 0..size - 1."""
  edges = np.arange(count + 1) * size // count
  offset = jax.random.randint(key, (count,), 0, np.diff(edges))
  return edges[:-1].astype(np.int32) + offset


def dnc(*, num_malicious: int, c: float = 1.0, iters: int = 1, coordinates: int = 10_000):
  """DnC (Shejwalkar and Houmansadr 2021): drops the highest projections on the main direction.

  Args:
    num_malicious: f.
    c: int(c * f) clients are marked an iteration.
    iters: iterations, each with coordinates of its own.
    coordinates: b, how many of the d coordinates an iteration sees.
  """
  config_lib.require(num_malicious >= 0, 'num_malicious', 'at least 0', num_malicious)
  config_lib.at_least(1, {'iters': iters, 'coordinates': coordinates})
  config_lib.require(c >= 0, 'c', 'at least 0', c)

  def rule(updates, weights, state, key):
    present = weights > 0
    size = updates.shape[1]
    draw = lambda k: draw_coordinates(k, size, min(coordinates, size))
    index = jax.vmap(draw)(jax.random.split(key, iters))
    keep, scores = dnc_keep(updates, present, index, int(c * num_malicious))
    return average(updates, keep), state, {'keep': keep, 'scores': scores}
  return from_rule(rule, minimum=int(c * num_malicious) + 1)
