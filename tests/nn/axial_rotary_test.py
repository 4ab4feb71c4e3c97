"""Rotary positions over axes: exact at large positions, relative, the identity at 0."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.nn.axial_rotary import axial_rotary, rotate_pairs

AXES = (4, 6, 6)


class AxialRotaryTest(parameterized.TestCase):

  @parameterized.parameters(1, 100, 4000)
  def test_equals_float64(self, largest):
    ids = np.random.default_rng(0).integers(-largest, largest + 1, (2, 7, 3)).astype(np.float32)
    cos, sin = axial_rotary(ids, AXES, 1e4)
    angles = np.concatenate([
        ids[..., i, None].astype(np.float64) * 1e4**(-np.arange(0, d, 2) / d)
        for i, d in enumerate(AXES)], -1)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)

  def test_products_depend_on_differences(self):
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 1, 5, 2, 16)).astype(np.float32)
    ids = rng.integers(0, 9, (5, 3)).astype(np.float32)
    product = lambda shift: np.einsum('bqhd,bkhd->bhqk', *(
        rotate_pairs(x, *axial_rotary(ids + shift, AXES)) for x in (q, k)))
    np.testing.assert_allclose(product(0), product(np.array([3, 50, -7.5])), atol=1e-4)

  def test_pairs_are_complex_numbers(self):
    x = np.random.default_rng(2).normal(size=(1, 3, 2, 16)).astype(np.float32)
    cos, sin = axial_rotary(np.arange(9, dtype=np.float32).reshape(3, 3), AXES)
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)[:, None]
    out = rotate_pairs(x, cos, sin)
    np.testing.assert_allclose(out[..., ::2] + 1j * out[..., 1::2], turned, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
