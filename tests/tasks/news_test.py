"""The news Task: sampler, loss, invariances, evaluation, clients by user, errors."""
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel
from jaxlab.config import ConfigError
from jaxlab.data import builders, pipeline
from jaxlab.data import news as news_data
from jaxlab.metrics import ranking
from jaxlab.models import news as models
from jaxlab.tasks import news as news_task
from jaxlab.train import TrainState, evaluation, task_gradient, train_step
from tests import conftest, toy_news

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
SGD = optax.sgd(1.0)
DATA = {'name': 'mind_demo', 'history_length': 10, 'pad_side': 'back', 'negatives': 4}
MODEL = {'news': {'name': 'nrms', 'embed': 8, 'heads': 2, 'head_dim': 2, 'queries': 4},
         'user': {'name': 'nrms', 'heads': 2, 'head_dim': 2, 'queries': 4}}


@functools.cache
def make_task():
  return toy_news.make_task()


@functools.cache
def start():
  variables, zero = jax.jit(make_task().init)(jax.random.key(0)), jnp.zeros((), jnp.int32)
  state = TrainState(zero, variables['params'], {}, SGD.init(variables['params']),
                     jax.random.key(1), zero, zero, {})
  return state, variables['constants']


def weighted(rows=8):
  batch = pipeline.take(make_task().dataset('train'), np.arange(rows))
  return {**batch, 'weight': np.arange(rows, dtype=np.float32) / 8}


def padded(batch, rows):
  return {name: np.concatenate([x, np.zeros((rows, *x.shape[1:]), x.dtype)])
          for name, x in batch.items()}


class SamplerTest(parameterized.TestCase):

  def draw(self, sizes, count, seed=0, epoch=0, width=9):
    keys = jax.vmap(lambda row: jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), epoch), row))(jnp.arange(len(sizes)))
    pool = np.where(np.arange(width) < np.array(sizes)[:, None], 11 + np.arange(width), 0)
    return np.asarray(news_task.sample_negatives(keys, pool, np.array(sizes), count))

  def test_without_replacement_and_never_the_click(self):
    drawn = self.draw([9] * 200, 4)
    self.assertTrue(all(len(set(row)) == 4 and min(row) >= 11 for row in drawn.tolist()))
    counts = np.bincount(drawn.ravel(), minlength=20)[11:]
    self.assertGreater(counts.min(), 50)  # of 200 * 4 / 9 = 89: all are drawn alike
    self.assertLess(counts.max(), 130)

  def test_fewer_than_wanted_come_in_order_with_padding(self):
    np.testing.assert_array_equal(self.draw([0, 2, 3], 4),
                                  [[0] * 4, [11, 12, 0, 0], [11, 12, 13, 0]])

  def test_exactly_as_many_as_wanted_come_in_random_order(self):
    drawn = self.draw([4] * 50, 4)
    self.assertTrue(all(sorted(row) == [11, 12, 13, 14] for row in drawn.tolist()))
    self.assertGreater(len({tuple(row) for row in drawn.tolist()}), 10)

  def test_a_function_of_seed_epoch_and_row(self):
    first = self.draw([9] * 20, 4)
    np.testing.assert_array_equal(first, self.draw([9] * 20, 4))
    np.testing.assert_array_equal(first[:7], self.draw([9] * 7, 4))
    for change in ({'seed': 1}, {'epoch': 1}):
      self.assertFalse(np.array_equal(first, self.draw([9] * 20, 4, **change)))
    self.assertGreater(len({tuple(row) for row in first.tolist()}), 10)

  def test_act_draws_by_row_wherever_it_stands(self):
    batch, act = weighted(), make_task().act
    whole = act({}, batch, jax.random.key(3))['candidates']
    order = np.array([3, 1, 7])
    part = act({}, {name: x[order] for name, x in batch.items()}, jax.random.key(3))['candidates']
    np.testing.assert_array_equal(part, whole[order])
    np.testing.assert_array_equal(whole[:, 0], batch['click'])
    self.assertFalse((whole[:, 1:] == whole[:, :1]).any())


