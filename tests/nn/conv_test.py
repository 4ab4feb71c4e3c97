"""PatchConv is flax's Conv in other clothes; max_pool is flax's with a cheaper gradient."""
import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.nn import PatchConv, max_pool

X = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32)


def pair(kernel, strides, padding, use_bias=True):
  """Ours, flax's, and parameters that fit both."""
  options = {'strides': strides, 'padding': padding, 'use_bias': use_bias}
  ours, theirs = PatchConv(4, kernel, **options), nn.Conv(4, kernel, **options)
  variables = jax.jit(theirs.init)(jax.random.key(1), X)
  if use_bias:
    variables['params']['bias'] = jnp.array([0.5, -1.0, 2.0, 0.1])
  return ours, theirs, variables


def gradients(module):
  """Function (variables, x) -> (output, gradients of a weighted sum by both)."""
  def loss(variables, x):
    y = module.apply(variables, x)
    return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y
  return jax.grad(loss, argnums=(0, 1), has_aux=True)


class PatchConvTest(chex.TestCase):

  @parameterized.product(kernel=[(3, 3), (2, 2), (1, 4), (5, 3)], strides=[(1, 1), (3, 2)],
                         padding=['SAME', 'VALID'])
  def test_equals_flax(self, kernel, strides, padding):
    ours, theirs, variables = pair(kernel, strides, padding)
    both = jax.jit(lambda v, x: (gradients(ours)(v, x), gradients(theirs)(v, x)))
    mine, reference = both(variables, X)
    self.assertGreater(mine[1].size, 0)
    chex.assert_trees_all_close(mine, reference, atol=1e-4, rtol=1e-4)

  def test_parameters_are_those_of_flax(self):
    ours, theirs, _ = pair((3, 2), (1, 1), 'SAME')
    mine, reference = (jax.jit(module.init)(jax.random.key(2), X) for module in (ours, theirs))
    chex.assert_trees_all_equal(mine, reference)

  def test_without_bias(self):
    ours, theirs, variables = pair((3, 3), (1, 1), 'SAME', use_bias=False)
    self.assertEqual(list(ours.init(jax.random.key(0), X)['params']), ['kernel'])
    np.testing.assert_allclose(ours.apply(variables, X), theirs.apply(variables, X), atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_inside_scan(self):
    ours, theirs, variables = pair((3, 3), (1, 1), 'VALID')
    images = np.stack([X, 2 * X, -X])
    scan = lambda v, xs: jax.lax.scan(lambda _, x: (None, ours.apply(v, x)), None, xs)[1]
    for y, x in zip(self.variant(scan)(variables, images), images, strict=True):
      np.testing.assert_allclose(y, theirs.apply(variables, x), atol=1e-5)

  def test_vmapped_over_kernels(self):
    ours, theirs, variables = pair((3, 3), (2, 2), 'SAME')
    many = jax.tree.map(lambda p: jnp.stack([p, -p, 3 * p]), variables)
    images = np.stack([X, 2 * X, -X])
    program, reference = jax.jit(jax.vmap(gradients(ours))), jax.jit(gradients(theirs))
    out = program(many, images)
    for i in range(3):
      expected = reference(jax.tree.map(lambda p: p[i], many), images[i])
      chex.assert_trees_all_close(jax.tree.map(lambda p: p[i], out), expected, atol=1e-4, rtol=1e-4)
    # This is what it is for: neither a grouped convolution nor any other is left.
    self.assertNotIn('convolution', program.lower(many, images).as_text())

  def test_bfloat16_computes_and_float32_trains(self):
    module = PatchConv(4, dtype=jnp.bfloat16)
    variables = jax.jit(module.init)(jax.random.key(0), X)
    out, exact = (jax.jit(m.apply)(variables, X) for m in (module, PatchConv(4)))
    self.assertEqual(out.dtype, jnp.bfloat16)
    self.assertTrue(all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables)))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.1)

  def test_unknown_padding(self):
    with self.assertRaisesRegex(ValueError, "padding: expected 'SAME' or 'VALID', got 'CIRCULAR'"):
      PatchConv(4, padding='CIRCULAR').init(jax.random.key(0), X)


class MaxPoolTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters((1,), (2,), (3,), (7,))
  def test_equals_flax(self, window):
    out = self.variant(max_pool, static_argnums=1)(X, window)
    expected = nn.max_pool(jnp.asarray(X), (window, window), (window, window))
    self.assertEqual(out.shape, (2, 9 // window, 7 // window, 3))  # a ragged edge is dropped
    np.testing.assert_array_equal(out, expected)

  def test_gradient_equals_flax_where_there_are_no_ties(self):
    ours, theirs = (jax.grad(lambda x: (jnp.cos(jnp.arange(24.0)) * pool(x).ravel()).sum())(
        jnp.asarray(X[:1, :8, :4])) for pool in (
            lambda x: max_pool(x, 2), lambda x: nn.max_pool(x, (2, 2), (2, 2))))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    self.assertEqual(np.count_nonzero(ours), 24)

  def test_ties_share_the_gradient(self):
    x = jnp.zeros((1, 2, 4, 1)).at[0, :, 2:, 0].set(jnp.array([[5.0, 1.0], [5.0, 0.0]]))
    gradient = jax.grad(lambda x: (max_pool(x, 2) * jnp.array([4.0, 8.0])[:, None]).sum())(x)
    np.testing.assert_allclose(gradient[0, :, :, 0], [[1, 1, 4, 0], [1, 1, 4, 0]])


if __name__ == '__main__':
  absltest.main()
