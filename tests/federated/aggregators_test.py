"""Aggregators against NumPy, in any order, in any chunks, on any devices."""
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import federated, optim, parallel
from jaxlab.config import ConfigError
from jaxlab.federated import aggregators
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
KEY = jax.random.key(0)
AGGREGATORS = {
    'mean': aggregators.weighted_mean, 'maximum': aggregators.maximum,
    'parts': lambda: aggregators.by_part(w=aggregators.weighted_mean(), b=aggregators.maximum()),
}


def draw(clients, seed=0, dtype=np.float32):
  """(messages [C, ...], weights [C]); some weights are 0, never all."""
  rng = np.random.default_rng(seed)
  messages = {'w': rng.normal(size=(clients, 3, 2)).astype(dtype),
              'b': rng.normal(size=(clients, 4)).astype(dtype)}
  weights = rng.integers(0, 4, clients).astype(dtype)
  weights[rng.integers(clients)] = 2.5
  return messages, weights


def apply(aggregator, messages, weights):
  aggregate, state, info = aggregator.apply(aggregator.init({}), messages, weights, KEY)
  assert (state, info) == ((), {})
  return aggregate


def rows(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def streamed(aggregator, messages, weights, sizes):
  """The running sums over chunks of these sizes."""
  stream = aggregator.stream
  accumulator = stream.zero(rows(messages, 0))
  for end, size in zip(np.cumsum(sizes), sizes, strict=True):
    chunk = slice(end - size, end)
    accumulator = stream.add(accumulator, rows(messages, chunk), weights[chunk])
  return stream.finish(accumulator, KEY)


def expected(name, messages, weights):
  """What NumPy says."""
  mean = lambda x: np.average(x.astype(np.float64), axis=0, weights=weights)
  largest = lambda x: x[weights > 0].max(0)
  if name == 'parts':
    return {'w': mean(messages['w']), 'b': largest(messages['b'])}
  return jax.tree.map(mean if name == 'mean' else largest, messages)


class AggregatorsTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*AGGREGATORS)
  def test_equals_numpy(self, name):
    messages, weights = draw(9)
    self.assertIn(0, weights)
    aggregate = self.variant(lambda *args: apply(AGGREGATORS[name](), *args))(messages, weights)
    chex.assert_trees_all_close(aggregate, expected(name, messages, weights), rtol=1e-5, atol=1e-6)

  @settings(max_examples=15, deadline=None)
  @given(name=st.sampled_from(sorted(AGGREGATORS)), clients=st.integers(1, 6), data=st.data())
  def test_the_order_of_the_clients_changes_nothing(self, name, clients, data):
    order = np.array(data.draw(st.permutations(range(clients))))
    with jax.enable_x64(True):
      messages, weights = draw(clients, data.draw(st.integers(0, 99)), np.float64)
      first, second = (apply(AGGREGATORS[name](), rows(messages, index), weights[index])
                       for index in (np.arange(clients), order))
    chex.assert_trees_all_close(first, second, rtol=1e-12, atol=1e-14)

  @parameterized.product(name=list(AGGREGATORS), sizes=[(7,), (1,) * 7, (3, 4), (1, 5, 1)])
  def test_chunks_change_no_bit(self, name, sizes):
    aggregator, (messages, weights) = AGGREGATORS[name](), draw(7)
    toy.assert_trees_equal(streamed(aggregator, messages, weights, sizes),
                           apply(aggregator, messages, weights))

  @parameterized.product(name=list(AGGREGATORS), nonsense=[0.0, 1e30])
  def test_a_client_of_weight_0_does_not_exist(self, name, nonsense):
    aggregator, (messages, weights) = AGGREGATORS[name](), draw(5)
    more = jax.tree.map(lambda x: np.insert(x, [0, 2, 5], nonsense, axis=0), messages)
    toy.assert_trees_equal(apply(aggregator, messages, weights),
                           apply(aggregator, more, np.insert(weights, [0, 2, 5], 0)))

  @parameterized.product(name=list(AGGREGATORS), count=[2, 4])
  def test_devices_change_nothing(self, name, count):
    stream, (messages, weights) = AGGREGATORS[name]().stream, draw(8)

    def one(messages, weights):
      accumulator = stream.add(stream.zero(rows(messages, 0)), messages, weights)
      return stream.finish(stream.collect(accumulator, parallel.CLIENTS), KEY)

    program = jax.pmap(one, axis_name=parallel.CLIENTS, out_axes=None,
                       devices=jax.devices()[:count])
    aggregate = program(*jax.tree.map(
        lambda x: x.reshape((count, -1) + x.shape[1:]), (messages, weights)))
    parallel.assert_replicated(aggregate)
    chex.assert_trees_all_close(aggregate, expected(name, messages, weights), rtol=1e-5, atol=1e-6)


