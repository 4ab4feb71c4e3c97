"""The Task of KRED: arms, devices and padding, metrics, config errors, a run on the demo."""
import functools
import importlib
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from sklearn import metrics as sklearn_metrics

from configs.kred import demo as demo_config
from configs.kred import mind_small
from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.systems.kred import data as data_lib
from jaxlab.systems.kred import reproduce, task
from jaxlab.train import TrainState, evaluation, fit, train_step
from tests import conftest
from tests.systems.kred import toy_kred

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
PARTS = {'user2item': {'news', 'user', 'user2item'}, 'item2item': {'news'},
         'category': {'news', 'category'}, 'popularity': {'news', 'popularity'},
         'local': {'news', 'local'}}


@functools.cache
def make_task(target='user2item', official=False):
  return task.from_model(toy_kred.make_model(), toy_kred.make_data(), target=target,
                         official=official)


@functools.cache
def initial():
  return jax.jit(make_task().init)(jax.random.key(0))


def make_batch(name):
  rows = pipeline.columns(make_task().arms[name].dataset())
  chosen = {key: column[np.arange(8) % len(column)] for key, column in rows.items()}
  weights = np.array([1, 2, 3, 1, 1, 2, 1, 1], np.float32)
  return {**chosen, 'weight': weights}


def one_step(problem, batch, count=1):
  """Parameters after a step of SGD on `count` devices."""
  variables = initial()
  optimizer, zero = optax.sgd(1.0), jnp.zeros((), jnp.int32)
  params = variables['params']
  state = TrainState(zero, params, {}, optimizer.init(params), jax.random.key(1), zero, zero, {})
  devices = jax.devices()[:count]
  program = jax.pmap(
      functools.partial(train_step, task=problem, optimizer=optimizer,
                        trainable=jax.tree.map(lambda _: True, params)),
      axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None), devices=devices)
  state, metrics = program(state, variables['constants'], parallel.split(batch, devices))
  parallel.assert_replicated((state, metrics))
  return parallel.to_host(state.params)


class ArmsTest(parameterized.TestCase):

  @parameterized.parameters(*PARTS)
  def test_each_trains_its_own_head_and_the_encoder(self, name):
    arm, variables = make_task().arms[name], initial()

    @jax.jit
    def gradient(params, batch):
      batch = batch if arm.act is None else arm.act(variables, batch, jax.random.key(0))
      def total(params):
        out = arm.loss({**variables, 'params': params}, batch, jax.random.key(1))
        return (out.values * out.weights).sum()
      return jax.grad(total)(params)

    found = gradient(variables['params'], make_batch(name))
    moved = lambda tree: any(np.any(leaf) for leaf in jax.tree.leaves(tree))
    self.assertEqual(PARTS[name], {part for part, tree in found.items() if moved(tree)})
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
      self.assertTrue(np.isfinite(leaf).all(), jax.tree_util.keystr(path))

  def test_devices_and_padding_change_nothing(self):
    for name, padding in (('user2item', {}), ('category', {'category': 1})):
      problem, batch = make_task(name), make_batch(name)
      expected = one_step(problem, batch)
      padded = {key: np.concatenate([x, np.full_like(x, padding.get(key, 1))])
                for key, x in batch.items()}
      padded['weight'][8:] = 0
      chex.assert_trees_all_close(one_step(problem, padded, 2), expected, atol=1e-5, rtol=1e-4)

  def test_negatives_are_drawn_afresh(self):
    batch = make_batch('user2item')
    act = jax.jit(lambda key: make_task().act(initial(), batch, key)['candidates'])
    first, second = (np.asarray(act(jax.random.key(i))) for i in (0, 1))
    np.testing.assert_array_equal(first[:, 0], batch['click'])
    self.assertEqual(first.shape, (8, 3))
    self.assertTrue((first != second).any())
    for row, pool in zip(first, batch['pool']):
      self.assertContainsSubset(row[1:], pool)
    pairs = make_batch('item2item')
    drawn = make_task().arms['item2item'].act(initial(), pairs, jax.random.key(0))['candidates']
    np.testing.assert_array_equal(drawn[:, 0], pairs['second'])
    self.assertTrue((drawn[:, 1:] > 0).all())

  def test_official_losses_are_others(self):
    for name in ('user2item', 'category'):
      batch = make_batch(name)
      values = []
      for official in (False, True):
        arm = make_task(official=official).arms[name]
        acted = batch if arm.act is None else arm.act(initial(), batch, jax.random.key(0))
        values.append(np.asarray(arm.loss(initial(), acted, jax.random.key(0)).values))
      self.assertGreater(np.abs(values[0] - values[1]).min(), 1e-4)


