"""The Task of click prediction: devices, padding, penalties, rows, all models, errors."""
import functools
import pathlib
import re
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from configs.xdeepfm import avazu, criteo
from configs.xdeepfm import demo as demo_config
from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.systems.xdeepfm import data, model, reproduce, task
from jaxlab.train import TrainState, evaluation, fit, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
LAYOUT = data.Layout(30, 4, 6, False)
CONFIG = {'name': 'xdeepfm', 'dim': 3, 'cin': {'layer_sizes': (4, 2)}, 'dnn': {'features': (5,)}}


def make_batch(size=16, seed=0):
  rng = np.random.default_rng(seed)
  field = rng.integers(-1, 4, (size, 6)).astype(np.int32)
  return {'ids': rng.integers(0, 30, (size, 6)).astype(np.int32), 'field': field,
          'values': (rng.normal(size=(size, 6)) * (field >= 0)).astype(np.float32),
          'label': rng.integers(0, 2, size).astype(np.float32),
          'group': rng.integers(0, 5, size), 'weight': rng.integers(1, 4, size).astype(np.float32)}


@functools.cache
def make_task(rows=False, l2_rows=0.0):
  columns = make_batch(21)
  del columns['weight']
  return task.from_model(model.make_model(CONFIG, 30, 4), LAYOUT,
                         {'test': pipeline.from_arrays(columns)}, rows=rows, l2_rows=l2_rows)


@functools.cache
def initial():
  return jax.jit(make_task().init)(jax.random.key(0))['params']


def one_step(problem, batch, count=1, optimizer=None):
  """(parameters, metrics) after two steps on `count` devices."""
  optimizer, zero = optimizer or optax.adam(0.01), jnp.zeros((), jnp.int32)
  params = initial()
  state = TrainState(zero, params, {}, optimizer.init(params), jax.random.key(1), zero, zero, {})
  devices = jax.devices()[:count]
  program = jax.pmap(
      functools.partial(train_step, task=problem, optimizer=optimizer,
                        trainable=jax.tree.map(lambda _: True, params)),
      axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None), devices=devices)
  for _ in range(2):
    state, metrics = program(state, {}, parallel.split(batch, devices))
    parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


def padded(batch):
  """More rows of nonsense that weigh nothing, and a slot of nonsense of value 0."""
  pad = lambda x: np.concatenate([x, np.ones_like(x)])
  out = {name: pad(x) for name, x in batch.items()}
  out['weight'][16:] = 0
  for name, fill in (('ids', 29), ('field', 2), ('values', 0)):
    out[name] = np.pad(out[name], ((0, 0), (0, 1)), constant_values=fill)
  return out


class StepTest(parameterized.TestCase):

  @parameterized.parameters((4, False), (2, True))
  def test_devices_and_padding_change_nothing(self, count, rows):
    expected = one_step(make_task(rows), make_batch())
    chex.assert_trees_all_close(one_step(make_task(rows), padded(make_batch()), count), expected,
                                atol=1e-5, rtol=1e-4)

  def test_row_wise_is_dense_from_the_first_touch(self):
    chex.assert_trees_all_close(one_step(make_task(True, 0.1), make_batch()),
                                one_step(make_task(False, 0.1), make_batch()), atol=1e-5, rtol=1e-4)

  def test_the_penalty_of_a_batch_by_hand(self):
    batch, params = make_batch(), initial()
    plain, more = (jax.jit(make_task(False, l2).loss)({'params': params}, batch, jax.random.key(0))
                   for l2 in (0.0, 0.1))
    seen = (batch['values'] != 0)
    squares = np.square(params['embedding']['table']['embedding']).sum(-1) + np.square(
        params['linear']['table']['weight'])
    np.testing.assert_allclose(more.values - plain.values,
                               0.05 * (squares[batch['ids']] * seen).sum(-1), atol=1e-6)
    np.testing.assert_array_equal(more.metrics['logloss'][0], plain.values)

  def test_every_parameter_has_a_gradient(self):
    params, _ = one_step(make_task(), make_batch(), optimizer=optax.sgd(1.0))
    moved = jax.tree.map(np.subtract, params, parallel.to_host(initial()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))

  def test_evaluation(self):
    evaluator = evaluation.Evaluator(make_task(), batch_size=4, devices=jax.devices()[:2])
    state = evaluation.Snapshot(initial(), {}, jax.random.key(0), 0)
    out = evaluator(parallel.place(state, devices=jax.devices()[:2]), {}, 'test')
    batch = make_batch(21)
    logits = make_task().predict({'params': initial()}, batch, None)['logit']
    pairs = [({'logit': np.asarray(logits)}, batch)]
    self.assertEqual(out.keys(), {'test/auc', 'test/logloss', 'test/group_auc'})
    for name, value in make_task().evaluate(pairs).items():
      self.assertAlmostEqual(out[f'test/{name}'], value, places=5)


