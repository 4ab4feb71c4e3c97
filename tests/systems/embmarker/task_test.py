"""The Task of extraction: what the loss counts, devices, pooling, bought files, errors."""
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

from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.data import builders, pipeline, text
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems import embmarker
from jaxlab.systems.embmarker import extraction, files, provider
from jaxlab.train import TrainState, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
RNG = np.random.default_rng(0)
BERT = BertConfig(20, 8, 1, 2, 16, max_position_embeddings=8, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0, initializer_range=0.3)
SGD = optax.sgd(1.0)
MODEL = {'name': 'bert-tiny', 'hidden_size': 8, 'num_attention_heads': 2, 'num_hidden_layers': 1,
         'intermediate_size': 8, 'width': 8, 'pooler': 'mean'}
CONFIG = {'task': 'embmarker', 'model': MODEL, 'data': {'name': 'demo', 'dim': 8},
          'watermark': {'name': 'embmarker'}}


def batch(rows=8):
  unit = RNG.normal(size=(rows, 6)).astype(np.float32)
  lengths = 2 + np.arange(rows) % 5
  return {'ids': RNG.integers(1, 20, (rows, 7)), 'mask': np.arange(7) < lengths[:, None],
          'embedding': unit / np.linalg.norm(unit, axis=1, keepdims=True),
          'weight': np.arange(rows, dtype=np.float32)}


@functools.cache
def task():
  return extraction.copier_task(extraction.Copier(BERT, 6, 8),
                                {'train': pipeline.from_arrays(batch())})


@functools.cache
def start():
  params, zero = jax.jit(task().init)(jax.random.key(0))['params'], jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {}, SGD.init(params), jax.random.key(1), zero, zero, {})


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
    rows = batch()
    pad = lambda x: np.concatenate([x, np.ones_like(x)])
    padded = {**{name: pad(x) for name, x in rows.items()},
              'weight': np.concatenate([rows['weight'], np.zeros(8, np.float32)])}
    params, metrics = one_step(rows, 1)
    chex.assert_trees_all_close((params, metrics), one_step(padded, 2), atol=1e-5)
    moved = jax.tree.map(np.subtract, params, parallel.to_host(start().params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      if not ('key' in name and 'bias' in name):  # softmax ignores a bias of the keys
        self.assertTrue(np.any(leaf), name)

  def test_loss_and_evaluation(self):
    rows = batch()
    out = jax.jit(task().predict)({'params': start().params}, rows, None)['embeddings']
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    expected = ((out - rows['embedding'])**2).mean(-1)
    loss = jax.jit(task().loss)({'params': start().params}, rows, jax.random.key(0))
    np.testing.assert_allclose(loss.values, expected, atol=1e-6)
    found = task().evaluate([({'embeddings': np.asarray(out)}, rows)])
    self.assertAlmostEqual(found['loss'], float(np.mean(expected)), places=6)
    self.assertAlmostEqual(found['cosine'], 1 - 3 * found['loss'], places=5)

  def test_what_is_masked_changes_nothing(self):
    rows = batch()
    garbage = {**rows, 'ids': np.where(rows['mask'], rows['ids'], 3)}
    predict = jax.jit(task().predict)
    chex.assert_trees_all_close(*(predict({'params': start().params}, x, None)
                                  for x in (rows, garbage)), atol=1e-6)


class ProviderTest(absltest.TestCase):

  def test_a_token_that_is_everywhere_says_nothing(self):
    ids = np.array([[1, 2, 0], [1, 3, 0], [1, 2, 3], [1, 4, 5]])
    mask = (ids > 0).astype(np.int32)
    service = provider.latent_semantics(
        provider_tokens(ids, mask), 6, 2, common=0.2)
    np.testing.assert_array_equal(service.table[1], 0)
    self.assertAlmostEqual(float(np.linalg.norm(service.common)), 0.2, places=5)
    out = np.asarray(provider.embed(service, ids, mask))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    self.assertGreater(out[0] @ out[2], out[0] @ out[3])
    with self.assertRaisesRegex(ConfigError, 'dim: expected 1 to 3, got 4'):
      provider.latent_semantics(provider_tokens(ids, mask), 6, 4)


def provider_tokens(ids, mask):
  return text.Tokens(ids, mask, 0 * ids)


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'watermark': {'name': 'embmaker'}}, '^watermark.name: expected'),
      ({'watermark': {'nmber': 3}}, "^watermark: unknown key 'nmber'; did you mean 'number'"),
      ({'data': {'dim': 8}}, "^data.name: expected 'files' or a set of texts"),
      ({'data': {'name': 'files', 'train': 'a.npz'}}, '^data.test: missing'),
      ({'data': {'name': 'files', 'train': 'a', 'test': 'b'}}, '^config.watermark: expected none'),
      ({'model': {**MODEL, 'pooler': 'max_pool'}}, '^model.pooler: expected one of'),
      ({'model': {**MODEL, 'width': 0}}, '^model.width: expected at least 1'),
      ({'model': {**MODEL, 'nme': 1}}, "^model: unknown key 'nme'; did you mean 'name'"))
  def test_mistakes_are_found_before_any_data(self, change, message):
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      with self.assertRaisesRegex(ConfigError, message):
        systems.check({**CONFIG, **change})

  def test_bought_files(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    texts = ['a text of words', 'more words', 'a third text']
    for name, dim in (('train', 5), ('test', 5), ('other', 4)):
      files.write_embeddings(folder / f'{name}.npz', texts, RNG.normal(size=(3, dim)))
    data = {'name': 'files', 'train': f'{folder}/train.npz', 'test': f'{folder}/test.npz',
            'max_length': 8}
    config = {'task': 'embmarker', 'model': MODEL, 'data': data}
    made = systems.make_task(config)
    self.assertEqual(made.dataset('train').arrays['embedding'].shape, (3, 5))
    (folder / 'q.txt').write_text('words\na text\n')
    queries = pipeline.columns(embmarker.file_dataset(config, folder / 'q.txt'))
    self.assertEqual(set(queries), {'ids', 'mask'})
    self.assertLen(queries['ids'], 2)
    with self.assertRaisesRegex(ValueError, r'of one width, got \[4, 5\]'):
      systems.make_task({**config, 'data': {**data, 'test': f'{folder}/other.npz'}})


if __name__ == '__main__':
  absltest.main()
