"""How the estimated number of attackers is judged."""
import numpy as np
from absl.testing import absltest

from jaxlab.systems.fedra import reproduce


class CountsTest(absltest.TestCase):

  def test_a_run_that_is_off_by_a_constant_costs_error_and_no_correlation(self):
    true = np.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    error, correlation = reproduce.counts({'m_true': true, 'm_hat': true + [[0], [2]]})
    self.assertAlmostEqual(error, 1.0)
    self.assertAlmostEqual(correlation, 1.0)

  def test_a_constant_estimate_counts_as_uncorrelated(self):
    true = np.array([[0, 1, 2, 3], [0, 1, 2, 3]])
    estimates = np.array([[2] * 4, [3, 2, 1, 0]])
    error, correlation = reproduce.counts({'m_true': true, 'm_hat': estimates})
    self.assertAlmostEqual(error, 0.25)
    self.assertAlmostEqual(correlation, -0.5)


if __name__ == '__main__':
  absltest.main()
