"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.adasam import reproduce
from jaxlab.train import claims

ACCURACY = {'AdaSAM': .93, 'AMSGrad': .91, 'SAM': .905, 'SGD': .9}
SHARPNESS = {'AdaSAM': .4, 'AMSGrad': 1.0, 'SAM': .5, 'SGD': 1.0}


def verdicts(accuracy=(), sharpness=()):
  """Statuses of made-up results; `accuracy` and `sharpness` are (setup number, arm, value)s."""
  spread = .001 * np.arange(4)
  results = {}
  for number, setup in enumerate(reproduce.SETUPS):
    level, sharp = dict(ACCURACY), dict(SHARPNESS)
    level.update({arm: value for place, arm, value in accuracy if place == number})
    sharp.update({arm: value for place, arm, value in sharpness if place == number})
    results[setup] = {arm: {'accuracy': level[arm] + spread, 'sharpness': sharp[arm] + spread}
                      for arm in reproduce.ARMS}
    results[setup]['AMSGrad']['at_equal_rate'] = {'sharpness': sharp['AMSGrad'] + spread}
  return [c.status for c in reproduce.judge(results) if c.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    self.assertEqual(verdicts(), [claims.verdict(True)] * 5)

  @parameterized.parameters(
      ({'accuracy': [(0, 'AMSGrad', .93)]}, 0), ({'sharpness': [(0, 'AdaSAM', 1.1)]}, 1),
      ({'accuracy': [(0, 'SAM', .89)]}, 2), ({'accuracy': [(1, 'AMSGrad', .925)]}, 3),
      ({'sharpness': [(1, 'AdaSAM', .8)]}, 3), ({'accuracy': [(2, 'AMSGrad', .94)]}, 4))
  def test_each_falls_with_its_number(self, changes, place):
    self.assertEqual(verdicts(**changes), [claims.verdict(i != place) for i in range(5)])


if __name__ == '__main__':
  absltest.main()
