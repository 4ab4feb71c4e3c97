"""Robust aggregators: any order, padding, devices and shape of the message; what they withstand."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import federated, parallel
from jaxlab.config import ConfigError
from jaxlab.federated import aggregators
from jaxlab.federated.aggregators import distance, order, quantities, quantity_aware, stack
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
KEY = jax.random.key(0)
# Bulyan wants 4 F + 3 clients. Below F = 3 its last picks sum one distance alone, which the nearest
# two clients share exactly: the lower index goes first, and then the order does matter.
N, F, DIM = 15, 3, 10
RULES = {
    'uniform_mean': aggregators.uniform_mean,
    'norm_bound': lambda: aggregators.norm_bound(bound=2.0),
    'median': aggregators.median, 'median_lower': lambda: aggregators.median(lower=True),
    'trimmed_mean': lambda: aggregators.trimmed_mean(beta=F),
    'trimmed_by_size': lambda: aggregators.trimmed_mean(beta=F, weighted=True),
    'krum': lambda: aggregators.krum(num_malicious=F),
    'multi_krum': lambda: aggregators.multi_krum(num_malicious=F),
    'multi_krum_by_size': lambda: aggregators.multi_krum(num_malicious=F, weighted=True),
    'bulyan': lambda: aggregators.bulyan(num_malicious=F),
    'rfa': lambda: aggregators.rfa(weighted=False),
    'centered_clip': lambda: aggregators.centered_clip(tau=1.0),
    'residual': aggregators.residual, 'dnc': lambda: aggregators.dnc(num_malicious=F),
    'foolsgold': lambda: aggregators.foolsgold(N + 3),
    'fltrust': aggregators.fltrust, 'fedra': aggregators.fedra,
    'truncated': lambda: aggregators.truncated(
        aggregators.weighted_mean(), alpha=0.2, alpha_star=0.5),
}
TRANSLATING = ('median', 'trimmed_mean', 'krum', 'multi_krum', 'bulyan', 'rfa', 'dnc')
AVERAGES = ('uniform_mean', 'norm_bound', 'truncated')  # these compare no updates
BOUNDED = ('median', 'trimmed_mean', 'krum', 'multi_krum', 'bulyan', 'dnc', 'fedra')


def draw(seed=0, clients=N, dtype=np.float32):
  """(messages, weights) of distinct clients."""
  rng = np.random.default_rng(seed)
  messages = {'w': rng.normal(size=(clients, 3, 2)).astype(dtype) + 1,
              'b': rng.normal(size=(clients, 4)).astype(dtype) + 1}
  return messages, rng.integers(1, 40, clients).astype(dtype)


def start(aggregator, messages, ids):
  """The aggregator's state for a round of these clients."""
  state = aggregator.init(jax.tree.map(lambda x: x[0], messages))
  if aggregator.begin is not None:
    root = jax.tree.map(lambda x: jnp.ones(x.shape[1:], x.dtype), messages)
    state = aggregator.begin(state, ids, root)
  return state


@functools.cache
def program(name):
  """The compiled rule."""
  aggregator = RULES[name]()
  return aggregator, jax.jit(aggregator.apply)


def apply(name, messages, weights, ids=None):
  """(aggregate, state, info)."""
  aggregator, run = program(name)
  ids = jnp.arange(len(weights)) if ids is None else jnp.asarray(ids)
  return run(start(aggregator, messages, ids), messages, weights, KEY)


