"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.debiasedrec import reproduce
from jaxlab.train import claims

LEVELS = {'no debiasing': .85, 'DebiasedRec': .89, 'in the user model only': .86,
          'in the click score only': .885, 'no interactions': .89}


def verdicts(slots=None, slot_score=.85, unbiased=.9, **levels):
  level = {**dict.fromkeys(reproduce.ARMS, .86), **LEVELS, **levels}
  points = lambda value: np.full((2, reproduce.POINTS), value) + [[0.0], [.001]]
  curve = reproduce.slot_truth() if slots is None else slots
  of = lambda world, arm: (
      level[arm] if world == 'biased' else unbiased if arm == 'DebiasedRec' else .9)
  results = {world: {arm: {
      'random': points(of(world, arm)), 'served': points(.72),
      'with slot': points(slot_score),
      'slots': np.broadcast_to(curve, (2, reproduce.POINTS, len(curve)))} for arm in arms}
             for world, (_, arms) in reproduce.WORLDS.items()}
  return [c.status for c in reproduce.judge(results) if c.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    self.assertEqual(verdicts(), [claims.verdict(True)] * 5)

  @parameterized.parameters(
      ({'DebiasedRec': .855, 'in the click score only': .855, 'no interactions': .855}, 0),
      ({'in the user model only': .8}, 1), ({'slot_score': .75}, 2),
      ({'slots': np.zeros(10)}, 3), ({'unbiased': .88}, 4))
  def test_each_falls_with_its_number(self, changes, place):
    self.assertEqual(verdicts(**changes), [claims.verdict(i != place) for i in range(5)])

  def test_what_is_seen_falls_with_the_slot(self):
    truth = reproduce.slot_truth()
    self.assertLen(truth, 10)
    self.assertTrue((np.diff(truth) < 0).all())


if __name__ == '__main__':
  absltest.main()
