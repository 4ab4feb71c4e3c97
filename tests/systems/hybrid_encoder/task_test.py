"""The Hybrid Encoder Task: devices, false negatives, two phases, serving from caches, errors."""
import dataclasses
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
from safetensors.flax import save_file

from configs.hybrid_encoder import ad_log
from configs.hybrid_encoder import demo as demo_config
from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.data import builders, pipeline, text
from jaxlab.models import bert_weights
from jaxlab.models.bert import Bert
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.hybrid_encoder import cost, data, model, rankers, serving, task
from jaxlab.train import TrainState, fit, task_gradient, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
PAGES, ADS, USERS, LENGTH, TOKENS, WIDTH, CODES = 20, 12, 9, 4, 3, 4, 3
LOSS = {'hard': 2, 'random': 2, 'top_k': 8, 'log_q': True, 'retrieval_weight': 0.5,
        'orthogonality': 0.1}
CONFIG = {'data': {'name': 'demo'}, 'model': {'text': {'name': 'bert-tiny'}}}


def with_ranker(**settings):
  return {'model': {**CONFIG['model'], 'ranker': settings}}


def features(rng, rows):
  ids = rng.integers(1, 15, (rows + 1, TOKENS)).astype(np.int32)
  ids[0] = 0
  mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (rows + 1, 1))
  mask[0] = False
  return {'ids': ids * mask, 'mask': mask.astype(np.int32)}


@functools.cache
def make_data():
  rng = np.random.default_rng(0)
  users = np.sort(rng.integers(0, USERS, 24)).astype(np.int32)
  history = [rng.integers(1, PAGES + 1, rng.integers(0, LENGTH + 1)) for _ in range(USERS)]
  rows = [{'user': user, 'history': history[user], 'ad': rng.integers(1, ADS + 1),
           'shown': rng.integers(1, ADS + 1, 3)} for user in users]
  split = data.collect(rows)
  return task.Data(features(rng, PAGES), features(rng, ADS), {
      'train': data.train_columns(split, LENGTH), 'test': data.test_columns(split, LENGTH)},
                   {'ads': [f'A{i}' for i in range(ADS)], 'pages': [f'P{i}' for i in range(PAGES)]})


def make_parts(pool='attention'):
  encoder = Bert(BertConfig(15, WIDTH, 1, 2, 8, max_position_embeddings=TOKENS, type_vocab_size=0,
                            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                            initializer_range=0.5, add_pooler=False))
  net = model.HybridEncoder(model.Siamese(pool, queries=3), model.HybridRanker(CODES))
  return net, task.text_encoders(encoder)


@functools.cache
def make_task(**loss):
  return task.from_model(*make_parts(), make_data(), task.LossConfig(**{**LOSS, **loss}))


@functools.cache
def initial():
  return jax.jit(make_task().init)(jax.random.key(0))


def make_batch(stage, rows=8):
  batch = pipeline.take(make_task().dataset('train'), np.arange(rows) * 3)
  if stage == 2:
    batch['hard'] = np.random.default_rng(1).integers(0, ADS + 1, (rows, 2)).astype(np.int32)
  return {**batch, 'weight': np.arange(1, rows + 1, dtype=np.float32)}


def padded(batch, rows=8):
  return {name: np.concatenate([x, np.zeros((rows, *x.shape[1:]), x.dtype)])
          for name, x in batch.items()}


def one_step(batch, count):
  """(parameters, metrics) after a step of descent on `count` devices."""
  optimizer, zero, variables = optax.sgd(1.0), jnp.zeros((), jnp.int32), initial()
  params = variables['params']
  state = TrainState(zero, params, {}, optimizer.init(params), jax.random.key(1), zero, zero, {})
  devices = jax.devices()[:count]
  program = jax.pmap(
      functools.partial(train_step, task=make_task(), optimizer=optimizer,
                        trainable=jax.tree.map(lambda _: True, params)),
      axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None), devices=devices)
  state, metrics = program(state, variables['constants'], parallel.split(batch, devices))
  parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


