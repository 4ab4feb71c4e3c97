"""Federated rounds against the golden vectors: FedLALR, FedLADA, FedAvg, FedAdam."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated, optim
from jaxlab.federated import aggregators, client
from tests.golden_reader import Golden

FEDLALR = Golden('fedlalr')
FEDBASE = Golden('fedbase')
CASES = {  # name -> (keyword arguments of fedlalr, those of the optimizer, steps kept)
    'base': ({}, {}, None),
    'weighted': ({'weighting': 'examples'}, {}, None),
    'vhat_max': ({'vhat_agg': 'max'}, {}, None),
    'no_momentum_sync': ({'sync_momentum': False}, {}, None),
    'partial': ({}, {}, None),
    'eps_big': ({}, {'eps': 0.2}, None),
    'fixed_k': ({}, {}, 3),
    'single_step': ({}, {}, 1),
}


def gradient(params, batch, key):
  """Mean cross-entropy over the real rows, and its gradient."""
  del key

  def mean_loss(params):
    logits = batch['x'] @ params['w'] + params['b']
    values = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['y'][:, None], 1)[:, 0]
    return (values * batch['weight']).sum() / jnp.maximum(batch['weight'].sum(), 1)

  value, grads = jax.value_and_grad(mean_loss)(params)
  rows = batch['weight'].sum()
  return grads, {'loss': (value * rows, rows)}


def flat(tree):
  """The golden layout [b, w row-major], leading axes kept."""
  b = np.asarray(tree['b'])
  return np.concatenate([b, np.asarray(tree['w']).reshape(b.shape[:-1] + (-1,))], -1)


def problem(golden, dtype):
  """(params, table, sizes, index [rounds, C, S, B]) with the clients' rows stacked in one table."""
  clients, rows = golden['data/y'].shape
  np.testing.assert_array_equal(golden['data/example_mask'].sum(-1), golden['data/sizes'])
  table = {'x': jnp.asarray(golden['data/X'].reshape(clients * rows, -1), dtype),
           'y': jnp.asarray(golden['data/y'].reshape(-1), jnp.int32)}
  index = golden['data/batch_idx']
  index = np.where(index >= 0, index + rows * np.arange(clients)[None, :, None, None], -1).astype(
      np.int32)
  np.testing.assert_array_equal((index[0] >= 0).any(-1).sum(-1), golden['data/local_steps'])
  params = {'b': jnp.asarray(golden['init/b'], dtype), 'w': jnp.asarray(golden['init/w'], dtype)}
  return params, table, golden['data/sizes'], index


def simulate(algorithm, params, table, index, weights, clients_per_vmap=4):
  """Server states before round 0 and after each round."""
  aggregator = algorithm.aggregator or aggregators.weighted_mean()
  step = jax.jit(
      functools.partial(federated.federated_round, algorithm=algorithm, aggregator=aggregator,
                        clients_per_vmap=clients_per_vmap))
  state = federated.RoundState.start(algorithm, aggregator, params, num_clients=index.shape[1])
  states = [state]
  for round_number, (rows, weight) in enumerate(zip(index, weights)):
    cohort = federated.Cohort(
        jnp.arange(len(rows), dtype=jnp.int32), jnp.asarray(rows), jnp.asarray(weight))
    state, metrics = step(state, cohort, table, jax.random.key(round_number))
    assert not metrics['refused'] and not metrics['rejected']
    states.append(state)
  return states


