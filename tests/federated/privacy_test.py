"""Differential privacy: the clipped Gaussian aggregator and its accountant."""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.federated import aggregators, privacy


def messages(scale):
  return {'w': scale[:, None] * jnp.array([[3.0, 0.0]]), 'b': scale[:, None] * jnp.array([[4.0]])}


class ClippedGaussianTest(parameterized.TestCase):

  def test_clips_to_the_norm_and_means_uniformly(self):
    scale = jnp.array([1.0, 0.1, 100.0])  # norms 5, .5, 500
    aggregator = aggregators.clipped_gaussian(clip_norm=2.0, noise_multiplier=0.0)
    weights = jnp.array([7.0, 1.0, 0.0])
    ours, _, _ = aggregator.apply((), messages(scale), weights, jax.random.key(0))
    unit = np.array([0.6, 0.0, 0.8])
    expected = (2.0 * unit + 0.5 * unit) / 2  # the third has weight 0; weights do not weigh
    np.testing.assert_allclose(np.concatenate([ours['w'], ours['b']]), expected, rtol=1e-6)

  def test_noise_has_the_stated_deviation(self):
    aggregator = aggregators.clipped_gaussian(clip_norm=2.0, noise_multiplier=1.5)
    zeros = {'w': jnp.zeros((4, 20000))}
    ours, _, _ = aggregator.apply((), zeros, jnp.ones(4), jax.random.key(1))
    self.assertAlmostEqual(float(ours['w'].std()), 1.5 * 2.0 / 4, delta=0.02)
    again, _, _ = aggregator.apply((), zeros, jnp.ones(4), jax.random.key(2))
    self.assertFalse(np.array_equal(ours['w'], again['w']))

  def test_streamed_in_chunks_it_is_the_same(self):
    stream = aggregators.clipped_gaussian(clip_norm=2.0, noise_multiplier=1.0).stream
    stack = messages(jnp.array([1.0, 0.1, 100.0, 2.0]))
    take = lambda part: jax.tree.map(lambda x: x[part], stack)
    zero = stream.zero(take(0))
    whole = stream.finish(stream.add(zero, stack, jnp.ones(4)), jax.random.key(0))
    first = stream.add(zero, take(slice(0, 2)), jnp.ones(2))
    halves = stream.add(first, take(slice(2, 4)), jnp.ones(2))
    for ours, theirs in zip(jax.tree.leaves(stream.finish(halves, jax.random.key(0))),
                            jax.tree.leaves(whole)):
      np.testing.assert_array_equal(ours, theirs)
    self.assertLessEqual(float(optax.tree.norm(halves[0])), 4 * 2.0)

  @parameterized.parameters(({'clip_norm': 0.0, 'noise_multiplier': 1.0}, 'clip_norm'),
                            ({'clip_norm': 1.0, 'noise_multiplier': -1.0}, 'noise_multiplier'))
  def test_impossible_settings(self, settings, key):
    with self.assertRaisesRegex(ConfigError, key):
      aggregators.clipped_gaussian(**settings)


class AccountantTest(parameterized.TestCase):
  epsilon = functools.partial(privacy.epsilon, noise_multiplier=1.0, sampling_rate=0.01,
                              rounds=1000, delta=1e-5)

  def test_full_participation_once_is_the_gaussian_mechanism(self):
    # Renyi order a of the Gaussian mechanism is a / (2 sigma^2); Balle et al. 2020 turn it into
    # epsilon = min over a of a / (2 sigma^2) + log((a - 1) / a) - (log(delta) + log(a)) / (a - 1).
    orders = np.linspace(1.01, 60, 20000)
    bound = np.min(orders / (2 * 4.0**2) + np.log((orders - 1) / orders) -
                   (np.log(1e-5) + np.log(orders)) / (orders - 1))
    ours = privacy.epsilon(noise_multiplier=4.0, sampling_rate=1.0, rounds=1, delta=1e-5)
    self.assertAlmostEqual(ours, bound, delta=0.02 * bound)

  def test_monotone(self):
    base = self.epsilon()
    self.assertGreater(self.epsilon(rounds=2000), base)
    self.assertGreater(self.epsilon(sampling_rate=0.02), base)
    self.assertLess(self.epsilon(noise_multiplier=2.0), base)

  @parameterized.parameters('noise_multiplier', 'sampling_rate', 'rounds', 'delta')
  def test_impossible_values(self, key):
    with self.assertRaisesRegex(ConfigError, key):
      self.epsilon(**{key: 0})

  def test_without_the_extra(self):
    with mock.patch.dict('sys.modules', {'dp_accounting': None}):
      with self.assertRaisesRegex(ConfigError, r"pip install 'jaxlab\[privacy\]'"):
        self.epsilon()


if __name__ == '__main__':
  absltest.main()
