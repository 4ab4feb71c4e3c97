"""The verdicts of reproduce: what they hold for, and what each of them falls with."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.moge2 import reproduce
from jaxlab.train import claims

GOOD = {'points_affine_invariant.rel': .05, 'depth_metric.rel': .05, 'boundary.radius1_f1': .9}
WRITTEN = {'points_affine': .1, 'facing': 1.0, 'bounds': 0.0, 'widest triangle': 1.0}
LABELS = {'raw f1': .3, 'refined f1': .5, 'raw rel': .2, 'refined rel': .1, 'outliers removed': .9,
          'clean removed': .01}


def row(metrics, scene):
  return {**metrics, 'fov_x.mae': 5.0, 'fov': 60.0 + scene, 'fov_x.deviation': .1 * scene}


def verdicts(global_loss=.05, labels=None, written=None, **changes):
  metrics = {**GOOD, **{name: value for name, value in changes.items()}}
  measured = {variant: [[row({name: value + .001 * run for name, value in metrics.items()}, scene)
                         for scene in range(3)] for run in range(2)]
              for variant in reproduce.VARIANTS}
  poor = {name: .1 if name.startswith('boundary') else .9 for name in GOOD}
  baseline = [row(poor, scene) for scene in range(3)]
  curves = {variant: {'global': np.full((2, 100), global_loss) + [[0.0], [.001]]}
            for variant in reproduce.VARIANTS}
  scores = {name: np.full(4, value) + .001 * np.arange(4)
            for name, value in {**LABELS, **(labels or {})}.items()}
  table = reproduce.judge(measured, baseline, curves, scores, {**WRITTEN, **(written or {})})
  return [claim.status for claim in table if claim.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    found = verdicts()
    self.assertEqual(set(found), {claims.verdict(True)})
    self.assertLen(found, 10)

  @parameterized.parameters(
      ({'points_affine_invariant.rel': .9}, 2), ({'depth_metric.rel': .9}, 2),
      ({'boundary.radius1_f1': .1}, 2), ({'global_loss': .2}, 1),
      ({'labels': {'refined f1': .3}}, 1), ({'labels': {'outliers removed': .5}}, 1),
      ({'labels': {'clean removed': .03}}, 1), ({'written': {'facing': .9}}, 1),
      ({'written': {'points_affine': .2}}, 1), ({'written': {'widest triangle': 3.0}}, 1))
  def test_each_falls_with_its_number(self, changes, fallen):
    self.assertEqual(verdicts(**changes).count(claims.verdict(False)), fallen)


if __name__ == '__main__':
  absltest.main()
