"""Hit rates, judges and word overlap on cases made by hand; what a query costs."""
import numpy as np
from absl.testing import absltest

from jaxlab.systems.deepqse import baselines, cost, metrics
from jaxlab.systems.deepqse.model import PADDING


class MetricsTest(absltest.TestCase):

  def test_precision(self):
    scores = np.array([[3.0, 2.0, 1.0, 9.0], [1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 0.0]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    labels = np.array([0, 0, 2])
    np.testing.assert_array_equal(metrics.ranks_of(scores, labels, mask), [1, 4, 3])
    found = metrics.precision_at(scores, labels, mask, (1, 3, 4, 20))
    np.testing.assert_allclose(list(found.values()), [1 / 3, 2 / 3, 1, 1])  # 20 > n hits
    self.assertEqual(list(found), ['prec@1', 'prec@3', 'prec@4', 'prec@20'])

  def test_a_gold_sentence_that_stage_one_loses_is_a_miss(self):
    scores = np.full((2, 6), PADDING)
    scores[:, 3:5] = [[1.0, 2.0], [2.0, 1.0]]  # the two candidates
    mask = np.array([[1] * 6, [1, 1, 1, 1, 1, 0]])
    self.assertEqual(metrics.precision_at(scores, np.array([0, 3]), mask, (1, 3, 20)),
                     {'prec@1': 0.5, 'prec@3': 0.5, 'prec@20': 0.5})

  def test_judges(self):
    found = metrics.judge_accuracy([2, 2, 1, 1], [1, 1, 1, 2], [0, 1, 1, 1])
    self.assertEqual(found, 0.5)  # an equal score is wrong

  def test_bm25(self):
    sentences = ['the cat sat', 'the dog sat', 'a dog, a dog']
    idf = lambda df: np.log(1 + (3 - df + 0.5) / (df + 0.5))
    mean = 10 / 3
    norm = lambda length: 1.2 * (0.25 + 0.75 * length / mean)
    np.testing.assert_allclose(baselines.bm25('Dog cat', sentences), [
        idf(1) * 2.2 / (1 + norm(3)), idf(2) * 2.2 / (1 + norm(3)),
        idf(2) * 2 * 2.2 / (2 + norm(4))], rtol=1e-12)
    np.testing.assert_array_equal(baselines.bm25('bird', sentences), np.zeros(3))
    np.testing.assert_array_equal(baselines.bm25('x', ['']), [0])

  def test_overlap_and_order(self):
    found = baselines.tf_idf('dog dog', ['cat', 'dog', 'dog dog'])
    np.testing.assert_allclose(found, np.array([0, 1, 2]) * np.log(4 / 3))
    order = baselines.in_order(['a', 'b'])
    self.assertGreater(order[0], order[1])
    np.testing.assert_array_equal(baselines.padded([order], 3), [[0, -1, 0]])

  def test_cost(self):
    found = cost.tokens(160, 20, 20, 20, 30)
    self.assertEqual((found.joint, found.online, found.cache), (11200, 680, 8000))
    self.assertGreater(found.joint, 10 * found.online)


if __name__ == '__main__':
  absltest.main()
