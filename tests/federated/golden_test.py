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
  return grads, {'loss': (value, jnp.ones(()))}


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
  server, states = algorithm.init(params), []
  states.append(server)
  for round_number, (rows, weight) in enumerate(zip(index, weights)):
    cohort = federated.Cohort(
        jnp.arange(len(rows), dtype=jnp.int32), jnp.asarray(rows), jnp.asarray(weight))
    server, _, metrics = step(server, (), cohort, table, jax.random.key(round_number))
    assert not metrics['refused'] and not metrics['rejected']
    states.append(server)
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
        ours = np.stack([flat(getattr(state, field)) for state in states])
        np.testing.assert_allclose(ours, FEDLALR[f'{name}/{array}'], rtol=0, atol=1e-10,
                                   err_msg=array)

  @parameterized.parameters(*CASES)
  def test_server_float32(self, name):
    _, _, _, _, states = self.run_case(name, jnp.float32)
    x = np.stack([flat(state.params) for state in states])
    vhat = np.stack([flat(state.nu_max) for state in states])
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
          (params, state), _, _ = work(states[r], (), data, jax.random.key(0))
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
        ours = np.stack([flat(getattr(state, field)) for state in states])
        np.testing.assert_allclose(ours, FEDLALR[f'fedlada/{array}'], rtol=0, atol=1e-10,
                                   err_msg=array)

  def test_zz_every_array_was_compared(self):
    self.assertEmpty(FEDLALR.unread())


class FedOptGoldenTest(parameterized.TestCase):
  CASES = ('fedavg', 'fedavg_uniform', 'fedavg_partial', 'fedadam')

  def run_case(self, name, dtype):
    params, table, sizes, index = problem(FEDBASE, dtype)
    here = FEDBASE['data/participation'] if name.endswith('_partial') else np.ones(
        (len(index), len(sizes)))
    weighting = 'uniform' if name.endswith('_uniform') else 'examples'
    weights = here * (sizes if weighting == 'examples' else 1.0)
    sgd = optax.sgd(0.1)
    algorithm = (
        federated.fedadam(gradient, sgd, server_learning_rate=0.1)
        if name == 'fedadam' else federated.fedavg(gradient, sgd, weighting=weighting))
    states = simulate(algorithm, params, table, index, weights.astype(dtype))
    return table, sizes, states

  @parameterized.parameters(*CASES)
  def test_float64(self, name):
    with jax.enable_x64(True):
      table, sizes, states = self.run_case(name, jnp.float64)
      x = np.stack([flat(state.params) for state in states])
      np.testing.assert_allclose(x, FEDBASE[f'{name}/server_x'], rtol=0, atol=1e-10)
      batch = {
          **table, 'weight': jnp.asarray(
              (np.arange(16) < np.asarray(sizes)[:, None]).reshape(-1) * 1.0)
      }
      losses = [gradient(state.params, batch, None)[1]['loss'][0] for state in states]
      np.testing.assert_allclose(losses, FEDBASE[f'{name}/loss'], rtol=0, atol=1e-10)
      if name == 'fedadam':
        moments = [state.opt_state[0] for state in states]
        np.testing.assert_allclose([flat(m.nu) for m in moments], FEDBASE['fedadam/v'], rtol=0,
                                   atol=1e-10)
        # The server is fed with -Delta, so its first moment has the other sign.
        np.testing.assert_allclose([-flat(m.mu) for m in moments], FEDBASE['fedadam/m'], rtol=0,
                                   atol=1e-10)
      else:
        np.testing.assert_allclose(np.diff(x, axis=0), FEDBASE[f'{name}/delta'], rtol=0, atol=1e-10)

  @parameterized.parameters(*CASES)
  def test_float32(self, name):
    _, _, states = self.run_case(name, jnp.float32)
    atol = 2e-4 if name == 'fedadam' else 5e-5
    np.testing.assert_allclose(
        flat(states[-1].params), FEDBASE[f'{name}/server_x'][-1], rtol=0, atol=atol)

  def test_fedadam_delta(self):
    with jax.enable_x64(True):
      m = FEDBASE['fedadam/m']
      np.testing.assert_allclose((m[1:] - .9 * m[:-1]) / .1, FEDBASE['fedadam/delta'], rtol=0,
                                 atol=1e-10)


if __name__ == '__main__':
  absltest.main()
