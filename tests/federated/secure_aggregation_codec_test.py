"""The codec of the compiled round: sums bit for bit, on any devices, whoever drops out."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import federated, parallel
from jaxlab.config import ConfigError
from jaxlab.federated import secure_aggregation as secure
from jaxlab.federated.secure_aggregation import primitives
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
KEY = jax.random.key(3)
CLIENTS, FEDERATION, CLIP, BITS, MOST = 8, 11, 0.5, 12, 9
IDS = np.array([10, 3, 0, 7, 4, 9, 2, 6], np.int32)


def make(neighbors=None, **arguments):
  return secure.secure_mean(clip=CLIP, bits=BITS, max_weight=MOST, neighbors=neighbors,
                            num_clients=FEDERATION, cohort_size=CLIENTS, **arguments)


def draw(seed=0, clients=CLIENTS):
  """(messages [C, ...], some entries beyond the clip; weights [C])."""
  rng = np.random.default_rng(seed)
  messages = {'w': rng.normal(size=(clients, 3, 2)).astype(np.float32) / 3,
              'b': rng.normal(size=(clients, 4)).astype(np.float32) / 3}
  return messages, rng.integers(1, MOST + 1, clients).astype(np.float32)


def one_device(codec, messages, weights, ids, key):
  """The part of a round between clients and server, of one device."""
  everyone = parallel.all_gather(ids, parallel.CLIENTS)
  encoded = codec.encode(messages, weights, ids, everyone, key)
  stream = codec.aggregator.stream
  accumulator = stream.zero(jax.tree.map(lambda x: x[0], encoded))
  for client in range(len(ids)):
    one = lambda x: x[client:client + 1]
    accumulator = stream.add(accumulator, jax.tree.map(one, encoded), one(weights))
  accumulator = stream.collect(accumulator, parallel.CLIENTS)
  return codec.unmask(accumulator, key), stream.finish(accumulator, key)


@functools.cache
def program(devices, neighbors):
  run = jax.pmap(functools.partial(one_device, make(neighbors)), axis_name=parallel.CLIENTS,
                 in_axes=(0, 0, 0, None), out_axes=None, devices=jax.devices()[:devices])
  cut = lambda x: np.reshape(x, (devices, -1) + np.shape(x)[1:])

  def sums(messages, weights, ids):
    both = run(*jax.tree.map(cut, (messages, weights, ids)), KEY)
    parallel.assert_replicated(both)
    return parallel.to_host(both[0])

  return sums


def plain(messages, weights):
  """The same sums of quantised numbers, added up in NumPy: no mask anywhere."""
  here = weights > 0

  def total(x):
    scaled = np.clip(x, -CLIP, CLIP) * weights.reshape((-1,) + (1,) * (x.ndim - 1))
    words = np.asarray(secure.quantize(jnp.asarray(scaled), CLIP * MOST, BITS))
    return words[here].sum(0, dtype=np.uint64).astype(np.uint32)

  return np.uint32(weights.sum()), jax.tree.map(total, messages), np.uint32(here.sum())


def mean_of(codec, messages, weights):
  """The mean on one device."""
  return jax.jit(functools.partial(one_device, codec))(messages, weights, IDS, KEY)[1]


class QuantizeTest(parameterized.TestCase):

  @settings(max_examples=30, deadline=None)
  @given(st.integers(1, 22), st.floats(1e-4, 1e4), st.integers(1, 50), st.integers(0, 9),
         st.booleans())
  def test_error_is_within_the_bound(self, bits, clip, count, seed, stochastic):
    count = min(count, (2**32 - 1) // (2**bits - 1))
    x = np.random.default_rng(seed).uniform(-1.5, 1.5, (50, 20)).astype(np.float32)
    x = x * np.float32(clip)
    key = jax.random.key(seed) if stochastic else None
    words = np.asarray(secure.quantize(jnp.asarray(x), clip, bits, key))
    self.assertLess(words.max(), 2**bits)
    ours = secure.dequantize(words[:count].sum(0, dtype=np.uint32), count, clip, bits)
    exact = np.clip(x[:count].astype(np.float64), -clip, clip).sum(0)
    error = np.abs(np.asarray(ours, np.float64) - exact)
    rounding = 'stochastic' if stochastic else 'nearest'
    self.assertLessEqual(error.max(), secure.error_bound(count, clip, bits, rounding))

  def test_the_bound_is_not_idle(self):
    x = jnp.zeros((100, 1))  # 0 lies between two levels, the worst case
    words = secure.quantize(x, 1.0, 8)
    error = float(secure.dequantize(words.sum(0, dtype=jnp.uint32), 100, 1.0, 8)[0])
    self.assertGreater(error, 0.99 * secure.error_bound(100, 1.0, 8))

  def test_stochastic_rounding_is_unbiased(self):
    x = jnp.full((20000,), 0.123)
    words = secure.quantize(x, 1.0, 4, jax.random.key(0))
    step = 2 / 15
    mean = float(words.astype(jnp.float32).mean()) * step - 1
    self.assertAlmostEqual(mean, 0.123, delta=4 * step / 2 / np.sqrt(20000))
    self.assertGreater(abs(float(secure.quantize(x[:1], 1.0, 4)[0]) * step - 1 - 0.123), 0.02)

  def test_numpy_arrays_get_the_integers_of_the_formula(self):
    x = np.random.default_rng(0).normal(size=2000).astype(np.float32) / 4
    exact = np.rint((np.clip(x.astype(np.float64), -0.5, 0.5) + 0.5) * (2**22 - 1))
    np.testing.assert_array_equal(secure.quantize(x, 0.5, 22), exact)
    single = np.asarray(secure.quantize(jnp.asarray(x), 0.5, 22)).astype(np.float64)
    self.assertEqual(np.abs(single - exact).max(), 1)

  def test_the_largest_sum_does_not_wrap(self):
    words = jnp.full((1, 4), 65537 * 65535, jnp.uint32)
    np.testing.assert_allclose(secure.dequantize(words, 65537, 2.0, 16), 65537 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(secure.dequantize(words * 0, 65537, 2.0, 16), -65537 * 2.0,
                               rtol=1e-6)


class CodecTest(parameterized.TestCase):

  @parameterized.parameters((1, None), (2, None), (4, None), (2, 4))
  def test_bit_exact_whoever_drops_out(self, devices, neighbors):
    run = program(devices, neighbors)

    @settings(max_examples=15, deadline=None)
    @given(st.sets(st.integers(0, CLIENTS - 1), max_size=CLIENTS - 1), st.integers(0, 99))
    def check(gone, seed):
      messages, weights = draw(seed)
      weights[list(gone)] = 0
      ours = run(messages, weights, IDS)
      jax.tree.map(np.testing.assert_array_equal, ours, plain(messages, weights))

    check()

  def test_a_client_that_drops_changes_its_own_contribution_alone(self):
    messages, weights = draw()
    everybody = program(2, None)(messages, weights, IDS)
    one = plain(*jax.tree.map(lambda x: x[3:4], (messages, weights)))
    weights[3] = 0
    others = program(2, None)(messages, weights, IDS)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.subtract, everybody, others), one)

  def test_padding_clients_and_order_change_nothing(self):
    messages, weights = draw()
    weights[6:] = 0
    ids = IDS.copy()
    ids[6:] = -1
    ours = program(2, None)(messages, weights, ids)
    jax.tree.map(np.testing.assert_array_equal, ours, plain(messages, weights))
    order = np.array([7, 2, 5, 0, 6, 1, 4, 3])
    again = program(2, None)(jax.tree.map(lambda x: x[order], messages), weights[order], ids[order])
    jax.tree.map(np.testing.assert_array_equal, ours, again)

  def test_without_masks_it_is_the_same(self):
    messages, weights = draw()
    weights[2] = 0
    jax.tree.map(np.testing.assert_array_equal, program(2, 0)(messages, weights, IDS),
                 plain(messages, weights))

  def test_error_of_the_mean(self):
    messages, weights = draw()
    for rounding in ('nearest', 'stochastic'):
      ours = mean_of(make(0, rounding=rounding), messages, weights)
      bound = secure.error_bound(CLIENTS, CLIP * MOST, BITS, rounding) / weights.sum()
      exact = np.average(np.clip(messages['w'].astype(np.float64), -CLIP, CLIP), axis=0,
                         weights=weights)
      self.assertLessEqual(np.abs(ours['w'] - exact).max(), bound)

  def test_bounds_of_their_own_for_parts(self):
    messages, weights = draw()
    codec = secure.secure_mean(clip={'w': 0.1, 'b': 2.0}, bits=16, max_weight=MOST, neighbors=0,
                               num_clients=FEDERATION, cohort_size=CLIENTS)
    ours = mean_of(codec, messages, weights)
    for part, clip in (('w', 0.1), ('b', 2.0)):
      exact = np.average(np.clip(messages[part], -clip, clip), axis=0, weights=weights)
      np.testing.assert_allclose(ours[part], exact, atol=clip * MOST / 65535 * CLIENTS /
                                 weights.sum())
    with self.assertRaisesRegex(ConfigError, 'clip: expected'):
      wrong = secure.secure_mean(clip={'v': 0.1}, num_clients=FEDERATION, cohort_size=CLIENTS)
      mean_of(wrong, messages, weights)

  @parameterized.parameters(None, 2)
  def test_what_a_client_sends_and_every_partial_sum_look_uniform(self, neighbors):
    size = 2000
    codec = secure.secure_mean(clip=1.0, neighbors=neighbors, num_clients=4, cohort_size=4)
    ids = jnp.arange(4, dtype=jnp.int32)
    messages = {'x': jnp.zeros((4, size))}
    encoded = jax.jit(codec.encode)(messages, jnp.ones(4), ids, ids, KEY)
    words = np.asarray(encoded.words[1]['x'])
    for subset in range(1, 2**4):
      chosen = words[[i for i in range(4) if subset >> i & 1]].sum(0, dtype=np.uint32)
      self.assertGreater(secure.uniformity(chosen), 1e-6)
    bare = jax.jit(make(0).encode)(messages, jnp.ones(4), ids, ids, KEY)
    self.assertLess(secure.uniformity(bare.words[1]['x'][0]), 1e-6)

  def test_the_seeds_of_the_protocol_drive_the_same_masks(self):
    seeds = [bytes(range(i, i + 32)) for i in range(3)]
    words = jnp.arange(5, dtype=jnp.uint32)
    keys = jax.vmap(secure.seed_key)(np.stack([np.frombuffer(seed, '<u4') for seed in seeds]))
    ours = secure.mask(words, keys, jnp.array([1, -1, 0]))
    streams = [primitives.threefry_words(seed, 5) for seed in seeds]
    np.testing.assert_array_equal(ours, np.asarray(words) + streams[0] - streams[1])
    self.assertLen({stream.tobytes() for stream in streams}, 3)


class ConfigTest(parameterized.TestCase):

  def make(self, config, aggregator='mean', algorithm=None):
    algorithm = algorithm or federated.fedavg(None, optax.sgd(0.1))
    return secure.make_codec(config, {'name': aggregator}, algorithm, num_clients=100,
                             cohort_size=50)

  def test_a_robust_aggregator_is_refused(self):
    with self.assertRaisesRegex(ConfigError, r"aggregator.name: expected 'mean'.*got 'krum'"):
      self.make({'clip': 1.0}, 'krum')
    with self.assertRaisesRegex(ConfigError, 'federated.secure: expected an algorithm'):
      self.make({'clip': 1.0}, algorithm=federated.fedavg(None, optax.sgd(0.1))._replace(
          aggregator=federated.aggregators.maximum()))

  @parameterized.parameters(
      ({}, 'secure.clip: missing'), ({'clip': 0.0}, 'clip: expected more than 0'),
      ({'clip': 1.0, 'bits': 23}, 'bits: expected 1 to 22'),
      ({'clip': 1.0, 'neighbors': 3}, 'neighbors: expected None or an even'),
      ({'clip': 1.0, 'max_weight': 0}, 'max_weight: expected at least 1'),
      ({'clip': 1.0, 'max_weight': 2**31}, 'max_weight: expected less than'),
      ({'clip': 1.0, 'rounding': 'up'}, 'rounding: expected'),
      ({'clip': 1.0, 'bit': 8}, "unknown key 'bit'; did you mean 'bits'"),
      ({'clip': 1.0, 'cohort_size': 8}, "unknown key 'cohort_size'"))
  def test_bad_settings(self, config, message):
    with self.assertRaisesRegex(ConfigError, message):
      self.make(config)

  def test_capacity(self):
    secure.secure_mean(clip=1.0, bits=16, num_clients=10**6, cohort_size=65537)
    with self.assertRaisesRegex(ConfigError, r'num_clients \* \(2\^bits - 1\) < 2\^32'):
      secure.secure_mean(clip=1.0, bits=16, num_clients=10**6, cohort_size=65538)

  def test_weights_beyond_the_bound(self):
    codec = self.make({'clip': 1.0, 'max_weight': 20})
    secure.check_weights(codec, 'examples', np.array([3, 20]))
    secure.check_weights(codec, 'uniform', np.array([3, 21]))
    with self.assertRaisesRegex(ConfigError, 'max_weight: expected at least .* 21, got 20'):
      secure.check_weights(codec, 'examples', np.array([3, 21]))


class UnionTest(parameterized.TestCase):

  @settings(max_examples=20, deadline=None)
  @given(st.lists(st.sets(st.integers(0, 29)), min_size=1, max_size=6), st.integers(0, 99))
  def test_is_the_union(self, sets, seed):
    members = np.zeros((6, 30), bool)
    for client, items in enumerate(sets):
      members[client, list(items)] = True
    total = union_sum(jax.random.key(seed), members)
    self.assertEqual(set(np.flatnonzero(total)), set().union(*sets))

  def test_magnitudes_do_not_tell_counts(self):
    members = np.zeros((6, 4000), bool)
    counts = np.arange(4000) % 7
    for client in range(6):
      members[client] = counts > client
    total = np.asarray(union_sum(KEY, members))
    np.testing.assert_array_equal(total > 0, counts > 0)
    for count in range(1, 7):
      self.assertGreater(secure.uniformity(total[counts == count]), 1e-6)
    small = np.minimum(total, 1) * counts  # what a sum of ones would show
    self.assertLess(secure.uniformity(small[counts == 3]), 1e-6)


@jax.jit
def union_sum(key, members):
  keys = jax.random.split(key, len(members))
  return jax.vmap(secure.union_words)(keys, members).sum(0, dtype=jnp.uint32)


if __name__ == '__main__':
  absltest.main()