class EvaluateTest(absltest.TestCase):

  def test_impressions(self):
    rng = np.random.default_rng(0)
    labels = np.array([[0, 1, 0, 1], [1, 0, -1, -1], [0, 0, 0, -1], [1, 1, -1, -1]], np.int8)
    score = rng.random((4, 4)).astype(np.float32)
    out = task.evaluate([({'score': score[:2]}, {'labels': labels[:2]}),
                         ({'score': score[2:]}, {'labels': labels[2:]})])
    real = labels >= 0
    self.assertAlmostEqual(out['global_auc'],
                           sklearn_metrics.roc_auc_score(labels[real], score[real]), places=6)
    # The last two impressions have one class: they count in the global AUC alone.
    rows = [(labels[i][real[i]], score[i][real[i]]) for i in (0, 1)]
    self.assertAlmostEqual(out['auc'], np.mean([sklearn_metrics.roc_auc_score(*r) for r in rows]),
                           places=6)
    self.assertAlmostEqual(out['ndcg@10'], np.mean(
        [sklearn_metrics.ndcg_score([a], [b], k=10) for a, b in rows]), places=6)
    with self.assertRaisesRegex(ValueError, 'expected impressions with clicks and items that were'):
      task.evaluate([({'score': score[2:]}, {'labels': labels[2:]})])

  def test_pairs_and_classes(self):
    rng = np.random.default_rng(1)
    labels = np.tile([1, 0, 0], (5, 1))
    score = rng.random((5, 3))
    out = task.evaluate([({'score': score}, {'labels': labels, 'first': np.ones(5)})])
    self.assertAlmostEqual(out['auc'], sklearn_metrics.roc_auc_score(labels.ravel(), score.ravel()))
    logits, classes = rng.normal(size=(30, 4)), rng.integers(0, 4, 30)
    out = task.evaluate([({'category': logits}, {'news': np.ones(30), 'category': classes})])
    self.assertAlmostEqual(out['accuracy'], (logits.argmax(1) == classes).mean())
    self.assertAlmostEqual(out['macro_f1'], sklearn_metrics.f1_score(
        classes, logits.argmax(1), average='macro'))
    local = np.array([-3.0, -1.0, 2.0, -5.0])  # probabilities .05, .27, .88, .01
    out = task.evaluate([({'local': local}, {'news': np.ones(4), 'local': np.array([0, 1, 1, 1])})])
    self.assertEqual((out['auc'], out['accuracy']), (2 / 3, 0.75))
    self.assertAlmostEqual(out['f1'], 0.8)

  def test_every_split_is_predicted(self):
    problem = make_task()
    evaluator = evaluation.Evaluator(problem, batch_size=4, devices=jax.devices()[:1])
    variables = initial()
    state = parallel.place(evaluation.Snapshot(variables['params'], {}, jax.random.key(0), 0),
                           devices=jax.devices()[:1])
    constants = parallel.place(variables['constants'], devices=jax.devices()[:1])
    for split, names in (('dev', {'global_auc', 'auc', 'mrr', 'ndcg@5', 'ndcg@10'}),
                         ('dev_item2item', {'auc', 'mrr', 'ndcg@5', 'ndcg@10'}),
                         ('dev_category', {'accuracy', 'macro_f1'}),
                         ('dev_local', {'auc', 'accuracy', 'f1'})):
      out = evaluator(state, constants, split)
      self.assertEqual(set(out), {f'{split}/{name}' for name in names})
    self.assertLen(make_task('category').dataset('dev'), 12)
    with self.assertRaisesRegex(ConfigError, "split: unknown name 'dev_catgory'; did you mean"):
      problem.dataset('dev_catgory')


