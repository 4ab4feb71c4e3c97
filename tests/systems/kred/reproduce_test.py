"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.kred import reproduce
from jaxlab.train import claims

GOOD = {'noise, entities': .9, 'noise, none': .14, 'noise, no neighbours': .13,
        'few clicks, multi-task': .65, 'few clicks, single task': .55}


def results(**changes):
  """Made-up results: entities bring .6 in every task, and all losses fall."""
  made = {}
  for arm in reproduce.ARMS:
    level = changes.get(arm, GOOD.get(arm, .9 if arm.endswith('entities') else .3))
    if arm.startswith('strong'):
      level = changes.get(arm, .9)
    made[arm] = {task: np.full((2, reproduce.STRETCHES), level) + [[0.0], [.002]]
                 for task in reproduce.TASKS}
    falls = np.linspace(2, 1, reproduce.STRETCHES * reproduce.STRETCH)
    made[arm]['loss'] = np.tile(falls[None, :, None], (2, 1, len(reproduce.TASKS)))
  return made


def verdicts(made):
  return [claim.status for claim in reproduce.judge(made) if claim.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    found = verdicts(results())
    self.assertEqual(set(found), {claims.verdict(True)})
    self.assertLen(found, 7)

  @parameterized.parameters(
      ({'noise, entities': .84}, 1), ({'noise, none': .3}, 1), ({'noise, no neighbours': .6}, 1),
      ({'weak, entities': .35}, 5), ({'strong, entities': .85}, 5),
      ({'few clicks, multi-task': .56}, 1))
  def test_each_falls_with_its_number(self, changes, fallen):
    self.assertEqual(verdicts(results(**changes)).count(claims.verdict(False)), fallen)

  def test_a_loss_that_rises(self):
    made = results()
    made['few clicks, multi-task']['loss'] = made['few clicks, multi-task']['loss'][:, ::-1]
    self.assertEqual(verdicts(made).count(claims.verdict(False)), 1)

  def test_the_schedule_of_an_arm(self):
    weights = reproduce.schedule(reproduce.ARMS['few clicks, multi-task'], reproduce.MULTI)
    np.testing.assert_array_equal(weights[:reproduce.JOINT], 1)
    np.testing.assert_array_equal(weights[reproduce.JOINT:].sum(1), 1)


if __name__ == '__main__':
  absltest.main()
