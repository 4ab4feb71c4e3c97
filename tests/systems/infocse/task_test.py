"""The Task: devices, padding, gradients, twins and picked positives, rounds, resuming, folders."""
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
from absl.testing import absltest, parameterized

from jaxlab import parallel, systems, train
from jaxlab.config import ConfigError
from jaxlab.data import docstrings, documents, pipeline
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems import infocse
from jaxlab.systems.infocse import corpus as corpus_lib
from jaxlab.systems.infocse import evaluation, model
from jaxlab.systems.infocse.positives import Positives
from jaxlab.systems.infocse.task import LossSettings, from_model
from jaxlab.train import TrainState, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
RNG = np.random.default_rng(0)
BERT = BertConfig(30, 8, 1, 2, 16, max_position_embeddings=8, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0, initializer_range=0.5, add_pooler=False)
SGD = optax.sgd(1.0)
MODEL = {'name': 'bert-tiny', 'hidden_size': 8, 'num_attention_heads': 2, 'num_hidden_layers': 1,
         'intermediate_size': 8}
CONFIG = {'task': 'infocse', 'model': MODEL, 'data': {'name': 'docstrings'}}
WORDS = ['sun', 'moon', 'star', 'sea', 'land', 'hill', 'tree', 'leaf', 'bird', 'fish']


def corpus(count=6, size=5, length=6):
  lengths = 2 + np.arange(count * size) % (length - 1)
  mask = (np.arange(length) < lengths[:, None]).astype(np.uint8)
  ids = RNG.integers(1, 30, mask.shape) * mask
  return corpus_lib.from_tokens(ids.astype(np.int32), mask,
                                np.repeat(np.arange(count, dtype=np.int32), size),
                                max_sentences=8, ends=True)


CORPUS = corpus()


@functools.cache
def task(**options):
  pairs = {name: array[:6] for name, array in (
      ('ids', CORPUS.ids), ('mask', CORPUS.mask), ('positive_ids', CORPUS.ids[6:]),
      ('positive_mask', CORPUS.mask[6:]))}
  positives = Positives(min_cosine=-1.0, per_cluster=2, hard_negatives=True, **options)
  return from_model(
      model.TransformerEncoder(BERT, pooler='cls', head=True), CORPUS,
      {'test': pipeline.from_arrays(pairs)}, positives=positives,
      settings=LossSettings(temperature=0.5, symmetric=True, hard_weight=0.3, self_weight=0.5))


@functools.cache
def start():
  params, zero = jax.jit(task().init)(jax.random.key(0))['params'], jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {}, SGD.init(params), jax.random.key(1), zero, zero, {})


@functools.cache
def aux():
  return task().refresh({'params': start().params}, jax.random.key(2), 0)


def one_step(rows, count):
  step = functools.partial(train_step, task=task(), optimizer=SGD, accumulate=1,
                           trainable=jax.tree.map(lambda _: True, start().params))
  devices = jax.devices()[:count]
  program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None),
                     devices=devices)
  state, metrics = program(start(), {}, parallel.split(rows, devices))
  parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


