"""RMSNorm by its formula, in float32 whatever comes in."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.nn import norms


class RMSNormTest(absltest.TestCase):

  def test_formula(self):
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32) + 2
    scale = np.arange(1, 6, dtype=np.float32)
    out = norms.RMSNorm(0.1).apply({'params': {'scale': scale}}, x)
    np.testing.assert_allclose(
        out, x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * scale, rtol=1e-5)

  def test_bfloat16_squares_in_float32(self):
    x = jnp.full((1, 4096), 1e-3, jnp.bfloat16) + jnp.arange(4096) % 2 * 1e-3
    norm = norms.RMSNorm(1e-6, jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    self.assertEqual(variables['params']['scale'].dtype, jnp.float32)
    out = norm.apply(variables, x.astype(jnp.bfloat16))
    self.assertEqual(out.dtype, jnp.bfloat16)
    wide = np.asarray(x.astype(jnp.bfloat16), np.float64)
    expected = wide / np.sqrt((wide**2).mean() + 1e-6)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=1e-2)


if __name__ == '__main__':
  absltest.main()
