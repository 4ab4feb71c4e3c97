"""ResNetGN: its published size, shapes, normalisation, gradients, dtypes."""
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.models import ResNetGN
from jaxlab.models.resnet_gn import num_groups

X = np.random.default_rng(0).uniform(size=(5, 9, 8, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 4])


def small(**changes):
  return ResNetGN(**{'num_classes': 5, 'stage_sizes': (1, 1), 'width': 4, 'groups': 2, **changes})


@functools.cache
def start():
  return jax.jit(small().init)(jax.random.key(0), X)


@functools.cache
def apply(train=False):
  return jax.jit(functools.partial(small().apply, train=train))


class ResNetGNTest(chex.TestCase):

  @parameterized.parameters((10, 11_173_962), (100, 11_220_132))
  def test_resnet_18_has_its_published_size(self, num_classes, size):
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(ResNetGN(num_classes).init, jax.random.key(0), image)
    self.assertEqual(set(shapes), {'params'})  # no running statistics
    self.assertEqual(sum(x.size for x in jax.tree.leaves(shapes)), size)

  def test_stages_halve_the_sides_and_double_the_channels(self):
    _, inner = jax.eval_shape(
        lambda x: ResNetGN(10).init_with_output(
            jax.random.key(0), x, capture_intermediates=True), jnp.zeros((2, 32, 32, 3)))
    blocks = [tree['__call__'][0].shape for name, tree in sorted(inner['intermediates'].items())
              if name.startswith('ResidualBlock')]
    self.assertEqual(blocks, [shape for side, width in ((32, 64), (16, 128), (8, 256), (4, 512))
                              for shape in [(2, side, side, width)] * 2])

  def test_training_is_deterministic(self):
    out = apply(train=True)(start(), X)
    chex.assert_shape(out, (5, 5))
    np.testing.assert_array_equal(out, apply()(start(), X))

  def test_an_example_does_not_look_at_the_others(self):
    out = apply()(start(), X)
    changed = np.concatenate([np.ones_like(X[:2]), X[2:3], np.zeros_like(X[3:])])
    np.testing.assert_allclose(apply()(start(), changed)[2], out[2], atol=1e-5)
    self.assertGreater(np.ptp(out, axis=0).max(), 1e-3)

  def test_a_block_is_two_normalised_convolutions_beside_a_shortcut(self):
    model = small(stage_sizes=(1,))
    params = jax.jit(model.init)(jax.random.key(0), X)['params']
    conv = lambda p, x: jax.lax.conv_general_dilated(
        x, p['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    norm = lambda p, x: nn.GroupNorm(2, epsilon=1e-5).apply({'params': p}, x)

    @jax.jit
    def expected(params):
      x = nn.relu(norm(params['GroupNorm_0'], conv(params['PatchConv_0'], X)))
      block = params['ResidualBlock_0']
      y = nn.relu(norm(block['GroupNorm_0'], conv(block['PatchConv_0'], x)))
      y = nn.relu(x + norm(block['GroupNorm_1'], conv(block['PatchConv_1'], y)))
      return y.mean((1, 2)) @ params['Dense_0']['kernel'] + params['Dense_0']['bias']

    out = jax.jit(model.apply)({'params': params}, X)
    np.testing.assert_allclose(out, expected(params), atol=1e-5)

  @parameterized.parameters((64, 32, 32), (48, 32, 24), (4, 32, 4), (7, 3, 1), (12, 8, 6))
  def test_groups_divide_the_channels(self, channels, groups, expected):
    self.assertEqual(num_groups(channels, groups), expected)

  def test_every_gradient_is_finite_and_not_zero(self):
    loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(
        small().apply(v, X, train=True), LABELS).mean()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(start())):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))

  def test_images_without_a_channel_axis(self):
    model = small(stage_sizes=())
    variables = jax.jit(model.init)(jax.random.key(0), X[..., 0])
    np.testing.assert_array_equal(
        model.apply(variables, X[..., 0]), model.apply(variables, X[..., :1]))

  def test_bfloat16_computes_and_float32_trains(self):
    self.assertTrue(all(p.dtype == jnp.float32 for p in jax.tree.leaves(start())))
    out, exact = jax.jit(small(dtype=jnp.bfloat16).apply)(start(), X), apply()(start(), X)
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, exact, atol=0.1)
    self.assertFalse(np.array_equal(out, exact))


if __name__ == '__main__':
  absltest.main()
