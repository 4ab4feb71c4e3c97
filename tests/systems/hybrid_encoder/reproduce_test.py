"""The verdicts of reproduce, and the quality of ranked lists."""
from types import SimpleNamespace

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.hybrid_encoder import reproduce
from jaxlab.train import claims

LEVELS = {'siamese': .5, 'hybrid': .95, 'hybrid, random negatives': .95, 'cross encoder': .97}


def table(ablate=False, recall=.7, cross_ms=50.0, **levels):
  arms = ['siamese', *reproduce.ARMS]
  level = {**dict.fromkeys(arms, .8), **LEVELS, **levels}
  curves = {arm: {name: np.full((2, reproduce.POINTS), level[arm]) + [[0.0], [.01]]
                  for name in ('top1', 'list_mrr', 'hit', 'mrr')} for arm in arms}
  one = lambda adds, ms: {'multiply_adds': adds, 'ms': ms}
  costs = {k: {'siamese': one(1e5, .1), 'hybrid': one(1e6, .5), 'cross': one(1e8, cross_ms)}
           for k in reproduce.COST_AT}
  stages = [SimpleNamespace(recall=recall)] * 2
  return reproduce.judge(stages, curves, costs, {'ad': 864, 'user': 2304}, ablate)


def verdicts(**options):
  return [claim.status for claim in table(**options) if claim.status != claims.NOT_JUDGED]


class VerdictsTest(parameterized.TestCase):

  def test_good_results_hold(self):
    self.assertEqual(verdicts(), [claims.verdict(True)] * 5)

  @parameterized.parameters(
      ({'recall': .4}, 0), ({'siamese': .9}, 1), ({'cross encoder': 1.05}, 2),
      ({'hybrid, random negatives': .99}, 3), ({'cross_ms': 4.0}, 4))
  def test_each_falls_with_its_number(self, changes, place):
    expected = [claims.verdict(i != place) for i in range(5)]
    self.assertEqual(verdicts(**changes), expected)

  def test_the_ablation_ranks_by_retrieval_alone(self):
    self.assertEqual(verdicts(ablate=True)[1], claims.verdict(False))

  def test_the_caches_are_reported_in_megabytes(self):
    self.assertIn('0.000864 and 0.002304 MB', [claim.measured for claim in table()])

  def test_quality(self):
    # A click among EVAL_HARD others, then a short list of which the second is right.
    width = 1 + reproduce.EVAL_HARD
    scores = np.concatenate([np.linspace(1, 0, width), [3.0, 2.0, 1.0]])[None]
    right = np.array([[False, True, False]])
    stage = SimpleNamespace(test={'candidates': np.ones(scores.shape, int)}, right=right)
    self.assertEqual(reproduce.quality(scores, stage),
                     {'top1': 1.0, 'list_mrr': 1.0, 'hit': 0.0, 'mrr': 0.5})
    scores[0, 1] = 1.0  # a tie counts against the click
    self.assertEqual(reproduce.quality(scores, stage)['list_mrr'], 0.5)


if __name__ == '__main__':
  absltest.main()
