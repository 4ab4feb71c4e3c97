"""Refinement of real labels: parity with an independent implementation, and what it is for."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.metrics import depth as depth_metrics
from jaxlab.systems.moge2 import geometry, refine, scenes
from tests import conftest
from tests.golden_reader import Golden

assert conftest.FLAGS
GOLDEN = Golden('moge2_refine')


def at(key):
  return GOLDEN[f'refine/{key}']


class GoldenTest(parameterized.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  @parameterized.parameters('f4', 'f8')
  def test_filter(self, name):
    of = lambda key: at(f'{name}/{key}')
    anchors = (of('anchor_i') * at('mask').shape[1] + of('anchor_j')).astype(np.int32)
    keep = refine.filter_given_anchors(
        at('depth'), at('depth_syn'), at('mask'), at('intrinsics'), anchors,
        np.float32(of('tolerance')), level=int(of('level')), resolution=int(of('align_resolution')))
    np.testing.assert_array_equal(keep, of('keep'))

  def test_unprojection(self):
    self.assertAlmostEqual(float(geometry.diagonal_focal(at('intrinsics'))), at('gt_focal'), 6)
    for depth, points in (('depth', 'points'), ('depth_syn', 'points_syn')):
      filled = np.where(at('mask'), at(depth), 1)
      ours = geometry.unproject(filled, at('intrinsics'))
      np.testing.assert_allclose(ours, at(points), atol=1e-4)

  def test_completion(self):
    keep, true = at('complete/keep'), at('complete/depth')
    np.testing.assert_array_equal(keep, at('f4/keep') & at('f8/keep'))
    finite = np.isfinite(true)
    np.testing.assert_array_equal(at('complete/free'), np.isfinite(at('depth_syn')) & ~keep)
    depth = refine.complete(at('depth'), at('depth_syn'), keep)
    self.assertAlmostEqual(self._energy(depth, at('depth_syn')) / at('complete/residual'), 1, 4)
    np.testing.assert_array_equal(np.isfinite(depth), finite)
    np.testing.assert_allclose(np.log(depth[finite]), np.log(true[finite]), atol=1e-3)
    np.testing.assert_allclose(np.log(depth[finite]), at('complete/log_depth')[finite], atol=1e-3)

  def _energy(self, depth, guess):
    """The objective of the completion."""
    inside = np.isfinite(guess)
    log = lambda x: np.log(np.where(inside, x, 1).astype(np.float64))
    total = 0
    for axis in (0, 1):
      step = np.diff(log(guess), axis=axis)
      both = inside[1:] & inside[:-1] if axis == 0 else inside[:, 1:] & inside[:, :-1]
      error = np.diff(log(depth), axis=axis) - step
      total += (both * np.exp(-20 * np.abs(step)) * error**2).sum()
    return total

  def test_refined_is_nearer_to_the_truth_than_corrupted(self):
    real, true, keep = at('depth'), at('true_depth'), at('complete/keep')
    known = at('mask') & np.isfinite(true)
    ratio = np.where(known, real, 1) / np.where(known, true, 1)
    wild = known & ((ratio < .6) | (ratio > 1.6))
    np.testing.assert_array_equal(wild, known & at('corrupted'))
    self.assertGreater((wild & ~keep).sum() / wild.sum(), .7)
    self.assertLess((known & ~wild & ~keep).sum() / (known & ~wild).sum(), .02)
    refined, finite = refine.complete(real, at('depth_syn'), keep), np.isfinite(true)
    error = lambda depth, mask: depth_metrics.depth_error(depth[mask], true[mask])[0]
    self.assertLess(error(refined, finite), error(real, known))


class CorruptionTest(absltest.TestCase):

  def test_filter_and_completion(self):
    import jax
    scene = scenes.make(1, 5, 32, 48)
    true, rng = scene.depth[0], np.random.default_rng(0)
    real, wild, clean = refine.corrupt(true, rng)
    guess = refine.smooth_bias(true, rng)
    np.testing.assert_array_equal(real[clean], true[clean])
    np.testing.assert_array_equal(np.isposinf(real), np.isposinf(true))
    self.assertTrue(np.isnan(real).any())
    keep = refine.filter_depth(real, guess, scene.intrinsics[0], jax.random.key(0),
                               levels=((4, 6, 24),), tolerance=.4)
    self.assertGreater((wild & ~keep).sum() / wild.sum(), .5)
    self.assertLess((clean & ~keep).sum() / clean.sum(), .1)
    done = refine.complete(real, guess, keep)
    self.assertFalse(np.isnan(done).any())

  def test_nothing_kept_is_the_prediction(self):
    guess = np.array([[1., 2.], [np.nan, np.inf]], np.float32)
    real = np.array([[3., np.nan], [1., 2.]], np.float32)
    out = refine.complete(real, guess, np.zeros((2, 2), bool))
    np.testing.assert_allclose(out, [[1, 2], [np.nan, np.inf]], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
