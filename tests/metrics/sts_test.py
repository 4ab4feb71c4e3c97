"""Spearman over subsets: all, mean and weighted mean differ as they should; bad sizes."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.metrics import sts


class StsTest(parameterized.TestCase):

  def test_three_ways_of_averaging(self):
    # Each subset is in perfect order, or in reverse; together they are neither.
    scores, gold = [1, 2, 3, 9, 8], [11, 12, 13, 1, 2]
    found = sts.spearman_subsets(scores, gold, [3, 2])
    np.testing.assert_allclose(found['subsets'], [1, -1])
    self.assertAlmostEqual(found['mean'], 0)
    self.assertAlmostEqual(found['wmean'], 0.2)
    self.assertLess(found['all'], -0.4)

  def test_ties_have_average_ranks(self):
    found = sts.spearman_subsets([1, 1, 2, 3], [1, 2, 3, 3], [4])['all']
    self.assertAlmostEqual(found, float(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5])[0, 1]))

  @parameterized.parameters(([1, 2, 3], [1, 2, 3], [2]), ([1, 2], [1, 2, 3], [2]),
                            ([1, 2, 3], [1, 2, 3], [2, 1]))
  def test_refused(self, scores, gold, sizes):
    with self.assertRaises(ValueError):
      sts.spearman_subsets(scores, gold, sizes)


if __name__ == '__main__':
  absltest.main()
