"""Retrieval in a batch: ties, batches, degenerate vectors."""
import numpy as np
from absl.testing import absltest

from jaxlab.systems.graphformers import metrics


class MetricsTest(absltest.TestCase):

  def test_by_hand(self):
    scores = np.array([[3., 1, 2], [5, 4, 1], [2, 3, 1]])
    found = metrics.official(scores)
    self.assertAlmostEqual(found['p@1'], 1 / 3)
    self.assertAlmostEqual(found['mrr'], (1 + 1 / 2 + 1 / 3) / 3)
    self.assertAlmostEqual(found['ndcg'], (1 + 1 / np.log2(3) + 1 / 2) / 3)
    self.assertAlmostEqual(found['auc'], (1 + 1 / 2 + 0) / 3)
    tied = metrics.tie_aware(scores)
    self.assertEqual(tied, {name: found[name] for name in ('p@1', 'mrr')})

  def test_a_tie_is_its_expectation_over_random_order(self):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (20, 20)).astype(float) + 1
    draws = [metrics.official(scores + 1e-9 * rng.normal(size=scores.shape)) for _ in range(3000)]
    for name, value in metrics.tie_aware(scores).items():
      self.assertAlmostEqual(value, np.mean([d[name] for d in draws]), delta=0.01)
    self.assertGreater(metrics.official(scores)['p@1'], metrics.tie_aware(scores)['p@1'])

  def test_equal_vectors_are_no_hit(self):
    found = metrics.over_batches(np.ones((10, 3)), np.ones((10, 3)))
    self.assertEqual(found['p@1'], 1)  # the reference's, which a tie flatters
    self.assertAlmostEqual(found['tied_p@1'], 0.1)
    self.assertAlmostEqual(found['auc'], 0.5)
    self.assertTrue(np.isfinite(list(metrics.over_batches(np.zeros((4, 3)),
                                                          np.zeros((4, 3))).values())).all())

  def test_the_last_partial_batch_is_left_out(self):
    eye = np.eye(5)
    wrong = np.concatenate([eye[:4], eye[[0]]])
    self.assertEqual(metrics.over_batches(eye, wrong, 2)['tied_p@1'], 1)
    self.assertLess(metrics.over_batches(eye, wrong, 5)['tied_p@1'], 1)
    self.assertEqual(metrics.over_batches(eye, wrong, 300), metrics.over_batches(eye, wrong, 5))


if __name__ == '__main__':
  absltest.main()
