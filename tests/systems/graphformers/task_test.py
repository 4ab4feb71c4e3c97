"""The Task: columns, devices and padding, arms, predictions of a graph, config errors."""
import functools
import json
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from configs.graphformers import dblp
from jaxlab import parallel, systems, train
from jaxlab.config import ConfigError
from jaxlab.data import builders, graph, pipeline, text
from jaxlab.models import bert, bert_weights
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems import graphformers
from jaxlab.systems.graphformers import data, pollution, task
from jaxlab.train import TrainState, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
RNG = np.random.default_rng(0)
BERT = BertConfig(40, 8, 2, 2, 16, max_position_embeddings=8, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0, initializer_range=0.3, add_pooler=False)
VOCABULARY = pollution.Vocabulary(40, 4, (0, 2, 3))
SGD = optax.sgd(1.0)
MODEL = {'architecture': 'graphformers', 'name': 'bert-tiny', 'hidden_size': 8,
         'num_attention_heads': 2, 'intermediate_size': 8, 'initializer_range': 0.1}
CONFIG = {'task': 'graphformers', 'model': MODEL,
          'data': {'name': 'pairs', 'token_length': 8, 'vocab_size': 60, 'neighbors': 2}}
TEXTS = [f'{a} {b}' for a in ('red', 'green', 'blue', 'old') for b in ('house', 'tree', 'road')]


def batch(rows=8):
  columns = {'weight': np.ones(rows, np.float32)}
  for side in data.SIDES:
    ids = RNG.integers(5, 40, (rows, 3, 6)).astype(np.uint16)
    mask = np.arange(6) < RNG.integers(3, 7, (rows, 3, 1))
    nodes = RNG.random((rows, 3)) < 0.7
    nodes[:, 0] = True
    columns |= {f'{side}_ids': np.where(mask, ids, 0).astype(np.uint16),
                f'{side}_mask': mask.astype(np.uint8), f'{side}_nodes': nodes.astype(np.uint8)}
  return columns


BATCH = batch()


@functools.cache
def make():
  return task.from_model(graphformers.GraphFormer(BERT), {'train': pipeline.from_arrays(BATCH)},
                         VOCABULARY, score_scale=0.5)


@functools.cache
def start():
  params, zero = jax.jit(make().init)(jax.random.key(0))['params'], jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {}, SGD.init(params), jax.random.key(1), zero, zero, {})


def one_step(rows, count):
  step = functools.partial(train_step, task=make(), optimizer=SGD,
                           trainable=jax.tree.map(lambda _: True, start().params))
  devices = jax.devices()[:count]
  program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None),
                     devices=devices)
  state, metrics = program(start(), {}, parallel.split(rows, devices))
  parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


class TaskTest(absltest.TestCase):

  def test_devices_and_padding_change_nothing(self):
    pad = lambda x: np.concatenate([x, x[:4]])
    padded = {**{name: pad(x) for name, x in BATCH.items()},
              'weight': np.concatenate([BATCH['weight'], np.zeros(4, np.float32)])}
    params, metrics = one_step(BATCH, 1)
    chex.assert_trees_all_close((params, metrics), one_step(padded, 2), atol=1e-5)

  def test_loss_by_hand(self):
    variables = {'params': start().params}
    out = jax.jit(make().predict)(variables, BATCH, None)
    scores = 0.5 * np.asarray(out['query'], np.float64) @ np.asarray(out['key'], np.float64).T
    expected = np.log(np.exp(scores).sum(1)) - np.diagonal(scores)
    loss = jax.jit(make().loss)(variables, BATCH, jax.random.key(0))
    np.testing.assert_allclose(loss.values, expected, atol=1e-5)
    hits = scores.argmax(1) == np.arange(8)
    np.testing.assert_array_equal(loss.metrics['accuracy'][0], hits)
    found = make().evaluate([(jax.tree.map(np.asarray, out), BATCH)])
    self.assertAlmostEqual(found['p@1'], hits.mean())

  def test_only_the_arm_polluted_pollutes_and_only_centres(self):
    arms = make().arms
    self.assertIsNone(arms['clean'].act)
    found = jax.jit(arms['polluted'].act)({}, BATCH, jax.random.key(0))
    for side in data.SIDES:
      ids, changed = BATCH[f'{side}_ids'], np.asarray(found[f'{side}_ids'])
      self.assertEqual(changed.dtype, ids.dtype)
      np.testing.assert_array_equal(changed[:, 1:], ids[:, 1:])
      self.assertGreater((changed[:, 0] != ids[:, 0]).sum(), 3)
      self.assertTrue(((changed[:, 0] != ids[:, 0]).sum(1) <= 1).all())  # 15 % of up to 6
    self.assertTrue((np.asarray(found['query_ids'])[:, 0] != np.asarray(found['key_ids'])[:, 0]
                     ).any())


