"""Snippets of pages: the cache, both stages, windows, the verb, and what it refuses."""
import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import text
from jaxlab.models import bert_weights
from jaxlab.models.bert import Bert
from jaxlab.systems import deepqse
from jaxlab.systems.deepqse import data as data_lib
from jaxlab.systems.deepqse import snippet
from jaxlab.systems.deepqse import task as task_lib
from jaxlab.systems.deepqse.page import Page

SENTENCES = ('Cats sleep all day.', 'Dogs bark at night.', 'Rome is a city.', 'Cats eat fish.',
             'It rains.')
PAGE = Page('About cats', SENTENCES)
ENCODER = {'name': 'bert-tiny', 'num_hidden_layers': 1, 'hidden_size': 8, 'num_attention_heads': 2,
           'intermediate_size': 16}


class SnippetTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    text.train_wordpiece(SENTENCES, 60).save(str(self.folder / 'tokenizer.json'))
    self.config = {
        'task': 'deepqse', 'model': {'kind': 'efficient', 'candidates': 2, **ENCODER},
        'data': {'max_sentences': 3, 'max_query': 6, 'max_title': 6, 'max_sentence': 8,
                 'tokenizer': str(self.folder)},
        'predict': {'query': 'what do cats eat', 'sentences': 2}}

  def make(self, kind='efficient'):
    """(config, params) of a kind, without data."""
    config = {**self.config, 'model': {**self.config['model'], 'kind': kind}}
    networks, tokenizer, _ = task_lib.prepare(config)
    _, data, _, _ = task_lib.check(config)
    rows = data_lib.columns(tokenizer, data, [deepqse.formats.Example(
        'cats', PAGE.title, SENTENCES[:3], 0)], ('en',))
    task = task_lib.from_networks(networks, {'train': rows})
    return config, jax.jit(task.init)(jax.random.key(0))['params'], task, rows

  def test_two_stages(self):
    config, params, task, rows = self.make()
    extractor = deepqse.make_extractor(config, params)
    cache = {}
    windows = deepqse.open_page(extractor, PAGE, cache)
    self.assertLen(windows, 2)  # of three and of two sentences
    with mock.patch.object(snippet, 'encode_sentences', side_effect=AssertionError('encodes')):
      self.assertIs(deepqse.open_page(extractor, PAGE, cache), windows)
      # Nothing of the page is encoded again for another query, which is answered otherwise.
      scores = [snippet.score(extractor, windows, query) for query in ('cats', 'rome city')]
      self.assertNotEqual(*scores)
      with self.assertRaisesRegex(AssertionError, 'encodes'):
        deepqse.open_page(extractor, PAGE._replace(title='Other'), cache)
      with self.assertRaisesRegex(AssertionError, 'encodes'):
        deepqse.open_page(extractor._replace(version=extractor.version + 1), PAGE, cache)
    # The cached path gives the scores of the Task.
    ids = data_lib.piece(extractor.tokenizer, ['cats'], 6)
    chosen, fine, coarse = snippet.two_stages(extractor.networks, params, windows[0], ids)
    expected = jax.jit(task.predict)({'params': params}, rows, None)
    np.testing.assert_allclose(coarse, expected['coarse'][0], atol=1e-5)
    np.testing.assert_allclose(fine, expected['scores'][0][chosen], atol=1e-5)
    found = deepqse.extract(extractor, PAGE, 'cats', sentences=2, cache=cache)
    best = sorted(scores[0], key=scores[0].get)[-2:]
    self.assertEqual([i for i, _ in found], sorted(best))

  @parameterized.parameters('joint', 'efficient')
  def test_the_verb(self, kind):
    config, params, _, _ = self.make(kind)
    pages = self.folder / 'pages'
    pages.mkdir()
    body = ''.join(f'<p>{sentence}' for sentence in SENTENCES)
    (pages / 'a.html').write_text(f'<title>About cats</title>{body}')
    (pages / 'b.txt').write_text('Rome\n\nRome is a city.')
    with mock.patch('builtins.print') as shown:
      deepqse.predict_input(config, params, pages, self.folder / 'out.jsonl')
    lines = [json.loads(line) for line in (self.folder / 'out.jsonl').read_text().splitlines()]
    self.assertEqual([line['page'] for line in lines], ['a.html', 'b.txt'])
    self.assertLen(lines[0]['snippet'], 2)
    self.assertLen(lines[1]['snippet'], 1)
    for part in lines[0]['snippet']:
      self.assertEqual(part['text'], SENTENCES[part['sentence']])
      for start, end in part['highlights']:
        self.assertIn(part['text'][start:end].lower(), ('cats', 'eat'))
    self.assertIn('Rome is a city.', shown.call_args_list[1].args[0])

  def test_the_official_names(self):
    for kind, prefixes in (('joint', ('',)), ('efficient', ('coarse.', 'fine.'))):
      config, params, _, _ = self.make(kind)
      read, write = deepqse.official_weights(config, params)
      state = write(params)
      for prefix in prefixes:
        self.assertIn(f'{prefix}pred_linear.0.weight', state)
      jax.tree.map(np.testing.assert_array_equal, read(state), params)
    with self.assertRaisesRegex(ConfigError, '--input: expected names that begin with coarse.'):
      read({**state, 'pred_linear.0.weight': np.zeros(1)})
    with self.assertRaisesRegex(ValueError, 'bias is missing'):
      read({name: array for name, array in state.items() if name != 'fine.pred_linear.0.bias'})
    with self.assertRaisesRegex(ConfigError, "model.context: expected 'query'"):
      deepqse.official_weights({**config, 'model': {**config['model'], 'context': 'sentences'}},
                               params)

  def test_what_is_refused(self):
    predict = lambda config, **paths: deepqse.predict_input(
        config, {}, paths.get('path', 'a.html'), paths.get('output', 'out.jsonl'))
    with self.assertRaisesRegex(ConfigError, 'predict.query: expected what was searched for'):
      predict({**self.config, 'predict': {}})
    with self.assertRaisesRegex(ConfigError, '--output: expected a file ending in .jsonl'):
      predict(self.config, output='out.txt')
    (self.folder / 'empty.html').write_text('<body></body>')
    with self.assertRaisesRegex(ValueError, 'empty.html: expected a page with text'):
      predict(self.config, path=self.folder / 'empty.html')
    (self.folder / 'latin.txt').write_bytes(b'Title\ncaf\xe9')
    with self.assertRaisesRegex(ValueError, 'line 2, column 4: expected UTF-8, got byte 0xe9'):
      predict(self.config, path=self.folder / 'latin.txt')

  def test_broken_tokenizers_and_weights(self):
    config, _, _, _ = self.make()
    model = task_lib.prepare(config)[0].coarse
    tokenizer = text.load_tokenizer(self.folder)
    encoder = Bert(dataclasses.replace(model.config, vocab_size=tokenizer.get_vocab_size()))
    params = jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, 4), np.int32))['params']
    weights = self.folder / 'weights'
    bert_weights.save(weights, params, encoder, tokenizer_from=self.folder)
    pretrained = {**config, 'model': {'kind': 'efficient', 'candidates': 2, 'layers': 1,
                                      'folder': str(weights)}}
    self.assertEqual(task_lib.prepare(pretrained)[0].coarse.config.num_hidden_layers, 1)
    (self.folder / 'tokenizer.json').write_text('{"version": ')
    with self.assertRaisesRegex(ValueError, 'tokenizer.json: expected a tokenizer'):
      task_lib.prepare(config)
    other = text.train_wordpiece([*SENTENCES, 'Quizzical jackdaws vex my big sphinx'], 400)
    other.save(str(self.folder / 'tokenizer.json'))
    with self.assertRaisesRegex(ConfigError, 'tokenizer: expected ids below vocab_size='):
      task_lib.prepare(pretrained)
    (weights / 'model.safetensors').write_bytes(b'broken')
    with self.assertRaisesRegex(ValueError, 'expected a safetensors file'):
      task_lib.prepare(pretrained)
    (weights / 'model.safetensors').unlink()
    with self.assertRaisesRegex(ConfigError, 'expected model.safetensors or'):
      task_lib.prepare(pretrained)


if __name__ == '__main__':
  absltest.main()