class ConfigTest(parameterized.TestCase):

  def test_the_shipped_configs_are_possible(self):
    for variant in ('kred', 'none', 'transe', 'official'):
      systems.check(demo_config.get_config(variant).to_dict())
    for variant in mind_small.VARIANTS:
      systems.check(mind_small.get_config(variant).to_dict())
    for module in (demo_config, mind_small):
      with self.assertRaisesRegex(ValueError, "variant: expected .*, got 'kerd'"):
        module.get_config('kerd')

  @parameterized.parameters(
      ({'target': 'categroy'}, "config.target: unknown name .*did you mean 'category'"),
      ({'model': {'hiden': 3}}, "model: unknown key 'hiden'; did you mean 'hidden'"),
      ({'model': {'features': 0}}, 'model.features: expected at least 1, got 0'),
      ({'predict': {'news': 0}}, 'predict.news: expected at least 1, got 0'),
      ({'data': None}, 'config.data: expected Mapping'))
  def test_mistakes(self, change, message):
    config = {**demo_config.get_config().to_dict(), **change}
    with self.assertRaisesRegex(ConfigError, message):
      systems.check(config)

  def test_what_the_data_cannot_serve(self):
    data = toy_kred.make_data()
    fewer = data._replace(tasks={'user2item': data.tasks['user2item']})
    with self.assertRaisesRegex(ConfigError, 'config.target: expected a task that the data serve'):
      task.from_model(toy_kred.make_model(), fewer, target='local')
    self.assertEqual(set(task.from_model(toy_kred.make_model(), fewer).arms), {'user2item'})
    with self.assertRaisesRegex(ConfigError, 'model.types: expected more than 3 rows of the table'):
      task.from_model(toy_kred.make_model(types=3), data)

  def test_official_compat_is_the_official_code(self):
    net = task.make_model(categories=5, official_compat=True)
    self.assertEqual((net.variant.neighbours, net.share_news_encoder, net.positions, net.types),
                     ('sum', False, 1000, 100))
    self.assertTrue(task.make_model(categories=5).share_news_encoder)


class RunTest(absltest.TestCase):

  def test_trains_the_demo_in_two_phases_and_scores_a_file(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    config = demo_config.get_config().to_dict()
    config.update(phases=({'steps': 2, 'arms': demo_config.ARMS}, {'steps': 2}), steps_per_call=2,
                  batch_size=8, log_every=2, eval_every=0, eval_splits=('dev_local',))
    config['model'] = {'features': 4, 'hidden': 4}
    problem = systems.make_task(config)
    self.assertEqual(set(problem.arms), set(data_lib.TASKS))
    state = fit(problem, config, workdir=folder / 'run', devices=jax.devices()[:1])
    params = jax.device_get(state.params)
    path = folder / 'impressions.tsv'
    path.write_text('5\tU1\tnull\tN1 N2\tN3 N4 N99999\n6\tU2\tnull\t\tN5\n')
    module = importlib.import_module('jaxlab.systems.kred')
    module.predict_input(config, params, path, folder / 'scores.npz')
    with np.load(folder / 'scores.npz') as scores:
      np.testing.assert_array_equal(scores['count'], [3, 1])
      np.testing.assert_array_equal(scores['impression'], [5, 6])
      self.assertTrue(((scores['score'] > 0) & (scores['score'] < 1)).all())
    module.predict_input(config, params, path, folder / 'page.html')
    page = (folder / 'page.html').read_text()
    self.assertIn('N3', page)
    with self.assertRaisesRegex(ConfigError, '--input: expected a file of impressions'):
      module.file_dataset(config, folder / 'nothing.tsv')


class ReproduceTest(absltest.TestCase):

  def test_the_ablation_empties_the_slots(self):
    world = reproduce.demo.make(0, reproduce.WIDTH)
    vectors = reproduce.demo.documents(world, reproduce.WEAK, 0)
    for entities in (True, False):
      news = reproduce.make_tables(world, vectors, entities)['news']
      for name in ('entities', 'frequency', 'position', 'type'):
        self.assertEqual(bool(news[name].any()), entities)

  def test_the_schedule(self):
    weights = reproduce.schedule(reproduce.ARMS['few clicks, multi-task'], 200)
    np.testing.assert_array_equal(weights[0], 1)
    np.testing.assert_array_equal(weights[reproduce.JOINT], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(weights[reproduce.MULTI:], 0)


if __name__ == '__main__':
  absltest.main()