def rows(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def flat(tree):
  return np.concatenate([np.asarray(x).reshape(-1) for x in jax.tree.leaves(tree)])


class InvarianceTest(parameterized.TestCase):

  @settings(max_examples=4, deadline=None)
  @given(name=st.sampled_from(sorted(RULES)), data=st.data())
  def test_the_order_of_the_clients_changes_nothing(self, name, data):
    index = np.array(data.draw(st.permutations(range(N))))
    messages, weights = draw(data.draw(st.integers(0, 99)))
    first, _, info = apply(name, messages, weights)
    second, _, moved = apply(name, rows(messages, index), weights[index], index)
    chex.assert_trees_all_close(first, second, rtol=2e-4, atol=2e-5)
    if 'keep' in info:
      np.testing.assert_array_equal(info['keep'][index], moved['keep'])

  def test_of_two_clients_that_tie_in_bulyan_the_lower_index_goes_first(self):
    # f = 0, 3 clients: with the middle one gone, one distance is left, and two clients share it.
    place = jnp.array([5.0, 2.0, 0.0])
    distances = jnp.square(place[:, None] - place)
    picks = distance.bulyan_order(distances, jnp.ones(3, bool), 0)
    np.testing.assert_array_equal(picks, [1, 0, 2])

  @parameterized.parameters(*RULES)
  def test_clients_who_do_not_count_change_no_bit(self, name):
    """Absent ones, and ones to be rejected, whatever they hold."""
    messages, weights = draw()
    here = [0, 2, N]
    ids = np.insert(np.arange(N), here, -1)
    clean, state, info = apply(name, messages, weights)
    cases = [(0.0, 0.0), (1e30, 0.0), (np.nan, 5.0), (np.inf, 5.0), (1.0, np.nan), (1.0, np.inf),
             (1.0, -3.0)]
    # Squares of these are not finite, or too near it, though the numbers are.
    cases += [(value, 5.0) for value in (2e15, 5e18, 1e20) if name not in AVERAGES]
    for value, weight in cases:
      more = jax.tree.map(lambda x, v=value: np.insert(x, here, v, axis=0), messages)
      ours, new_state, new_info = apply(name, more, np.insert(weights, here, weight), ids)
      toy.assert_trees_equal(clean, ours)
      toy.assert_trees_equal(state, new_state)
      if 'keep' in info:
        np.testing.assert_array_equal(np.insert(info['keep'], here, False), new_info['keep'])

  @parameterized.parameters(*TRANSLATING)
  def test_moves_with_its_updates(self, name):
    messages, weights = draw()
    ramp = lambda x: np.arange(x[0].size, dtype=x.dtype).reshape(x[0].shape)
    shift = jax.tree.map(ramp, messages)
    moved = jax.tree.map(lambda x, s: x + s, messages, shift)
    expected = jax.tree.map(jnp.add, apply(name, messages, weights)[0], shift)
    chex.assert_trees_all_close(apply(name, moved, weights)[0], expected, rtol=1e-4, atol=1e-4)

  def test_centred_clipping_moves_with_updates_and_center(self):
    messages, weights = draw()
    aggregator, run = program('centered_clip')
    state = start(aggregator, messages, None)
    plain = run(state, messages, weights, KEY)[1]
    moved = jax.tree.map(lambda x: x + 3, messages)
    np.testing.assert_allclose(run(state + 3, moved, weights, KEY)[1], plain + 3, rtol=1e-5)

  @parameterized.parameters(*RULES)
  def test_flattened(self, name):
    messages, weights = draw()
    vector = jax.vmap(lambda tree: jax.flatten_util.ravel_pytree(tree)[0])(messages)
    np.testing.assert_allclose(flat(apply(name, messages, weights)[0]),
                               apply(name, vector, weights)[0], rtol=1e-5, atol=1e-6)

  @parameterized.parameters('fedra', 'bulyan', 'trimmed_mean')
  def test_vmap_over_rounds_is_a_loop(self, name):
    many = [draw(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *many)
    ours = jax.vmap(lambda m, w: RULES[name]().apply((), m, w, KEY)[0])(*stacked)
    loop = [apply(name, *one)[0] for one in many]
    chex.assert_trees_all_close(ours, jax.tree.map(lambda *x: np.stack(x), *loop), rtol=1e-5,
                                atol=1e-6)

  @parameterized.parameters('fedra', 'bulyan')
  def test_devices_keep_the_same_clients(self, name):
    messages, weights = draw(clients=16)
    aggregator = RULES[name]()
    alone = apply(name, messages, weights)[2]['keep']
    for count in (1, 2, 4):
      run = jax.pmap(lambda m, w: aggregator.apply(
          (), parallel.all_gather(m, parallel.CLIENTS), parallel.all_gather(w, parallel.CLIENTS),
          KEY), axis_name=parallel.CLIENTS, out_axes=None, devices=jax.devices()[:count])
      out = run(*jax.tree.map(lambda x, c=count: x.reshape((c, -1) + x.shape[1:]),
                              (messages, weights)))
      parallel.assert_replicated(out)
      np.testing.assert_array_equal(parallel.to_host(out[2]['keep']), alone)


class BreakdownTest(parameterized.TestCase):

  @parameterized.parameters(*BOUNDED, 'rfa')
  def test_gigantic_liars_do_not_move_it(self, name):
    messages, weights = draw()
    weights = np.where(np.arange(N) < F, 10.0, weights).astype(np.float32)
    attacked = jax.tree.map(lambda x: np.concatenate([np.full_like(x[:F], 1e6), x[F:]]), messages)
    ours = flat(apply(name, attacked, weights)[0])
    benign = np.stack([flat(rows(messages, i)) for i in range(F, N)])
    low, high = benign.min(0), benign.max(0)
    slack = 2 * np.linalg.norm(high - low) if name == 'rfa' else 1e-5
    self.assertTrue(((ours >= low - slack) & (ours <= high + slack)).all())

  def test_a_distance_that_overflowed_is_far(self):
    apart = np.full((5, 5), 2, np.float32)
    apart[1] = apart[:, 1] = np.inf
    scores = distance.krum_scores(jnp.asarray(apart), np.arange(5) != 4, 1)
    np.testing.assert_array_equal(scores, [2, np.inf, 2, 2, np.inf])

  def test_large_cohorts_keep_small_distances_beside_gigantic_updates(self):
    rng = np.random.default_rng(0)
    updates = (rng.normal(size=(70, 5)) + 100).astype(np.float32)
    updates[:3] = 1e6
    present = np.ones(70, bool)
    ours = distance.squared_distances(jnp.asarray(updates), present)[3:, 3:]
    exact = np.square(updates[3:, None].astype(float) - updates[None, 3:]).sum(-1)
    np.testing.assert_allclose(ours, exact, atol=2e-3 * exact.max())

  def test_equal_updates_are_at_distance_0(self):
    updates = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32) + 1e3
    updates[4] = updates[1]
    self.assertEqual(
        float(distance.squared_distances(jnp.asarray(updates), np.ones(6, bool))[1, 4]), 0)

  def test_foolsgold_silences_twins_and_remembers(self):
    messages, weights = draw()
    twins = jax.tree.map(lambda x: np.concatenate([x[:1], x[:1], x[2:]]), messages)
    _, state, info = apply('foolsgold', twins, weights)
    self.assertEqual(list(info['scores'][:2]), [0, 0])
    np.testing.assert_allclose(state['history'][:N].sum(0), sum(
        flat(rows(twins, i)) for i in range(N)), rtol=1e-4)
    alike = jax.tree.map(lambda x: np.repeat(x[:1], N, 0), messages)
    np.testing.assert_array_equal(apply('foolsgold', alike, weights)[2]['scores'], np.ones(N))

  def test_fltrust_without_trust_does_nothing(self):
    messages, weights = draw()
    against = jax.tree.map(lambda x: -np.abs(x), messages)
    self.assertFalse(flat(apply('fltrust', against, weights)[0]).any())

  @parameterized.parameters(
      (lambda: aggregators.krum(num_malicious=2), 4), (lambda: aggregators.trimmed_mean(beta=2), 4),
      (lambda: aggregators.bulyan(num_malicious=1), 6), (aggregators.residual, 3),
      (lambda: aggregators.multi_krum(num_malicious=2, keep=13), 12))
  def test_too_few_clients(self, make, clients):
    with self.assertRaisesRegex(ValueError, f'at least {clients + 1} clients, got {clients}'):
      make().apply((), *draw(clients=clients), KEY)


class OrderTest(parameterized.TestCase):

  @settings(max_examples=10, deadline=None)
  @given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=9,
                         max_size=9), rank=st.integers(0, 8))
  def test_select_sorts(self, values, rank):
    column = jnp.asarray(values, jnp.float32)[:, None]
    ours = order.values_of(jax.jit(order.select)(order.keys_of(column), rank), jnp.float32)
    self.assertEqual(float(ours[0]), float(np.sort(np.float32(values))[rank]))

  @parameterized.parameters(5, 4000, 4001, 9000)
  def test_blocks_cover_every_column_once(self, size):
    updates = np.random.default_rng(0).normal(size=(3, size)).astype(np.float32)
    total, out = stack.by_blocks(lambda t, c: (t + c.sum(1), c.sum(0)), jnp.zeros(3),
                                 jnp.asarray(updates), jnp.ones(3, bool), output=())
    np.testing.assert_allclose(out, updates.sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, updates.sum(1), rtol=1e-3, atol=1e-3)

  def test_more_clients_than_a_byte_counts(self):
    updates = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    ours = aggregators.median().apply((), updates, np.ones(300, np.float32), KEY)[0]
    np.testing.assert_array_equal(ours, np.median(updates, 0))

  def test_no_cap_is_small_enough(self):
    self.assertEqual(float(quantities.quantity_cap(jnp.array([5.0, 7.0]), 0.5, 0.1)), 5)