class MeanTest(parameterized.TestCase):

  def test_bfloat16_is_accumulated_in_float32(self):
    # In bfloat16 256 + 1 is 256: a sum of small ones would stand still.
    messages = {'x': np.ones((600, 2), jnp.bfloat16)}
    messages['x'][0] = 256
    aggregate = apply(aggregators.weighted_mean(), messages, np.ones(600, jnp.bfloat16))
    self.assertEqual(aggregate['x'].dtype, jnp.float32)
    np.testing.assert_allclose(aggregate['x'], (256 + 599) / 600, rtol=1e-6)

  def test_float64_stays_float64(self):
    with jax.enable_x64(True):
      messages = {'x': np.array([[1.0], [1.0 + 2**-40]])}
      aggregate = apply(aggregators.weighted_mean(), messages, np.ones(2))
    self.assertEqual(aggregate['x'].dtype, np.float64)
    self.assertEqual(float(aggregate['x'][0]), 1.0 + 2**-41)

  def test_nobody_is_there(self):
    messages, weights = draw(3)
    mean, largest = (
        apply(AGGREGATORS[name](), messages, 0 * weights) for name in ('mean', 'maximum'))
    self.assertTrue(all((leaf == 0).all() for leaf in jax.tree.leaves(mean)))
    # Not finite, so that the round is refused.
    self.assertTrue(all((leaf == -np.inf).all() for leaf in jax.tree.leaves(largest)))


class MakeTest(parameterized.TestCase):

  def test_by_name(self):
    algorithm = federated.fedavg(None, optax.sgd(0.1))
    messages, weights = draw(3)
    chex.assert_trees_all_close(
        apply(aggregators.make_aggregator({'name': 'mean'}, algorithm), messages, weights),
        expected('mean', messages, weights), rtol=1e-5, atol=1e-6)

  @parameterized.parameters(
      ({'name': 'meen'}, "^federated.aggregator.name: unknown name 'meen'; did you mean 'mean'"),
      ({}, '^federated.aggregator.name: missing$'),
      ({'name': 'mean', 'trim': 1}, "^federated.aggregator: unknown key 'trim'"))
  def test_mistakes(self, config, message):
    with self.assertRaisesRegex(ConfigError, message):
      aggregators.make_aggregator(config, federated.fedavg(None, optax.sgd(0.1)))

  def test_an_algorithm_with_an_aggregator_of_its_own(self):
    algorithm = federated.fedlalr(None, optim.fedlalr(0.1), vhat_agg='max')
    self.assertIs(aggregators.make_aggregator({'name': 'mean'}, algorithm), algorithm.aggregator)
    with mock.patch.dict(aggregators.AGGREGATORS, robust=aggregators.weighted_mean):
      aggregators.make_aggregator({'name': 'robust'}, federated.fedavg(None, optax.sgd(0.1)))
      with self.assertRaisesRegex(
          ConfigError, r"^federated.aggregator.name: expected 'mean' \(.* own\), got 'robust'$"):
        aggregators.make_aggregator({'name': 'robust'}, algorithm)


if __name__ == '__main__':
  absltest.main()
