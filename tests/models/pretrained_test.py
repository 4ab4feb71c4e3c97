"""The files by which sentence-transformers opens an encoder's folder."""
import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import text
from jaxlab.models import bert, bert_weights, pretrained
from jaxlab.models.bert_config import BertConfig

SMALL = BertConfig(40, 8, 1, 2, 8, max_position_embeddings=16, add_pooler=False)


class SentenceTransformersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  @parameterized.parameters(('cls', 'cls_token'), ('mean', 'mean_tokens'), ('max', 'max_tokens'))
  def test_what_the_files_say(self, pooler, mode):
    tokenizer = text.train_wordpiece(['some words to learn'], 40)
    params = jax.jit(bert.Bert(SMALL).init)(jax.random.key(0), np.ones((1, 4), np.int32))['params']
    bert_weights.save(self.folder, params, bert.Bert(SMALL), tokenizer_from=tokenizer)
    pretrained.write_sentence_transformers_folder(self.folder, pooler, width=8, max_length=12)
    read = lambda name: json.loads((self.folder / name).read_text())
    modules = read('modules.json')
    self.assertEqual([m['type'].split('.')[-1] for m in modules],
                     ['Transformer', 'Pooling', 'Normalize'])
    for number, module in enumerate(modules):
      self.assertEqual((module['idx'], module['name']), (number, str(number)))
      self.assertTrue((self.folder / module['path']).is_dir())
    pooling = read('1_Pooling/config.json')
    self.assertEqual(pooling.pop('word_embedding_dimension'), 8)
    self.assertEqual([name for name, used in pooling.items() if used], [f'pooling_mode_{mode}'])
    self.assertEqual(read('sentence_bert_config.json')['max_seq_length'], 12)
    described = read('tokenizer_config.json')
    self.assertEqual((described['pad_token'], described['cls_token'], described['mask_token']),
                     ('[PAD]', '[CLS]', '[MASK]'))
    found, _ = bert_weights.load(self.folder, add_pooler=False)
    self.assertEqual(found.config, SMALL)
    self.assertEqual(text.load_tokenizer(self.folder).encode('some words').ids,
                     tokenizer.encode('some words').ids)

  def test_a_tokenizer_config_that_is_there_stays(self):
    (self.folder / 'tokenizer_config.json').write_text('{"mine": 1}')
    pretrained.write_sentence_transformers_folder(self.folder, 'mean', width=8, max_length=12)
    self.assertEqual((self.folder / 'tokenizer_config.json').read_text(), '{"mine": 1}')

  def test_a_pooler_that_it_does_not_know(self):
    with self.assertRaisesRegex(ConfigError, "^pooler: expected one of cls, .*'first_last_avg'"):
      pretrained.write_sentence_transformers_folder(self.folder, 'first_last_avg', width=8,
                                                    max_length=12)


class StoredTensorTest(absltest.TestCase):

  def test_it_is_read_when_its_values_are_asked_for(self):
    with tempfile.TemporaryDirectory() as folder:
      values = np.arange(6, dtype=np.float16).reshape(2, 3)
      pretrained.write_safetensors_folder(folder, {'a': values, 'b': values + 1}, {})
      stored = pretrained.open_safetensors_folder(folder, np.float32)
      file = mock.Mock(wraps=stored['a']._file)
      turned = pretrained.StoredTensor(file, 'a', np.float32).T
      self.assertEqual((turned.shape, turned.T.shape), ((3, 2), (2, 3)))
      file.get_tensor.assert_not_called()
      np.testing.assert_array_equal(turned, values.T)
      file.get_tensor.assert_called_once_with('a')
      self.assertEqual(np.stack([stored['a'], stored['b']]).dtype, np.float32)
      found = pretrained.read_safetensors_folder(folder)
      self.assertEqual((found['b'].dtype, found['b'][1, 2]), (np.float16, 6))


if __name__ == '__main__':
  absltest.main()
