"""The debiased Task: devices, clients, losses, both evaluations, baselines, errors."""
import functools
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from configs.debiasedrec import news_log
from configs.debiasedrec import simulator as simulator_config
from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.data import builders, pipeline
from jaxlab.metrics import ranking
from jaxlab.systems.debiasedrec import data, model, reproduce, simulator, task
from jaxlab.train import TrainState, task_gradient, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
CONFIG = {'data': {'name': 'simulator'}, 'model': {'news': {'name': 'cnn'}}}
BASELINES = ('pal', 'ipw', 'feature')  # the others are parts of the whole


@functools.cache
def make_data():
  with tempfile.TemporaryDirectory() as folder:
    simulator.write(f'{folder}/log', 0, impressions=6, users=12, news=30, topics=3)
    return data.prepare(*data.read_folder(f'{folder}/log'), history_length=5, negatives=3,
                        title_length=5, min_count=1, positions=10, sizes=3)


@functools.cache
def make_task(variant='debiased', dropout=0.0):
  config = simulator_config.get_config(variant).to_dict()
  made = make_data()
  click = task.make_click_model(made.index.rows, bias={**config['model']['bias'], 'features': 4},
                                user={**config['model']['user'], 'queries': 3},
                                click={**config['model']['click'], 'hidden': 4})
  news = model.CNNNews(made.table.vocab_size, embed=4, features=4, queries=3, dropout=0.0)
  loss = config['loss']
  return task.from_models(news, click, made, loss_name=loss['name'], weighting=loss['weighting'],
                          bias_dropout=dropout)


@functools.cache
def initial(variant='debiased'):
  return jax.jit(make_task(variant).init)(jax.random.key(0))


def make_batch(rows=8):
  batch = pipeline.take(make_task().dataset('train'), np.arange(rows))
  batch['history'][0] = 0  # a user without clicks
  return {**batch, 'weight': np.arange(1, rows + 1, dtype=np.float32)}


def padded(batch, rows=8):
  return {name: np.concatenate([x, np.zeros((rows, *x.shape[1:]), x.dtype)])
          for name, x in batch.items()}


def one_step(batch, count, dropout=0.3):
  """(parameters, metrics) after a step of descent on `count` devices."""
  optimizer, zero, variables = optax.sgd(1.0), jnp.zeros((), jnp.int32), initial()
  params = variables['params']
  state = TrainState(zero, params, {}, optimizer.init(params), jax.random.key(1), zero, zero, {})
  devices = jax.devices()[:count]
  program = jax.pmap(
      functools.partial(train_step, task=make_task('debiased', dropout), optimizer=optimizer,
                        trainable=jax.tree.map(lambda _: True, params)),
      axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None), devices=devices)
  state, metrics = program(state, variables['constants'], parallel.split(batch, devices))
  parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


class StepTest(absltest.TestCase):

  def test_devices_and_padding_change_nothing(self):
    expected = one_step(make_batch(), 1)
    chex.assert_trees_all_close(one_step(padded(make_batch()), 4), expected, atol=1e-5, rtol=1e-4)
    moved = jax.tree.map(np.subtract, expected[0], parallel.to_host(initial()['params']))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertTrue(np.isfinite(leaf).all(), name)
      if name.endswith(('pooling/score/bias', 'click/score/out/bias')):
        np.testing.assert_allclose(leaf, 0, atol=1e-5)  # a softmax does not see these
      else:
        self.assertTrue(np.any(leaf), name)

  def test_clients_side_by_side_are_clients_one_by_one(self):
    gradient = task_gradient(make_task(), initial()['constants'])
    batch = {name: x.reshape(2, 4, *x.shape[1:]) for name, x in make_batch().items()}
    run = lambda batch: gradient(initial()['params'], batch, jax.random.key(2))[0]
    together = jax.jit(jax.vmap(run))(batch)
    single = jax.jit(run)
    for i in range(2):
      chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together),
                                  single({name: x[i] for name, x in batch.items()}),
                                  atol=1e-5, rtol=1e-4)


