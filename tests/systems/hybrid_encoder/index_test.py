"""The index: exact search against NumPy, ties, changes, files, faiss."""
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.hybrid_encoder import index as index_lib
from jaxlab.systems.hybrid_encoder.index import Index


def oracle(vectors, ids, queries, k):
  scores = queries @ vectors.T
  order = np.stack([np.lexsort((ids, -row)) for row in scores])[:, :k]
  return ids[order], np.take_along_axis(scores, order, axis=1)


class ExactTest(parameterized.TestCase):

  @parameterized.parameters(7, 100)
  def test_equals_numpy_with_ties_by_id(self, chunk):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-1, 2, (30, 4)).astype(np.float32)  # many equal scores
    ids, queries = rng.permutation(100)[:30], rng.integers(-1, 2, (5, 4)).astype(np.float32)
    with mock.patch.object(index_lib, '_CHUNK', chunk):
      found, scores = Index(vectors, ids).search(queries, 11)
    expected = oracle(vectors, ids, queries, 11)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(scores, expected[1])

  def test_add_remove_save_load(self):
    rng = np.random.default_rng(1)
    vectors, queries = rng.normal(size=(9, 3)).astype(np.float32), np.eye(3, dtype=np.float32)
    ids = np.arange(9) * 2
    index = Index(vectors[:4], ids[:4], 77)
    index.search(queries, 2)
    index.add(vectors[4:], ids[4:])
    index.remove(ids[1:3])
    kept = np.r_[0, 3:9]
    with tempfile.TemporaryDirectory() as folder:
      index.save(pathlib.Path(folder, 'index.npz'))
      loaded = Index.load(pathlib.Path(folder, 'index.npz'))
    for one in (index, loaded):
      np.testing.assert_array_equal(one.search(queries, 7)[0],
                                    oracle(vectors[kept], ids[kept], queries, 7)[0])
      one.check(77)
      with self.assertRaisesRegex(ConfigError, 'index: expected vectors of the parameters 78'):
        one.check(78)

  def test_mistakes(self):
    index = Index(np.eye(3), [1, 2, 3])
    for call, message in ((lambda: index.search(np.eye(3), 4), 'k: expected 1 to 3'),
                          (lambda: index.add(np.eye(3), [7, 8, 3]), 'ids: expected no id twice'),
                          (lambda: index.add(np.eye(2), [7, 8]), 'vectors: expected shape'),
                          (lambda: index.remove([9]), 'ids: expected ids of the index'),
                          (lambda: Index(np.eye(2), [1, 2], backend='fais'), 'backend: expected')):
      with self.assertRaisesRegex(ConfigError, message):
        call()


class FaissTest(parameterized.TestCase):

  def clustered(self, count, width=64):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, width))
    draw = lambda n: (centres[rng.integers(0, 100, n)] + 0.3 * rng.normal(size=(n, width))).astype(
        np.float32)
    return draw(count), draw(20)

  @parameterized.parameters(('IVF128,Flat', 8, 0.95), ('Flat', 0, 0.999))
  def test_finds_most_of_the_hundred_best_of_20k(self, factory, probes, least):
    vectors, queries = self.clustered(20_000)
    ids = np.arange(20_000) + 5
    exact = Index(vectors, ids).search(queries, 100)[0]
    found = Index(vectors, ids, backend='faiss', factory=factory, probes=probes).search(
        queries, 100)[0]
    recall = np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(exact, found)])
    self.assertGreaterEqual(recall, least)

  @parameterized.parameters(
      ('nonsense', 0, "predict.factory: expected a structure .*'nonsense': could not parse"),
      ('IDMap,HNSW32', 0, 'predict.factory: .*use add_with_ids'),
      ('IVF128,Flat', 0, 'predict.factory: expected .* for 100 vectors of 16 numbers, .*clusters'),
      ('Flat', 5, "predict.probes: expected 0 with factory 'Flat', .*got 5"))
  def test_what_faiss_cannot_make(self, factory, probes, message):
    vectors, queries = self.clustered(100, 16)
    index = Index(vectors, np.arange(100), backend='faiss', factory=factory, probes=probes)
    with self.assertRaisesRegex(ConfigError, message):
      index.search(queries, 3)

  @parameterized.parameters('HNSW8', 'PCA8,HNSW8', 'IVF4_HNSW8,Flat', 'PCA8,IVF4,Flat')
  def test_probes_of_composed_structures(self, factory):
    vectors, queries = self.clustered(100, 16)
    index = Index(vectors, np.arange(100), backend='faiss', factory=factory, probes=4)
    self.assertTrue((index.search(queries, 3)[0] >= 0).all())

  def test_without_the_package(self):
    with mock.patch.dict('sys.modules', {'faiss': None}):
      with self.assertRaisesRegex(ConfigError, r"pip install 'jaxlab\[ann\]'"):
        Index(np.eye(3), [1, 2, 3], backend='faiss').search(np.eye(3), 1)


if __name__ == '__main__':
  absltest.main()
