"""Accumulators: which leaves have one, and its dtype."""
import chex
import jax
import jax.numpy as jnp
import optax
from absl.testing import absltest

from jaxlab.optim import leaves

PARAMS = {'half': jnp.ones(2, jnp.bfloat16), 'hidden': optax.MaskedNode(), 'n': jnp.arange(3)}
LEFT_OUT = {'hidden': optax.MaskedNode(), 'n': optax.MaskedNode()}


class LeavesTest(absltest.TestCase):

  def test_accumulators_are_float32_and_leave_out_what_is_not_floating(self):
    expected = {'half': jnp.ones(2, jnp.float32), **LEFT_OUT}
    out = leaves.accumulators(PARAMS, PARAMS)
    chex.assert_trees_all_equal(out, expected)
    chex.assert_trees_all_equal_dtypes(out, expected)
    chex.assert_trees_all_equal(leaves.accumulators(PARAMS, out), expected)

  def test_float64_is_kept(self):
    with jax.enable_x64(True):
      chex.assert_type(leaves.accumulators(jnp.ones(2), jnp.ones(2, float)), jnp.float64)

  def test_plain_python_floats_are_leaves(self):
    chex.assert_trees_all_equal(leaves.accumulators(2.0, 1.0), jnp.float32(2.0))

  def test_constant(self):
    out = leaves.constant(PARAMS, 1e-16)
    chex.assert_trees_all_equal(out, {'half': jnp.full(2, 1e-16, jnp.float32), **LEFT_OUT})
    chex.assert_type(leaves.constant(PARAMS, 0.0, jnp.float16)['half'], jnp.float16)

  def test_updates_have_the_dtypes_of_the_parameters(self):
    updates = leaves.to_updates({'half': jnp.full(2, 0.5, jnp.float32), **LEFT_OUT}, PARAMS)
    expected = {**PARAMS, 'half': jnp.full(2, 0.5, jnp.bfloat16), 'n': jnp.zeros(3, int)}
    chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_equal_dtypes(updates, expected)


if __name__ == '__main__':
  absltest.main()
