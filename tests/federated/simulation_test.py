"""`simulate`: learning, invariances, bytes, resumption, refused rounds, bad settings."""
import dataclasses
import json
import logging
import pathlib
import shutil
import tempfile
from unittest import mock

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel, train
from jaxlab.config import ConfigError
from jaxlab.federated import simulation
from jaxlab.federated.settings import FederatedConfig
from tests import toy

FEDLALR = {
    'algorithm': {'name': 'fedlalr'},
    'client_optimizer': {'name': 'fedlalr', 'learning_rate': 0.01}
}
FEDAVG = {
    'algorithm': {'name': 'fedavg'}, 'client_optimizer': {'name': 'sgd', 'learning_rate': 0.1}
}
SCAFFOLD = {'algorithm': {'name': 'scaffold', 'learning_rate': 0.1}, 'client_optimizer': {}}
BASE = {
    'num_clients': 6, 'cohort_size': 4, 'rounds': 6, 'batch_size': 4, 'eval_every': 2,
    'log_every': 2, 'partition': {'name': 'dirichlet_by_class', 'alpha': 0.5, 'min_size': 1}
}


def config(**changes):
  return {'seed': 1, 'federated': {**BASE, **FEDLALR, **changes}}


def devices(count):
  return jax.devices()[:count]


