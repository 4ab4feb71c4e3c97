"""The verdicts on given curves: drops make the claims hold, their absence makes each fail."""
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from jaxlab.systems.ua_fedrec import reproduce
from jaxlab.systems.ua_fedrec.experiment import OFF
from jaxlab.train import claims

SPREAD = np.array([-0.004, 0.0, 0.004])[:, None]
DROPS = {0.0: 0.0, 0.01: 0.05, 0.03: 0.15, 0.1: 0.21}


def curves(arms, drop):
  """{label: AUC [3, 4]}: .74 less what `drop` says of the arm; seeds differ alike in all arms."""
  return {label: 0.74 - drop(arm) + SPREAD + np.zeros(4) for label, arm in arms.items()}


def attacked(arm, share=1.0):
  """A drop as the spec measured it: less for other attacks, ablated ones and under a defence."""
  weaker = arm.forge != 'UA-FedRec' or 0 in arm.strength
  return 0.0 if arm.strength == OFF else share * DROPS[arm.share] * (0.3 if weaker else 1)


def judged(strength):
  """{status: number} of the claims where the whole attack is of this strength."""
  plain = curves(reproduce.plain_arms(strength), attacked)
  defended = curves(reproduce.defended_arms(strength), lambda arm: attacked(arm, 0.6))
  statuses = [claim.status for claim in reproduce.judge(plain, defended)]
  return {status: statuses.count(status) for status in statuses}


class JudgeTest(absltest.TestCase):

  def test_the_spec_holds(self):
    self.assertEqual(judged(reproduce.FULL), {claims.HOLDS: 11})

  def test_without_the_attack_nothing_holds(self):
    self.assertEqual(judged(OFF), {claims.FAILS: 11})

  def test_every_arm_is_another(self):
    for arms in (reproduce.plain_arms(reproduce.FULL), reproduce.lstur_arms(reproduce.FULL)):
      self.assertLen(set(arms.values()), len(arms))


class MainTest(absltest.TestCase):

  def test_results_and_figure(self):
    def run_arms(model, datas, seeds, arms, rounds, defended=False):
      del model, datas, rounds
      self.assertEqual(seeds, [7000, 7001, 7002])
      return curves(arms, lambda arm: attacked(arm, 0.6 if defended else 1.0))

    with tempfile.TemporaryDirectory() as folder:
      with mock.patch.object(reproduce, 'run_arms', run_arms), \
           mock.patch.object(reproduce, 'make_data'):
        self.assertTrue(reproduce.main(7, folder, False))
        self.assertTrue((pathlib.Path(folder) / 'figure.png').exists())
        results = json.loads((pathlib.Path(folder) / 'results.json').read_text())
        self.assertFalse(reproduce.main(7, folder, True))
    self.assertLen(results['auc'], 13 + 8 + 3)
    self.assertEqual(results['auc']['clean, multi-Krum'][0], [0.736] * 4)
    reported = [claim for claim in results['claims'] if claim['status'] == claims.NOT_JUDGED]
    self.assertLen(reported, 4)



if __name__ == '__main__':
  absltest.main()
