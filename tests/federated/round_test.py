"""The round against a plain Python loop over ragged clients, and its invariances."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import federated, optim, parallel, train
from jaxlab.federated import aggregators
from jaxlab.federated import clients as clients_lib
from tests import toy

TASK = toy.softmax_task(rows=60)
TABLE = toy.columns(rows=60)
GRADIENT = train.task_gradient(TASK)
CLIENTS = 6
SGD = {'learning_rate': 0.1}
ALGORITHMS = {
    'fedavg': lambda: federated.fedavg(GRADIENT, optax.sgd(0.1, momentum=0.9)),
    'fedavg_adasam': lambda: federated.fedavg(GRADIENT, optim.adasam(0.01, rho=0.1)),
    'fedadam': lambda: federated.fedadam(GRADIENT, optax.sgd(0.1), server_learning_rate=0.03),
    'fedlalr': lambda: federated.fedlalr(GRADIENT, optim.fedlalr(0.01)),
    'fedlalr_max': lambda: federated.fedlalr(GRADIENT, optim.fedlalr(0.01), vhat_agg='max'),
    'fedlada': lambda: federated.fedlada(GRADIENT, optim.scale_by_adasam(), learning_rate=0.01),
    'fedsgd': lambda: federated.fedsgd(GRADIENT, server_learning_rate=0.1),
    'fedprox': lambda: federated.fedprox(GRADIENT, optax.sgd(0.1, momentum=0.9), mu=0.5),
    'fedavgm': lambda: federated.fedavgm(GRADIENT, optax.sgd(0.1)),
    'fedadagrad': lambda: federated.fedadagrad(GRADIENT, optax.sgd(0.1), server_learning_rate=0.1),
    'fedyogi': lambda: federated.fedyogi(GRADIENT, optax.sgd(0.1), server_learning_rate=0.1),
    'fedams': lambda: federated.fedams(GRADIENT, optax.sgd(0.1), server_learning_rate=0.1),
    'scaffold': lambda: federated.scaffold(GRADIENT, num_clients=CLIENTS, **SGD),
    'scaffold_option1': lambda: federated.scaffold(
        GRADIENT, num_clients=CLIENTS, option=1, **SGD),
    'feddyn': lambda: federated.feddyn(GRADIENT, num_clients=CLIENTS, **SGD),
    'mime': lambda: federated.mime(GRADIENT, **SGD),
    'mimelite': lambda: federated.mimelite(GRADIENT, **SGD),
}
LOOPED = ('fedavg', 'fedavg_adasam', 'fedadam', 'fedlalr', 'fedlalr_max', 'fedlada')
# What differs in broadcast, client or message. The others differ from 'fedavg' in the server's step
# alone, and go through the slow tests.
KINDS = ('fedavg_adasam', 'fedlalr', 'fedlalr_max', 'fedlada', 'fedsgd', 'fedprox', 'scaffold',
         'feddyn', 'mime')
OTHERS = tuple(name for name in ALGORITHMS if name not in KINDS)
SIZES = [3, 9, 1, 14, 5, 7]


def initial(algorithm, aggregator=None, params=None):
  """The state before the first round."""
  aggregator = aggregator or algorithm.aggregator or aggregators.weighted_mean()
  params = TASK.init(jax.random.key(0))['params'] if params is None else params
  return federated.RoundState.start(algorithm, aggregator, params, CLIENTS)


def without_padding_row(state):
  """The state without the row of padding clients, which may hold anything finite."""
  return state._replace(clients=jax.tree.map(lambda x: x[:-1], state.clients))


def median():
  """A robust aggregator that must see the stack; weights only say who is there."""
  def apply(state, messages, weights, key):
    del key
    present = lambda x: jnp.where((weights > 0).reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)
    return jax.tree.map(lambda x: jnp.nanmedian(present(x), axis=0),
                        messages), state, {'kept': (weights > 0).sum()}
  return federated.Aggregator(lambda params: (), apply)


def plain_sum():
  """An aggregator of the stack that does not ask who is there."""
  def apply(state, messages, weights, key):
    del weights, key
    return jax.tree.map(lambda x: x.sum(0), messages), state, {}
  return federated.Aggregator(lambda params: (), apply)


def random_cohort(sizes, seed=0, batch=4, epochs=2, steps=1):
  """(ids, index [C, S, B], weights) of clients with these numbers of rows."""
  rng = np.random.default_rng(seed)
  rows = np.split(rng.permutation(60)[:sum(sizes)], np.cumsum(sizes)[:-1])
  steps = max([steps, *(epochs * -(-n // batch) for n in sizes)])
  index = np.full((len(sizes), steps, batch), -1, np.int32)
  for client, own in enumerate(rows):
    flat = np.full((epochs, -(-len(own) // batch) * batch), -1, np.int32)
    for one in flat:
      one[:len(own)] = rng.permutation(own)
    index[client, :flat.size // batch] = flat.reshape(-1, batch)
  return np.arange(len(sizes), dtype=np.int32), index, np.array(sizes, np.float32)


@functools.cache
def jitted(name, chunk, aggregator=aggregators.weighted_mean):
  algorithm = ALGORITHMS[name]()
  return algorithm, jax.jit(
      functools.partial(federated.federated_round, algorithm=algorithm,
                        aggregator=algorithm.aggregator or aggregator(), clients_per_vmap=chunk))


def run(name, ids, index, weights, chunk=1, rounds=2, aggregator=aggregators.weighted_mean,
        table=TABLE):
  """(state after some rounds without the padding row, metrics of the last)."""
  algorithm, step = jitted(name, chunk, aggregator)
  state = initial(algorithm)
  for r in range(rounds):
    cohort = federated.Cohort(*map(jnp.asarray, (ids, index, weights)))
    state, metrics = step(state, cohort, table, jax.random.key(r))
  return without_padding_row(state), metrics


def cohort_of_three(weighting):
  """The Cohort of the first three of six clients, who have 4, 6 and 16 rows."""
  clients = clients_lib.Clients.from_parts(np.split(np.arange(60), [4, 10, 26, 40, 50]))
  host = clients_lib.make_cohort(clients, range(3), clients_lib.LocalWork(4), 0, 0,
                                 weighting=weighting)
  return federated.Cohort(*(x[0] for x in host))


def after(algorithm, cohort, rounds=1, table=TABLE, params=None):
  """The state of an algorithm after some rounds of the same cohort."""
  step = jax.jit(functools.partial(federated.federated_round, algorithm=algorithm,
                                   aggregator=algorithm.aggregator or aggregators.weighted_mean()))
  state = initial(algorithm, params=params)
  for r in range(rounds):
    state, _ = step(state, cohort, table, jax.random.key(r))
  return state


def pad(ids, index, weights, clients=0, steps=0, rows=0):
  """Extra padding of every kind."""
  index = np.pad(index, ((0, clients), (0, steps), (0, rows)), constant_values=-1)
  return np.pad(ids, (0, clients), constant_values=-1), index, np.pad(weights, (0, clients))


def oracle(name, ids, index, weights, rounds=2):
  """A Python loop over clients and steps, without masks, scans or vmaps."""
  algorithm = ALGORITHMS[name]()
  server = algorithm.init(TASK.init(jax.random.key(0))['params'])
  gradient = jax.jit(GRADIENT)
  for r in range(rounds):
    broadcast, client, _, last = jax.random.split(jax.random.key(r), 4)
    payload, aux = algorithm.broadcast(server, None, None, broadcast)
    messages, kept = [], []
    for i, own, weight in zip(ids, index, weights):
      own = own[(own >= 0).any(-1)]
      if not len(own):
        continue
      unpadded = [row[row >= 0] for row in own]
      messages.append(
          python_client(name, payload, unpadded, gradient, jax.random.fold_in(client, i)))
      kept.append(weight)
    share = np.array(kept) / np.sum(kept)
    mean = lambda *xs: sum(s * x for s, x in zip(share, xs))
    aggregate = jax.tree.map(mean, *messages)
    if name == 'fedlalr_max':
      aggregate['nu_max'] = jax.tree.map(lambda *xs: np.max(xs, 0),
                                         *[m['nu_max'] for m in messages])
    server = algorithm.server(server, aux, aggregate, len(kept), last)
  return server


def python_client(name, payload, batches, gradient, key):
  """One client's message by a plain loop."""
  params = payload if name in ('fedavg', 'fedavg_adasam', 'fedadam') else payload['params']
  start = params
  optimizer = {
      'fedavg': optax.sgd(0.1, momentum=0.9), 'fedavg_adasam': optim.adasam(0.01, rho=0.1),
      'fedadam': optax.sgd(0.1), 'fedlada': optim.scale_by_adasam()
  }.get(name, optim.fedlalr(0.01))
  state = optimizer.init(params)
  if name.startswith('fedlalr'):
    state = state._replace(mu=payload['mu'], nu=payload['nu_max'], nu_max=payload['nu_max'])
  if name == 'fedlada':
    state = state._replace(nu=payload['nu_max'], nu_max=payload['nu_max'])
  for rows in batches:
    batch = {**{k: v[rows] for k, v in TABLE.items()}, 'weight': np.ones(len(rows), np.float32)}
    grads = gradient(params, batch, key)[0]
    updates, state = optax.with_extra_args_support(optimizer).update(
        grads, state, params, grad_fn=lambda p: gradient(p, batch, key)[0])
    if name == 'fedlada':
      updates = jax.tree.map(lambda u, g: -0.01 * (0.1 * u + 0.9 * g), updates,
                             payload['direction'])
    params = optax.apply_updates(params, updates)
  delta = jax.tree.map(jnp.subtract, params, start)
  if name.startswith('fedlalr'):
    return {'params': delta, 'mu': state.mu, 'nu_max': state.nu_max}
  if name == 'fedlada':
    return {
        'params': delta, 'direction': jax.tree.map(lambda d: -d / (0.01 * len(batches)), delta),
        'nu_max': state.nu_max
    }
  return delta


