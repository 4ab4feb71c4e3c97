"""MLP: shapes, its closed form, gradients, dtypes."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.models import MLP

X = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0, 4])


class MLPTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(((),), ((8,),), ((8, 5),))
  def test_closed_form(self, features):
    model = MLP(5, features)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    out = self.variant(model.apply)(variables, X)
    h = X.reshape(6, 12)
    layers = [variables['params'][f'Dense_{i}'] for i in range(len(features) + 1)]
    self.assertLen(variables['params'], len(layers))
    for layer in layers[:-1]:
      h = np.maximum(h @ layer['kernel'] + layer['bias'], 0)
    np.testing.assert_allclose(out, h @ layers[-1]['kernel'] + layers[-1]['bias'], atol=1e-5)

  @parameterized.parameters(((),), ((8, 5),))
  def test_every_gradient_is_finite_and_not_zero(self, features):
    model = MLP(5, features)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(
        model.apply(v, X, train=True), LABELS).mean()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables)):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))

  def test_he_initialisation(self):
    x = np.zeros((1, 1000), np.float32)
    kernel = jax.jit(MLP(5, (400,)).init)(jax.random.key(0), x)['params']['Dense_0']['kernel']
    self.assertAlmostEqual(float(kernel.std()), (2 / 1000) ** .5, delta=1e-3)

  def test_training_is_deterministic(self):
    model = MLP(5)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    np.testing.assert_array_equal(model.apply(variables, X, train=True), model.apply(variables, X))

  def test_bfloat16_computes_and_float32_trains(self):
    model = MLP(5, dtype=jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    self.assertTrue(all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables)))
    out, exact = (jax.jit(m.apply)(variables, X) for m in (model, MLP(5)))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, exact, atol=0.1)
    self.assertFalse(np.array_equal(out, exact))


if __name__ == '__main__':
  absltest.main()
