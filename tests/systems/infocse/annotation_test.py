"""Clusters and positives: padding, symmetry, what may never be chosen, draws; hard negatives."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.systems.infocse import annotation

RNG = np.random.default_rng(0)
unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
annotate = jax.jit(jax.vmap(functools.partial(annotation.annotate, max_clusters=4, per_cluster=3,
                                              min_cosine=0.0)))
nearest = jax.jit(jax.vmap(functools.partial(annotation.annotate, max_clusters=4, per_cluster=3,
                                             min_cosine=0.0, seeds='first', pick='nearest')))
hard = jax.jit(jax.vmap(annotation.hard_negatives))


def documents(count=6, size=9, dim=5):
  """(z, valid, similar, duplicate) of documents of 1 to `size` sentences; padding is garbage."""
  lengths = np.linspace(1, size, count).astype(int)
  valid = np.arange(size) < lengths[:, None]
  nothing = np.zeros((count, size, size), bool)
  return unit(RNG.normal(size=(count, size, dim)) + 0.5), valid, nothing, nothing


class AnnotateTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.rows = documents()
    self.keys = jax.random.split(jax.random.key(0), len(self.rows[0]))

  def test_what_is_chosen(self):
    z, valid, _, _ = self.rows
    for program in (annotate, nearest):
      picked, cluster = map(np.asarray, (program(self.keys, *self.rows)[0].index,
                                         program(self.keys, *self.rows)[1]))
      np.testing.assert_array_equal(cluster >= 0, valid)
      self.assertTrue((picked[~valid] == -1).all())
      own = np.arange(z.shape[1])
      for d, s in np.argwhere(picked >= 0):
        other = picked[d, s]
        self.assertTrue(valid[d, other] and other != s)
        self.assertEqual(cluster[d, other], cluster[d, s])
        self.assertGreaterEqual(z[d, other] @ z[d, s], -1e-6)
      # Who is alone in its cluster has none.
      self.assertTrue((picked[0] == -1).all())
      counts = annotation.cluster_count(jnp.asarray(valid[-1]), 3)
      self.assertLessEqual(cluster.max(), 3)
      self.assertEqual(int(counts), 3)
      self.assertLess(len(own[picked[-1] == -1]), len(own))

  def test_padding_changes_nothing(self):
    z, valid, similar, duplicate = self.rows
    picked, cluster = nearest(self.keys, z, valid, similar, duplicate)
    other = np.where(valid[..., None], z, unit(RNG.normal(size=z.shape)))
    again, clusters = nearest(self.keys, other, valid, similar, duplicate)
    np.testing.assert_array_equal(cluster, clusters)
    np.testing.assert_array_equal(picked.index, again.index)
    for a, b in zip(annotate(self.keys, *self.rows)[0],
                    annotate(self.keys, other, valid, similar, duplicate)[0]):
      np.testing.assert_array_equal(a, b)

  def test_trivial_ones_are_never_chosen(self):
    z, valid, similar, duplicate = self.rows
    z = z.copy()
    z[:, 1] = z[:, 0]
    allowed = annotation.eligible(z[-1], np.zeros(9, int), -1.0)
    self.assertTrue(allowed[0, 1] and allowed[1, 0])
    twin = np.zeros((9, 9), bool)
    twin[0, 1] = twin[1, 0] = True
    for options, fine in (({'duplicate': twin}, False), ({'similar': twin}, True),
                          ({'similar': twin, 'max_cosine': 0.98}, False),
                          ({'max_cosine': 0.98}, True)):
      allowed = np.asarray(annotation.eligible(z[-1], np.zeros(9, int), -1.0, **options))
      self.assertEqual(bool(allowed[0, 1]), fine, options)
      np.testing.assert_array_equal(allowed, allowed.T)
      self.assertFalse(allowed.diagonal().any())

  def test_the_draw_follows_the_softmax(self):
    z = unit(np.array([[1, 0], [1, .1], [1, .6], [0, 1]]))
    allowed = np.array([[False, True, True, False]] + [[False] * 4] * 3)
    draw = jax.jit(jax.vmap(lambda key: annotation.choose(z, allowed, key=key)))
    found = draw(jax.random.split(jax.random.key(1), 2000))
    share = np.mean(found.index[:, 0] == 1)
    logits = z[0] @ z[1:3].T / 0.1
    self.assertAlmostEqual(share, 1 / (1 + np.exp(logits[1] - logits[0])), delta=0.03)
    np.testing.assert_array_equal(found.index[:, 1:], -1)
    np.testing.assert_array_equal(found.cosine[:, 1:], 0)

  def test_hard_negatives(self):
    z, valid, _, _ = self.rows
    _, cluster = nearest(self.keys, *self.rows)
    cluster = np.asarray(cluster)
    for d, row in enumerate(np.asarray(hard(z, cluster))):
      for s, other in enumerate(row):
        candidates = np.flatnonzero(valid[d] & (cluster[d] != cluster[d, s]))
        if valid[d, s] and len(candidates):
          self.assertEqual(other, candidates[np.argmax(z[d, candidates] @ z[d, s])])
        else:
          self.assertEqual(other, -1)


class KmeansTest(absltest.TestCase):

  def test_finds_what_is_apart(self):
    centers = np.eye(4, 8)
    label = np.repeat(np.arange(4), 5)
    z = unit(centers[label] + 0.05 * RNG.normal(size=(20, 8)))

    @jax.jit
    @jax.vmap
    def run(key):
      start = annotation.plus_plus(key, z, np.ones(20), 4)
      return annotation.spherical_kmeans(z, np.ones(20), start, 10)[0]

    for cluster in np.asarray(run(jax.random.split(jax.random.key(0), 8))):
      self.assertLen(set(zip(cluster, label)), 4)

  def test_an_empty_cluster_stays_and_unused_ones_get_nothing(self):
    z = unit(np.array([[1, 0], [.9, .1], [1, .05]]))
    start = np.array([[1, 0], [-1, 0], [.9, .1]], np.float32)
    cluster, centroids = annotation.spherical_kmeans(z, np.ones(3), start, 3, 2)
    np.testing.assert_array_equal(cluster, 0)
    np.testing.assert_array_equal(centroids[1:], start[1:])
    np.testing.assert_allclose(np.linalg.norm(centroids[0]), 1, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
