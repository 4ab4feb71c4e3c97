"""How reproduce compares arms: intervals, schedules, and what decides a comparison."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.vla_jepa import reproduce, study
from jaxlab.train import claims


def result(success, l1=.1, shuffled=.15, probes=(0.0, .5)):
  """Made-up metrics of two seeds; `success` is how many of a hundred episodes of each seed."""
  reached = np.zeros((2, len(study.CONDITIONS), reproduce.EPISODES), bool)
  for seed, count in enumerate(success):
    reached[seed, :, :count] = True
  noise = np.array([0.0, .001])
  return {'success': reached, 'l1': l1 + noise, 'shuffled': shuffled + noise,
          'probes': np.array(probes) + noise[:, None]}


def rows(**changes):
  """{text: status} of the comparisons."""
  arms = {reproduce.VIDEO_SINGLE: (80, 85), reproduce.NO_VIDEO: (40, 45),
          reproduce.EQUAL: (78, 88), reproduce.VIDEO_SHARED: (95, 99), reproduce.LEAKY: (40, 45)}
  made = {arm: result(success) for arm, success in arms.items()}
  made[reproduce.VIDEO_CAUSAL] = result((80, 85), **changes)
  return {row.text: row.status for row in reproduce._comparisons(made)}


class CompareTest(parameterized.TestCase):

  @parameterized.parameters(
      ((80, 85), (40, 45), claims.HOLDS), ((40, 45), (80, 85), claims.FAILS),
      ((50, 52), (48, 50), claims.NOT_JUDGED),  # the intervals overlap
      ((99, 45), (40, 46), claims.NOT_JUDGED))  # one seed disagrees
  def test_decided_only_by_disjoint_intervals_and_agreement(self, better, worse, status):
    self.assertEqual(reproduce.compare(np.array(better), np.array(worse)), status)

  def test_rows(self):
    found = rows()
    self.assertLen(found, 4 + 5 * len(study.CONDITIONS))
    for name in study.CONDITIONS:
      self.assertEqual(found[f'pretraining helps, {name}'], claims.HOLDS)
      self.assertEqual(found[f'pretraining helps at equal updates, {name}'], claims.NOT_JUDGED)
      self.assertEqual(found[f'causal_prefix beats shared, {name}'], claims.FAILS)
      self.assertEqual(found[f'causal_prefix beats leaky latent actions, {name}'], claims.HOLDS)

  def test_unused_latent_actions_decide_nothing_of_pretraining(self):
    found = rows(shuffled=.101)
    self.assertEqual(sum(status == claims.FAILS for text, status in found.items()
                         if 'shuffled' in text), 1)
    self.assertEqual({status for text, status in found.items() if text.startswith('pretraining h')},
                     {claims.NOT_JUDGED})

  def test_latent_actions_that_learn_nothing(self):
    found = rows(probes=(.5, .5))
    told = [status for text, status in found.items() if 'tell the motion' in text]
    self.assertEqual(told, [claims.FAILS, claims.HOLDS])

  def test_rates(self):
    rates = reproduce.rates(100, 150, 2.0)
    self.assertAlmostEqual(rates[0], 2 / reproduce.WARMUP, places=3)
    self.assertLess(rates[99], 0.01)
    np.testing.assert_array_equal(rates[100:], 0)

  def test_a_run_of_an_arm(self):
    run = reproduce.make_run(reproduce.NO_VIDEO, 3)
    self.assertEqual(set(run.updates[0]), {study.NOTHING})
    self.assertEqual(int((run.updates[1] == study.ROBOT).sum()), reproduce.SECOND)
    self.assertLen(set(run.demos.tolist()), reproduce.DEMOS_OF_RUN)

  def test_the_leak_is_seen_if_shared_and_not_if_causal(self):
    self.assertEqual(reproduce.leak('causal_prefix', 0)[0], 0)
    self.assertGreater(reproduce.leak('shared', 0)[0], 1e-3)


if __name__ == '__main__':
  absltest.main()
