"""Annotation: the encoder groups the sentences of a document and picks each one's positive.

Functions of one document, to be vmapped; documents are padded to S sentences.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

_NEVER = -1e9


class Picked(NamedTuple):
  """What was picked for S sentences.

  Attributes:
    index: int32 [S], the position of the positive; -1 for none.
    cosine: float32 [S], to the positive; 0 for none.
  """
  index: jax.Array
  cosine: jax.Array


def cluster_count(valid, per_cluster):
  """int32: max(2, ceil(n / per_cluster)) clusters for the n valid sentences of [S], at most n."""
  n = jnp.sum(valid.astype(jnp.int32))
  return jnp.minimum(jnp.maximum(2, -(-n // per_cluster)), n)


def first_sentences(z, valid, count):
  """Centroids [count, D] to start from: the first valid sentences, then zeros."""
  order = jnp.argsort(~valid.astype(bool), stable=True)[:count]
  return jnp.where(valid[order][:, None] > 0, z[order], 0.0)


def plus_plus(key, z, valid, count):
  """Centroids [count, D] drawn by k-means++ with 1 - cosine for the squared distance.

  Args:
    key: PRNG key.
    z: [S, D], unit rows.
    valid: [S].
    count: a static number.
  """
  def draw(key, far):
    # The small number keeps a draw possible where all sentences are alike.
    return jax.random.categorical(key, jnp.where(valid > 0, jnp.log(far + 1e-6), _NEVER))

  def body(i, carry):
    centroids, far = carry
    chosen = z[draw(jax.random.fold_in(key, i), far)]
    return centroids.at[i].set(chosen), jnp.minimum(far, jnp.maximum(1 - z @ chosen, 0))

  z = jnp.asarray(z)
  start = jnp.zeros((count, z.shape[1]), z.dtype), jnp.ones(len(z), z.dtype)
  return jax.lax.fori_loop(0, count, body, start)[0]


def spherical_kmeans(z, valid, centroids, iterations, clusters=None):
  """Clusters unit vectors by cosine.

  An iteration gives each sentence to its nearest centroid, ties to the lowest index, and makes each
  centroid the normalised sum of its sentences; one without any stays. At the end sentences are
  given once more.

  Args:
    z: [S, D], unit rows.
    valid: [S].
    centroids: [K, D].
    iterations: a static number.
    clusters: how many of the centroids are in use, the first ones; all by default.

  Returns:
    (cluster int32 [S], -1 on padding; centroids [K, D]).
  """
  used = jnp.ones(len(centroids), bool) if clusters is None else (
      jnp.arange(len(centroids)) < clusters)

  def assign(centroids):
    nearest = jnp.argmax(jnp.where(used, z @ centroids.T, _NEVER), axis=1)
    return jnp.where(valid > 0, nearest, -1)

  def body(_, centroids):
    members = jax.nn.one_hot(assign(centroids), len(centroids), dtype=z.dtype)  # none of padding
    total = members.T @ z
    length = jnp.linalg.norm(total, axis=1, keepdims=True)
    return jnp.where(length > 1e-12, total / jnp.maximum(length, 1e-12), centroids)

  centroids = jax.lax.fori_loop(0, iterations, body, centroids)
  return assign(centroids), centroids


def eligible(z, cluster, min_cosine, *, max_cosine=1.0, similar=None, duplicate=None):
  """bool [S, S], symmetric: which sentences may be whose positive.

  Two different sentences of one cluster with a cosine of at least `min_cosine`, unless they are the
  same in meaning and surface: above `max_cosine` and `similar`, or duplicates.

  Args:
    z: [S, D], unit rows.
    cluster: int [S], -1 on padding.
    min_cosine: guards against false positives.
    max_cosine: guards, with `similar`, against trivial ones.
    similar: bool [S, S], alike in surface; none by default.
    duplicate: bool [S, S], the same text; none by default.
  """
  cosines = z @ z.T
  allowed = (cluster[:, None] == cluster) & (cluster >= 0)[:, None] & (cosines >= min_cosine)
  allowed = allowed & ~jnp.eye(len(z), dtype=bool)
  if similar is not None:
    allowed = allowed & ~(similar & (cosines > max_cosine))
  return allowed if duplicate is None else allowed & ~duplicate


def choose(z, allowed, *, key=None, temperature=0.1):
  """The Picked among the allowed.

  Args:
    z: [S, D], unit rows.
    allowed: bool [S, S].
    key: None for the nearest, ties to the lowest index; otherwise one is drawn from the softmax of
      cosine / temperature.
    temperature: > 0; infinite for all allowed alike.
  """
  cosines = z @ z.T
  scores = jnp.where(allowed, cosines if key is None else cosines / temperature, _NEVER)
  index = jnp.argmax(scores, 1) if key is None else jax.random.categorical(key, scores, axis=1)
  has = jnp.any(allowed, axis=1)
  cosine = jnp.take_along_axis(cosines, index[:, None], axis=1)[:, 0]
  return Picked(jnp.where(has, index, -1).astype(jnp.int32), jnp.where(has, cosine, 0))


def hard_negatives(z, cluster):
  """int32 [S]: the nearest sentence of another cluster of the document; -1 for none."""
  other = (cluster[:, None] != cluster) & (cluster >= 0)[:, None] & (cluster >= 0)
  return choose(z, other).index


def annotate(key, z, valid, similar, duplicate, *, per_cluster=4, max_clusters, iterations=10,
             seeds='plus_plus', min_cosine=0.3, max_cosine=0.98, pick='sample', temperature=0.1):
  """Clusters the sentences of a document and picks their positives (section A of the algorithm).

  Args:
    key: PRNG key.
    z: [S, D], unit rows.
    valid: [S].
    similar: see `eligible`, as the next.
    duplicate: bool [S, S].
    per_cluster: sentences of a cluster on average.
    max_clusters: a static number, the clusters of the longest document.
    iterations: of k-means.
    seeds: of k-means, 'plus_plus' or the 'first' sentences.
    min_cosine: see `eligible`, as the next.
    max_cosine: in [-1, 1].
    pick: 'nearest' or 'sample'.
    temperature: of the softmax that is sampled from.

  Returns:
    (Picked, cluster int32 [S]).
  """
  start_key, pick_key = jax.random.split(key)
  start = (plus_plus(start_key, z, valid, max_clusters) if seeds == 'plus_plus' else
           first_sentences(z, valid, max_clusters))
  cluster, _ = spherical_kmeans(z, valid, start, iterations, cluster_count(valid, per_cluster))
  allowed = eligible(z, cluster, min_cosine, max_cosine=max_cosine, similar=similar,
                     duplicate=duplicate)
  pick_key = pick_key if pick == 'sample' else None
  return choose(z, allowed, key=pick_key, temperature=temperature), cluster
