"""Adaptive layer norm and the embedding of time."""
import jax
import numpy as np
from absl.testing import absltest

from jaxlab.nn.modulation import Modulation, modulate, sinusoid


class ModulationTest(absltest.TestCase):

  def test_modulate(self):
    x = np.random.default_rng(0).normal(3, 2, (2, 5, 8)).astype(np.float32)
    shift, scale = np.full((2, 1, 8), .5, np.float32), np.full((2, 1, 8), 1, np.float32)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(modulate(x, shift, scale), 2 * normal + .5, atol=1e-5)

  def test_cosines_come_first(self):
    t = np.array([0., 3.], np.float32)
    out = sinusoid(t, width=4, max_period=100.0)
    angles = t[:, None] * np.array([1, .1])
    np.testing.assert_allclose(out, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-6)

  def test_zero_at_the_start(self):
    variables = Modulation(3).init(jax.random.key(0), np.ones((2, 4), np.float32))
    parts = Modulation(3).apply(variables, np.ones((2, 4), np.float32))
    self.assertLen(parts, 3)
    for part in parts:
      np.testing.assert_array_equal(part, np.zeros((2, 1, 4)))


if __name__ == '__main__':
  absltest.main()
