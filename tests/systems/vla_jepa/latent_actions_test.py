"""The leaky baseline: what its codes see, who gets a gradient from what."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.systems.vla_jepa import latent_actions, world_model

MODEL = latent_actions.LatentActions(
    world_model.ACPredictor(6, 2, 2, width=12, num_layers=1, num_heads=2), num_codes=5, width=8,
    features=6)


def noise(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


CONTEXT, TARGET, LATENT = noise(1, 3, 8, 6), noise(2, 3, 8, 6), noise(3, 3, 4, 7)


def coded(params, context, target):
  coder = latent_actions.Coder(5, 2, 8, 6)
  steps = lambda x: x.reshape(3, 2, -1)
  return coder.apply({'params': params['coder']}, steps(context), steps(target))


class LatentActionsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.params = jax.jit(MODEL.init)(jax.random.key(0), CONTEXT, TARGET, LATENT)['params']

  def test_every_parameter_and_the_trunk_have_a_gradient(self):
    total = lambda params, latent: MODEL.apply({'params': params}, CONTEXT, TARGET, latent).sum()
    gradient, latent = jax.jit(jax.grad(total, (0, 1)))(self.params, LATENT)
    self.assertGreater(np.abs(latent).min(axis=(0, 1)).max(), 0)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
      self.assertTrue(np.isfinite(leaf).all() and np.abs(leaf).max() > 0,
                      jax.tree_util.keystr(path))

  def test_the_codes_are_of_the_table_and_see_the_next_state(self):
    codes = coded(self.params, CONTEXT, TARGET)
    self.assertEqual(codes.index.shape, (3, 2, 2))
    np.testing.assert_allclose(codes.vectors.reshape(3, 2, 2, 6),
                               self.params['coder']['table'][codes.index], atol=1e-6)
    others = [coded(self.params, CONTEXT, noise(seed, 3, 8, 6)).index for seed in range(4, 9)]
    self.assertTrue(any((other != codes.index).any() for other in others))

  def test_the_trunk_is_paid_for_telling_the_codes(self):
    codes = coded(self.params, CONTEXT, TARGET)
    losses = []
    for scale in (0.0, 50.0):
      weights = jnp.eye(5, 7).T  # the classifier then reads the code off the token
      params = {**self.params, 'classifier': {'kernel': weights, 'bias': jnp.zeros(5)}}
      latent = scale * jax.nn.one_hot(codes.index.reshape(3, 4), 7)
      losses.append(MODEL.apply({'params': params}, CONTEXT, TARGET, latent))
    np.testing.assert_allclose(losses[0] - losses[1], np.log(5), atol=1e-4)


if __name__ == '__main__':
  absltest.main()
