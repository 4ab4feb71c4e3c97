"""Metrics of click probabilities against scikit-learn."""
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sk

from jaxlab.metrics import binary


class BinaryTest(parameterized.TestCase):

  @parameterized.parameters(0, 1, 2)
  def test_equals_scikit_learn(self, seed):
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, 2, 300), rng.integers(-4, 5, 300) / 2  # with many ties
    self.assertAlmostEqual(binary.auc(labels, logits), sk.roc_auc_score(labels, logits), places=12)
    probability = 1 / (1 + np.exp(-logits))
    self.assertAlmostEqual(binary.log_loss(labels, logits), sk.log_loss(labels, probability),
                           places=10)
    groups = rng.integers(0, 90, 300)
    parts = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    both = [rows for rows in parts if len(set(labels[rows])) == 2]
    self.assertLess(len(both), len(parts))
    expected = np.average([sk.roc_auc_score(labels[rows], logits[rows]) for rows in both],
                          weights=[len(rows) for rows in both])
    self.assertAlmostEqual(binary.group_auc(labels, logits, groups), expected, places=12)

  def test_extremes(self):
    self.assertEqual(binary.log_loss([1, 0], [1000., -1000.]), 0)
    self.assertEqual(binary.log_loss([1], [-1000.]), 1000)
    self.assertTrue(np.isnan(binary.auc([1, 1], [.1, .2])))
    self.assertTrue(np.isnan(binary.group_auc([1, 0], [.1, .2], [0, 1])))
    for labels, scores in (([], []), ([1], [1., 2.]), ([[1]], [[1.]])):
      with self.assertRaisesRegex(ValueError, 'expected equal, non-zero numbers of rows'):
        binary.auc(labels, scores)

  def test_calibration(self):
    rng = np.random.default_rng(0)
    probability = rng.random(20_000)
    mean, share, rows = binary.calibration(rng.random(20_000) < probability, probability, 10)
    np.testing.assert_array_equal(rows, 2000)
    np.testing.assert_allclose(mean, np.arange(10) / 10 + .05, atol=.02)
    np.testing.assert_allclose(mean, share, atol=.05)


if __name__ == '__main__':
  absltest.main()
