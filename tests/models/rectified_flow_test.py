"""Rectified flow: loss, grid, Euler steps, guidance."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.models import rectified_flow


class LossTest(absltest.TestCase):

  def test_time_one_is_noise(self):
    x0, noise = np.ones((3, 2, 4), np.float32), np.full((3, 2, 4), 5, np.float32)
    x, velocity = rectified_flow.interpolate(x0, noise, np.array([0., .5, 1.], np.float32))
    np.testing.assert_allclose(x[:, 0, 0], [1, 3, 5])
    np.testing.assert_allclose(velocity, 4 * np.ones((3, 2, 4)))

  def test_times_are_logit_normal(self):
    noise, t = rectified_flow.draw(jax.random.key(0), np.zeros((4000, 1, 1)))
    logits = np.log(t / (1 - t))
    self.assertAlmostEqual(float(logits.mean()), 0, delta=.06)
    self.assertAlmostEqual(float(logits.std()), 1, delta=.06)
    self.assertLess(abs(np.corrcoef(noise[:, 0, 0], logits)[0, 1]), .06)

  def test_a_gaussian_learns_its_closed_form(self):
    # x_0 ~ N(m, s^2) and x_t are jointly normal, so E[eps - x_0 | x_t] is linear in x_t.
    mean, scale = 0.7, 0.5

    def truth(x, t):
      t = t[:, None, None]
      gain = (t - (1 - t) * scale**2) / (t**2 + (1 - t)**2 * scale**2)
      return -mean + gain * (x - (1 - t) * mean)

    def network(params, x, t):
      h = jnp.concatenate([x[:, 0], t[:, None], x[:, 0] * t[:, None]], axis=-1)
      for w, b in params[:-1]:
        h = jnp.tanh(h @ w + b)
      return (h @ params[-1][0] + params[-1][1])[:, None]

    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (3, 32, 32, 1)
    params = [(jax.random.normal(key, (a, b)) / a**.5, jnp.zeros(b))
              for key, a, b in zip(keys, sizes[:-1], sizes[1:])]
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))

    def step(carry, key):
      params, state = carry
      data_key, draw_key = jax.random.split(key)
      x0 = mean + scale * jax.random.normal(data_key, (256, 1, 1))
      noise, t = rectified_flow.draw(draw_key, x0)
      loss = lambda p: rectified_flow.loss(lambda x, t: network(p, x, t), x0, noise, t).mean()
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, jax.random.split(keys[3], 1500)))(
        (params, optimizer.init(params)))
    x0 = mean + scale * jax.random.normal(jax.random.key(7), (2000, 1, 1))
    noise, t = rectified_flow.draw(jax.random.key(8), x0)
    x, _ = rectified_flow.interpolate(x0, noise, t)
    self.assertLess(float(jnp.square(network(params, x, t) - truth(x, t)).mean()), 0.02)


class SamplingTest(parameterized.TestCase):

  @parameterized.parameters((4, 256), (28, 4096), (1, 16))
  def test_grid(self, steps, tokens):
    sigmas = rectified_flow.sigma_grid(steps, tokens)
    self.assertLen(sigmas, steps + 1)
    self.assertEqual(sigmas.dtype, np.float32)
    self.assertEqual((sigmas[0], sigmas[-1]), (1, 0))
    self.assertTrue((np.diff(sigmas) < 0).all())

  def test_the_shift_is_linear_in_the_target(self):
    self.assertAlmostEqual(rectified_flow.shift_of(256), .5)
    self.assertAlmostEqual(rectified_flow.shift_of(4096), 1.15)

  def test_a_straight_flow_is_exact(self):
    target = np.full((2, 3, 4), 2, np.float32)
    noise = np.asarray(jax.random.normal(jax.random.key(0), target.shape))
    path = rectified_flow.euler(lambda x, t: noise - target, noise, rectified_flow.sigma_grid(5, 3))
    self.assertEqual(path.shape, (5, 2, 3, 4))
    np.testing.assert_allclose(path[-1], target, atol=1e-5)

  def test_guidance_keeps_the_length(self):
    a, b = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
    mixed = rectified_flow.guide(a, b, 4.0)
    length = lambda x: np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(length(mixed), length(a), rtol=1e-5)
    np.testing.assert_allclose(rectified_flow.guide(a, b, 1.0), a, rtol=1e-5)
    self.assertGreater(np.abs(mixed - a).max(), .1)


if __name__ == '__main__':
  absltest.main()
