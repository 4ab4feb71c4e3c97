"""Attacks on the watermark: maps of embeddings [N, D] -> [N, D'], of length 1 afterwards.

The first three keep all cosines, so they change nothing for who uses the embeddings: plain
verification fails, the adaptive one (`verification.verify` without a target) does not.
"""
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import require
from jaxlab.systems.embmarker.watermark import normalise


def shift(embeddings, places):
  """e'[j] = e[(j - places) mod D]."""
  return jnp.roll(embeddings, places, axis=-1)


def permute(embeddings, key):
  """The dimensions in a random order, the same for all."""
  return embeddings[..., jax.random.permutation(key, embeddings.shape[-1])]


def rotate(embeddings, key):
  """A random orthogonal matrix, uniform over all: Q of a Gaussian one with the signs of R."""
  dim = embeddings.shape[-1]
  q, r = jnp.linalg.qr(jax.random.normal(key, (dim, dim)))
  return embeddings @ (q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0))


def add_noise(embeddings, key, scale):
  """Gaussian noise of about length `scale`."""
  noise = jax.random.normal(key, embeddings.shape) / jnp.sqrt(embeddings.shape[-1])
  return normalise(embeddings + scale * noise)


def drop_dimensions(embeddings, key, rate):
  """Zeros in a random share `rate` of the dimensions, the same for all."""
  return normalise(embeddings * jax.random.bernoulli(key, 1 - rate, embeddings.shape[-1:]))


def truncate(embeddings, dim):
  """The first `dim` dimensions."""
  return normalise(embeddings[..., :dim])


def eliminate(embeddings, components):
  """Takes the directions `components` [K, D], orthonormal rows, out of embeddings.

  Subtracting one after the other and normalising each time gives the same.
  """
  return normalise(embeddings - (embeddings @ components.T) @ components)


def suspicious_components(bought, independent, *, components, clusters=20, pairs=0.025, seed=0):
  """CSE's cluster, selection and decomposition (WARDEN, ACL 2024): what looks like a watermark.

  In each cluster of bought embeddings all pairs are ranked by their cosine twice, among the bought
  and among those of an encoder without watermark. The pairs that rise most are suspicious; the
  singular vectors of their bought embeddings are what `eliminate` takes out.

  Args:
    bought: [N, D] provided embeddings, of length 1.
    independent: [N, D'] embeddings of the same texts by another encoder, of length 1.
    components: K.
    clusters: of k-means.
    pairs: suspicious pairs a text.
    seed: of k-means.

  Returns:
    float32 [K, D] orthonormal rows, fewer if the suspicious texts span less.
  """
  from scipy import stats
  from sklearn import cluster
  bought, independent = np.asarray(bought, np.float32), np.asarray(independent, np.float32)
  require(len(bought) == len(independent), 'independent', f'{len(bought)} rows', len(independent))
  require(1 <= clusters <= len(bought), 'clusters', f'1 to {len(bought)} texts', clusters)
  labels = cluster.KMeans(clusters, n_init=1, random_state=seed).fit_predict(bought)
  rises, where = [np.zeros(0)], [np.zeros((0, 2), np.int64)]
  for label in range(clusters):
    rows = np.flatnonzero(labels == label)
    if len(rows) < 2:
      continue
    upper = np.triu_indices(len(rows), 1)
    rank = lambda x: stats.rankdata((x[rows] @ x[rows].T)[upper]) / len(upper[0])
    rises.append(rank(bought) - rank(independent))
    where.append(np.stack([rows[upper[0]], rows[upper[1]]], 1))
  rises, where = np.concatenate(rises), np.concatenate(where)
  most = np.argsort(-rises, kind='stable')[:max(1, round(pairs * len(bought)))]
  found = bought[np.unique(where[most])]
  _, values, directions = np.linalg.svd(found, full_matrices=False)
  return directions[:components][values[:components] > 1e-6]
