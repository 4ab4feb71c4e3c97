"""Scales: round trips, grippers, constant dimensions, pauses, errors."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.vla_jepa import normalise

STATS = {'min': [-1, 0, 2, 0], 'max': [3, 1, 2, 1], 'q01': [0, 0, 2, 0], 'q99': [2, 1, 2, 1]}


class NormaliseTest(parameterized.TestCase):

  def test_minmax_and_back(self):
    scale = normalise.make_scale(STATS, 4, gripper=3)
    x = np.array([[-1, 0.25, 2, 1], [3, 1, 2, 0], [1, 0, 2, 1]], np.float32)
    y = normalise.normalise(x, scale)
    np.testing.assert_allclose(y, [[-1, -0.5, 0, 1], [1, 1, 0, 0], [0, -1, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(normalise.unnormalise(y, scale), x, atol=1e-6)

  def test_quantiles_clip_and_cut_the_gripper(self):
    scale = normalise.make_scale(STATS, 4, kind='quantile', gripper=3)
    y = normalise.normalise(np.array([5.0, -1.0, 7.0, 0.7]), scale)
    np.testing.assert_allclose(y, [1, -1, 0, 1])
    self.assertEqual(normalise.unnormalise(np.array([9.0, 0, 0, 0.4]), scale).tolist(),
                     [2, 0.5, 2, 0])

  @parameterized.parameters(
      ({'min': [0]}, 1, "stats: expected 'max' for minmax scaling, found"),
      (STATS, 7, 'stats: min: expected 7 numbers, one a dimension'))
  def test_missing_or_other_statistics(self, stats, dims, message):
    with self.assertRaisesRegex(ValueError, message):
      normalise.make_scale(stats, dims)

  def test_a_gripper_out_of_range(self):
    with self.assertRaisesRegex(ConfigError, 'data.gripper: expected an index below 4'):
      normalise.make_scale(STATS, 4, gripper=4)

  def test_pauses(self):
    actions = np.zeros((5, 4))
    actions[1, 0], actions[2, 2], actions[3:, 3] = 1e-4, -1e-3, 1
    self.assertEqual(normalise.keep_steps(actions, 3).tolist(), [False, False, True, True, False])
    self.assertEqual(normalise.keep_steps(actions).tolist(), [False, False, True, False, False])


if __name__ == '__main__':
  absltest.main()
