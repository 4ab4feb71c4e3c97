"""CNN: shapes, its published sizes, gradients, dropout, dtypes."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.models import CNN

X = np.random.default_rng(0).uniform(size=(6, 10, 9, 2)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0, 4])
SMALL = {'num_classes': 5, 'features': (4, 6), 'hidden': 8}
CONFIGS = [
    {}, {'padding': 'SAME', 'pool': 'each'}, {'features': (3,), 'kernel_size': 2},
]


def small(**changes):
  return CNN(**{**SMALL, **changes})


class CNNTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*CONFIGS)
  def test_jit_changes_nothing(self, **config):
    model = small(**config)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    out = self.variant(lambda v, x, key: model.apply(v, x, train=True, rngs={'dropout': key}))(
        variables, X, jax.random.key(1))
    chex.assert_shape(out, (6, 5))
    expected = model.apply(variables, X, train=True, rngs={'dropout': jax.random.key(1)})
    np.testing.assert_allclose(out, expected, atol=1e-5)

  @parameterized.parameters(*CONFIGS)
  def test_every_gradient_is_finite_and_not_zero(self, **config):
    model = small(**config)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(
        model.apply(v, X, train=True, rngs={'dropout': jax.random.key(1)}), LABELS).mean()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables)):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))

  @parameterized.parameters(
      # FedJAX's EMNIST network: 28 -> 26 -> 24 -> 12, 62 classes.
      ({}, 1 * 9 * 32 + 32 + 32 * 9 * 64 + 64 + 12 * 12 * 64 * 128 + 128 + 128 * 62 + 62),
      # LEAF's FEMNIST network: 28 -> 14 -> 7.
      ({'kernel_size': 5, 'padding': 'SAME', 'pool': 'each', 'hidden': 2048, 'dropout': (0., 0.)},
       1 * 25 * 32 + 32 + 32 * 25 * 64 + 64 + 7 * 7 * 64 * 2048 + 2048 + 2048 * 62 + 62),
  )
  def test_published_sizes(self, config, size):
    model = CNN(62, **config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28)))
    self.assertEqual(sum(x.size for x in jax.tree.leaves(shapes)), size)

  def test_images_without_a_channel_axis(self):
    model = small()
    apply = jax.jit(model.apply)
    variables = jax.jit(model.init)(jax.random.key(0), X[..., 0])
    np.testing.assert_array_equal(apply(variables, X[..., 0]), apply(variables, X[..., :1]))

  def test_dropout_acts_in_training_only(self):
    model = small()
    variables = jax.jit(model.init)(jax.random.key(0), X)
    off = jax.jit(model.apply)(variables, X)  # needs no key
    train = lambda key, model=model: jax.jit(functools.partial(model.apply, train=True))(
        variables, X, rngs={'dropout': jax.random.key(key)})
    np.testing.assert_array_equal(train(1), train(1))
    for other in (off, train(2)):
      self.assertGreater(np.abs(train(1) - other).max(), 1e-3)
    for rates in ((0.5, 0.0), (0.0, 0.5)):  # each of the two is there
      self.assertGreater(np.abs(train(1, small(dropout=rates)) - off).max(), 1e-3)
    np.testing.assert_allclose(train(1, small(dropout=(0.0, 0.0))), off, atol=1e-6)

  def test_bfloat16_computes_and_float32_trains(self):
    model = small(dtype=jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    self.assertTrue(all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables)))
    out, exact = (jax.jit(m.apply)(variables, X) for m in (model, small()))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, exact, atol=0.1)
    self.assertFalse(np.array_equal(out, exact))


if __name__ == '__main__':
  absltest.main()
