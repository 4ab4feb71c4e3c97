"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.infocse import reproduce
from jaxlab.train import claims

FINAL = {'InfoCSE': .95, 'annotate once': .8, 'random': .7, 'twin': .7}
RIGHT = {'InfoCSE': .77, 'annotate once': .48, 'random': .18, 'twin': 0.0}


def runs(arm, rise, final, right):
  seeds = np.array([[0.0], [.001]])
  grow = lambda first, last: np.linspace(first, last, reproduce.ROUNDS) + seeds
  kinds = np.zeros((2, reproduce.ROUNDS, 4))
  kinds[..., 0] = right[arm] + seeds
  return reproduce.Runs(grow(.4, final[arm]), kinds, grow(.5, .5 + rise))


def verdicts(rise=.3, right=None, **final):
  final, right = {**FINAL, **final}, {**RIGHT, **(right or {})}
  chosen = {arm: (1e-2, runs(arm, rise, final, right)) for arm in reproduce.ARMS}
  return [c.status for c in reproduce.judge(chosen) if c.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    self.assertEqual(verdicts(), [claims.verdict(True)] * 5)

  @parameterized.parameters(
      ({'rise': .01}, 0), ({'twin': .95}, 1), ({'random': .95}, 2), ({'annotate once': .95}, 3),
      ({'right': {'annotate once': .8}}, 4))
  def test_each_falls_with_its_number(self, changes, place):
    self.assertEqual(verdicts(**changes), [claims.verdict(i != place) for i in range(5)])

  def test_the_best_rate_is_that_of_the_highest_final_retrieval(self):
    grid = {rate: runs('InfoCSE', .3, {'InfoCSE': level}, RIGHT)
            for rate, level in ((1e-3, .5), (1e-2, .9), (1e-1, .7))}
    self.assertEqual(reproduce.best(grid)[0], 1e-2)


if __name__ == '__main__':
  absltest.main()