class StepTest(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  def test_devices_and_padding_change_nothing(self, stage):
    expected = one_step(make_batch(stage), 1)
    chex.assert_trees_all_close(one_step(padded(make_batch(stage)), 4), expected, atol=1e-5,
                                rtol=1e-4)
    moved = jax.tree.map(np.subtract, expected[0], parallel.to_host(initial()['params']))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertTrue(np.isfinite(leaf).all(), name)
      if name.startswith('ranker') and stage == 1:
        self.assertFalse(np.any(leaf), name)
      elif not name.endswith(('score/bias', 'key/bias')):  # a softmax does not see these
        self.assertTrue(np.any(leaf), name)


class NegativesTest(parameterized.TestCase):

  def loss(self, batch):
    return jax.jit(make_task().loss)(initial(), batch, jax.random.key(0)).values

  def test_what_the_user_clicked_is_no_negative_in_the_batch(self):
    batch = make_batch(1, 3)
    batch['click'] = np.array([1, 2, 3], np.int32)
    batch['clicked'] = np.array([[1, 2, 0], [2, 0, 0], [3, 0, 0]], np.int32)
    small = {name: x[[0, 2]] for name, x in batch.items()}
    np.testing.assert_allclose(self.loss(batch)[0], self.loss(small)[0], rtol=1e-5)
    twice = {name: x[[2, 2, 0]] for name, x in batch.items()}  # the same ad again is none either
    pair = {name: x[[2, 0]] for name, x in batch.items()}
    np.testing.assert_allclose(self.loss(twice)[0], self.loss(pair)[0], rtol=1e-5)

  def test_lists_leave_out_clicks_and_nothing(self):
    batch = make_batch(2, 2)
    batch['click'] = np.array([1, 1], np.int32)
    batch['clicked'] = np.array([[1, 2], [1, 2]], np.int32)
    batch['history'][1] = batch['history'][0]
    batch['hard'] = np.array([[3, 2], [3, 0]], np.int32)
    batch['random'] = np.array([[4, 1], [4, 2]], np.int32)
    values = self.loss(batch)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)

  def test_hard_negatives(self):
    found = np.array([[5, 1, 2, 7], [3, 4, 5, 6]])
    clicked = np.array([[1, 2, 0], [3, 4, 5]])
    out = task.hard_negatives(found, clicked, 2, np.random.default_rng(0))
    self.assertEqual(set(out[0]), {5, 7})
    self.assertEqual(sorted(out[1]), [0, 6])
    self.assertEqual(task.hard_negatives(found, clicked, 6, np.random.default_rng(0)).shape, (2, 6))

  def test_refresh_finds_what_retrieval_would(self):
    aux = make_task().refresh(initial(), jax.random.key(3), 0)
    train = make_data().splits['train']
    self.assertEqual(aux['hard'].shape, (24, 2))
    columns = pipeline.columns(make_task().dataset('train', aux))
    np.testing.assert_array_equal(columns['hard'], aux['hard'])
    again = make_task().refresh(initial(), jax.random.key(3), 1)
    np.testing.assert_array_equal(again['hard'], aux['hard'])
    net, encoders = make_parts()
    params = initial()['params']
    real = train['history'] > 0
    pages = encoders.pages(params, {name: x[train['history'].ravel()]
                                    for name, x in make_data().pages.items()})
    users = net.apply({'params': params}, pages.reshape(*real.shape, -1), real,
                      method='user_retrieval')
    ads = net.apply({'params': params}, *encoders.ads(params, make_data().ads),
                    method='ad_retrieval')[1:]
    top = np.argsort(-np.asarray(users @ ads.T), axis=1, kind='stable')[:, :8] + 1
    for row, hard in enumerate(aux['hard']):
      if real[row].any():
        self.assertContainsSubset(set(hard) - {0}, set(top[row]))
      self.assertEmpty(set(hard[hard > 0]) & set(train['clicked'][row]))


