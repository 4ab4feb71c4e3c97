"""The action head: sampling, times, padding of its context, gradients, dropout."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.systems.vla_jepa import flow_head

HEAD = flow_head.FlowHead(2, 3, 4, width=8, num_heads=2, num_layers=2, hidden=8, out_width=8,
                          future_tokens=2, max_positions=4)


def noise(*shape, seed=1):
  return jax.random.normal(jax.random.key(seed), shape)


class FlowHeadTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.params = jax.jit(lambda key: flow_head.init_params(HEAD, 6, key))(jax.random.key(0))

  def apply(self, context, mask=None, seed=None):
    options = {} if seed is None else {'deterministic': False,
                                       'rngs': {'dropout': jax.random.key(seed)}}
    return jax.jit(lambda params: HEAD.apply(
        {'params': params}, noise(2, 3, 2), jnp.array([0, 500]), context, noise(2, 4), mask,
        **options))(self.params)

  def test_padded_context_changes_nothing(self):
    context = noise(2, 5, 6, seed=2)
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    other = context.at[1, 3:].set(7.0)
    np.testing.assert_allclose(self.apply(context, mask), self.apply(other, mask), atol=1e-6)
    self.assertGreater(np.abs(self.apply(context) - self.apply(other)).max(), 1e-4)

  def test_dropout_is_for_training_alone(self):
    context = noise(2, 5, 6)
    different = self.apply(context, seed=0) - self.apply(context, seed=1)
    self.assertGreater(np.abs(different).max(), 1e-4)
    np.testing.assert_array_equal(self.apply(context), self.apply(context))

  def test_every_parameter_has_a_gradient(self):
    def total(params):
      field = lambda x, bucket: HEAD.apply({'params': params}, x, bucket, noise(2, 5, 6),
                                           noise(2, 4))
      return flow_head.loss(field, noise(2, 3, 2), noise(2, 3, 2, seed=5),
                            jnp.array([0.3, 0.9])).sum()

    gradient = jax.jit(jax.grad(total))(self.params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
      self.assertTrue(np.isfinite(leaf).all() and np.abs(leaf).max() > 0,
                      jax.tree_util.keystr(path))

  def test_a_straight_field_is_followed_to_its_end(self):
    goal, start = noise(2, 3, 2), noise(2, 3, 2, seed=9)
    straight = lambda x, bucket: goal - start
    for steps in (1, 4, 6):
      end = jax.jit(lambda x, n=steps: flow_head.sample(straight, x, n))(start)
      np.testing.assert_allclose(end, goal, atol=1e-5)
    loss = flow_head.loss(straight, goal, start, jnp.array([0.2, 0.7]))
    np.testing.assert_array_equal(loss, np.zeros((2, 3)))

  def test_buckets_of_a_sample(self):
    seen = []
    def field(x, bucket):
      jax.debug.callback(lambda b: seen.append(int(b[0])), bucket)
      return x
    jax.block_until_ready(flow_head.sample(field, noise(1, 3, 2), 5))
    jax.effects_barrier()
    self.assertEqual(sorted(seen), [0, 200, 400, 600, 800])

  def test_times(self):
    keys = jax.random.split(jax.random.key(0), 64)
    _, t = jax.vmap(lambda key: flow_head.draw(key, (64, 1, 1)))(keys)
    # b ~ Beta(1.5, 1) has mean 0.6.
    self.assertAlmostEqual(float(t.mean()), (0.999 - 0.6) / 0.999, delta=0.02)
    self.assertLess(float(t.max()), 1.0)
    self.assertEqual(flow_head.bucket_of(jnp.array([-0.001, 0.2504, 0.9999])).tolist(),
                     [0, 250, 999])
    _, t = jax.vmap(lambda key: flow_head.draw(key, (64, 1, 1), 'uniform'))(keys)
    self.assertAlmostEqual(float(t.mean()), 0.5, delta=0.02)


class RegressionTest(absltest.TestCase):

  def test_padding_and_shape(self):
    head = flow_head.RegressionHead(2, 3, 4, 8)
    context, state = noise(2, 5, 6), noise(2, 4)
    params = head.init(jax.random.key(0), context, state)
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    out = head.apply(params, context, state, mask)
    self.assertEqual(out.shape, (2, 3, 2))
    np.testing.assert_allclose(out, head.apply(params, context.at[1, 3:].set(9.0), state, mask),
                               atol=1e-6)


if __name__ == '__main__':
  absltest.main()
