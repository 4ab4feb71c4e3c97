"""The Task: rows, stages, candidates, padding, gradients, phases, and configs that are refused."""
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import systems, train
from jaxlab.config import ConfigError
from jaxlab.data import builders
from jaxlab.models import bert_weights
from jaxlab.models.bert import Bert, KeysValues
from jaxlab.systems.deepqse import task as task_lib
from jaxlab.systems.deepqse.model import (
    PADDING,
    Row,
    candidate_positions,
    compose,
    listwise_loss,
    scatter_scores,
    top_k,
)
from tests import conftest
from tests.systems.deepqse import toy_pages

assert conftest.FLAGS
CONFIG = {
    'task': 'deepqse', 'batch_size': 4, 'steps': 1,
    'optimizer': {'name': 'sgd', 'learning_rate': 0.1},
    'data': {'max_sentences': 8, 'max_query': 8, 'max_title': 8, 'max_sentence': 8},
    'model': {'kind': 'efficient', 'candidates': 4, 'name': 'bert-tiny'},
}


def widen(columns, sentences, tokens):
  """The same pages with more padding."""
  more = {name: np.pad(column, ((0, 0), (0, tokens))) for name, column in columns.items()
          if name in ('query', 'title')}
  body = np.pad(columns['sentences'], ((0, 0), (0, sentences), (0, tokens)))
  return {**columns, **more, 'sentences': body}