class FitTest(absltest.TestCase):

  def test_stage_two_leaves_retrieval_and_its_index_as_they_are(self):
    problem, adam = make_task(retrieval_weight=0.0), {'name': 'adam', 'learning_rate': 0.01}
    config = {'seed': 0, 'batch_size': 8, 'log_every': 2, 'eval_splits': ('test',), 'phases': (
        {'steps': 2, 'trainable': demo_config.RETRIEVAL, 'optimizer': adam},
        {'steps': 2, 'trainable': demo_config.RANKING, 'optimizer': adam, 'refresh_every': 1})}
    stages = []

    def keep(state, step):
      stages.append(jax.device_get(state.params))
      return state

    from jaxlab.train.loop import Hook
    fit(problem, config, hooks=(Hook('keep', lambda params: (), keep, every=2),),
        devices=jax.devices()[:2])
    first, second = stages
    for name in ('text', 'siamese'):
      chex.assert_trees_all_equal(first[name], second[name])
    self.assertTrue(any(np.any(a != b) for a, b in zip(
        *(jax.tree.leaves(stage['ranker']) for stage in stages))))
    self.assertEqual(*(serving.fingerprint(stage) for stage in stages))
    self.assertNotEqual(*(serving.fingerprint(stage, ranking=True) for stage in stages))

  def test_evaluation(self):
    rows = pipeline.columns(make_task().dataset('test'))
    outputs = jax.device_get(jax.jit(make_task().predict)(initial(), rows, jax.random.key(0)))
    metrics = make_task().evaluate([(outputs, rows)])
    for name in ('auc', 'ndcg@10', 'hit@1', 'retrieval/mrr', 'retrieval/hit@1', 'recall@10',
                 'ad_norm_spread', 'code_cosine', 'code_orthogonality'):
      self.assertTrue(np.isfinite(metrics[name]), name)
    net, encoders = make_parts()
    params = initial()['params']
    ads = net.apply({'params': params}, *encoders.ads(params, make_data().ads),
                    method='ad_retrieval')[1:]
    at = np.take_along_axis(rows['candidates'], np.zeros((24, 1), int), 1)[:, 0]
    own = outputs['retrieval_score'][:, 0]
    pages = encoders.pages(params, {name: x[rows['history'].ravel()]
                                    for name, x in make_data().pages.items()})
    users = net.apply({'params': params}, pages.reshape(24, LENGTH, -1), rows['history'] > 0,
                      method='user_retrieval')
    scores = np.asarray(users @ ads.T)
    np.testing.assert_allclose(scores[np.arange(24), at - 1], own, atol=1e-5)
    some = rows['history'].any(1)
    rank = 1 + (scores > scores[np.arange(24), at - 1][:, None] + 1e-6).sum(1)
    np.testing.assert_array_equal(outputs['corpus_rank'][some], rank[some])