class FedRATest(parameterized.TestCase):

  @settings(max_examples=8, deadline=None)
  @given(power=st.integers(-8, 8), factor=st.floats(0.01, 100), seed=st.integers(0, 99))
  def test_scales(self, power, factor, seed):
    messages, weights = draw(seed)
    ours, _, info = apply('fedra', messages, weights)
    moved = jax.tree.map(lambda x: np.float32(4 * x - 1), messages)
    for scaled in (apply('fedra', messages, np.float32(weights * 2.0**power)),
                   apply('fedra', moved, weights)):
      np.testing.assert_array_equal(scaled[2]['keep'], info['keep'])
    chex.assert_trees_all_close(apply('fedra', messages, np.float32(weights * factor))[0], ours,
                                rtol=1e-3, atol=1e-4)

  def test_rotation(self):
    vectors, weights = draw()[0]['b'], draw()[1]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0].astype(np.float32)
    ours, _, info = apply('fedra', vectors, weights)
    theirs, _, turned = apply('fedra', vectors @ turn, weights)
    np.testing.assert_array_equal(info['keep'], turned['keep'])
    np.testing.assert_allclose(ours @ turn, theirs, rtol=1e-4, atol=1e-5)

  @parameterized.parameters((np.nan, 9.0), (40.0, 1e12), (-40.0, 2.0**31))
  def test_one_gross_liar_is_dropped(self, value, size):
    messages, weights = draw()
    messages = jax.tree.map(lambda x: 0.05 * x + 1, messages)
    weights = np.full(N, 20, np.float32)
    clean = apply('fedra', messages, weights)[0]
    more = jax.tree.map(lambda x: np.insert(x, 3, value, axis=0), messages)
    ours, _, info = apply('fedra', more, np.insert(weights, 3, np.float32(size)))
    self.assertFalse(info['keep'][3])
    chex.assert_trees_all_close(ours, clean, rtol=1e-6)

  @parameterized.product(factor=['pairwise', 'product'], value=[40.0, 1e14])
  def test_equal_liars_with_sizes_near_overflow_are_dropped(self, factor, value):
    messages, _ = draw()
    liars = np.arange(N) < 2
    sent = np.where(liars[:, None], np.float32(value), 0.05 * messages['b'] + 1)
    weights = np.where(liars, 3e38, 20).astype(np.float32)
    ours, _, info = jax.jit(aggregators.fedra(factor=factor).apply)((), sent, weights, KEY)
    self.assertTrue(np.isfinite(info['scores']).all())
    np.testing.assert_array_equal(info['keep'], ~liars)
    self.assertEqual(info['m_hat'], 2)
    np.testing.assert_allclose(ours, sent[2:].mean(0), rtol=1e-5)

  @parameterized.parameters(1, 2)
  def test_one_or_two_clients_stay(self, clients):
    self.assertTrue(apply('fedra', *draw(clients=clients))[2]['keep'].all())

  def test_equal_updates_stay(self):
    alike = jax.tree.map(lambda x: np.repeat(x[:1], N, 0), draw()[0])
    self.assertTrue(apply('fedra', alike, draw()[1])[2]['keep'].all())

  def test_m_max_bounds_the_estimate(self):
    scores = jnp.asarray([1.0, 1.1, 0.9, 1.0, 1.05, 8.0, 8.1, 8.2, jnp.inf])
    free = quantity_aware.log_likelihoods(scores)
    self.assertEqual((int(free.argmax()), len(free)), (3, 5))
    self.assertEqual(float(free[4]), quantity_aware.log_likelihoods(scores, m_max=2)[4])
    self.assertEqual(int(quantity_aware.log_likelihoods(scores, m_max=1).argmax()), 1)


