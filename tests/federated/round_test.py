"""The round against a plain Python loop over ragged clients, and its invariances."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import federated, optim, parallel, train
from jaxlab.federated import aggregators
from tests import toy

TASK = toy.softmax_task(rows=60)
TABLE = toy.columns(rows=60)
GRADIENT = train.task_gradient(TASK)
ALGORITHMS = {
    'fedavg': lambda gradient=GRADIENT: federated.fedavg(gradient, optax.sgd(0.1, momentum=0.9)),
    'fedavg_adasam': lambda gradient=GRADIENT: federated.fedavg(gradient, optim.adasam(
        0.01, rho=0.1)),
    'fedadam': lambda gradient=GRADIENT: federated.fedadam(gradient, optax.sgd(0.1),
                                                           server_learning_rate=0.03),
    'fedlalr': lambda gradient=GRADIENT: federated.fedlalr(gradient, optim.fedlalr(0.01)),
    'fedlalr_max': lambda gradient=GRADIENT: federated.fedlalr(gradient, optim.fedlalr(0.01),
                                                               vhat_agg='max'),
    'fedlada': lambda gradient=GRADIENT: federated.fedlada(gradient, optim.scale_by_adasam(),
                                                           learning_rate=0.01),
}


def median():
  """A robust aggregator that must see the stack; weights only say who is there."""
  def apply(state, messages, weights, key):
    del key
    present = lambda x: jnp.where((weights > 0).reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)
    return jax.tree.map(lambda x: jnp.nanmedian(present(x), axis=0),
                        messages), state, {'kept': (weights > 0).sum()}
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


def run(name, ids, index, weights, chunk=1, rounds=2, aggregator=aggregators.weighted_mean):
  algorithm, step = jitted(name, chunk, aggregator)
  server = algorithm.init(TASK.init(jax.random.key(0))['params'])
  for r in range(rounds):
    cohort = federated.Cohort(*map(jnp.asarray, (ids, index, weights)))
    server, _, metrics = step(server, (), cohort, TABLE, jax.random.key(r))
  return server, metrics


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
    payload, aux = algorithm.broadcast(server, None, broadcast)
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
    server = algorithm.server(server, aux, aggregate, last)
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


SIZES = [3, 9, 1, 14, 5, 7]


class RoundTest(parameterized.TestCase):

  @parameterized.parameters(*ALGORITHMS)
  def test_equals_a_python_loop(self, name):
    cohort = random_cohort(SIZES)
    ours, _ = run(name, *cohort)
    chex.assert_trees_all_close(ours, oracle(name, *cohort), atol=2e-6, rtol=2e-5)

  @parameterized.product(name=list(ALGORITHMS), chunk=[2, 3, 6])
  def test_chunks_change_nothing(self, name, chunk):
    cohort = random_cohort(SIZES)
    chex.assert_trees_all_close(
        run(name, *cohort)[0],
        run(name, *cohort, chunk=chunk)[0], atol=1e-6, rtol=1e-5)

  @settings(max_examples=12, deadline=None)
  @given(name=st.sampled_from(['fedavg_adasam', 'fedadam', 'fedlalr_max', 'fedlada']),
         sizes=st.lists(st.integers(0, 9), min_size=4, max_size=4),
         padding=st.sampled_from([(1, 0, 0), (0, 2, 0), (0, 0, 3), (2, 3, 1)]),
         seed=st.integers(0, 99))
  def test_padding_and_order_change_nothing(self, name, sizes, padding, seed):
    with jax.enable_x64(True):
      ids, index, weights = random_cohort(sizes, seed, steps=6)
      algorithm, step = jitted(name, 1)
      table = {k: v.astype(np.float64) if k == 'x' else v for k, v in TABLE.items()}
      params = jax.tree.map(lambda x: x.astype(jnp.float64), TASK.init(jax.random.key(0))['params'])
      order = np.random.default_rng(seed).permutation(len(ids))
      weights = weights.astype(np.float64)
      cohorts = (ids, index, weights), pad(ids[order], index[order], weights[order], *padding)
      one, two = (step(algorithm.init(params), (), federated.Cohort(*cohort), table,
                       jax.random.key(seed))[0] for cohort in cohorts)
      chex.assert_trees_all_close(one, two, atol=1e-12, rtol=1e-10)

  @parameterized.product(name=['fedavg_adasam', 'fedlalr_max'], count=[2, 4])
  def test_devices_change_nothing(self, name, count):
    ids, index, weights = pad(*random_cohort(SIZES), clients=2)
    algorithm = ALGORITHMS[name]()
    program = jax.pmap(
        functools.partial(federated.federated_round, algorithm=algorithm,
                          aggregator=algorithm.aggregator or aggregators.weighted_mean()),
        axis_name=parallel.CLIENTS, in_axes=(None, None, 0, None, None),
        out_axes=(None, None, None), devices=jax.devices()[:count])
    server = algorithm.init(TASK.init(jax.random.key(0))['params'])
    cut = lambda x: x.reshape((count, -1) + x.shape[1:])
    cohort = federated.Cohort(*map(cut, (ids, index, weights)))
    ours, _, metrics = program(server, (), cohort, TABLE, jax.random.key(0))
    parallel.assert_replicated((ours, metrics))
    theirs, their_metrics = run(name, ids, index, weights, rounds=1)
    chex.assert_trees_all_close(ours, theirs, atol=1e-6, rtol=1e-5)
    chex.assert_trees_all_close(metrics, their_metrics, atol=1e-5, rtol=1e-5)
    text = program.lower(server, (), cohort, TABLE, jax.random.key(0)).compile().as_text()
    self.assertIn('all-reduce', text)

  @parameterized.product(name=list(ALGORITHMS), chunk=[1, 3])
  def test_a_nan_client_is_as_if_it_were_not_there(self, name, chunk):
    ids, index, weights = random_cohort(SIZES)
    poisoned = {**TABLE, 'x': TABLE['x'].copy()}
    poisoned['x'][index[2, 0, 0]] = np.nan
    _, step = jitted(name, chunk)
    server = ALGORITHMS[name]().init(TASK.init(jax.random.key(0))['params'])
    with_nan, _, metrics = step(server, (), federated.Cohort(ids, index, weights), poisoned,
                                jax.random.key(0))
    keep = np.array([0, 1, 3, 4, 5])
    without = pad(ids[keep], index[keep], weights[keep], clients=1)
    theirs, _, their_metrics = step(server, (), federated.Cohort(*without), TABLE,
                                    jax.random.key(0))
    self.assertEqual(int(metrics['rejected']), 1)
    self.assertEqual(int(metrics['participants']), 5)
    toy.assert_trees_equal(with_nan, theirs)
    self.assertEqual(float(metrics['loss']), float(their_metrics['loss']))

  @parameterized.parameters(-1.0, np.nan, np.inf)
  def test_an_impossible_weight_is_rejected(self, weight):
    ids, index, weights = random_cohort(SIZES)
    weights = np.where(ids == 3, weight, weights).astype(np.float32)
    ours, metrics = run('fedavg', ids, index, weights, rounds=1)
    theirs, _ = run('fedavg', ids, index,
                    np.where(ids == 3, 0, weights).astype(np.float32), rounds=1)
    self.assertEqual(int(metrics['rejected']), 1)
    toy.assert_trees_equal(ours, theirs)

  @parameterized.parameters(*ALGORITHMS)
  def test_nobody_there_leaves_the_server_as_it_was(self, name):
    ids, index, weights = random_cohort(SIZES)
    server, metrics = run(name, ids, np.full_like(index, -1), np.zeros_like(weights), rounds=1)
    toy.assert_trees_equal(server, ALGORITHMS[name]().init(TASK.init(jax.random.key(0))['params']))
    self.assertTrue(bool(metrics['refused']))

  def test_duplicating_every_client_changes_nothing_under_uniform_weights(self):
    ids, index, weights = random_cohort(SIZES)
    one, _ = run('fedlalr', ids, index, np.ones_like(weights))
    twice = [np.concatenate([x, x]) for x in (ids, index, np.ones_like(weights))]
    chex.assert_trees_all_close(one, run('fedlalr', *twice)[0], atol=1e-6, rtol=1e-5)

  def test_a_robust_aggregator_sees_the_stack(self):
    ids, index, weights = random_cohort([4, 4, 4, 4])
    ours, metrics = run('fedavg', *pad(ids, index, weights, clients=2), aggregator=median, rounds=1)
    self.assertEqual(int(metrics['kept']), 4)
    single = [
        run('fedavg', ids[i:i + 1], index[i:i + 1], weights[i:i + 1], rounds=1)[0].params
        for i in range(4)
    ]
    expected = jax.tree.map(lambda *x: np.median(np.stack(x), 0), *single)
    chex.assert_trees_all_close(ours.params, expected, atol=1e-6)

  @parameterized.parameters('fedlalr', 'fedlalr_max')
  def test_vhat_never_falls_under_random_participation(self, name):
    ids, index, weights = random_cohort(SIZES)
    algorithm, step = jitted(name, 1)
    server = algorithm.init(TASK.init(jax.random.key(0))['params'])
    rng = np.random.default_rng(0)
    for r in range(8):
      here = (rng.random(6) < .5).astype(np.float32)
      before = server.nu_max
      server, _, _ = step(server, (), federated.Cohort(ids, index, here), TABLE, jax.random.key(r))
      grew = jax.tree.map(
          lambda new, old: bool((new >= old * (1 - 1e-6)).all() & (new >= 0.99e-16).all()),
          server.nu_max, before)
      self.assertTrue(all(jax.tree.leaves(grew)))

  def test_one_client_is_adasam_whose_v_is_seeded_anew_each_round(self):
    ids, index, weights = random_cohort([20], epochs=2)
    algorithm = federated.fedlalr(GRADIENT, optim.fedlalr(
        0.01, b2=0.5))  # a b2 under which v falls behind vhat
    server = algorithm.init(TASK.init(jax.random.key(0))['params'])
    for r in range(2):
      server, _, _ = jax.jit(functools.partial(
          federated.federated_round, algorithm=algorithm, aggregator=aggregators.weighted_mean()))(
              server, (), federated.Cohort(ids, index, weights), TABLE, jax.random.key(r))

    def centrally(reseed):
      tx = optim.scale_by_adasam(b2=0.5, v_init='eps_sq')
      params = TASK.init(jax.random.key(0))['params']
      state = tx.init(params)
      for r in range(2):
        if r and reseed:
          state = state._replace(nu=state.nu_max)
        for rows in index[0]:
          batch = {
              **{k: v[rows] for k, v in TABLE.items()}, 'weight': np.ones(len(rows), np.float32)
          }
          updates, state = tx.update(GRADIENT(params, batch, jax.random.key(0))[0], state)
          params = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
      return params, state.nu_max

    chex.assert_trees_all_close((server.params, server.nu_max), centrally(reseed=True), atol=1e-6,
                                rtol=1e-4)
    self.assertFalse(np.allclose(server.nu_max['w'], centrally(reseed=False)[1]['w'], rtol=1e-2))

  def test_drift(self):
    """Quadratic clients .5 a (x - b)^2: FedAvg ends at 2.0696, FedLALR near the true 2.4."""
    with jax.enable_x64(True):
      def gradient(params, batch, key):
        del key
        return {'x': (batch['a'] * (params['x'] - batch['b'])).sum()}, {
            'loss': (jnp.ones(()), jnp.ones(()))
        }
      table = {'a': jnp.array([1.0, 4.0]), 'b': jnp.array([0.0, 3.0])}
      index = np.repeat(np.arange(2, dtype=np.int32)[:, None, None], 10, axis=1)
      cohort = federated.Cohort(jnp.arange(2, dtype=jnp.int32), jnp.asarray(index), jnp.ones(2))
      ends = {}
      for name, algorithm in (('fedavg', federated.fedavg(gradient, optax.sgd(0.05))),
                              ('fedlalr', federated.fedlalr(gradient, optim.fedlalr(0.01)))):
        step = jax.jit(functools.partial(federated.federated_round, algorithm=algorithm,
                                         aggregator=aggregators.weighted_mean()))
        server = algorithm.init({'x': jnp.zeros(())})
        for r in range(3000 if name == 'fedlalr' else 200):
          server, _, _ = step(server, (), cohort, table, jax.random.key(r))
        ends[name] = float(server.params['x'])
      self.assertAlmostEqual(ends['fedavg'], 2.06963, places=4)
      self.assertAlmostEqual(ends['fedlalr'], 2.392, places=2)

  def test_traced_once(self):
    algorithm = ALGORITHMS['fedlalr']()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(*args):
      return federated.federated_round(*args, algorithm=algorithm,
                                       aggregator=aggregators.weighted_mean())

    server = algorithm.init(TASK.init(jax.random.key(0))['params'])
    for r in range(5):
      ids, index, weights = random_cohort(SIZES, seed=r)
      server, _, _ = step(server, (), federated.Cohort(ids, index, weights), TABLE,
                          jax.random.key(r))

  @parameterized.parameters(('fedavg', 1, 1), ('fedadam', 1, 1), ('fedlalr', 3, 3),
                            ('fedlada', 3, 3))
  def test_bytes(self, name, down, up):
    params = TASK.init(jax.random.key(0))['params']
    model = (4 * 3 + 3) * 4
    self.assertEqual(
        federated.round_bytes(ALGORITHMS[name](), params, TABLE, 4), (down * model, up * model + 8))

  def test_bytes_without_momentum(self):
    algorithm = federated.fedlalr(GRADIENT, optim.fedlalr(0.01), sync_momentum=False)
    params = TASK.init(jax.random.key(0))['params']
    self.assertEqual(federated.round_bytes(algorithm, params, TABLE, 4), (120, 128))


if __name__ == '__main__':
  absltest.main()
