"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.xdeepfm import reproduce
from jaxlab.train import claims

AUC = {'LR': .54, 'FM': .61, 'CIN': .88, 'xDeepFM': .87}


def verdicts(**auc):
  level = {**dict.fromkeys(reproduce.ARMS, .8), **AUC, **auc}
  points = lambda value: np.full((3, reproduce.POINTS), value) + .001 * np.arange(3)[:, None]
  results = {arm: {'auc': points(value), 'logloss': points(.5)} for arm, value in level.items()}
  table = reproduce.judge(results, np.full(3, .9))
  return [claim.status for claim in table if claim.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    self.assertEqual(verdicts(), [claims.HOLDS] * 2)

  @parameterized.parameters(
      ({'CIN': .7}, [0]), ({'xDeepFM': .7}, [1]), ({'FM': .58}, [0, 1]), ({'FM': .8}, [0, 1]))
  def test_each_falls_with_its_number(self, changes, places):
    self.assertEqual(verdicts(**changes), [claims.verdict(i not in places) for i in range(2)])


if __name__ == '__main__':
  absltest.main()
