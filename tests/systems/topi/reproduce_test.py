"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.topi import reproduce, study
from jaxlab.train import claims

OTHERS = ('random', 'regular', 'value norm only', 'early layer', 'attention only', 'all layers',
          'ToPi, 1 layer', 'ToPi, 2 layers', 'set of step 0', 'last layer', 'true location',
          *reproduce.MERGES)
SPREAD = np.array([0.0, .001, .002])


def verdicts(mse=.001, without=1.0, slow=3.0, tau=(), specified=True, **errors):
  """Statuses of made-up results; `errors` replaces the error of a policy at every budget."""
  level = {**dict.fromkeys(OTHERS, .6), 'ToPi': .02, 'ToPi, 2 layers': .02,
           'least influential first': .9, **errors}
  table = {name: {budget: value + SPREAD for budget in reproduce.BUDGETS}
           for name, value in level.items()}
  taus = dict(zip(study.TAUS, np.linspace(.04, .01, len(study.TAUS))))
  taus.update(tau)
  fixture = {'mse': mse + SPREAD, 'wrong': 2 + SPREAD, 'variance': 3 + SPREAD, 'loss': SPREAD}
  rows = reproduce.judge(
      table, {t: error + SPREAD for t, error in taus.items()}, {t: .5 + SPREAD for t in taus},
      fixture, {'with': .1 + SPREAD, 'without': without + SPREAD},
      {'plain': list(slow + SPREAD), 'pruned': [1.0, 1.01, 1.02], 'flops': 1.6}, specified)
  return [row.status for row in rows if row.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    self.assertEqual(verdicts(), [claims.HOLDS] * 10)

  @parameterized.parameters(
      ({'without': .15}, [0]), ({'regular': .1}, [2, 9]), ({'value norm only': .1}, [3, 9]),
      ({'early layer': .05}, [4, 9]), ({'least influential first': .5}, [6]),
      ({'tau': {reproduce.TAU: .5}}, [7]), ({'slow': 1.0}, [8]), ({'ToPi, 2 layers': .055}, [9]))
  def test_each_falls_with_its_number(self, changes, places):
    expected = [claims.verdict(i not in places) for i in range(10)]
    self.assertEqual(verdicts(**changes), expected)

  def test_two_layers_are_judged_for_the_networks_of_the_specification_alone(self):
    self.assertEqual(verdicts(specified=False, **{'ToPi, 2 layers': .6}), [claims.HOLDS] * 9)

  def test_a_network_that_does_not_read_the_reference_judges_no_pruning(self):
    found = verdicts(mse=1.0)
    self.assertEqual(found[0], claims.FAILS)
    self.assertEqual(found.count(claims.HOLDS), 2)  # what does not look at pruned pictures


if __name__ == '__main__':
  absltest.main()