class ColumnsTest(absltest.TestCase):

  def test_empty_texts_and_too_many_neighbours(self):
    pairs = [{'query': ['red tree', '', 'old road', 'blue house'], 'key': ['', 'red house']},
             {'query': ['green tree'], 'key': ['red tree', ' ', 'old']}]
    texts = data.number_texts({'train': pairs}, 2)
    tokenizer = text.train_wordpiece(TEXTS, 60)
    found = data.columns(tokenizer, texts, data.Lengths(2, 6, 3))['train']
    np.testing.assert_array_equal(found['query_nodes'], [[1, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(found['key_nodes'], [[1, 1, 0], [1, 0, 1]])
    self.assertEqual(found['query_ids'].shape, (2, 3, 6))
    cls, sep, red = (tokenizer.token_to_id(x) for x in ('[CLS]', '[SEP]', 'red'))
    self.assertEqual(found['query_ids'][0, 0].tolist(), [cls, red, sep, 0, 0, 0])  # cut to 3
    self.assertEqual(found['key_ids'][0, 0].tolist(), [cls, sep, 0, 0, 0, 0])  # empty, but there
    self.assertEqual(found['key_mask'][0, 1].sum(), 4)
    self.assertFalse(found['query_mask'][0, 1].any())
    known = data.vocabulary(tokenizer)
    self.assertEqual((known.mask, known.special),
                     (tokenizer.token_to_id('[MASK]'), (0, cls, sep)))


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'data': {'name': 'pair'}}, r"^data.name: expected .*'pairs'.*, got 'pair'"),
      ({'data': {'nme': 'pairs'}}, "^data: unknown key 'nme'; did you mean 'name'"),
      ({'data': {'token_lngth': 8}}, "^data: unknown key .*; did you mean 'token_length'"),
      ({'data': {'neighbors': -1}}, '^data.neighbors: expected at least 0, got -1'),
      ({'data': {'name': 'graph', 'neighbors': 6}},
       "^data.neighbors: expected at most the 5 that the split of 'graph' draws"),
      ({'data': {'center_length': 9}}, '^data.center_length: expected 3 to token_length=8, got 9'),
      ({'data': {'pollute_rate': 2.0}}, '^data.pollute_rate: expected a share'),
      ({'model': {'architecture': 'sage'}}, '^model.architecture: expected'),
      ({'model': {'score_scale': 0.0}}, '^model.score_scale: expected above 0'),
      ({'model': {'scan_layers': True}}, '^model.scan_layers: expected false'),
      ({'model': {'hiden_size': 8}}, "^model: unknown key .*; did you mean 'hidden_size'"),
      ({'predict': {'batch': 8}}, "^predict: unknown key 'batch'; did you mean 'batch_size'"),
      ({'accumulate': 2, 'batch_size': 8, 'steps': 1}, '^config.accumulate: expected 1, since'),
      ({'batch_size': 1, 'steps': 1}, '^config.batch_size: expected at least 2, since'))
  def test_mistakes_are_found_before_any_data(self, change, message):
    config = dict(CONFIG)
    for key, value in change.items():
      config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    if 'nme' in config['data']:
      del config['data']['name']
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      with self.assertRaisesRegex(ConfigError, message):
        systems.check(config)

  def test_an_epoch_is_that_of_the_data_set(self):
    configs = {name: dblp.get_config(name) for name in ('graphformers', 'wiki', 'plm')}
    for name, epochs in {'graphformers': 3_009_506 // 240, 'wiki': 7_145_834 // 240}.items():
      self.assertEqual([phase['steps'] for phase in configs[name].phases], [50 * epochs] * 2)
      self.assertEqual(configs[name].eval_every, epochs)
    self.assertEqual(configs['plm'].steps, 100 * (3_009_506 // 240))

  def test_files_of_pairs_may_hold_more_neighbours(self):
    data.check_neighbors('pairs', 50)
    with self.assertRaisesRegex(ConfigError, "at most the 5 that the split of 'demo' draws"):
      data.load_pairs(name='demo', neighbors=6)


class WholeTest(parameterized.TestCase):
  """From files of pairs to the vectors of a graph."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    (self.folder / 'text_pairs').mkdir()
    pairs = [{'query': [TEXTS[i], TEXTS[i - 1], ''], 'key': [TEXTS[(i + 1) % 12]]}
             for i in range(12)]
    for file in graph.FILES.values():
      graph.write_pairs(self.folder / 'text_pairs' / file, pairs)
    self.enter_context(mock.patch.object(builders, 'load', functools.partial(
        builders.load, data_dir=str(self.folder / 'tfds'))))
    self.config = {**CONFIG, 'data': {**CONFIG['data'], 'manual_dir': str(self.folder)}}

  def test_predictions(self):
    made = systems.make_task(self.config)
    params = parallel.to_host(jax.jit(made.init)(jax.random.key(0))['params'])
    graph.write_graph(self.folder, graph.TextGraph(
        [f'n{i}' for i in range(12)] + ['empty'], [*TEXTS, ''],
        np.array([[i, i + 1] for i in range(10)])))
    graphformers.predict_input(self.config, params, self.folder, self.folder / 'out.npz')
    with np.load(self.folder / 'out.npz') as found:
      self.assertEqual(found['id'][-1], 'empty')
      self.assertEqual(found['vector'].shape, (13, 8))
      self.assertTrue(np.isfinite(found['vector']).all())  # 11 is isolated, 12 has no text
      vectors = found['vector']
    pairs = [{'query': [TEXTS[0], TEXTS[1]], 'key': [TEXTS[11]]}]
    graph.write_pairs(self.folder / 'x.tsv', pairs)
    graphformers.predict_input(self.config, params, self.folder / 'x.tsv', self.folder / 'p.npz')
    with np.load(self.folder / 'p.npz') as found:
      np.testing.assert_allclose(found['query'][0], vectors[0], atol=1e-5)
      np.testing.assert_allclose(found['key'][0], vectors[11], atol=1e-5)
      np.testing.assert_allclose(found['score'][0], vectors[0] @ vectors[11], atol=1e-5)

  @pytest.mark.slow
  def test_progressive_training(self):
    fit = {'batch_size': 4, 'seed': 0, 'log_every': 1, 'eval_splits': ('validation',),
           'optimizer': {'name': 'adam', 'learning_rate': 1e-2},
           'phases': ({'steps': 2, 'arms': ('polluted',)}, {'steps': 2, 'arms': ('clean',)})}
    made = systems.make_task({**self.config, **fit})
    state = train.fit(made, fit, workdir=self.folder / 'run')
    self.assertEqual(int(state.step), 4)
    rows = [json.loads(line) for line in open(self.folder / 'run/metrics.jsonl')]
    names = set().union(*rows)
    self.assertContainsSubset(['polluted/loss', 'clean/loss', 'validation/tied_mrr'], names)

  def test_a_graph_attention_needs_two_layers(self):
    with self.assertRaisesRegex(ConfigError, '^model.num_hidden_layers: expected at least 2'):
      systems.make_task({**self.config, 'model': {**MODEL, 'num_hidden_layers': 1}})

  def test_from_a_published_encoder(self):
    tokenizer = text.train_wordpiece(TEXTS, 60)
    module = bert.Bert(BertConfig(**{**BERT.__dict__, 'vocab_size': tokenizer.get_vocab_size(),
                                     'rel_pos_bins': 8, 'max_rel_pos': 16}))
    encoder = jax.jit(module.init)(jax.random.key(5), jnp.zeros((1, 4), jnp.int32))['params']
    bert_weights.save(self.folder / 'bert', encoder, module, tokenizer_from=tokenizer)
    made = systems.make_task({**self.config, 'model': {'folder': str(self.folder / 'bert')}})
    params = jax.jit(made.init)(jax.random.key(0))['params']
    chex.assert_trees_all_equal(params['bert'], encoder)
    np.testing.assert_array_equal(params['graph_bias'][1], encoder['rel_pos_bias']['kernel'][-1])

  @parameterized.parameters(('graphformers', 'bert.encoder.graph_attention.query.weight'),
                            ('max', 'pooling_transform.weight'))
  def test_official_names(self, architecture, name):
    config = {**self.config, 'model': {**MODEL, 'architecture': architecture}}
    params = jax.jit(systems.make_task(config).init)(jax.random.key(0))['params']
    read, write = graphformers.official_weights(config, params)
    official = write(jax.device_get(params))
    self.assertEqual(official[name].shape, (8, 8))
    chex.assert_trees_all_equal(read(official), params)
    with self.assertRaisesRegex(ValueError, name):
      read({key: value for key, value in official.items() if key != name})

  def test_an_architecture_without_official_names(self):
    config = {**self.config, 'model': {**MODEL, 'architecture': 'gat'}}
    with self.assertRaisesRegex(ConfigError, '^model.architecture: expected one that the official'):
      graphformers.official_weights(config, None)


if __name__ == '__main__':
  absltest.main()