class ServingTest(parameterized.TestCase):

  def make(self, pool='attention'):
    # A part of pools without weights is not there.
    params = {name: tree for name, tree in initial()['params'].items()
              if name != 'siamese' or pool == 'attention'}
    server = serving.Server(*make_parts(pool), params)
    ads = {name: x[1:] for name, x in make_data().ads.items()}
    cache = serving.build_ad_cache(server, ads, np.arange(1, ADS + 1))
    return server, cache, serving.build_index(server, cache)

  def history(self, pages):
    return {name: x[np.array(pages, int)] for name, x in make_data().pages.items()}

  def test_cached_is_the_full_forward(self):
    server, ads, index = self.make()
    rows = pipeline.columns(make_task().dataset('test'))
    outputs = jax.device_get(jax.jit(make_task().predict)(initial(), rows, jax.random.key(0)))
    for row in np.flatnonzero(rows['history'].any(1))[:3]:
      history = rows['history'][row]
      user = serving.user_cache(server, self.history(history[history > 0]), LENGTH)
      listed = rows['candidates'][row][:rows['count'][row]]
      np.testing.assert_allclose(serving.rank(server, user, ads, listed),
                                 outputs['rank_score'][row][:len(listed)], atol=1e-5)
      ids, scores = serving.retrieve(server, user, index, ADS)
      self.assertEqual(1 + list(ids).index(rows['click'][row]), outputs['corpus_rank'][row])
      self.assertTrue((np.diff(scores) <= 0).all())
      chosen, best = serving.recommend(server, user, ads, index, retrieve_k=5, n=2)
      self.assertContainsSubset(chosen, ids[:5])
      self.assertEqual(best[0], serving.rank(server, user, ads, ids[:5]).max())

  @parameterized.parameters('mean', 'cls')
  def test_pools_without_weights(self, pool):
    server, ads, index = self.make(pool)
    history = self.history([2, 5])
    user = serving.user_cache(server, history, 2)
    found, scores = serving.retrieve(server, user, index, ADS)
    states, mask = map(np.asarray, server.encoders.ads(server.params, make_data().ads))
    weights = mask / mask.sum(1, keepdims=True).clip(1)
    vectors = states[:, 0] if pool == 'cls' else np.einsum('al,ald->ad', weights, states)
    np.testing.assert_allclose(scores, vectors[found] @ user.pages.mean(0), atol=1e-5)
    places, _ = cost.request('siamese', server.net, server.encoders, 3)(
        server.params, {'pages': user.pages}, {'vectors': ads.vectors})
    np.testing.assert_array_equal(np.asarray(places) + 1, found[:3])

  def test_ads_that_are_not_there(self):
    server, ads, _ = self.make()
    user = serving.user_cache(server, self.history([1, 2]), LENGTH)
    index = serving.build_index(server, ads, backend='faiss', factory='IVF6,Flat', probes=1)
    ids, scores = serving.retrieve(server, user, index, ADS)  # one list of six
    self.assertBetween(len(ids), 1, ADS - 1)
    self.assertContainsSubset(ids, ads.ids)
    self.assertLen(scores, len(ids))
    chosen, _ = serving.recommend(server, user, ads, index, retrieve_k=ADS, n=ADS)
    self.assertCountEqual(chosen, ids)
    with self.assertRaisesRegex(ConfigError, r'ids: expected ids of the ad cache, got \[-1, 99\]'):
      serving.rank(server, user, ads, np.array([5, -1, 99]))

  def test_weights_are_read_once(self):
    with mock.patch.object(serving, 'tree_fingerprint', wraps=serving.tree_fingerprint) as read:
      server, ads, index = self.make()
      user = serving.user_cache(server, self.history([1]), LENGTH)
      for _ in range(2):
        serving.recommend(server, user, ads, index, retrieve_k=5, n=2)
    self.assertEqual(read.call_count, 2)  # of retrieval and of ranking

  def test_appending_a_page_is_encoding_anew(self):
    server, *_ = self.make()
    pages = [3, 8, 1, 9, 4, 4]
    cache = serving.user_cache(server, self.history([]), LENGTH)
    for i, page in enumerate(pages, 1):
      cache = serving.append_page(server, cache, self.history([page]))
      anew = serving.user_cache(server, self.history(pages[:i]), LENGTH)
      self.assertEqual(cache.count, anew.count)
      for old, new in zip(cache[:3], anew[:3]):
        np.testing.assert_allclose(old, new, atol=1e-5)

  def test_a_user_without_pages_gets_what_is_popular(self):
    server, ads, index = self.make()
    nobody = serving.user_cache(server, self.history([]), LENGTH)
    ids, _ = serving.recommend(server, nobody, ads, index, n=3, popularity={7: 5, 2: 9})
    np.testing.assert_array_equal(ids, [2, 7, 1])

  def test_a_changed_ad_tower_is_refused(self):
    server, ads, index = self.make()
    user = serving.user_cache(server, self.history([1]), LENGTH)
    for part, call in (('siamese', lambda s: serving.retrieve(s, user, index, 2)),
                       ('ranker', lambda s: serving.rank(s, user, ads, np.array([1])))):
      params = jax.tree.map(np.array, server.params)
      tower = params[part]['ad_pool' if part == 'siamese' else 'ad']
      jax.tree.leaves(tower)[0].flat[0] += 1e-3  # one weight
      with self.assertRaisesRegex(ConfigError, 'anew'):
        call(dataclasses.replace(server, params=params))

  def test_files(self):
    server, ads, _ = self.make()
    self.assertEqual(ads.bytes_per_ad(), 4 * (CODES * WIDTH + WIDTH))
    with tempfile.TemporaryDirectory() as folder:
      serving.save_ad_cache(f'{folder}/ads.npz', ads)
      chex.assert_trees_all_equal(serving.load_ad_cache(f'{folder}/ads.npz'), ads)
      path = pathlib.Path(folder, 'users.tsv')
      path.write_text('U1\tP3\x01P4\nU2\t\n')
      made = make_data()._replace(titles=['a page'] * PAGES, tokenize=lambda texts: self.history(
          [1] * len(texts)))
      with mock.patch.object(task, 'build', lambda config: (*make_parts(), made, None)):
        config = {**CONFIG, 'predict': {'retrieve': 5, 'recommend': 2}}
        serving.predict_input(config, server.params, path, f'{folder}/out.tsv')
        lines = pathlib.Path(folder, 'out.tsv').read_text().splitlines()
        self.assertRegex(lines[0], r'^U1\tA\d+:-?[\d.e-]+\tA\d+:-?[\d.e-]+$')
        self.assertRegex(lines[1], r'^U2\tA\d+:\d+\tA\d+:\d+$')
        path.write_text('U1\n')
        with self.assertRaisesRegex(ValueError, 'users.tsv: line 1: expected 2 tab-separated col'):
          serving.predict_input(config, server.params, path, f'{folder}/out.tsv')
        path.write_bytes(b'U1\tP3\nU2\tP\xe9\n')
        with self.assertRaisesRegex(ValueError, 'users.tsv: line 2, column 5: expected UTF-8'):
          serving.predict_input(config, server.params, path, f'{folder}/out.tsv')

  def test_other_rankers_are_not_served(self):
    config = {**CONFIG, **with_ranker(name='cross', heads=2)}
    with mock.patch.object(task, 'build', side_effect=AssertionError('loads data')):
      with self.assertRaisesRegex(ConfigError, "model.ranker.name: expected 'hybrid'.*got 'cross'"):
        serving.predict_input(config, {}, 'users.tsv', 'out.tsv')