class LossTest(parameterized.TestCase):

  def test_act_draws_negatives_with_their_slots(self):
    batch = make_batch()
    drawn = jax.jit(make_task().act)({}, batch, jax.random.key(0))
    for row in range(8):
      beside = dict(zip(batch['pool'][row], map(tuple, batch['pool_slots'][row])))
      self.assertEqual(drawn['candidates'][row, 0], batch['click'][row])
      np.testing.assert_array_equal(drawn['slots'][row, 0], batch['click_slot'][row])
      for news, slot in zip(np.asarray(drawn['candidates'][row, 1:]),
                            np.asarray(drawn['slots'][row, 1:])):
        self.assertEqual(tuple(slot), beside[news])

  def test_absent_negatives_take_no_part(self):
    preference, bias = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    real = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    for name, product in (('softmax', False), ('bce', False), ('bce', True)):
      loss = functools.partial(task.joint_loss, name=name, product=product)
      values = loss(preference, bias, real)
      cut = loss(preference[1:2, :2], bias[1:2, :2], real[1:2, :2])
      np.testing.assert_allclose(values[1], cut[0], rtol=1e-5)
    np.testing.assert_allclose(task.joint_loss(preference, bias, real, name='softmax',
                                               product=False)[2], 0, atol=1e-6)

  def test_chances_are_multiplied_under_pal(self):
    preference, bias = np.random.default_rng(1).normal(size=(2, 3, 4))
    chance = 1 / (1 + np.exp(-preference)) / (1 + np.exp(-bias))
    expected = -(np.log(chance[:, 0]) + np.log(1 - chance[:, 1:]).sum(1)) / 4
    values = task.joint_loss(preference, bias, np.ones((3, 4), bool), name='bce', product=True)
    np.testing.assert_allclose(values, expected, rtol=1e-5)

  def test_a_click_weighs_by_how_seldom_its_slot_is_seen(self):
    variables, batch = initial('ipw'), make_batch()
    acted = make_task('ipw').act(variables, batch, jax.random.key(0))
    out = jax.jit(make_task('ipw').loss)(variables, acted, jax.random.key(0))
    table = make_data().propensity
    expected = batch['weight'] / table[tuple(batch['click_slot'].T)]
    np.testing.assert_allclose(out.weights, expected, rtol=1e-5)

  def test_dropout_of_the_bias_score_trains_on_the_preference(self):
    variables, batch = initial(), make_batch()
    acted = make_task().act(variables, batch, jax.random.key(0))
    self.assertTrue(acted['keep_bias'].all())
    loss = jax.jit(make_task().loss)
    blind = loss(variables, {**acted, 'keep_bias': np.zeros(8, bool)}, jax.random.key(0)).values
    other = {**acted, 'keep_bias': np.zeros(8, bool), 'slots': acted['slots'] * 0}
    np.testing.assert_array_equal(blind, loss(variables, other, jax.random.key(0)).values)
    self.assertGreater(np.abs(blind - loss(variables, acted, jax.random.key(0)).values).max(), 1e-6)


class EvaluateTest(parameterized.TestCase):

  def test_both_evaluations(self):
    rows = pipeline.columns(make_task().dataset('test'))
    outputs = jax.tree.map(np.asarray, jax.jit(make_task().predict)(initial(), rows,
                                                                    jax.random.key(0)))
    metrics = make_task().evaluate([(outputs, rows)])
    self.assertEqual(set(metrics), {*ranking.METRICS, *(f'slot/{m}' for m in ranking.METRICS),
                                    'position_correlation'})
    blind = {**rows, 'slots': 0 * rows['slots']}
    again = jax.jit(make_task().predict)(initial(), blind, jax.random.key(0))
    np.testing.assert_array_equal(again['score'], outputs['score'])  # the slots are not served
    self.assertGreater(np.abs(again['slot_score'] - outputs['slot_score']).max(), 1e-4)
    planted = {**outputs, 'score': -rows['slots'][..., 0].astype(np.float32)}
    self.assertAlmostEqual(make_task().evaluate([(planted, rows)])['position_correlation'], -1,
                           places=5)

  def test_impressions_of_one_class_are_left_out(self):
    rows = pipeline.columns(make_task().dataset('test'))
    score = np.random.default_rng(0).normal(size=rows['labels'].shape)
    both = ranking.two_class(rows['labels'], rows['labels'] >= 0)
    self.assertFalse(both.all())
    outputs = {'score': score, 'slot_score': score}
    cut = jax.tree.map(lambda x: x[both], (outputs, rows))
    metrics, expected = (make_task().evaluate([pair]) for pair in ((outputs, rows), cut))
    self.assertAlmostEqual(metrics['auc'], expected['auc'])

  def test_scores_of_a_file(self):
    time = '3/1/2021 12:00:00 AM'
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'behaviors.tsv')
      path.write_text(f'1\tU9\t{time}\tN3@2:1\tN1 N2@4:2 N999\n2\tU8\t{time}\t\tN5 N6\n')
      numbers = {f'N{i}': i for i in range(1, 31)}
      with mock.patch.object(data, 'load', new=lambda *, name: (make_data(), numbers)):
        rows = task.file_dataset({'data': {'name': 'simulator'}}, path)
    columns = pipeline.columns(rows)
    np.testing.assert_array_equal(columns['candidates'], [[1, 2, 0], [5, 6, 0]])
    np.testing.assert_array_equal(columns['count'], [3, 2])
    out = jax.jit(make_task().predict)(initial(), columns, jax.random.key(0))
    self.assertTrue(np.isfinite(out['score']).all())
    np.testing.assert_array_equal(out['score'][1], 0)  # a user without clicks