class TaskTest(absltest.TestCase):

  def test_devices_and_padding_change_nothing(self):
    rows = task().dataset('train', aux()).take(RNG.permutation(len(CORPUS.ids))[:8])
    pad = lambda x: np.concatenate([x, x[:8]])
    padded = {name: pad(x) for name, x in rows.items()}
    padded['weight'] = np.concatenate([rows['weight'], np.zeros(8, np.float32)])
    params, metrics = one_step(rows, 1)
    chex.assert_trees_all_close((params, metrics), one_step(padded, 2), atol=2e-5)
    moved = jax.tree.map(np.subtract, params, parallel.to_host(start().params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      if not ('key' in name and 'bias' in name):  # softmax ignores a bias of the keys
        self.assertTrue(np.any(leaf), name)

  def test_columns_of_picked_positives(self):
    columns = pipeline.columns(task().dataset('train', aux()))
    positive, hard = aux()['positive'], aux()['hard']
    own = positive < 0
    self.assertTrue(own.any() and (~own).any())
    rows = np.where(own, np.arange(len(own)), positive)
    np.testing.assert_array_equal(columns['positive_ids'], CORPUS.ids[rows])
    np.testing.assert_array_equal(columns['weight'], np.where(own, 0.5, 1))
    np.testing.assert_array_equal(columns['has_hard'], hard >= 0)
    np.testing.assert_array_equal(CORPUS.document[rows], CORPUS.document)
    twins = pipeline.columns(task().dataset('train'))  # the warm-up
    np.testing.assert_array_equal(twins['positive_ids'], twins['ids'])
    skipping = pipeline.columns(task(no_positive='skip').dataset('train', aux()))
    np.testing.assert_array_equal(skipping['ids'], CORPUS.ids[~own])
    nothing = {'positive': np.full(len(own), -1), 'hard': hard}
    with self.assertRaisesRegex(ValueError, 'not one sentence has a candidate'):
      task(no_positive='skip').dataset('train', nothing)

  def test_rounds_report_how_many_positives_stay(self):
    made, variables = task(pick='nearest'), {'params': start().params}
    with self.assertLogs(level='INFO') as logs:
      for number in (0, 1, 3):
        made.refresh(variables, jax.random.key(2), number)
    self.assertNotIn('of before', logs.output[0])
    self.assertIn('100.0 % the one of before', logs.output[1])  # nothing was learned in between
    self.assertNotIn('of before', logs.output[2])  # round 2 was not here

  def test_head_and_dropout_in_training_only(self):
    rows = {'ids': CORPUS.ids[:4], 'mask': CORPUS.mask[:4]}
    params = start().params
    predict = jax.jit(task().predict)
    found = predict({'params': params}, rows, None)['embeddings']
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    other = {**params, 'head': jax.tree.map(lambda x: x + 1, params['head'])}
    np.testing.assert_array_equal(predict({'params': other}, rows, None)['embeddings'], found)
    garbage = {**rows, 'ids': np.where(rows['mask'], rows['ids'], 7)}
    np.testing.assert_allclose(predict({'params': params}, garbage, None)['embeddings'], found,
                               atol=1e-6)
    noisy = model.TransformerEncoder(BertConfig(30, 8, 1, 2, 16, max_position_embeddings=8,
                                                hidden_dropout_prob=0.3, add_pooler=False))
    twice = jax.jit(lambda key: noisy.apply(
        {'params': {'bert': params['bert']}}, np.tile(rows['ids'], (2, 1)),
        np.tile(rows['mask'], (2, 1)), train=True, rngs={'dropout': key}))(jax.random.key(0))
    self.assertGreater(np.abs(twice[:4] - twice[4:]).max(1).min(), 1e-3)  # two masks

  def test_evaluation(self):
    pairs = task().dataset('test').arrays
    outputs = {name: np.asarray(x) for name, x in jax.jit(task().predict)(
        {'params': start().params}, pairs, None).items()}
    found = task().evaluate([(outputs, pairs)])
    same = {**outputs, 'positive_embeddings': outputs['embeddings']}
    perfect = task().evaluate([(same, pairs)])
    self.assertEqual((perfect['recall@1'], perfect['mrr@10'], perfect['alignment']), (1, 1, 0))
    self.assertLess(found['mrr@10'], 1)
    cosines = (outputs['embeddings'] * outputs['positive_embeddings']).sum(1)
    score = 5 * (1 + cosines) / 2
    found = task().evaluate([(outputs, {**pairs, 'score': score, 'subset': np.arange(6) % 2})])
    for name in ('spearman', 'spearman_mean', 'spearman_wmean', 'pearson'):
      self.assertAlmostEqual(found[name], 100, places=3)


class EvaluationTest(absltest.TestCase):

  def test_spread(self):
    x = RNG.normal(size=(5000, 16))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    self.assertAlmostEqual(evaluation.spread(unit), 1, delta=0.02)
    self.assertEqual(evaluation.spread(np.ones((4, 3)) / np.sqrt(3)), 0)

  def test_pages(self):
    pages = [np.eye(3), np.eye(3)[:2]]
    found = evaluation.page_retrieval(np.array([[0.9, 0.4, 0], [1, 0, 0]]), pages, [1, 0])
    self.assertEqual((found['recall@1'], found['recall@5'], found['mrr@10']), (0.5, 1, 0.75))

  def test_quality(self):
    found = evaluation.annotation_quality([1, 0, -1, 0], [.8, .6, 0, .4], previous=[1, 3, -1, 0],
                                          label=np.array([5, 5, 5, 6]))
    self.assertAlmostEqual(found['share'], 3 / 4)
    self.assertAlmostEqual(found['cosine'], 0.6, places=6)
    self.assertAlmostEqual(found['agreement'], 2 / 3)
    self.assertAlmostEqual(found['precision'], 2 / 3)


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'positives': {'nme': 1}}, "^positives: unknown key 'nme'; did you mean 'name'"),
      ({'positives': {'name': 'anotated'}}, '^positives.name: expected'),
      ({'positives': {'view': 'crp'}}, '^positives.view: expected'),
      ({'loss': {'temperature': 0.0}}, '^loss: temperature: expected more than 0|^temperature'),
      ({'loss': {'hard': 1}}, "^loss: unknown key 'hard'"),
      ({'data': {'name': 'files'}}, '^data.train: expected a file of documents'),
      ({'data': {'train': 'a.jsonl'}}, '^data.train: expected a file of documents'),
      ({'data': {'sts_pairs': 'a.csv'}}, '^data.sts_pairs: expected none'),
      ({'data': {'name': 'files', 'train': 'a.txt'}}, '^eval_splits: expected sts with'),
      ({'data': {'max_length': 4}}, '^data.max_length: expected at least 8'),
      ({'eval_splits': ('sts',)}, '^eval_splits: expected'),
      ({'model': {**MODEL, 'pooler': 'pooler'}}, '^model.pooler: expected one of cls, mean'),
      ({'model': {**MODEL, 'head': 1}}, '^model.head: expected bool'),
      ({'model': {'name': 'word_average', 'dm': 3}}, "^model: unknown key 'dm'"))
  def test_mistakes_are_found_before_any_text(self, change, message):
    with mock.patch.object(docstrings, 'sentences', side_effect=AssertionError('reads')):
      with self.assertRaisesRegex(ConfigError, message):
        systems.check({**CONFIG, **change})