class CostTest(parameterized.TestCase):

  def test_a_request_is_what_the_parts_give(self):
    server, ads, index = ServingTest().make()
    net, encoders = make_parts()
    states, mask = encoders.ads(server.params, {name: x[1:] for name, x in
                                                make_data().ads.items()})
    history = {name: x[[2, 5]] for name, x in make_data().pages.items()}
    user = serving.user_cache(server, history, 2)
    inputs = ({'pages': user.pages, 'keys': user.keys, 'values': user.values,
               'features': history},
              {'vectors': ads.vectors, 'codes': ads.codes, 'states': states, 'mask': mask,
               'features': {name: x[1:] for name, x in make_data().ads.items()}})
    expected, scores = serving.recommend(server, user, ads, index, retrieve_k=5, n=5)
    for cached in (True, False):
      places, found = cost.request('hybrid', net, encoders, 5, cached=cached)(
          server.params, *inputs)
      np.testing.assert_array_equal(np.asarray(places) + 1, expected)
      np.testing.assert_allclose(found, scores, atol=1e-5)
    places, _ = cost.request('siamese', net, encoders, 5)(server.params, *inputs)
    np.testing.assert_array_equal(np.asarray(places) + 1,
                                  serving.retrieve(server, user, index, 5)[0])

  def test_multiply_adds(self):
    sizes = cost.Sizes(ads=1000, candidates=10, pages=5, tokens=4, width=8, codes=3, queries=6,
                       cross_layers=2, text_layers=1)
    siamese = 5 * (8 * 6 + 6 + 8) + 1000 * 8
    self.assertEqual(cost.multiply_adds('siamese', sizes), siamese)
    self.assertEqual(cost.multiply_adds('hybrid', sizes), siamese + 10 * 3 * (2 * 5 + 1) * 8)
    mlp = cost.multiply_adds('hybrid', sizes._replace(hidden=4))
    self.assertEqual(mlp - cost.multiply_adds('hybrid', sizes), 10 * 4 * (3 * 8 + 1))
    layer = 11 * (12 * 64 + 2 * 11 * 8)
    self.assertEqual(cost.multiply_adds('cross', sizes), siamese + 10 * (2 * layer + 8))
    self.assertGreater(cost.multiply_adds('hybrid', sizes, cached=False), siamese + 15 * 3072)


