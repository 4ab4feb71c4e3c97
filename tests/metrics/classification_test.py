"""Metrics of classifiers against scikit-learn."""
import numpy as np
import sklearn.metrics
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.metrics import accuracy, cross_entropy


def draw(rows, classes, scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  logits = scale * rng.normal(size=(rows, classes))
  return logits.astype(np.float32), rng.integers(0, classes, rows).astype(np.int32)


class ClassificationTest(parameterized.TestCase):

  @parameterized.product(rows=[1, 50], classes=[2, 7], scale=[0.1, 3.0])
  def test_equals_scikit_learn(self, rows, classes, scale):
    logits, labels = draw(rows, classes, scale)
    self.assertIsInstance(accuracy(logits, labels), float)
    self.assertAlmostEqual(accuracy(logits, labels),
                           sklearn.metrics.accuracy_score(labels, logits.argmax(-1)), places=12)
    probabilities = special.softmax(logits.astype(np.float64), axis=-1)
    self.assertIsInstance(cross_entropy(logits, labels), float)
    self.assertAlmostEqual(
        cross_entropy(logits, labels),
        sklearn.metrics.log_loss(labels, probabilities, labels=range(classes)), places=6)

  def test_logits_that_overflow_an_exponential(self):
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    self.assertEqual(cross_entropy(logits, np.array([0, 0])), 5000.0)

  def test_known_values(self):
    self.assertEqual(accuracy(np.eye(4)[[0, 1, 2, 3]], np.array([0, 1, 2, 0])), 0.75)
    self.assertAlmostEqual(cross_entropy(np.zeros((3, 4)), np.array([0, 1, 3])), np.log(4))

  @parameterized.product(metric=[accuracy, cross_entropy], rows=[(0, 0), (3, 2), (2, 3), (3, 1)])
  def test_rows_must_agree(self, metric, rows):
    with self.assertRaisesRegex(
        ValueError, f'equal, non-zero numbers of rows, got {rows[0]} logits and {rows[1]} labels'):
      metric(np.zeros((rows[0], 4)), np.zeros(rows[1], int))


if __name__ == '__main__':
  absltest.main()