class HostTest(absltest.TestCase):

  def test_numpy_updates_outside_of_jit(self):
    messages, weights = draw()
    one = aggregators.dnc(num_malicious=F).apply((), messages['b'], weights, KEY)[0]
    self.assertTrue(np.isfinite(one).all())


class MakeTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'name': 'krum'}, '^federated.aggregator.num_malicious: missing$'),
      ({'name': 'fedra', 'factor': 'prod'}, '^federated.aggregator.factor: expected'),
      ({'name': 'fedra', 'm_maks': 3}, "unknown key 'm_maks'; did you mean 'm_max'"),
      ({'name': 'truncated', 'alpha': 0.1, 'alpha_star': 0.5}, 'aggregator.rule: missing$'),
      ({'name': 'truncated', 'alpha': 0.1, 'alpha_star': 0.5, 'rule': {'name': 'medina'}},
       "^federated.aggregator.rule.name: unknown name 'medina'; did you mean 'median'"))
  def test_mistakes(self, config, message):
    with self.assertRaisesRegex(ConfigError, message):
      aggregators.make_aggregator(config, federated.fedavg(None, optax.sgd(0.1)), 5)

  def test_truncated_wraps(self):
    made = aggregators.make_aggregator(
        {'name': 'truncated', 'alpha': 0.2, 'alpha_star': 0.5, 'rule': {'name': 'mean'}},
        federated.fedavg(None, optax.sgd(0.1)), 5)
    messages, weights = draw()
    chex.assert_trees_all_close(made.apply((), messages, weights, KEY)[0],
                                apply('truncated', messages, weights)[0])


if __name__ == '__main__':
  absltest.main()