class ConfigTest(parameterized.TestCase):

  def test_the_shipped_configs_are_possible(self):
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      for variant in (*demo_config.RANKERS, 'joint'):
        systems.check(demo_config.get_config(variant).to_dict())
      for variant in (*ad_log.RANKERS, 'mind'):
        systems.check(ad_log.get_config(variant).to_dict())
    with self.assertRaisesRegex(ValueError, "variant: expected one of .*, got 'hybird'"):
      demo_config.get_config('hybird')

  @parameterized.parameters(
      ({'model': {}}, 'config.text: missing'),
      ({'model': {**CONFIG['model'], 'ranker': {'name': 'crss'}}}, "ranker.name: .*mean 'cross'"),
      ({'model': {**CONFIG['model'], 'ranker': {'name': 'poly', 'code': 3}}},
       "model.ranker: unknown key 'code'; did you mean 'codes'"),
      ({'model': {**CONFIG['model'], 'siamese': {'pool': 'max'}}}, 'model.siamese.pool: expected'),
      ({'model': {**CONFIG['model'], 'page_pool': 'max'}}, "model.page_pool: expected 'mean' or"),
      ({'loss': {'hard': 9, 'top_k': 8}}, 'loss.top_k: expected at least hard=9, got 8|top_k: exp'),
      ({'loss': {'temperature': 0.0}}, 'temperature: expected more than 0'),
      ({'loss': {'hard': 0, 'random': 0}}, 'hard: expected a negative at least'),
      ({'predict': {'recommend': 0}}, 'recommend: expected at least 1'),
      ({'predict': {'backend': 'scann'}}, 'predict.backend: expected'),
      ({'predict': {'probes': -1}}, 'probes: expected at least 0'),
      (with_ranker(name='hybrid', codes=0), 'model.ranker.codes: expected at least 1'),
      (with_ranker(name='hybrid', aggregate='mlp', hidden=0), 'ranker.hidden: expected at least 1'),
      (with_ranker(name='poly', queries=0), 'model.ranker.queries: expected at least 1'),
      (with_ranker(name='cross', layers=-1), 'model.ranker.layers: expected at least 1'),
      (with_ranker(name='cross', width=-1), 'model.ranker.width: expected at least 0'),
      (with_ranker(name='cross', heads=0), 'model.ranker.heads: expected at least 1'),
      (with_ranker(name='cross', heads=3),
       "model.ranker.heads: expected a divisor of the text encoder's width 128, got 3"),
      ({'model': {**CONFIG['model'], 'siamese': {'queries': 0}}},
       'model.siamese.queries: expected at least 1'),
      ({**with_ranker(name='cross'), 'loss': {'orthogonality': 0.1}},
       'loss.orthogonality: expected 0 with a ranker that has no codes'),
      ({'data': {'name': 'demo', 'title_length': 513}},
       "data.title_length: expected at most the model's 512, got 513"),
      ({'data': {'name': 'dmo'}}, "data.name: unknown name 'dmo'; did you mean 'demo'"),
      ({'data': {'name': 'demo', 'history_length': 0}}, 'data.history_length: expected at least 1'))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      task.check({**CONFIG, **change})


