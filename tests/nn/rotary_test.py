"""Rotary positions: relative, norm-preserving, and the scaled frequencies by their definition."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.nn import rotary


class RotaryTest(parameterized.TestCase):

  def test_products_depend_on_the_distance(self):
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    frequencies = rotary.rotary_frequencies(8)

    def product(i, j):
      turn = lambda x, position: rotary.apply_rotary(
          x, *rotary.rotary_tables(jnp.array([[position]]), frequencies))
      return float(jnp.sum(turn(query, i) * turn(key, j)))

    self.assertAlmostEqual(product(7, 3), product(104, 100), places=4)
    self.assertAlmostEqual(product(0, 0), float(jnp.sum(query * key)), places=5)
    self.assertGreater(abs(product(7, 3) - product(7, 5)), 1e-3)

  def test_a_pair_is_a_rotation_of_the_halves(self):
    x = jnp.array([[[[1., 0, 0, 0]]]])
    out = rotary.apply_rotary(
        x, *rotary.rotary_tables(jnp.array([[3]]), rotary.rotary_frequencies(4)))
    np.testing.assert_allclose(out[0, 0, 0], [np.cos(3), 0, np.sin(3), 0], atol=1e-6)

  def test_tables_stay_exact_for_half_precision(self):
    positions = jnp.array([[4000, 4001]])
    cos, _ = rotary.rotary_tables(positions, rotary.rotary_frequencies(4))
    self.assertEqual(cos.dtype, jnp.float32)
    np.testing.assert_allclose(cos[0, :, 0], np.cos([4000., 4001.]), atol=1e-3)
    out = rotary.apply_rotary(
        jnp.ones((1, 2, 1, 4), jnp.bfloat16), *rotary.rotary_tables(
            positions, rotary.rotary_frequencies(4)))
    self.assertEqual(out.dtype, jnp.bfloat16)

  def test_llama3_by_its_definition(self):
    scaling = rotary.RopeScaling('llama3', 8.0, 1.0, 4.0, 32)
    plain = rotary.rotary_frequencies(16, 5e5).astype(np.float64)
    expected = []
    for frequency in plain:
      wavelength = 2 * np.pi / frequency
      share = (32 / wavelength - 1) / 3
      expected.append(frequency / 8 if wavelength > 32 else frequency if wavelength < 8 else
                      (1 - share) * frequency / 8 + share * frequency)
    np.testing.assert_allclose(
        rotary.rotary_frequencies(16, 5e5, scaling), expected, rtol=1e-6)
    self.assertBetween(sum(np.array(expected) != plain), 2, 7)
    np.testing.assert_allclose(
        rotary.rotary_frequencies(16, 5e5, rotary.RopeScaling('linear', 4.0)), plain / 4, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