class RoundTest(parameterized.TestCase):

  @parameterized.parameters(*LOOPED)
  def test_equals_a_python_loop(self, name):
    # The golden tests compare the other algorithms with such a loop.
    cohort = random_cohort(SIZES)
    ours, _ = run(name, *cohort)
    chex.assert_trees_all_close(ours.server, oracle(name, *cohort), atol=2e-6, rtol=2e-5)

  @parameterized.parameters(*KINDS)
  def test_chunks_change_nothing(self, name):
    self.check_chunks(name)

  @parameterized.parameters(*OTHERS)
  @pytest.mark.slow
  def test_chunks_change_nothing_for_the_others(self, name):
    self.check_chunks(name)

  def check_chunks(self, name):
    cohort = random_cohort(SIZES)
    chex.assert_trees_all_close(run(name, *cohort)[0], run(name, *cohort, chunk=3)[0], atol=1e-6,
                                rtol=1e-5)

  @settings(max_examples=24, deadline=None)
  @given(name=st.sampled_from(['fedavg_adasam', 'fedlalr_max', 'scaffold', 'feddyn']),
         sizes=st.lists(st.integers(0, 9), min_size=CLIENTS, max_size=CLIENTS),
         padding=st.sampled_from([(2, 3, 1), (0, 0, 0)]), seed=st.integers(0, 99))
  def test_padding_and_order_change_nothing(self, name, sizes, padding, seed):
    self.check_padding(name, sizes, padding, seed)

  @parameterized.parameters(*ALGORITHMS)
  @pytest.mark.slow
  def test_padding_and_order_change_nothing_for_all(self, name):
    for seed, padding in enumerate([(2, 3, 1), (1, 0, 0), (0, 2, 0), (0, 0, 3), (0, 0, 0)]):
      sizes = np.random.default_rng(seed).integers(0, 10, CLIENTS)
      self.check_padding(name, sizes.tolist(), padding, seed)

  def check_padding(self, name, sizes, padding, seed):
    with jax.enable_x64(True):
      ids, index, weights = random_cohort(sizes, seed, steps=6)
      table = {k: v.astype(np.float64) if k == 'x' else v for k, v in TABLE.items()}
      algorithm, step = jitted(name, 1)
      params = jax.tree.map(lambda x: x.astype(jnp.float64), TASK.init(jax.random.key(0))['params'])
      order = np.random.default_rng(seed).permutation(len(ids))
      weights = weights.astype(np.float64)
      cohorts = (ids, index, weights), pad(ids[order], index[order], weights[order], *padding)
      one, two = (without_padding_row(step(
          initial(algorithm, params=params), federated.Cohort(*cohort), table,
          jax.random.key(seed))[0]) for cohort in cohorts)
      chex.assert_trees_all_close(one, two, atol=1e-12, rtol=1e-10)

  @parameterized.parameters(*((name, 2) for name in KINDS), ('fedlalr_max', 4), ('scaffold', 4))
  def test_devices_change_nothing(self, name, count):
    self.check_devices(name, count)

  @parameterized.parameters(*((name, 2) for name in OTHERS))
  @pytest.mark.slow
  def test_devices_change_nothing_for_the_others(self, name, count):
    self.check_devices(name, count)

  def check_devices(self, name, count):
    ids, index, weights = pad(*random_cohort(SIZES), clients=2)
    algorithm = ALGORITHMS[name]()
    program = jax.pmap(
        functools.partial(federated.federated_round, algorithm=algorithm,
                          aggregator=algorithm.aggregator or aggregators.weighted_mean()),
        axis_name=parallel.CLIENTS, in_axes=(None, 0, None, None), out_axes=(None, None),
        devices=jax.devices()[:count])
    cut = lambda x: x.reshape((count, -1) + x.shape[1:])
    arguments = (initial(algorithm), federated.Cohort(*map(cut, (ids, index, weights))), TABLE,
                 jax.random.key(0))
    compiled = program.lower(*arguments).compile()
    ours, metrics = compiled(*arguments)
    parallel.assert_replicated((ours, metrics))
    theirs, their_metrics = run(name, ids, index, weights, rounds=1)
    chex.assert_trees_all_close(without_padding_row(ours), theirs, atol=1e-6, rtol=1e-5)
    chex.assert_trees_all_close(metrics, their_metrics, atol=1e-5, rtol=1e-5)
    self.assertIn('all-reduce', compiled.as_text())

  @parameterized.parameters(*((name, 1) for name in ALGORITHMS), ('fedlalr', 3), ('scaffold', 3))
  def test_a_nan_client_is_as_if_it_were_not_there(self, name, chunk):
    ids, index, weights = random_cohort(SIZES)
    poisoned = {**TABLE, 'x': TABLE['x'].copy()}
    poisoned['x'][index[2, 0, 0]] = np.nan
    with_nan, metrics = run(name, ids, index, weights, chunk, table=poisoned)
    keep = np.array([0, 1, 3, 4, 5])
    without = pad(ids[keep], index[keep], weights[keep], clients=1)
    theirs, their_metrics = run(name, *without, chunk)
    self.assertEqual((int(metrics['rejected']), int(metrics['participants'])), (1, 5))
    toy.assert_trees_equal(with_nan, theirs)
    self.assertEqual(float(metrics['loss']), float(their_metrics['loss']))

  def test_who_sees_the_stack_sees_zeros_of_a_nan_client(self):
    ids, index, weights = random_cohort(SIZES)
    poisoned = {**TABLE, 'x': TABLE['x'].copy()}
    poisoned['x'][index[2, 0, 0]] = np.nan
    ours, metrics = run('fedavg', ids, index, weights, rounds=1, aggregator=plain_sum,
                        table=poisoned)
    self.assertEqual((int(metrics['rejected']), bool(metrics['refused'])), (1, False))
    chex.assert_tree_all_finite(ours.server.params)

  def test_who_takes_no_step_keeps_its_state(self):
    ids, index, weights = random_cohort(SIZES)
    index[ids == 2] = -1
    ours, metrics = run('scaffold', ids, index, weights)
    self.assertEqual((int(metrics['rejected']), int(metrics['participants'])), (0, 6))
    moved = {i: max(float(np.abs(x[i]).max()) for x in jax.tree.leaves(ours.clients))
             for i in range(6)}
    self.assertEqual([i for i, size in moved.items() if not size], [2])

  @parameterized.parameters(*ALGORITHMS)
  def test_a_round_keeps_the_dtypes_of_a_bfloat16_model(self, name):
    algorithm, step = jitted(name, 1)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TASK.init(jax.random.key(0))['params'])
    state = initial(algorithm, params=params)
    new, _ = jax.eval_shape(step, state, federated.Cohort(*random_cohort(SIZES)), TABLE,
                            jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)

  @parameterized.parameters(-1.0, np.nan, np.inf)
  def test_an_impossible_weight_is_rejected(self, weight):
    ids, index, weights = random_cohort(SIZES)
    bad = np.where(ids == 3, weight, weights).astype(np.float32)
    ours, metrics = run('fedavg', ids, index, bad, rounds=1)
    none = np.where(ids == 3, 0, weights).astype(np.float32)
    self.assertEqual(int(metrics['rejected']), 1)
    toy.assert_trees_equal(ours, run('fedavg', ids, index, none, rounds=1)[0])

  @parameterized.parameters(*ALGORITHMS)
  def test_nobody_there_leaves_the_state_as_it_was(self, name):
    ids, index, weights = random_cohort(SIZES)
    state, metrics = run(name, ids, np.full_like(index, -1), np.zeros_like(weights), rounds=1)
    toy.assert_trees_equal(state, without_padding_row(initial(ALGORITHMS[name]())))
    self.assertTrue(bool(metrics['refused']))

  @parameterized.parameters('scaffold', 'feddyn')
  def test_who_is_not_there_keeps_its_state(self, name):
    ids, index, weights = random_cohort(SIZES)
    first, _ = run(name, ids[:4], index[:4], weights[:4], rounds=1)
    for leaf in jax.tree.leaves(first.clients):
      self.assertTrue((leaf[4:] == 0).all())
      self.assertTrue((leaf[:4] != 0).any())

  def test_duplicating_every_client_changes_nothing_under_uniform_weights(self):
    ids, index, weights = random_cohort(SIZES)
    one, _ = run('fedlalr', ids, index, np.ones_like(weights))
    twice = [np.concatenate([x, x]) for x in (ids, index, np.ones_like(weights))]
    chex.assert_trees_all_close(one, run('fedlalr', *twice)[0], atol=1e-6, rtol=1e-5)

  def test_a_robust_aggregator_sees_the_stack(self):
    ids, index, weights = random_cohort([4, 4, 4, 4])
    cohort = pad(ids, index, weights, clients=2)
    ours, metrics = run('fedavg', *cohort, aggregator=median, rounds=1)
    self.assertEqual(int(metrics['kept']), 4)
    each = (slice(i, i + 1) for i in range(4))
    single = [run('fedavg', ids[i], index[i], weights[i], rounds=1)[0].server.params for i in each]
    expected = jax.tree.map(lambda *x: np.median(np.stack(x), 0), *single)
    chex.assert_trees_all_close(ours.server.params, expected, atol=1e-6)

  @parameterized.parameters('fedlalr', 'fedlalr_max')
  def test_vhat_never_falls_under_random_participation(self, name):
    ids, index, weights = random_cohort(SIZES)
    algorithm, step = jitted(name, 1)
    state = initial(algorithm)
    rng = np.random.default_rng(0)
    for r in range(8):
      here = (rng.random(6) < .5).astype(np.float32)
      before = state.server.nu_max
      state, _ = step(state, federated.Cohort(ids, index, here), TABLE, jax.random.key(r))
      for new, old in zip(jax.tree.leaves(state.server.nu_max), jax.tree.leaves(before)):
        self.assertTrue(bool((new >= old * (1 - 1e-6)).all() & (new >= 0.99e-16).all()))

  def test_one_client_is_adasam_whose_v_is_seeded_anew_each_round(self):
    ids, index, weights = random_cohort([20], epochs=2)
    # With this b2 v falls behind vhat.
    algorithm = federated.fedlalr(GRADIENT, optim.fedlalr(0.01, b2=0.5))
    step = jax.jit(functools.partial(federated.federated_round, algorithm=algorithm,
                                     aggregator=aggregators.weighted_mean()))
    state = initial(algorithm)
    for r in range(2):
      state, _ = step(state, federated.Cohort(ids, index, weights), TABLE, jax.random.key(r))

    def centrally(reseed):
      tx = optim.scale_by_adasam(b2=0.5, v_init='eps_sq')
      params = TASK.init(jax.random.key(0))['params']
      moments = tx.init(params)
      for r in range(2):
        if r and reseed:
          moments = moments._replace(nu=moments.nu_max)
        for rows in index[0]:
          batch = {**{k: v[rows] for k, v in TABLE.items()},
                   'weight': np.ones(len(rows), np.float32)}
          grads = GRADIENT(params, batch, jax.random.key(0))[0]
          updates, moments = tx.update(grads, moments)
          params = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
      return params, moments.nu_max

    server = state.server
    chex.assert_trees_all_close((server.params, server.nu_max), centrally(reseed=True), atol=1e-6,
                                rtol=1e-4)
    self.assertFalse(np.allclose(server.nu_max['w'], centrally(reseed=False)[1]['w'], rtol=1e-2))

  def test_drift(self):
    """Quadratic clients .5 a (x - b)^2, ten steps at .05, true minimiser 2.4."""
    with jax.enable_x64(True):

      def gradient(params, batch, key):
        del key
        grads = {'x': (batch['a'] * (params['x'] - batch['b'])).sum()}
        return grads, {'loss': (jnp.ones(()), batch['weight'].sum())}

      table = {'a': jnp.array([1.0, 4.0]), 'b': jnp.array([0.0, 3.0])}
      index = np.repeat(np.arange(2, dtype=np.int32)[:, None, None], 10, axis=1)
      cohort = federated.Cohort(jnp.arange(2, dtype=jnp.int32), jnp.asarray(index), jnp.ones(2))
      sgd = {'num_clients': 2, 'learning_rate': 0.05}
      made = {'fedavg': federated.fedavg(gradient, optax.sgd(0.05)),
              'scaffold': federated.scaffold(gradient, **sgd),
              'feddyn': federated.feddyn(gradient, **sgd, alpha=1.0),
              'fedlalr': federated.fedlalr(gradient, optim.fedlalr(0.01))}
      scaffold, zero = made['scaffold'], {'x': jnp.zeros(())}
      made['scaffold without controls'] = scaffold._replace(
          broadcast=lambda state, *_: ({'params': state.params, 'control': zero}, ()),
          client=lambda payload, own, data, key: scaffold.client(payload, zero, data, key))
      ends = {}
      for name, algorithm in made.items():
        aggregator = aggregators.weighted_mean()
        start = federated.RoundState.start(algorithm, aggregator, {'x': jnp.zeros(())}, 2)
        one = lambda state, r, algorithm=algorithm, aggregator=aggregator: (
            federated.federated_round(state, cohort, table, jax.random.key(r),
                                      algorithm=algorithm, aggregator=aggregator)[0], None)
        run_all = jax.jit(lambda s, one=one: jax.lax.scan(one, s, jnp.arange(3000))[0])
        ends[name] = float(run_all(start).server.params['x'])
      self.assertAlmostEqual(ends['fedavg'], 2.06963, places=4)
      self.assertAlmostEqual(ends['scaffold'], 2.4, places=5)
      self.assertAlmostEqual(ends['scaffold without controls'], 2.06963, places=4)
      self.assertAlmostEqual(ends['feddyn'], 2.4, places=5)
      self.assertAlmostEqual(ends['fedlalr'], 2.392, places=2)

  @parameterized.parameters('uniform', 'examples')
  def test_scaffold_without_controls_lands_where_fedavg_does(self, weighting):
    cohort = cohort_of_three(weighting)
    scaffold = federated.scaffold(GRADIENT, num_clients=CLIENTS, **SGD, weighting=weighting)
    plain = federated.fedavg(GRADIENT, optax.sgd(0.1), weighting=weighting)
    ours, theirs = (after(algorithm, cohort) for algorithm in (scaffold, plain))
    # c = c_i = 0 at first
    chex.assert_trees_all_close(ours.server.params, theirs.server.params, atol=1e-6)

  @parameterized.parameters(
      ('scaffold', 'control', {'weighting': 'uniform'}),
      ('scaffold', 'control', {'weighting': 'examples'}),
      ('scaffold', 'control', {'weighting': 'examples', 'option': 1}), ('feddyn', 'h', {}))
  def test_the_mean_of_what_clients_keep_is_what_the_server_keeps(self, name, field, arguments):
    make = {'scaffold': federated.scaffold, 'feddyn': federated.feddyn}[name]
    algorithm = make(GRADIENT, num_clients=CLIENTS, **SGD, **arguments)
    state = after(algorithm, cohort_of_three(algorithm.weighting), rounds=2)
    kept = jax.tree.map(lambda x: x.mean(0), without_padding_row(state).clients)
    chex.assert_trees_all_close(kept, getattr(state.server, field), atol=1e-6)
    self.assertGreater(float(optax.tree.norm(kept)), 1e-3)

  @parameterized.parameters('fedavg', 'fedsgd', 'mime', 'mimelite')
  def test_one_step_on_all_rows_is_gradient_descent(self, name):
    make = {'fedavg': lambda: federated.fedavg(GRADIENT, optax.sgd(0.1)),
            'fedsgd': lambda: federated.fedsgd(GRADIENT, server_learning_rate=0.1),
            'mime': lambda: federated.mime(GRADIENT, momentum=0.0, **SGD),
            'mimelite': lambda: federated.mimelite(GRADIENT, momentum=0.0, **SGD)}
    with jax.enable_x64(True):
      # Powers of two, because a gradient's weights are float32.
      cohort = federated.Cohort(*random_cohort([4, 8, 2, 1, 1, 16], batch=16, epochs=1))
      table = {k: v.astype(np.float64) if k == 'x' else v for k, v in TABLE.items()}
      params = jax.tree.map(lambda x: x.astype(jnp.float64), TASK.init(jax.random.key(0))['params'])
      ours = after(make[name](), cohort, table=table, params=params).server.params
      rows = cohort.index[cohort.index >= 0]
      batch = {**{k: v[rows] for k, v in table.items()}, 'weight': np.ones(len(rows))}
      grads, _ = GRADIENT(params, batch, jax.random.key(0))
      chex.assert_trees_all_close(ours, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads),
                                  atol=1e-12, rtol=0)

  def test_fedprox_without_its_term_is_fedavg(self):
    cohort = random_cohort(SIZES)
    fedprox = federated.fedprox(GRADIENT, optax.sgd(0.1, momentum=0.9), mu=0.0)
    ours = after(fedprox, federated.Cohort(*cohort)).server
    toy.assert_trees_equal(ours, run('fedavg', *cohort, rounds=1)[0].server)

  @parameterized.parameters(
      ('fedavgm', {'momentum': 0.0}),
      ('fedadam', {'b1': 0.0, 'b2': 0.0, 'server_learning_rate': 1e13, 'tau': 1e13}),
      ('fedadagrad', {'server_learning_rate': 2e7, 'tau': 1e7}),  # v starts at tau^2
      ('fedyogi', {'b1': 0.0, 'b2': 0.0, 'server_learning_rate': 2e7, 'tau': 1e7}),
      ('fedams', {'b1': 0.0, 'b2': 0.0, 'server_learning_rate': 1.0, 'tau': 1.0}),
      ('fedams', {'b1': 0.0, 'b2': 0.0, 'server_learning_rate': 1e13, 'tau': 1e13, 'option': 2}))
  def test_a_server_that_does_not_adapt_is_fedavgs(self, name, arguments):
    with jax.enable_x64(True):
      ends, params = [], {'x': jnp.array([1.0, -2.0, 0.5])}
      for algorithm in (getattr(federated, name)(GRADIENT, optax.sgd(0.1), **arguments),
                        federated.fedavg(GRADIENT, optax.sgd(0.1))):
        state = algorithm.init(params)
        for delta in ([0.5, -0.25, 0.0], [-0.1, 0.3, 0.9]):
          state = algorithm.server(state, (), {'x': jnp.array(delta)}, 1.0, None)
        ends.append(state.params)
      chex.assert_trees_all_close(*ends, atol=1e-12, rtol=0)

  def test_fedsgd_is_gradient_descent_on_the_pooled_loss(self):
    ids, index, weights = random_cohort(SIZES, epochs=1)
    ours, _ = run('fedsgd', ids, index, weights, rounds=1)
    params = TASK.init(jax.random.key(0))['params']
    rows = index[index >= 0]
    batch = {**{k: v[rows] for k, v in TABLE.items()}, 'weight': np.ones(len(rows), np.float32)}
    grads, _ = GRADIENT(params, batch, jax.random.key(0))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    chex.assert_trees_all_close(ours.server.params, expected, atol=1e-6)

  def test_traced_once(self):
    algorithm = ALGORITHMS['fedlalr']()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(*args):
      return federated.federated_round(*args, algorithm=algorithm,
                                       aggregator=aggregators.weighted_mean())

    state = initial(algorithm)
    for r in range(5):
      cohort = federated.Cohort(*random_cohort(SIZES, seed=r))
      state, _ = step(state, cohort, TABLE, jax.random.key(r))

  @parameterized.parameters(
      ('fedavg', 1, 1), ('fedprox', 1, 1), ('fedadam', 1, 1), ('fedlalr', 3, 3), ('fedlada', 3, 3),
      ('scaffold', 2, 2), ('feddyn', 1, 1), ('mimelite', 2, 2), ('mime', 3, 2), ('fedsgd', 1, 1))
  def test_bytes(self, name, down, up):
    params = TASK.init(jax.random.key(0))['params']
    model = (4 * 3 + 3) * 4
    self.assertEqual(federated.round_bytes(ALGORITHMS[name](), params, TABLE, 4),
                     (down * model, up * model + 8))

  def test_bytes_without_momentum(self):
    algorithm = federated.fedlalr(GRADIENT, optim.fedlalr(0.01), sync_momentum=False)
    params = TASK.init(jax.random.key(0))['params']
    self.assertEqual(federated.round_bytes(algorithm, params, TABLE, 4), (120, 128))

  def test_distribution_over_clients(self):
    values = np.arange(25, dtype=np.float32)
    present = np.ones(25, np.float32)
    present[20:] = 0
    ours = federated.distribution(({'loss': values}, present), 20)
    self.assertEqual({k: float(v) for k, v in ours.items()},
                     {'loss': 9.5, 'loss_low': 0.5, 'loss_high': 18.5})


if __name__ == '__main__':
  absltest.main()
