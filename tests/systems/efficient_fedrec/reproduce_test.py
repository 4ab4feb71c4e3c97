"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.efficient_fedrec import reproduce
from jaxlab.train import claims

AUC = {'two stages': .75, 'whole model': .75, 'secure sums': .75, 'frozen news encoder': .6}
COST = {'bytes': {'whole': (1500, 1500), 'two': (100, 100)}, 'sparse_whole_bytes': 500.0,
        'milliseconds': {'whole': (5.0, 6.0), 'two': (1.0, 1.2)},
        'down': 15.0, 'up': 15.0, 'time_best': 5.0, 'time_median': 5.0}


def verdicts(cost=None, **auc):
  curves = {arm: np.full((3, 8), {**AUC, **auc}[arm]) + .001 * np.arange(3)[:, None]
            for arm in reproduce.ARMS}
  table = reproduce.judge('mind', curves, {**COST, **(cost or {})}, 'two stages')
  return [claim.status for claim in table]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    self.assertEqual(verdicts(), [claims.HOLDS] * 7)

  @parameterized.parameters(
      ({'whole model': .76}, [1, 2]), ({'secure sums': .74}, [2]),
      ({'frozen news encoder': .7}, [3]), ({'cost': {'down': 9.0}}, [4]),
      ({'cost': {'up': 9.0}}, [5]), ({'cost': {'time_best': 2.0}}, [6]))
  def test_each_falls_with_its_number(self, changes, places):
    self.assertEqual(verdicts(**changes), [claims.verdict(i not in places) for i in range(7)])

  def test_a_level_that_is_not_surely_reached(self):
    auc = {arm: .6995 for arm in AUC}
    self.assertEqual(verdicts(**{**auc, 'frozen news encoder': .6})[0], claims.FAILS)


if __name__ == '__main__':
  absltest.main()