def rows_of(folder):
  return [
      json.loads(line)
      for line in (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  ]


class _Rows:
  """A source that gives an example at a time, as one on disk would."""

  def __init__(self, arrays):
    self._arrays = arrays

  def __len__(self):
    return len(self._arrays['label'])

  def __getitem__(self, row):
    return {name: column[row] for name, column in self._arrays.items()}


class SimulateTest(parameterized.TestCase):

  def test_learns_and_counts_bytes(self):
    with tempfile.TemporaryDirectory() as folder:
      state = federated.simulate(
          toy.softmax_task(rows=60), config(rounds=40, eval_splits=('train',)), workdir=folder,
          devices=devices(2))
      rows = rows_of(folder)
      self.assertLess(rows[-1]['loss'], 0.7 * rows[0]['loss'])
      self.assertGreater(rows[-1]['train/accuracy'], 0.8)
      self.assertEqual(int(state.round), 40)
      model = (4 * 3 + 3) * 4
      self.assertAlmostEqual(rows[-1]['mb_down'], 160 * 3 * model / 1e6)
      self.assertAlmostEqual(rows[-1]['mb_up'], 160 * (3 * model + 8) / 1e6)
      self.assertTrue((pathlib.Path(folder) / 'figures' / 'curves.png').exists())

  @parameterized.product(setting=[FEDLALR, FEDAVG], count=[2, 4], chunk=[1, 2])
  def test_devices_and_chunks_change_nothing(self, setting, count, chunk):
    task = toy.softmax_task(rows=60)
    one = federated.simulate(task, config(**setting, clients_per_vmap=1), devices=devices(1))
    many = federated.simulate(task, config(**setting, clients_per_vmap=chunk),
                              devices=devices(count))
    parallel.assert_replicated(many)
    chex.assert_trees_all_close(
        parallel.to_host(one.server), parallel.to_host(many.server), atol=1e-5, rtol=1e-5)

  def test_small_models_run_several_clients_side_by_side(self):
    tree = lambda size: {'kernel': np.zeros((size - 10, 1)), 'bias': np.zeros(10)}
    default = simulation.default_clients_per_vmap
    sizes = (11, 2**15, 2**15 + 1, 2**16, 2**16 + 1)
    self.assertEqual([default(tree(size)) for size in sizes], [4, 4, 2, 2, 1])
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.assertEqual(default(tree(11)), 32)

  @parameterized.parameters((0, 8, 2, 4), (0, 8, 3, 3), (0, 3, 4, 1), (2, 8, 1, 2), (9, 8, 2, 4))
  def test_no_more_side_by_side_than_a_device_has(self, asked, cohort_size, count, expected):
    params = {'kernel': np.zeros(9)}
    self.assertEqual(simulation.side_by_side(asked, params, cohort_size, count), expected)

  def test_init_from_takes_the_weights_of_another_run(self):
    task = toy.softmax_task(rows=60)
    still = {**config(algorithm={'name': 'fedavg'}, rounds=2,
                      client_optimizer={'name': 'sgd', 'learning_rate': 0.0}), 'seed': 5}
    with tempfile.TemporaryDirectory() as folder:
      central, rounds = f'{folder}/central', f'{folder}/rounds'
      first = train.fit(task, {
          'seed': 1, 'batch_size': 8, 'steps': 3,
          'optimizer': {'name': 'sgd', 'learning_rate': 0.1}}, workdir=central)
      second = federated.simulate(task, {**still, 'init_from': central}, workdir=rounds)
      toy.assert_trees_equal(first.params, second.params)
      shutil.rmtree(central)  # a run that goes on does not look there again
      federated.simulate(task, {**still, 'init_from': central}, workdir=rounds)
      third = federated.simulate(task, {**still, 'init_from': rounds})
      toy.assert_trees_equal(first.params, third.params)
      with self.assertRaisesRegex(ConfigError, 'nowhere: no checkpoint there'):
        federated.simulate(task, {**still, 'init_from': f'{folder}/nowhere'})

  def test_rounds_per_call_changes_nothing(self):
    task = toy.softmax_task(rows=60, noise=0.1)
    one = federated.simulate(task, config(), devices=devices(1))
    two = federated.simulate(task, config(rounds_per_call=2), devices=devices(1))
    chex.assert_trees_all_close(parallel.to_host(one), parallel.to_host(two), atol=1e-6)

  @parameterized.parameters(FEDAVG, SCAFFOLD)
  def test_a_round_that_nobody_is_there_for_changes_nothing(self, **setting):
    masks = np.array([[1, 0, 1, 1, 1, 0], [0] * 6, [1] * 6], bool)
    task = toy.softmax_task(rows=60)
    run = lambda rounds, masks: parallel.to_host(federated.simulate(task, config(
        **setting, rounds=rounds, eval_every=0, log_every=1,
        sampling={'name': 'available', 'masks': masks}), devices=devices(2)))
    one, two, three = run(1, masks), run(2, masks), run(3, masks)
    self.assertEqual((int(two.round), int(two.bad_rounds), int(three.bad_rounds)), (2, 1, 0))
    chex.assert_trees_all_equal(one.server, two.server)
    chex.assert_trees_all_equal(one.clients, two.clients)
    self.assertGreater(np.abs(three.params['w'] - two.params['w']).max(), 1e-4)

  @parameterized.parameters(1, 2)
  def test_secure_sums_are_the_mean(self, count):
    task = toy.softmax_task(rows=60)
    secure = {'clip': 2.0, 'bits': 22, 'max_weight': 60}
    plain = federated.simulate(task, config(**FEDAVG), devices=devices(count))
    summed = federated.simulate(task, config(**FEDAVG, secure=secure), devices=devices(count))
    parallel.assert_replicated(summed)
    # Six rounds of 4 clients, each half a step of 2 * 2 * 60 / 2^22 off, over at least 4 examples.
    chex.assert_trees_all_close(
        parallel.to_host(plain.params), parallel.to_host(summed.params), atol=1e-3)
    self.assertGreater(np.abs(parallel.to_host(plain.params)['w'] -
                              parallel.to_host(summed.params)['w']).max(), 0)

  @parameterized.parameters(FEDLALR, SCAFFOLD)
  def test_resumes_bit_for_bit(self, **setting):
    task = toy.softmax_task(rows=60, noise=0.1)
    whole = federated.simulate(task, config(**setting, save_every=2))

    class Interrupt(Exception):
      """Ends the run in the middle."""

    def stop(state, now):
      if now == 5:
        raise Interrupt
      return state

    quiet = train.Hook('stop', lambda params: {}, lambda state, _: state)
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaises(Interrupt):
        federated.simulate(task, config(**setting, save_every=2), workdir=folder,
                           hooks=[quiet._replace(apply=stop)])
      with self.assertLogs('jaxlab', logging.INFO) as logs:
        again = federated.simulate(task, config(**setting, save_every=2), workdir=folder,
                                   hooks=[quiet])
      self.assertIn('resumed from round 4', '\n'.join(logs.output))
      self.assertEqual([row['step'] for row in rows_of(folder)], [2, 4, 6])
    toy.assert_trees_equal(whole._replace(hooks={}), again._replace(hooks={}))

  @parameterized.product(count=[1, 2], per_call=[1, 2])
  def test_staging_changes_nothing(self, count, per_call):
    task = toy.softmax_task(rows=60, noise=0.1)
    resident = federated.simulate(task, config(rounds_per_call=per_call), devices=devices(count))
    staged = federated.simulate(task, config(rounds_per_call=per_call, stage=True),
                                devices=devices(count))
    toy.assert_trees_equal(resident, staged)

  def test_staging_reads_rows_of_any_data_set(self):
    task = toy.softmax_task(rows=60)
    on_disk = dataclasses.replace(task, dataset=lambda split: grain.MapDataset.source(
        _Rows(task.dataset(split).arrays)))
    toy.assert_trees_equal(federated.simulate(task, config(stage=True)),
                           federated.simulate(on_disk, config(stage=True)))

  def test_hooks_move_the_global_model(self):
    hook = train.Hook('zero', lambda params: {}, lambda state, _: state.with_params(
        jax.tree.map(jnp.zeros_like, state.params)), every=6)
    state = federated.simulate(toy.softmax_task(rows=60), config(), hooks=[hook])
    self.assertTrue(all((leaf == 0).all() for leaf in jax.tree.leaves(state.params)))

  def test_natural_clients(self):
    with tempfile.TemporaryDirectory() as folder:
      federated.simulate(toy.softmax_task(rows=60), config(
          partition={'name': 'by_user'}, partition_by='label', num_clients=3, cohort_size=3,
          **FEDAVG), workdir=folder)
      self.assertAlmostEqual(rows_of(folder)[-1]['mb_down'], 18 * (4 * 3 + 3) * 4 / 1e6)

  def test_partitions_by_number_alone_need_no_column(self):
    for name in ('iid', 'quantity'):
      options = {'name': name} | ({'law': 'power', 'spread': 1.0} if name == 'quantity' else {})
      settings = FederatedConfig(
          **{**BASE, **FEDLALR, 'partition': options, 'partition_by': 'absent'})
      clients = simulation.make_clients(toy.softmax_task(rows=60), settings, seed=1)
      rows = np.concatenate([clients.of(c) for c in range(6)])
      np.testing.assert_array_equal(np.sort(rows), np.arange(60))

  def test_refused_rounds_end_the_run(self):
    task = toy.softmax_task(rows=60)

    def loss(variables, batch, key):
      out = task.loss(variables, batch, key)
      return out._replace(values=out.values * jnp.nan)

    broken = dataclasses.replace(task, loss=loss)
    with self.assertRaisesRegex(FloatingPointError,
                                'round 3: the last 3 updates in a row were not finite'):
      federated.simulate(broken, config(max_bad_rounds=3))

  def test_constants_are_neither_trained_nor_checkpointed(self):
    task = toy.softmax_task(rows=60)
    teacher = np.full((4, 3), 0.5, np.float32)

    def init(key):
      return {**task.init(key), 'constants': {'teacher': jnp.asarray(teacher)}}

    def loss(variables, batch, key):
      params = jax.tree.map(lambda x: x, variables['params'])
      params['w'] = params['w'] + variables['constants']['teacher']
      return task.loss({'params': params}, batch, key)

    distilled = dataclasses.replace(task, init=init, loss=loss)
    with tempfile.TemporaryDirectory() as folder:
      state = federated.simulate(distilled, config(save_every=3), workdir=folder)
      saved = train.checkpoints.read_leaves(folder)
      self.assertFalse(any('teacher' in path for path in saved))
      toy.assert_trees_equal(state.params, train.checkpoints.load_collection(folder, state.params))
      other = dataclasses.replace(
          distilled,
          init=lambda key: {**task.init(key), 'constants': {'teacher': jnp.ones((4, 3))}})
      with self.assertRaisesRegex(ConfigError, 'constants: expected those of the checkpoint'):
        federated.simulate(other, config(save_every=3), workdir=folder)

  @parameterized.parameters(
      ({'partition_by': 'labels'
       }, "federated.partition_by: unknown name 'labels'; did you mean 'label'"),
      ({'partition': {'name': 'iid'}, 'num_clients': 100}, 'partition'),
  )
  def test_settings_that_do_not_fit_the_data(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      federated.simulate(toy.softmax_task(rows=60), config(**change))

  def test_running_collections_are_refused(self):
    task = toy.softmax_task()
    running = dataclasses.replace(task,
                                  init=lambda key: {**task.init(key), 'batch_stats': jnp.zeros(3)})
    with self.assertRaisesRegex(
        ConfigError,
        r"federated: expected a task without running collections, got \['batch_stats'\]"):
      federated.simulate(running, config())


if __name__ == '__main__':
  absltest.main()
