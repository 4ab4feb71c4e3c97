"""Recall, MRR and nDCG with one relevant item, by hand; pools; what is refused."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.metrics import retrieval

SCORES = np.array([[.1, .9, .5], [.2, .2, .1], [.3, .2, .1]])


class RetrievalTest(parameterized.TestCase):

  def test_by_hand(self):
    ranks = retrieval.ranks(SCORES, np.array([2, 1, 2]))
    np.testing.assert_array_equal(ranks, [2, 1, 3])  # a tie counts in favour
    self.assertAlmostEqual(retrieval.mrr(ranks), (1 / 2 + 1 + 1 / 3) / 3)
    self.assertAlmostEqual(retrieval.mrr(ranks, 2), (1 / 2 + 1) / 3)
    self.assertAlmostEqual(retrieval.ndcg_at(ranks, 2), (1 + 1 / np.log2(3)) / 3)
    self.assertEqual([retrieval.recall_at(ranks, k) for k in (1, 2, 3)], [1 / 3, 2 / 3, 1])
    self.assertEqual(set(retrieval.report(ranks)),
                     {'recall@1', 'recall@5', 'recall@10', 'mrr@10', 'ndcg@10'})

  def test_pools(self):
    mask = np.array([[True, False, True], [True, True, True], [False, False, True]])
    padded = np.where(mask, SCORES, np.nan)  # what is not in a pool may be anything
    np.testing.assert_array_equal(retrieval.ranks(padded, [2, 2, 2], mask), [1, 3, 1])

  @parameterized.parameters(
      ((SCORES, [0, 1]), r'scores \[Q, N\] and relevant \[Q\], got \(3, 3\) and \(2,\)'),
      ((SCORES, [0, 1, 3]), 'expected an item of the pool'),
      ((SCORES, [0, -1, 0]), 'expected an item of the pool'),
      ((SCORES, [0, 1, 0], SCORES > .25), 'expected an item of the pool'),
      ((np.where(SCORES > .8, np.nan, SCORES), [0, 0, 0]), 'expected finite numbers'))
  def test_refused(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      retrieval.ranks(*arguments)


if __name__ == '__main__':
  absltest.main()
