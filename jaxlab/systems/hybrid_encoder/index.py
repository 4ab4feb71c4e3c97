"""Nearest neighbours by inner product: exact search on the device, or faiss.

An index knows the fingerprint of the parameters that its vectors come from and refuses others.
"""
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import ConfigError, require

_CHUNK = 65_536  # vectors that are scored together


class Index:
  """Vectors under integer ids. Adding and removing takes effect at the next search.

  Args:
    vectors: float32 [A, d].
    ids: integers [A], unlike.
    fingerprint: of the parameters that made the vectors, see `serving.fingerprint`.
    backend: 'exact', by all products, ties by the lower id; or 'faiss' (pip install
      'jaxlab[ann]'), which may miss some.
    factory: faiss' description of its structure, such as 'Flat', 'IVF128,Flat' or 'HNSW32', without
      IDMap: the ids are kept here.
    probes: lists of IVF or candidates of HNSW that a search of 'faiss' looks at; 0 for its default,
      and for structures that have neither.

  Raises:
    ConfigError: shapes that do not fit, ids that occur twice, a backend that is not known.
  """

  def __init__(self, vectors, ids, fingerprint=0, *, backend: Literal['exact', 'faiss'] = 'exact',
               factory='Flat', probes=0):
    require(backend in ('exact', 'faiss'), 'backend', "'exact' or 'faiss'", backend)
    self.fingerprint, self.backend = int(fingerprint), backend
    self._factory, self._probes, self._built = factory, probes, None
    self.ids, self.vectors = np.zeros(0, np.int64), np.zeros((0, np.shape(vectors)[-1]), np.float32)
    self.add(vectors, ids)

  def __len__(self):
    return len(self.ids)

  def add(self, vectors, ids):
    """Adds vectors [n, d] under new ids [n]."""
    vectors, ids = np.asarray(vectors, np.float32), np.asarray(ids, np.int64)
    require(vectors.shape == (len(ids), self.vectors.shape[1]), 'vectors',
            f'shape ({len(ids)}, {self.vectors.shape[1]})', vectors.shape)
    merged = np.concatenate([self.ids, ids])
    order = np.argsort(merged, kind='stable')
    require((np.diff(merged[order]) > 0).all(), 'ids', 'no id twice', ids.tolist()[:8])
    self.ids, self.vectors = merged[order], np.concatenate([self.vectors, vectors])[order]
    self._built = None

  def remove(self, ids):
    """Removes ids [n]; ConfigError if one is not there."""
    missing = np.setdiff1d(ids, self.ids)
    require(not len(missing), 'ids', 'ids of the index', missing.tolist()[:8])
    keep = ~np.isin(self.ids, ids)
    self.ids, self.vectors, self._built = self.ids[keep], self.vectors[keep], None

  def check(self, fingerprint):
    """Raises ConfigError unless the vectors come from parameters with this fingerprint."""
    require(self.fingerprint == int(fingerprint), 'index', f'vectors of the parameters '
            f'{int(fingerprint)}; the ad tower has changed, build the index anew', self.fingerprint)

  def search(self, queries, k):
    """The k best of each query, best first.

    Args:
      queries: float32 [Q, d].
      k: at most the number of vectors.

    Returns:
      (ids int64 [Q, k], scores float32 [Q, k]). Where 'faiss' finds fewer, the last ids are -1.

    Raises:
      ConfigError: a k that is not there; faiss is not installed, or cannot make the structure.
    """
    require(1 <= k <= len(self), 'k', f'1 to {len(self)}, the vectors of the index', k)
    queries = np.asarray(queries, np.float32)
    if self.backend == 'faiss':
      return self._search_faiss(queries, k)
    if self._built is None:
      self._built = [(start, jnp.asarray(self.vectors[start:start + _CHUNK]))
                     for start in range(0, len(self), _CHUNK)]
    scores = places = None
    for start, vectors in self._built:
      more, found = _top(queries, vectors, min(k, len(vectors)))
      found = found + start
      if scores is not None:  # earlier chunks hold lower ids and come first among equals
        more, chosen = jax.lax.top_k(jnp.concatenate([scores, more], 1),
                                     min(k, scores.shape[1] + more.shape[1]))
        found = jnp.take_along_axis(jnp.concatenate([places, found], 1), chosen, axis=1)
      scores, places = more, found
    return self.ids[np.asarray(places)], np.asarray(scores)

  def _search_faiss(self, queries, k):
    try:
      import faiss
    except ImportError as error:
      raise ConfigError("backend 'faiss' needs: pip install 'jaxlab[ann]'") from error
    if self._built is None:
      self._built = self._build(faiss)
    scores, places = self._built.search(queries, k)
    return np.where(places >= 0, self.ids[places], -1), scores

  def _build(self, faiss):
    """The structure of faiss; its messages end in the reason, behind the place in its source."""
    count, width = self.vectors.shape
    try:
      built = faiss.index_factory(width, self._factory, faiss.METRIC_INNER_PRODUCT)
      built.train(self.vectors)
      built.add(self.vectors)
    except RuntimeError as error:
      raise ConfigError(f'predict.factory: expected a structure of faiss for {count} vectors of '
                        f'{width} numbers, got {self._factory!r}: '
                        f'{str(error).rpartition(": ")[2]}') from error
    if self._probes:
      # The lists of an IVF may be found by an HNSW, as in 'IVF128_HNSW32,Flat'.
      graph = 'HNSW' in self._factory and 'IVF' not in self._factory
      try:
        faiss.ParameterSpace().set_index_parameter(built, 'efSearch' if graph else 'nprobe',
                                                   self._probes)
      except RuntimeError as error:
        raise ConfigError(f'predict.probes: expected 0 with factory {self._factory!r}, which has '
                          f'neither IVF nor HNSW, got {self._probes}') from error
    return built

  def save(self, path):
    """Writes vectors, ids and settings to an .npz file."""
    with open(pathlib.Path(path), 'wb') as file:
      np.savez(file, vectors=self.vectors, ids=self.ids, fingerprint=self.fingerprint,
               backend=self.backend, factory=self._factory, probes=self._probes)

  @classmethod
  def load(cls, path):
    """Reads what `save` wrote."""
    with np.load(pathlib.Path(path)) as file:
      return cls(file['vectors'], file['ids'], int(file['fingerprint']),
                 backend=str(file['backend']), factory=str(file['factory']),
                 probes=int(file['probes']))


@jax.jit
def _products(queries, vectors):
  return jnp.matmul(queries, vectors.T, precision='highest')


def _top(queries, vectors, k):
  """(scores, places) [Q, k] of one chunk; the lower place comes first among equals."""
  return jax.lax.top_k(_products(queries, vectors), k)