class RowsTest(absltest.TestCase):

  def test_padding_between_pieces_changes_nothing(self):
    net = toy_pages.networks()
    _, params, rows = toy_pages.task_and_params()
    encode = jax.jit(lambda row: net.coarse.apply({'params': params['coarse']}, row,
                                                  method='encode'))
    row = task_lib.joint_row(net, rows)
    found = encode(row)
    dense = np.zeros(row.ids.shape, np.int32)
    for index in np.ndindex(*row.ids.shape[:-1]):
      seen = np.asarray(row.ids[index])[np.asarray(row.mask[index])]
      dense[index][:len(seen)] = seen
    positions = jnp.broadcast_to(jnp.arange(dense.shape[-1]), dense.shape)
    self.assertFalse(np.array_equal(dense, row.ids))
    expected = encode(Row(jnp.asarray(dense), jnp.asarray(dense != 0), positions))
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_roberta_counts_from_its_padding(self):
    config = toy_pages.networks().coarse.config
    config = type(config)(**{**vars(config), 'model_type': 'roberta', 'pad_token_id': 1})
    row = compose(config, 0, jnp.array([[5, 1, 1]]), jnp.array([[7, 1]]))
    np.testing.assert_array_equal(row.mask, [[1, 1, 0, 0, 1, 0]])
    np.testing.assert_array_equal(np.asarray(row.positions)[np.asarray(row.mask)], [2, 3, 4])

  def test_candidates(self):
    scores = jnp.array([[1.0, 5.0, 5.0, 9.0], [0.0, 2.0, 1.0, 3.0]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(top_k(scores, mask, 4), [[1, 2, 0, 3], [3, 1, 2, 0]])
    chosen = top_k(scores, mask, 2, first=jnp.array([0, 3]))
    np.testing.assert_array_equal(chosen, [[0, 1], [3, 1]])  # the gold one once, and first
    np.testing.assert_array_equal(candidate_positions(chosen, jnp.array([[1, 1], [1, 0]]), 9),
                                  [[1, 2], [4, 9]])
    np.testing.assert_array_equal(scatter_scores(jnp.array([[7.0, 8.0]]), chosen[:1], 4),
                                  [[7, 8, PADDING, PADDING]])

  def test_distillation(self):
    scores, labels = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([1])
    plain = listwise_loss(scores, labels)
    np.testing.assert_allclose(plain, -np.log(np.exp(-1) / np.exp([0.5, -1, 2]).sum()), rtol=1e-6)
    np.testing.assert_allclose(listwise_loss(scores, labels, scores, 1.0, 2.0), plain, rtol=1e-6)
    teacher = jnp.array([[1.0, 3.0, -2.0]])
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum() for x in (np.array(teacher), np.array(scores)))
    np.testing.assert_allclose(listwise_loss(scores, labels, teacher, 0.5, 2.0),
                               plain + 0.5 * 4 * (p * np.log(p / q)).sum(), rtol=1e-5)


class TaskTest(parameterized.TestCase):

  def test_padding_and_permutation(self):
    net = toy_pages.networks()
    task, params, rows = toy_pages.task_and_params()
    predict = jax.jit(task.predict)
    batch = {name: jnp.asarray(column) for name, column in rows.items()}
    plain = predict({'params': params}, batch, None)
    mask = task_lib.sentence_mask(net, batch['sentences'])
    wide = predict({'params': params}, widen(rows, 2, 3), None)
    for name in ('scores', 'coarse'):
      np.testing.assert_allclose(wide[name][:, :toy_pages.SENTENCES] * mask, plain[name] * mask,
                                 atol=1e-5)
    np.testing.assert_array_less(wide['scores'][:, toy_pages.SENTENCES:], PADDING / 2)
    order = np.random.default_rng(0).permutation(8)
    permuted = predict({'params': params}, {name: x[order] for name, x in batch.items()}, None)
    np.testing.assert_allclose(permuted['scores'], plain['scores'][order], atol=1e-5)

    found = task.evaluate([(jax.tree.map(np.asarray, plain), rows)])
    self.assertLessEqual(found['prec@1'], found['coarse/hit@3'])
    self.assertContainsSubset({'prec@5', 'coarse/prec@1'}, found)
    candidate = np.asarray(plain['scores']) > PADDING / 2
    np.testing.assert_array_equal(candidate.sum(1), np.minimum(mask.sum(1), 3))

  def test_an_empty_query_prefix_is_none(self):
    net = toy_pages.networks().fine
    _, params, rows = toy_pages.task_and_params()
    params = {'params': params['fine']}
    row = task_lib.fine_row(toy_pages.networks(), jnp.asarray(rows['sentences']))
    query = task_lib.query_row(toy_pages.networks(), rows)

    @jax.jit
    def run(query, row):
      _, kv = net.apply(params, query, method='encode_query')
      hidden = KeysValues(kv.layers, jnp.zeros_like(kv.mask))
      flat = Row(*(x.reshape(-1, x.shape[-1]) for x in row))
      alone = Bert(net.config).apply({'params': params['params']['sentence_encoder']}, flat.ids,
                                     flat.mask, position_ids=flat.positions).last[:, 0]
      read = lambda kv: net.apply(params, row, kv, method='encode_sentences')
      return read(hidden).reshape(alone.shape), alone, read(kv).reshape(alone.shape)

    empty, alone, seen = run(query, row)
    np.testing.assert_allclose(empty, alone, atol=1e-6)
    self.assertGreater(np.abs(seen - alone).max(), 1e-3)

  @parameterized.parameters('joint', 'efficient')
  def test_gradients(self, kind):
    task, params, rows = toy_pages.task_and_params(kind)
    batch = {**rows, 'weight': np.ones(8, np.float32)}

    def total(params):
      losses = [task.loss, *(arm.loss for arm in (task.arms or {}).values())]
      return sum(loss({'params': params}, batch, jax.random.key(0)).values.mean()
                 for loss in losses)

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params)):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      if "'key']['bias']" not in name and "'scorer_out']['bias']" not in name:
        self.assertTrue(np.any(leaf), name)

  def test_phases(self):
    task, params, rows = toy_pages.task_and_params()
    aux = task.refresh({'params': params}, jax.random.key(0), 0)
    chosen = aux['candidates']  # the gold sentence first, and once
    self.assertEqual(chosen.shape, (8, toy_pages.CANDIDATES))
    np.testing.assert_array_equal(chosen[:, 0], rows['label'])
    np.testing.assert_array_equal((chosen == rows['label'][:, None]).sum(1), np.ones(8))
    self.assertLen(task.dataset('train', aux), 8)
    config = {'batch_size': 4, 'seed': 0, 'eval_splits': (),
              'optimizer': {'name': 'sgd', 'learning_rate': 0.1},
              'phases': [{'steps': 2, 'arms': ['coarse'], 'trainable': 'coarse/.*'},
                         {'steps': 2, 'trainable': 'fine/.*', 'refresh_every': 2}]}
    start = jax.jit(task.init)(jax.random.split(jax.random.key(0))[0])['params']
    state = train.fit(task, config, devices=jax.devices()[:1])
    for stage in ('coarse', 'fine'):
      before, after = (tree[stage]['ranker']['scorer_hidden']['kernel']
                       for tree in (start, state.params))
      self.assertGreater(np.abs(np.asarray(before) - np.asarray(after)).max(), 0, stage)


