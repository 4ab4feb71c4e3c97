"""The world model: causality, views, gradients, the residual start, foreign weights."""
import jax
import numpy as np
from absl.testing import absltest

from jaxlab.config import ConfigError
from jaxlab.systems.vla_jepa import world_model

MODEL = world_model.ACPredictor(10, 2, 3, width=12, num_layers=2, num_heads=2)


def noise(*shape, seed=1):
  return jax.random.normal(jax.random.key(seed), shape)


class PredictorTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.params = jax.jit(lambda key: world_model.init_params(MODEL, 5, key))(jax.random.key(0))
    self.run = jax.jit(lambda *args: MODEL.apply({'params': self.params}, *args))

  def test_the_past_does_not_see_the_future(self):
    states, actions = noise(2, 12, 10), noise(2, 9, 5)
    out = self.run(states, actions)
    changed = (states.at[:, 8:].add(1), actions), (states, actions.at[:, 6:].add(1))
    for states_, actions_ in changed:
      other = self.run(states_, actions_)
      np.testing.assert_array_equal(out[:, :8], other[:, :8])
      self.assertGreater(np.abs(out[:, 8:] - other[:, 8:]).max(), 1e-4)

  def test_every_parameter_has_a_gradient(self):
    def total(params):
      out = MODEL.apply({'params': params}, noise(2, 8, 10), noise(2, 6, 5))
      return (out * noise(*out.shape, seed=3)).sum()

    gradient = jax.jit(jax.grad(total))(self.params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
      self.assertTrue(np.isfinite(leaf).all() and np.abs(leaf).max() > 0,
                      jax.tree_util.keystr(path))

  def test_a_residual_model_starts_at_the_copy(self):
    model = MODEL.clone(residual=True)
    params = jax.jit(lambda key: world_model.init_params(model, 5, key))(jax.random.key(0))
    states = noise(1, 8, 10)
    out = jax.jit(model.apply)({'params': params}, states, noise(1, 6, 5))
    np.testing.assert_array_equal(out, states)

  def test_initial_scale(self):
    std = lambda i: float(np.std(self.params[f'blocks_{i}']['fc2']['kernel']))
    self.assertAlmostEqual(std(0), 0.02 / 2**0.5, delta=2e-3)
    self.assertAlmostEqual(std(1), 0.02 / 2, delta=2e-3)

  def test_the_release_has_unused_tensors_and_others_are_errors(self):
    tensors = world_model.params_to_torch(self.params)
    unused = {'state_encoder.weight': np.zeros((3, 3))}
    back = world_model.params_from_torch({**tensors, **unused}, MODEL, 5)
    jax.tree.map(np.testing.assert_array_equal, back, self.params)
    with self.assertRaisesRegex(ValueError, 'extra.weight is left over'):
      world_model.params_from_torch({**tensors, 'extra.weight': np.zeros(3)}, MODEL, 5)


class ViewsTest(absltest.TestCase):

  def test_orders(self):
    states = np.arange(4.0).reshape(4, 1, 1)  # rows (sample 0: 0, 1), (sample 1: 2, 3)
    self.assertEqual(world_model.join_views(states, 2).tolist(), [[[0, 1]], [[2, 3]]])
    released = world_model.join_views(states, 2, 'released_code')
    self.assertEqual(released.tolist(), [[[0, 2]], [[1, 3]]])
    with self.assertRaisesRegex(ConfigError, 'view_order'):
      world_model.join_views(states, 2, 'release')

  def test_states_have_no_gradient(self):
    videos = noise(1, 2, 4, 2, 2, 3)
    encode = lambda x: x.reshape(*x.shape[:2], -1)  # one token a frame

    def total(scale):
      context, target = world_model.encode_views(lambda x: scale * encode(x), videos,
                                                 how='causal_prefix', tubelet=1)
      return context.sum() + target.sum()

    self.assertEqual(jax.grad(total)(1.0), 0)


if __name__ == '__main__':
  absltest.main()