class LossTest(parameterized.TestCase):

  def step(self, batch, count, accumulate=1):
    state, constants = start()
    step = functools.partial(train_step, task=make_task(), optimizer=SGD, accumulate=accumulate,
                             trainable=jax.tree.map(lambda _: True, state.params))
    devices = jax.devices()[:count]
    program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0),
                       out_axes=(None, None), devices=devices)
    state, metrics = program(state, constants, parallel.split(batch, devices))
    parallel.assert_replicated((state, metrics))
    return parallel.to_host((state.params, metrics))

  @parameterized.parameters((2, 0, 1), (4, 8, 1), (1, 0, 2))
  def test_devices_padding_and_microbatches_change_nothing(self, count, padding, accumulate):
    chex.assert_trees_all_close(self.step(weighted(), 1),
                                self.step(padded(weighted(), padding), count, accumulate),
                                atol=1e-6, rtol=1e-5)

  def test_every_parameter_is_trained(self):
    moved = jax.tree.map(np.subtract, self.step(weighted(), 1)[0], parallel.to_host(
        start()[0].params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertTrue(np.isfinite(leaf).all(), name)
      if not name.endswith(('key/bias', 'score/bias')):  # softmax does not see these
        self.assertTrue(np.any(leaf), name)

  def test_encoding_each_occurrence_or_all_news_is_the_same(self):
    task, (state, constants) = make_task(), start()
    variables = {'params': state.params, 'constants': constants}
    batch = task.act(variables, weighted(), jax.random.key(2))  # 8 x 8 occurrences: all 25 news
    few = {name: x[:2] for name, x in batch.items()}  # 2 x 8: one by one
    loss = jax.jit(task.loss)
    np.testing.assert_allclose(loss(variables, few, jax.random.key(0)).values,
                               loss(variables, batch, jax.random.key(0)).values[:2], rtol=1e-5)

  def test_chunks_change_neither_vectors_nor_gradients(self):
    task, (state, constants) = make_task(), start()

    def total(params, chunk):
      return (news_task.encode_all(task.encode, params, constants['news'], chunk=chunk)**3).sum()

    gradient = jax.jit(jax.value_and_grad(total), static_argnums=1)
    chex.assert_trees_all_close(gradient(state.params['news'], 7), gradient(
        state.params['news'], 1000), rtol=1e-4, atol=1e-6)


class EvaluateTest(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  def test_equals_numpy(self, count):
    task, (state, constants) = make_task(), start()
    devices = jax.devices()[:count]
    place = functools.partial(parallel.place, devices=devices)
    evaluator = evaluation.Evaluator(task, batch_size=4, devices=devices)
    out = evaluator(place(state), place(constants), 'dev')
    rows = pipeline.columns(task.dataset('dev'))
    variables = {'params': state.params, 'constants': constants}
    vectors = task.encode(state.params['news'], constants['news'])
    users = models.NRMSUser(2, 2, 3).apply({'params': state.params['user']},
                                           vectors[rows['history']], rows['history'] > 0)
    scores = np.asarray(jnp.einsum('bd,bcd->bc', users, vectors[rows['candidates']]))
    predicted = jax.jit(task.predict)(variables, rows, None)
    np.testing.assert_allclose(predicted['score'], scores, rtol=1e-4, atol=1e-5)
    labels, ordered = ranking.clicks_first(rows['labels'], scores)
    expected = ranking.mean_metrics([(labels, ordered, labels >= 0)])
    self.assertEqual(set(out), {f'dev/{name}' for name in ranking.METRICS})
    for name, value in expected.items():
      self.assertAlmostEqual(out[f'dev/{name}'], value, places=5)

  def test_unknown_split(self):
    with self.assertRaisesRegex(ConfigError, "split: unknown name 'dve'; did you mean 'dev'"):
      make_task().dataset('dve')


class FederatedTest(absltest.TestCase):

  def test_all_users_and_plain_descent_are_one_central_step(self):
    task, constants = make_task(), start()[1]
    rows = pipeline.columns(task.dataset('train'))
    users = len(np.unique(rows['user']))
    out = federated.simulate(task, {'seed': 0, 'federated': {
        'num_clients': users, 'cohort_size': users, 'rounds': 1, 'eval_every': 0, 'batch_size': 4,
        'partition': {'name': 'by_user'}, 'partition_by': 'user', 'eval_splits': ('dev',),
        'algorithm': {'name': 'fedsgd', 'server_learning_rate': 1.0}}}, devices=jax.devices()[:2])
    parallel.assert_replicated(out.params)
    begin = jax.jit(task.init)(jax.random.split(jax.random.key(0))[0])['params']
    batch = {**rows, 'weight': np.ones(len(rows['row']), np.float32)}
    gradient = jax.jit(task_gradient(task, constants))(begin, batch, jax.random.key(0))[0]
    # All pools of the toy hold exactly the negatives that are wanted, so that no draw matters.
    chex.assert_trees_all_close(parallel.to_host(out.params), jax.tree.map(
        jnp.subtract, begin, gradient), rtol=1e-4, atol=1e-5)


class LoadTest(absltest.TestCase):

  def test_the_task_of_a_config(self):
    task = news_task.make_task({'data': DATA, 'model': MODEL})
    columns = pipeline.columns(task.dataset('train'))
    self.assertEqual(columns['history'].shape[1], 10)
    self.assertLen(pipeline.column(task.dataset('dev'), 'user', 'data'), 800)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    self.assertEqual(variables['constants']['news']['title'].shape, (401, 30))
    self.assertEqual(set(variables['params']), {'news', 'user'})

  def test_word_vectors_start_the_table(self):
    data = toy_news.make_data()
    vectors = np.arange(4.0 * data.table.vocab_size, dtype=np.float32).reshape(-1, 4)
    given = data._replace(table=data.table._replace(vectors=vectors))
    task = news_task.from_models(*toy_news.make_models(data.table), given)
    start = task.init(jax.random.key(0))['params']['news']['words']['embedding']
    np.testing.assert_array_equal(start, vectors)
    wrong = data._replace(table=data.table._replace(vectors=vectors[:, :3]))
    with self.assertRaisesRegex(ConfigError, 'model.news.embed: expected 3, as the word vectors'):
      news_task.from_models(*toy_news.make_models(data.table), wrong).init(jax.random.key(0))

  def test_every_data_set_has_a_builder(self):
    for builder, _ in news_task.DATASETS.values():
      self.assertIn(builder, builders.BUILDERS)
      self.assertIn(f'{builder}_news', builders.BUILDERS)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'data': None}, 'config.data: missing'),
      ({'data': {**DATA, 'name': 'mind_dmo'}}, "data.name: unknown .*; did you mean 'mind_demo'"),
      ({'data': {**DATA, 'pad_side': 'left'}}, "data.pad_side: expected .*'front', 'back'"),
      ({'data': {**DATA, 'negatves': 2}}, "data: unknown key .*; did you mean 'negatives'"),
      ({'model': {'news': MODEL['news']}}, 'config.user: missing'),
      ({'model': {**MODEL, 'usr': {}}}, "model: unknown key 'usr'; did you mean 'user'"),
      ({'model': {**MODEL, 'news': {'name': 'nrsm'}}}, "model.news.name: .*; did you mean 'nrms'"),
      ({'model': {**MODEL, 'news': {'name': 'nrms', 'hads': 2}}}, "model.news: .* mean 'heads'"),
      ({'model': {**MODEL, 'user': {'name': 'naml', 'queries': 2.5}}},
       'model.user.queries: expected int, got 2.5'),
      ({'model': {**MODEL, 'news': {'name': 'naml'}}}, 'data.abstract_length: expected more than'),
  )
  def test_mistakes_are_found_before_any_data(self, change, message):
    config = {k: v for k, v in {'data': DATA, 'model': MODEL, **change}.items() if v is not None}
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      with self.assertRaisesRegex(ConfigError, message):
        news_task.make_task(config)

  def test_zero_negatives(self):
    with self.assertRaisesRegex(ConfigError, 'data.negatives: expected at least 1, got 0'):
      news_task.prepare({}, {}, history_length=1, pad_side='back', negatives=0)

  def test_naml_reads_abstract_and_categories(self):
    make_models = news_task.check({'data': {**DATA, 'abstract_length': 5}, 'model': {
        'news': {'name': 'naml', 'features': 4}, 'user': {'name': 'naml', 'queries': 2}}})
    columns = {name: ['a b', 'b a a'] for name in ('title', 'abstract', 'category', 'subcategory')}
    news, user = make_models(news_data.make_table(columns, abstract_length=5, min_count=1))
    self.assertEqual((news.vocab_size, news.num_categories, user.queries), (3, 3, 2))


if __name__ == '__main__':
  absltest.main()