class ModelTest(parameterized.TestCase):

  @parameterized.parameters(*model.NAMES)
  def test_every_model_gives_finite_logits_of_its_own(self, name):
    config = demo_config.get_config(name).to_dict()
    net = model.make_model(config['model'], 30, 4)
    ids = make_batch()['ids'][:, :4]
    params = jax.jit(net.init)(jax.random.key(0), ids)['params']
    self.assertEqual(set(params) - {'embedding'}, set(model.NAMES[name]) - {'fm'})
    logits = net.apply({'params': params}, ids)
    self.assertEqual(logits.shape, (16,))
    self.assertTrue(np.isfinite(logits).all() and np.ptp(logits) > 0)

  def test_fnn_is_an_fm_and_then_a_dnn(self):
    net = model.make_model(demo_config.get_config('fnn').to_dict()['model'], 30, 4)
    ids = make_batch()['ids'][:, :4]
    params = net.init(jax.random.key(0), ids)['params']
    later = model.start_dnn(params)
    self.assertEqual(jax.tree.structure(later), jax.tree.structure(params))
    dnn = lambda p: jax.grad(lambda q: net.apply({'params': q}, ids).sum())(p)['fnn']
    self.assertFalse(np.any(dnn(params)['dnn']['out']['kernel']))
    self.assertFalse(np.any(dnn(later)['linear']['bias']))
    self.assertTrue(np.any(dnn(later)['dnn']['out']['kernel']))
    every = ((re.compile('.*'), 0.1),)
    penalty = jax.grad(lambda p: task.whole_penalty(p, every, every))(later)
    self.assertEqual(penalty['fnn']['stage'], 0)
    self.assertTrue(np.any(penalty['fnn']['dnn']['out']['kernel']))

  def test_cross_network_without_bias_gives_multiples_of_its_input(self):
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    net = model.CrossNet(3)
    out = net.apply(net.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(np.ptp(out / x, axis=1), 0, atol=1e-4)

  def test_products(self):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    total = x.sum(1)
    np.testing.assert_allclose(model.outer_products(x).reshape(2, 4, 4),
                               np.einsum('bi,bj->bij', total, total), rtol=1e-5)


class ConfigTest(parameterized.TestCase):

  def test_the_shipped_configs_are_possible(self):
    for name in criteo.VARIANTS:
      for module in (criteo, avazu, demo_config):
        systems.check(module.get_config(name).to_dict())
    for name in ('official', 'rows'):
      systems.check(criteo.get_config(name).to_dict())
    with self.assertRaisesRegex(ValueError, "variant: expected one of .*, got 'xdepfm'"):
      demo_config.get_config('xdepfm')

  @parameterized.parameters(
      ({'model': {**CONFIG, 'name': 'xdepfm'}}, "model.name: unknown name 'xdepfm'"),
      ({'model': {**CONFIG, 'cross': {}}}, "model: unknown key 'cross'"),
      ({'model': {**CONFIG, 'dim': 0}}, 'model.dim: expected an integer of at least 1, got 0'),
      ({'model': {**CONFIG, 'cin': {'layer_sizes': (3, 2)}}}, 'model.cin.layer_sizes: expected ev'),
      ({'model': {**CONFIG, 'cin': {'layer_sizes': (2,), 'formulation': 'x'}}},
       'model.cin.formulation: expected'),
      ({'model': {**CONFIG, 'dnn': {'features': (2,), 'dropout': 1.0}}}, 'model.dnn.dropout'),
      ({'model': {**CONFIG, 'embedding': {'init': {'name': 'normel'}}}}, "mean 'normal'"),
      ({'data': {'name': 'ctr_dem'}}, "data.name: unknown name 'ctr_dem'; did you mean 'ctr_demo'"),
      ({'data': {'name': 'criteo', 'min_count': 0}}, 'data.min_count: expected at least 1, got 0'),
      ({'data': {'name': 'criteo', 'integers': 'x'}}, "data.integers: expected Literal.*'x'"),
      ({'rows': 1}, 'config.rows: expected bool'),
      ({'penalty': {'l2': (('(', 1.0),)}}, 'penalty.l2: .* is no regex'),
      ({'penalty': {'l2': (('.*', -1.0),)}}, 'penalty.l2..*: expected at least 0'),
      ({'rows': True, 'penalty': {'l2': (('.*', 1e-4),)}},
       '^penalty.l2: expected nothing on a whole table with rows=True'),
      ({'rows': True, 'penalty': {'l1': (('linear/.*', 1e-4),)}},
       "^penalty.l1: expected nothing on a whole table .* got 'linear/.*'$"))
  def test_mistakes(self, change, message):
    config = {'model': CONFIG, 'data': {'name': 'ctr_demo'}, **change}
    with self.assertRaisesRegex(ConfigError, message):
      task.check(config)

  def test_other_penalties_go_with_rows(self):
    task.check({'model': CONFIG, 'data': {'name': 'ctr_demo'}, 'rows': True,
                'penalty': {'l2': (('(cin|dnn)/.*', 1e-4),), 'l2_rows': 1e-4}})


class RunTest(absltest.TestCase):

  def test_trains_and_scores_a_file(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder) / 'rows.txt'
    rng = np.random.default_rng(0)
    path.write_text(''.join(
        f'{i % 2} 1:{i % 2 + 1}:1 2:{rng.integers(3, 9)}:1\n' for i in range(200)))
    config = {'task': 'xdeepfm', 'seed': 0, 'data': {'name': 'libffm', 'file': str(path)},
              'model': {**CONFIG, 'cin': {'layer_sizes': (2,)}}, 'rows': True, 'batch_size': 16,
              'steps': 40, 'steps_per_call': 20, 'log_every': 20, 'eval_splits': ('test',),
              'optimizer': {'name': 'adam', 'learning_rate': .05}}
    problem = systems.make_task(config)
    fit(problem, config, workdir=f'{folder}/run', devices=jax.devices()[:1])
    rows = task.file_dataset(config, path)
    outputs = evaluation.predict_workdir(problem, config, f'{folder}/run', rows)
    self.assertEqual(outputs['probability'].shape, (200,))
    self.assertGreater(outputs['probability'][1::2].min(), outputs['probability'][::2].max())


class ReproduceTest(absltest.TestCase):

  def test_the_ablation_takes_the_third_field_away(self):
    for arm in reproduce.ARMS:
      params = jax.eval_shape(reproduce.make_task(arm, True).init, jax.random.key(0))['params']
      if 'cin' in reproduce.ARMS[arm]:
        self.assertEqual({'embedding', 'linear', 'cin'}, set(params))
        self.assertNotIn('W2', params['cin'])
    params = jax.eval_shape(reproduce.make_task('xDeepFM', False).init, jax.random.key(0))['params']
    self.assertIn('W2', params['cin'])
    self.assertIn('dnn', params)


if __name__ == '__main__':
  absltest.main()