class RunTest(absltest.TestCase):
  """A run from files, with a warm-up and rounds."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    sentence = lambda: ' '.join(RNG.choice(WORDS, 4))
    (self.folder / 'corpus.jsonl').write_text('\n'.join(
        json.dumps({'doc_id': str(i), 'sentences': [sentence() for _ in range(6)]})
        for i in range(8)))
    (self.folder / 'pairs.tsv').write_text('\n'.join(
        f'{sentence()} {i}\t{sentence()} {i}' for i in range(5)))
    (self.folder / 'sts.csv').write_text(''.join(
        f'g\tf\t2012\t{i}\t{i + 1}\t{sentence()}\t{sentence()}\n' for i in range(5)))
    self.config = {
        'task': 'infocse', 'seed': 0, 'batch_size': 8,
        'data': {'name': 'files', 'train': f'{self.folder}/corpus.jsonl', 'max_length': 8,
                 'sts_pairs': f'{self.folder}/sts.csv', 'vocab_size': 60,
                 'retrieval_pairs': f'{self.folder}/pairs.tsv'},
        'model': {**MODEL, 'head': True, 'pooler': 'cls'},
        'positives': {'min_cosine': -1.0, 'view': 'cutoff'},
        'optimizer': {'name': 'adam', 'learning_rate': 1e-2},
        'phases': ({'steps': 2}, {'steps': 4, 'refresh_every': 2}), 'eval_splits': ('sts',
                                                                                   'retrieval'),
        'eval_every': 0, 'save_every': 2}

  def test_trains_embeds_and_is_opened_elsewhere(self):
    made = systems.make_task(self.config)
    state = train.fit(made, self.config, workdir=self.folder / 'run')
    rows = [json.loads(line) for line in (self.folder / 'run/metrics.jsonl').open()]
    self.assertContainsSubset(['sts/spearman', 'retrieval/recall@1', 'sts/spread'], rows[-1])
    self.assertEqual(int(state.step), 6)
    # A file of sentences for launch.predict.
    (self.folder / 'in.txt').write_text('sun moon star\nsea\n')
    given = pipeline.columns(infocse.file_dataset(self.config, self.folder / 'in.txt'))
    embed = jax.jit(made.predict)({'params': state.params}, given, None)['embeddings']
    self.assertEqual(embed.shape, (2, 8))
    # The folder holds the encoder that gave these vectors.
    infocse.save_encoder(self.config, self.folder / 'run', self.folder / 'out')
    read = json.loads((self.folder / 'out/1_Pooling/config.json').read_text())
    self.assertTrue(read['pooling_mode_cls_token'])
    config = {**self.config, 'model': {'folder': f'{self.folder}/out', 'pooler': 'cls'}}
    again = systems.make_task(config)
    given = pipeline.columns(infocse.file_dataset(config, self.folder / 'in.txt'))
    params = jax.jit(again.init)(jax.random.key(5))['params']
    np.testing.assert_allclose(jax.jit(again.predict)({'params': params}, given, None)[
        'embeddings'], embed, atol=1e-6)

  def test_bad_files(self):
    (self.folder / 'pairs.tsv').write_text('a\tb\na b\n')
    with self.assertRaisesRegex(ValueError, 'pairs.tsv: line 2: expected a query, a tab'):
      systems.make_task(self.config)
    self.assertLen(documents.read_documents(self.folder / 'corpus.jsonl'), 8)
    config = {**self.config, 'model': {'name': 'word_average', 'dim': 4}}
    with self.assertRaisesRegex(ConfigError, 'model.name: expected a transformer'):
      infocse.save_encoder(config, self.folder / 'run', self.folder / 'out')


if __name__ == '__main__':
  absltest.main()