class FedLALRGoldenTest(parameterized.TestCase):

  def run_case(self, name, dtype):
    arguments, moments, keep = CASES[name]
    params, table, sizes, index = problem(FEDLALR, dtype)
    rounds = FEDLALR[f'{name}/server_x'].shape[0] - 1
    index = index[:rounds, :, :keep]
    here = FEDLALR['data/participation'][:rounds] if name == 'partial' else np.ones(
        (rounds, len(sizes)))
    weights = here * (sizes if arguments.get('weighting') == 'examples' else 1.0)
    optimizer = optim.fedlalr(0.01, **moments)
    algorithm = federated.fedlalr(gradient, optimizer, **arguments)
    return optimizer, table, index, here, simulate(algorithm, params, table, index,
                                                   weights.astype(dtype))

  @parameterized.parameters(*CASES)
  def test_server_float64(self, name):
    with jax.enable_x64(True):
      _, _, _, _, states = self.run_case(name, jnp.float64)
      for array, field in (('server_x', 'params'), ('server_m', 'mu'), ('server_vhat', 'nu_max')):
        ours = np.stack([flat(getattr(state.server, field)) for state in states])
        np.testing.assert_allclose(ours, FEDLALR[f'{name}/{array}'], rtol=0, atol=1e-10,
                                   err_msg=array)

  @parameterized.parameters(*CASES)
  def test_server_float32(self, name):
    _, _, _, _, states = self.run_case(name, jnp.float32)
    x = np.stack([flat(state.server.params) for state in states])
    vhat = np.stack([flat(state.server.nu_max) for state in states])
    np.testing.assert_allclose(x, FEDLALR[f'{name}/server_x'], rtol=0, atol=2e-5)
    np.testing.assert_allclose(vhat, FEDLALR[f'{name}/server_vhat'], rtol=1e-5, atol=0)

  @parameterized.parameters(*CASES)
  def test_every_client_end_state(self, name):
    with jax.enable_x64(True):
      optimizer, table, index, here, states = self.run_case(name, jnp.float64)

      def start(server, client_state, key):
        state = optimizer.init(server.params)
        return server.params, optim.begin_round(state._replace(mu=server.mu, nu_max=server.nu_max))

      def step(carry, batch, key):
        params, state, sums = client.optimizer_step(
            gradient, optax.with_extra_args_support(optimizer), *carry, batch, key)
        return (params, state), sums

      work = jax.jit(
          client.client_update(start, step, lambda payload, state, carry, steps: (carry, (), {})))
      for r, rows in enumerate(index):
        for c in range(len(rows)):
          expected = [FEDLALR[f'{name}/client_{part}'][r, c] for part in ('x', 'm', 'v', 'vhat')]
          if not here[r, c]:
            self.assertTrue(all(np.isnan(part).all() for part in expected))
            continue
          data = federated.ClientData(table, jnp.asarray(rows[c]), jnp.int32(len(rows[c])))
          (params, state), _, _ = work(states[r].server, (), data, jax.random.key(0))
          for ours, theirs in zip((params, state.mu, state.nu, state.nu_max), expected):
            np.testing.assert_allclose(flat(ours), theirs, rtol=0, atol=1e-10)

  def test_synchronize_is_what_the_server_does(self):
    with jax.enable_x64(True):
      for name, mode in (('base', 'mean'), ('vhat_max', 'max')):
        stack = lambda part: {
            'b': jnp.asarray(part[:, :3]), 'w': jnp.asarray(part[:, 3:].reshape(-1, 4, 3))
        }
        states = optim.FedLALRState(
            *(stack(FEDLALR[f'{name}/client_{part}'][0]) for part in ('m', 'v', 'vhat')))
        ours = optim.synchronize(states, jnp.ones(4), vhat_agg=mode)
        np.testing.assert_allclose(
            flat(ours.mu), FEDLALR[f'{name}/server_m'][1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            flat(ours.nu_max), FEDLALR[f'{name}/server_vhat'][1], rtol=0, atol=1e-12)

  def test_fedlada(self):
    with jax.enable_x64(True):
      params, table, _, index = problem(FEDLALR, jnp.float64)
      algorithm = federated.fedlada(gradient, optim.scale_by_adasam(v_init='eps_sq'),
                                    learning_rate=0.01)
      rounds = FEDLALR['fedlada/server_x'].shape[0] - 1
      states = simulate(algorithm, params, table, index[:rounds], np.ones((rounds, 4)))
      for array, field in (('server_x', 'params'), ('server_ga', 'direction'), ('server_vhat',
                                                                                'nu_max')):
        ours = np.stack([flat(getattr(state.server, field)) for state in states])
        np.testing.assert_allclose(ours, FEDLALR[f'fedlada/{array}'], rtol=0, atol=1e-10,
                                   err_msg=array)

  def test_zz_every_array_was_compared(self):
    self.assertEmpty(FEDLALR.unread())


def fedbase_algorithm(name):
  """The algorithm of a golden case with its settings, and the case's weighting."""
  sgd = optax.sgd(0.1)
  server = {'server_learning_rate': 0.1}
  make = {
      'fedavg': lambda: federated.fedavg(gradient, sgd),
      'fedavg_uniform': lambda: federated.fedavg(gradient, sgd, weighting='uniform'),
      'fedavg_partial': lambda: federated.fedavg(gradient, sgd),
      'fedprox': lambda: federated.fedprox(gradient, sgd, mu=0.5),
      'fedavgm': lambda: federated.fedavgm(gradient, sgd, server_learning_rate=0.5),
      'fedadagrad': lambda: federated.fedadagrad(gradient, sgd, **server),
      'fedadam': lambda: federated.fedadam(gradient, sgd, **server),
      'fedyogi': lambda: federated.fedyogi(gradient, sgd, **server),
      'fedams_opt1': lambda: federated.fedams(gradient, sgd, **server, option=1),
      'fedams_opt2': lambda: federated.fedams(gradient, sgd, **server, option=2),
      'scaffold': lambda: federated.scaffold(gradient, num_clients=4, learning_rate=0.1),
      'scaffold_partial': lambda: federated.scaffold(gradient, num_clients=4, learning_rate=0.1),
      'scaffold_option1': lambda: federated.scaffold(
          gradient, num_clients=4, learning_rate=0.1, option=1),
      'mime': lambda: federated.mime(gradient, learning_rate=0.1),
      'mimelite': lambda: federated.mimelite(gradient, learning_rate=0.1),
      'feddyn': lambda: federated.feddyn(gradient, num_clients=4, learning_rate=0.1),
      'feddyn_partial': lambda: federated.feddyn(gradient, num_clients=4, learning_rate=0.1),
  }
  return make[name]()


# What else a golden case holds: array -> how ours is read off a RoundState. FedOpt's servers are
# fed with -Delta, so their first moment has the other sign.
SERVER_ARRAYS = {
    'fedavgm': {'m': lambda state: -flat(state.server.opt_state[0].trace)},
    'scaffold': {'c': lambda state: flat(state.server.control)},
    'mime': {'momentum': lambda state: flat(state.server.momentum)},
    'feddyn': {'h': lambda state: flat(state.server.h)},
    'moments': {'m': lambda state: -flat(state.server.opt_state[0].mu),
                'v': lambda state: flat(state.server.opt_state[0].nu)},
    'maximum': {'vhat': lambda state: flat(state.server.opt_state[0].nu_max)},
}
EXTRA = {
    'fedavgm': SERVER_ARRAYS['fedavgm'],
    **{name: SERVER_ARRAYS['moments'] for name in ('fedadagrad', 'fedadam', 'fedyogi')},
    **{name: SERVER_ARRAYS['moments'] | SERVER_ARRAYS['maximum']
       for name in ('fedams_opt1', 'fedams_opt2')},
    **{name: SERVER_ARRAYS['scaffold']
       for name in ('scaffold', 'scaffold_partial', 'scaffold_option1')},
    **{name: SERVER_ARRAYS['mime'] for name in ('mime', 'mimelite')},
    **{name: SERVER_ARRAYS['feddyn'] for name in ('feddyn', 'feddyn_partial')},
}
CLIENT_ARRAYS = {'scaffold': 'client_c', 'feddyn': 'client_lambda'}
LOSSES = ('fedavg', 'fedprox', 'fedadagrad', 'fedadam', 'fedyogi', 'fedams', 'scaffold')
ALL_CASES = ('fedavg', 'fedavg_uniform', 'fedavg_partial', 'fedprox', 'fedavgm', 'fedadagrad',
             'fedadam', 'fedyogi', 'fedams_opt1', 'fedams_opt2', 'scaffold', 'scaffold_partial',
             'scaffold_option1', 'mime', 'mimelite', 'feddyn', 'feddyn_partial')


class FedBaseGoldenTest(parameterized.TestCase):

  def run_case(self, name, dtype):
    params, table, sizes, index = problem(FEDBASE, dtype)
    partial = name.endswith('_partial')
    here = FEDBASE['data/participation'] if partial else np.ones((len(index), len(sizes)))
    algorithm = fedbase_algorithm(name)
    weights = here * (sizes if algorithm.weighting == 'examples' else 1.0)
    return table, sizes, simulate(algorithm, params, table, index, weights.astype(dtype))

  @parameterized.parameters(*ALL_CASES)
  def test_float64(self, name):
    with jax.enable_x64(True):
      table, sizes, states = self.run_case(name, jnp.float64)
      close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
      x = np.stack([flat(state.server.params) for state in states])
      close(x, FEDBASE[f'{name}/server_x'])
      for array, read in EXTRA.get(name, {}).items():
        ours = np.stack([read(state) for state in states])
        close(ours, FEDBASE[f'{name}/{array}'], err_msg=array)
      family = name.split('_')[0]
      if family in CLIENT_ARRAYS:
        ours = np.stack([flat(state.clients)[:-1] for state in states])
        close(ours, FEDBASE[f'{name}/{CLIENT_ARRAYS[family]}'])
      real = (np.arange(16) < np.asarray(sizes)[:, None]).reshape(-1) * 1.0
      batch = {**table, 'weight': jnp.asarray(real)}
      if family in LOSSES or name == 'fedavgm':
        pairs = [gradient(state.server.params, batch, None)[1]['loss'] for state in states]
        losses = [total / rows for total, rows in pairs]
        close(losses, FEDBASE[f'{name}/loss'])
      if family == 'fedavg' or name == 'fedprox':
        close(np.diff(x, axis=0), FEDBASE[f'{name}/delta'])
      if family in ('mime', 'mimelite'):
        full = [flat(gradient(state.server.params, batch, None)[0]) for state in states[:-1]]
        close(np.stack(full), FEDBASE[f'{name}/full_grad'])

  @parameterized.parameters(*ALL_CASES)
  def test_float32(self, name):
    _, _, states = self.run_case(name, jnp.float32)
    adaptive = name in ('fedadagrad', 'fedadam', 'fedyogi', 'fedams_opt1', 'fedams_opt2')
    np.testing.assert_allclose(flat(states[-1].server.params), FEDBASE[f'{name}/server_x'][-1],
                               rtol=0, atol=2e-4 if adaptive else 5e-5)

  @parameterized.parameters(('fedavgm', 0.9, 1.0), ('fedadam', 0.9, 0.1), ('fedyogi', 0.9, 0.1),
                            ('fedams_opt1', 0.9, 0.1), ('fedams_opt2', 0.9, 0.1),
                            ('fedadagrad', 0.0, 1.0))
  def test_delta_is_what_moves_the_first_moment(self, name, decay, share):
    m = FEDBASE[f'{name}/m']
    np.testing.assert_allclose((m[1:] - decay * m[:-1]) / share, FEDBASE[f'{name}/delta'], rtol=0,
                               atol=1e-10)

  @parameterized.parameters('scaffold', 'scaffold_partial', 'scaffold_option1')
  def test_the_mean_of_the_clients_controls_is_the_servers(self, name):
    with jax.enable_x64(True):
      for state in self.run_case(name, jnp.float64)[2]:
        np.testing.assert_allclose(flat(state.clients)[:-1].mean(0), flat(state.server.control),
                                   atol=1e-14)

  def test_zz_every_array_was_compared(self):
    left = [key for key in FEDBASE.unread() if not key.startswith('partition/')]
    self.assertEmpty(left)  # tests/data/partition_test.py compares the partition


if __name__ == '__main__':
  absltest.main()