class BuildTest(absltest.TestCase):
  """Encoders from folders; the data set is one ad and one page."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    texts = {'ads': ['a man plays'], 'pages': ['a man']}
    self.enter_context(mock.patch.object(
        data, 'load', lambda name: (texts, {'ads': ['A1'], 'pages': ['P1']}, {})))

  def build(self, model, **options):
    return task.build({'data': {'name': 'demo', 'title_length': 8, **options}, 'model': model})

  def test_a_checkpoint_in_half_precision(self):
    encoder = Bert(BertConfig(60, 8, 1, 2, 16, max_position_embeddings=12, add_pooler=False))
    params = jax.jit(encoder.init)(jax.random.key(0), np.ones((1, 3), np.int32))['params']
    words = text.train_wordpiece(['a man plays'], 40)
    bert_weights.save(self.folder, params, encoder, tokenizer_from=words)
    half = {name: jnp.asarray(x, jnp.bfloat16)
            for name, x in bert_weights.params_to_torch(params, encoder).items()}
    save_file(half, str(self.folder / 'model.safetensors'))
    given = {'text': {'folder': str(self.folder)}}
    _, encoders, *_ = self.build(given)
    lowered = jax.jit(encoders.init).lower(jax.random.key(0))
    self.assertIn('callback', lowered.as_text())  # the weights are not in the program
    start = lowered.compile()(jax.random.key(0))['text']
    chex.assert_trees_all_equal(start, jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params))
    with self.assertRaisesRegex(ConfigError, "data.title_length: expected at most the model's 12"):
      self.build(given, title_length=13)
    with self.assertRaisesRegex(ConfigError, "heads: expected a divisor of .* width 8, got 3"):
      self.build({**given, 'ranker': {'name': 'cross', 'heads': 3}})

  def test_a_tokenizer_with_another_padding(self):
    from tokenizers import ByteLevelBPETokenizer
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(['a man plays'] * 3, vocab_size=280, show_progress=False,
                              special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'])
    words.save_model(str(self.folder))
    _, _, made, _ = self.build({'text': {'name': 'roberta-base', 'num_hidden_layers': 1}},
                               tokenizer=str(self.folder))
    self.assertEqual(made.ads['ids'][1, -1], 1)


class RankersTest(parameterized.TestCase):

  @parameterized.parameters(*rankers.RANKERS)
  def test_any_ranker_trains_on_given_states(self, name):
    rng = np.random.default_rng(0)
    made = make_data()._replace(
        pages={'vectors': rng.normal(size=(PAGES + 1, WIDTH)).astype(np.float32)},
        ads={'states': rng.normal(size=(ADS + 1, TOKENS, WIDTH)).astype(np.float32),
             'mask': np.ones((ADS + 1, TOKENS), bool)})
    ranker = rankers.RANKERS[name](**({'heads': 2, 'layers': 1} if name == 'cross' else {}))
    problem = task.from_model(model.HybridEncoder(model.Siamese(queries=3), ranker),
                              task.given_states(), made, task.LossConfig(hard=2))
    variables = problem.init(jax.random.key(0))
    gradient = task_gradient(problem, variables['constants'])
    out, _ = jax.jit(gradient)(variables['params'], make_batch(2), jax.random.key(0))
    self.assertTrue(any(np.any(leaf) for leaf in jax.tree.leaves(out['ranker'])))
    self.assertFalse(any(np.any(leaf) for leaf in jax.tree.leaves(out['siamese'])))


if __name__ == '__main__':
  absltest.main()
