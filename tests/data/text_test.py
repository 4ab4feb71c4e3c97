"""Tokenizers: what they do with odd text, padding and truncation, training, broken files."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import text

WORDS = ['a', 'man', 'play', '##ing', 'guitar', 'cafe', '中', '##s', '!']
VOCABULARY = '\n'.join([*text.SPECIAL, *WORDS]) + '\n'


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def write(self, name, content):
    path = self.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

  def words(self, tokenizer, sentence, **kwargs):
    ids = text.encode(tokenizer, [sentence], **{'max_length': 512, **kwargs}).ids[0]
    return [tokenizer.id_to_token(i) for i in ids]

  def test_wordpiece(self):
    self.write('vocab.txt', VOCABULARY)
    tokenizer = text.load_tokenizer(self.folder)
    self.assertEqual(self.words(tokenizer, 'A Man playing\tguitars!'), [
        '[CLS]', 'a', 'man', 'play', '##ing', 'guitar', '##s', '!', '[SEP]'])
    self.assertEqual(self.words(tokenizer, 'Café中\u0000🎸'),
                     ['[CLS]', 'cafe', '中', '[UNK]', '[SEP]'])
    self.assertEqual(self.words(tokenizer, ''), ['[CLS]', '[SEP]'])
    self.assertLen(self.words(tokenizer, 'man ' * 300, max_length=128), 128)
    self.write('tokenizer_config.json', '{"do_lower_case": false}')
    self.assertEqual(self.words(text.load_tokenizer(self.folder), 'Man man'),
                     ['[CLS]', '[UNK]', 'man', '[SEP]'])

  def test_lines_of_a_vocabulary_end_at_newlines_only(self):
    odd = ['x\x85y', '\u2028', 'x\u2029']
    for end in ('\n', '\r\n'):
      path = self.write('vocab.txt', end.join([*text.SPECIAL, *odd, 'b']) + end)
      self.assertEqual(text.load_tokenizer(path).token_to_id('b'), 8)

  def test_settings_beside_a_vocabulary(self):
    path = self.write('vocab.txt', '\n'.join([*text.SPECIAL, 'cafe', 'café', '中', '文', '中文']))
    for settings, expected in (
        ('{"strip_accents": null}', ['cafe', '中', '文']),
        ('{"strip_accents": false}', ['café', '中', '文']),
        ('{"do_lower_case": false, "strip_accents": true}', ['[UNK]', '中', '文']),
        ('{"tokenize_chinese_chars": false}', ['cafe', '中文'])):
      self.write('tokenizer_config.json', settings)
      self.assertEqual(self.words(text.load_tokenizer(path), 'Café 中文')[1:-1], expected)
    for settings, message in (('{"strip_accents": "no"}', 'strip_accents: expected bool'),
                              ('[1]', 'expected dict')):
      self.write('tokenizer_config.json', settings)
      with self.assertRaisesRegex(ConfigError, f'tokenizer_config.json: {message}'):
        text.load_tokenizer(path)

  def test_pairs_and_padding(self):
    self.write('vocab.txt', VOCABULARY)
    tokenizer = text.load_tokenizer(self.folder)
    tokens = text.encode(tokenizer, ['a man', 'a'], ['guitar', 'a man man man'], max_length=6)
    np.testing.assert_array_equal(tokens.ids, [[2, 5, 6, 3, 9, 3], [2, 5, 3, 5, 6, 3]])
    np.testing.assert_array_equal(tokens.token_type, [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]])
    tokens = text.encode(tokenizer, ['a', 'a man'], max_length=6, length=5)
    np.testing.assert_array_equal(tokens.mask, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    with self.assertRaisesRegex(ValueError, 'length: expected at least 4'):
      text.encode(tokenizer, ['a man'], max_length=6, length=3)

  def test_saved_padding_and_truncation_are_not_obeyed(self):
    tokenizer = text.train_wordpiece(['a man plays a guitar'], 60)
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(self.folder / 'tokenizer.json'))
    tokens = text.encode(text.load_tokenizer(self.folder), ['a man plays a guitar'], max_length=99)
    self.assertEqual((tokens.ids.shape, tokens.mask.min()), ((1, 7), 1))

  def test_byte_level(self):
    from tokenizers import ByteLevelBPETokenizer
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(['a man plays a guitar'] * 3, vocab_size=280, show_progress=False,
                                special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'])
    trained.save_model(str(self.folder))
    tokenizer = text.load_tokenizer(self.folder)
    tokens = text.encode(tokenizer, ['é man', 'a man a man'], ['guitar', ''], max_length=50)
    self.assertEqual(tokens.ids[:, 0].tolist(), [0, 0])
    self.assertEqual(tokens.token_type.max(), 0)
    self.assertEqual((tokens.ids[0] == 2).sum(), 3)  # <s> A </s></s> B </s>
    self.assertEqual(text.pad_id(tokenizer), 1)
    (self.folder / 'merges.txt').write_text('no merges at all\n')
    with self.assertRaisesRegex(ValueError, 'merges.txt: expected byte-level BPE'):
      text.load_tokenizer(self.folder)
    (self.folder / 'merges.txt').unlink()
    with self.assertRaisesRegex(ConfigError, 'tokenizer: expected merges.txt beside vocab.json'):
      text.load_tokenizer(self.folder)

  @parameterized.parameters(
      ('vocab.txt', b'[PAD]\n[UNK]\n\xff\n', 'vocab.txt: line 3, column 1: expected UTF-8.*0xff'),
      ('vocab.txt', b'[PAD]\n[UNK]\n', r'lacks \[CLS\], \[SEP\], \[MASK\]'),
      ('vocab.txt', b'[PAD]\n[UNK]\n[UNK]\n', "line 3: expected each token once, got '.UNK.'"),
      ('tokenizer.json', b'{"model": ', 'tokenizer.json: expected a tokenizer'),
      ('tokenizer.json', b'{"a"\n: "\xc3\x28"}', 'json: line 2, column 4: expected UTF-8'))
  def test_broken_files(self, name, content, message):
    self.write(name, content)
    with self.assertRaisesRegex(ValueError, message):
      text.load_tokenizer(self.folder)

  def test_nothing_there(self):
    with self.assertRaisesRegex(ConfigError, 'tokenizer: expected a folder with tokenizer.json'):
      text.load_tokenizer(self.folder)

  def test_another_vocabulary_than_the_model(self):
    tokenizer = text.load_tokenizer(self.write('vocab.txt', VOCABULARY))
    text.check_vocabulary(tokenizer, 14, 0)
    with self.assertRaisesRegex(ConfigError, 'tokenizer: expected ids below vocab_size=13'):
      text.check_vocabulary(tokenizer, 13, 0)
    with self.assertRaisesRegex(ConfigError, "the model's padding id 1, got 0"):
      text.check_vocabulary(tokenizer, 14, 1)


class TrainTest(absltest.TestCase):

  def test_the_same_texts_make_the_same_vocabulary(self):
    texts = [f'{a} plays the {b}' for a in ('man', 'woman', 'child') for b in ('guitar', 'piano')]
    first, second = (text.train_wordpiece(texts, 70) for _ in range(2))
    self.assertEqual(first.get_vocab(), second.get_vocab())
    self.assertLessEqual(first.get_vocab_size(), 70)
    self.assertEqual([first.token_to_id(token) for token in text.SPECIAL], list(range(5)))

  def test_batches_have_few_tokens_and_every_row_once_from_long_to_short(self):
    lengths = np.random.default_rng(0).integers(1, 41, 50)
    for tokens in (64, None):
      batches = list(text.length_batches(lengths, 6, (16, 40), tokens=tokens, parts=2))
      np.testing.assert_array_equal(np.sort(np.concatenate([b[0] for b in batches])), range(50))
      for rows, length, size in batches:
        self.assertEqual(length, text.bucket(lengths[rows].max(), (16, 40)))
        self.assertLessEqual(len(rows), 2 * size)
        self.assertEqual(size, 6 if tokens is None else {16: 4, 40: 1}[length])
      order = [length for _, length, _ in batches]
      self.assertEqual(order, sorted(order, reverse=True))
    with self.assertRaisesRegex(ValueError, 'length: expected at most 40 tokens, got 41'):
      list(text.length_batches(np.array([41]), 6, (16, 40)))
    with self.assertRaisesRegex(ValueError, 'length: expected at most 512 tokens, got 600'):
      text.bucket(600)


if __name__ == '__main__':
  absltest.main()
