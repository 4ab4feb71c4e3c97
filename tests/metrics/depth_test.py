"""Depth metrics: known values."""
import numpy as np
from absl.testing import absltest

from jaxlab.metrics import depth as depth_metrics


class DepthTest(absltest.TestCase):

  def test_depth_error(self):
    true = np.array([1., 2., 4., 4.])
    pred = np.array([1.1, 1., 4., 6.])
    rel, delta = depth_metrics.depth_error(pred, true)
    self.assertAlmostEqual(rel, (.1 + .5 + 0 + .5) / 4, places=5)
    self.assertEqual(delta, .5)
    self.assertEqual(depth_metrics.depth_error(np.array([-1.]), np.array([1.]))[1], 0)
    self.assertTrue(np.isnan(depth_metrics.depth_error(np.zeros(0), np.zeros(0))).all())

  def test_point_error(self):
    true = np.array([[0, 0, 2.], [0, 3, 4.]])
    pred = true + np.array([[.2, 0, 0], [0, 0, 2.5]])
    rel, delta = depth_metrics.point_error(pred, true)
    self.assertAlmostEqual(rel, (.1 + .5) / 2, places=5)
    self.assertEqual(delta, .5)
    rel, delta = depth_metrics.point_error(pred, true, unit=2.0)
    self.assertAlmostEqual(rel, (.1 + 1.25) / 2, places=5)
    self.assertTrue(np.isnan(depth_metrics.point_error(np.zeros((0, 3)), np.zeros((0, 3)))).all())

  def test_boundaries(self):
    true = np.ones((12, 12))
    true[:, 6:] = 2
    mask = np.ones_like(true, bool)
    self.assertEqual(depth_metrics.boundary_f1(3 * true, true, mask), 1)
    self.assertEqual(depth_metrics.boundary_f1(np.ones_like(true), true, mask), 0)
    moved = np.roll(true, 1, axis=1)
    self.assertEqual(depth_metrics.boundary_f1(moved, true, mask), 0)
    self.assertGreater(depth_metrics.boundary_f1(moved, true, mask, radius=3), .3)
    mask[:, 5:7] = False  # nothing is known of the edge
    self.assertEqual(depth_metrics.boundary_f1(true, true, mask), 0)


if __name__ == '__main__':
  absltest.main()