class ConfigTest(parameterized.TestCase):

  def test_the_shipped_configs_are_possible(self):
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      for variant in simulator_config.VARIANTS:
        for module in (simulator_config, news_log):
          systems.check(module.get_config(variant).to_dict())
      systems.check(news_log.get_config('mind').to_dict())
    with self.assertRaisesRegex(ValueError, "variant: expected one of .*, got 'palm'"):
      simulator_config.get_config('palm')

  @parameterized.parameters(*BASELINES)
  def test_baselines_run_from_their_configs(self, variant):
    variables = initial(variant)
    gradient = task_gradient(make_task(variant), variables['constants'])
    out = jax.jit(gradient)(variables['params'], make_batch(), jax.random.key(0))[0]
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out)))
    self.assertTrue(any(np.any(leaf) for leaf in jax.tree.leaves(out)))

  def test_a_slot_that_is_served_is_in_the_tables(self):
    task.make_click_model((11, 4), click={'serve_slot': (10, 3)})
    for slot in ((11, 3), (10, 4), (-1, 0)):
      with self.assertRaisesRegex(ConfigError, 'model.click.serve_slot: expected 0 to 10, 3, got'):
        task.make_click_model((11, 4), click={'serve_slot': slot})

  @parameterized.parameters(
      ({'model': {'news': {'name': 'cn'}}}, "model.news.name: unknown name 'cn'"),
      ({'model': {'news': {'name': 'naml'}}}, 'data.abstract_length: expected more than 0'),
      ({'model': {**CONFIG['model'], 'bais': {}}}, "model: unknown key 'bais'; .* 'bias'"),
      ({'model': {**CONFIG['model'], 'bias': {'interaction': 'x'}}}, 'model.bias.interaction: ex'),
      ({'model': {**CONFIG['model'], 'click': {'head': 'feature'}}},
       'model.click.serve_slot: expected a slot'),
      ({'model': {**CONFIG['model'], 'click': {'serve_slot': (1,)}}},
       'model.click.serve_slot: expected an index for each of position, size'),
      ({'model': {**CONFIG['model'], 'click': {'head': 'pal'}}}, "loss.name: expected 'bce' under"),
      ({'loss': {'name': 'bce', 'weighting': 'ipw'}}, "loss.weighting: expected 'none' under"),
      ({'loss': {'bias_dropout': 1.0}}, r'loss.bias_dropout: expected in \[0, 1\), got 1.0'),
      ({'data': {'name': 'simulater'}}, 'data.name: expected'),
      ({'data': {'name': 'simulator', 'kinds': ('size', 'size')}}, 'data.kinds: expected one or'))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      task.check({**CONFIG, **change})

  def test_propensities_need_a_randomised_log(self):
    make = task.check({**CONFIG, 'loss': {'weighting': 'ipw'}})
    with self.assertRaisesRegex(ConfigError, "loss.weighting: expected 'none' without a split 'ra"):
      make(make_data()._replace(propensity=None))


class ReproduceTest(absltest.TestCase):

  def test_the_ablation_hides_every_slot(self):
    with mock.patch.object(simulator, 'write', functools.partial(
        simulator.write, users=5, news=14)), mock.patch.object(reproduce, 'IMPRESSIONS', 4):
      for ablate in (False, True):
        made = reproduce.make_data(0, {}, ablate)
        for columns in made.splits.values():
          for name, column in columns.items():
            if 'slot' in name:
              self.assertEqual(bool(column.any()), not ablate, name)


if __name__ == '__main__':
  absltest.main()