class PretrainedTest(absltest.TestCase):

  def test_all_towers_start_from_the_lowest_layers_of_a_folder(self):
    config = toy_pages.networks(layers=2).coarse.config
    model = Bert(config)
    params = model.init(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))['params']
    with tempfile.TemporaryDirectory() as folder:
      bert_weights.save(folder, params, model)
      found, encoder = task_lib.load_encoder(folder, 1, dtype='float32')
      with self.assertRaisesRegex(ConfigError, 'model.layers: expected at most 2'):
        task_lib.load_encoder(folder, 3)
      (pathlib.Path(folder) / 'model.safetensors').unlink()
      with self.assertRaisesRegex(ConfigError, 'expected model.safetensors'):
        task_lib.load_encoder(folder, 1)
    self.assertEqual(found.num_hidden_layers, 1)
    networks = task_lib.make_networks(task_lib.ModelConfig('efficient', candidates=3), found, 1)
    rows = {'train': toy_pages.columns(0, 2)}
    task = task_lib.from_networks(networks, rows, encoder=encoder)
    made = jax.jit(task.init)(jax.random.key(0))['params']
    towers = [made['coarse']['encoder'], made['fine']['query_encoder'],
              made['fine']['sentence_encoder']]
    for tower in towers:
      chex.assert_trees_all_equal(tower, encoder)
    for stage in ('coarse', 'fine'):
      document = made[stage]['ranker']['document']
      self.assertNotIn('word', document['embeddings'])
      chex.assert_trees_all_equal(document['layers_0'], encoder['layers_0'])


class ConfigTest(parameterized.TestCase):

  def test_a_good_config_needs_no_data(self):
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      systems.check(CONFIG)

  @parameterized.parameters(
      ('model', {'knd': 'joint'}, "model: unknown key 'knd'; did you mean 'kind'"),
      ('model', {'kind': 'fine'}, 'model.kind: expected'),
      ('model', {'context': 'none'}, 'model.context: expected .query. or .sentences.: the coarse'),
      ('model', {'candidates': 9}, 'model.candidates: expected at most data.max_sentences=8'),
      ('model', {'layers': 2}, 'model.layers: expected model.folder'),
      ('data', {'max_sentences': 161}, 'data.max_sentences: expected 1 to 160, got 161'),
      ('data', {'max_qery': 1}, "data: unknown key 'max_qery'; did you mean 'max_query'"),
      ('predict', {'sentences': 0}, 'predict.sentences: expected at least 1, got 0'))
  def test_mistakes(self, part, change, message):
    config = {**CONFIG, part: {**CONFIG.get(part, {}), **change}}
    with self.assertRaisesRegex(ConfigError, message):
      systems.check(config)

  def test_no_folder_of_pages(self):
    config = {**CONFIG, 'data': {**CONFIG['data'], 'folder': '/nowhere'}}
    with self.assertRaisesRegex(ConfigError, 'data.folder: expected a folder with train.tsv'):
      systems.make_task(config)


if __name__ == '__main__':
  absltest.main()
