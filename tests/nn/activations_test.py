"""Exact GELU against SciPy's normal distribution."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.nn import activations

GRID = np.linspace(-8, 8, 4001)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-6), ('bfloat16', 2**-8)])
def test_exact_gelu_is_x_times_the_normal_distribution_function(dtype, tolerance):
  x = jnp.asarray(GRID, dtype)
  out = activations.exact_gelu(x)
  assert out.dtype == x.dtype
  exact = np.asarray(x, np.float64)
  np.testing.assert_allclose(np.asarray(out, np.float64), exact * scipy.stats.norm.cdf(exact),
                             rtol=tolerance, atol=1e-6)


def test_exact_gelu_in_float64():
  with jax.enable_x64(True):
    out = np.asarray(activations.exact_gelu(jnp.asarray(GRID)))
  assert out.dtype == np.float64
  np.testing.assert_allclose(out, GRID * scipy.stats.norm.cdf(GRID), atol=1e-14)


def test_gradient_of_exact_gelu():
  x = jnp.asarray(GRID, jnp.float32)
  slope = jax.vmap(jax.grad(activations.exact_gelu))(x)
  expected = scipy.stats.norm.cdf(GRID) + GRID * scipy.stats.norm.pdf(GRID)
  np.testing.assert_allclose(slope, expected, atol=2e-6)
