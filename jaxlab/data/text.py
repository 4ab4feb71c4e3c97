"""Token ids of text: tokenizers from local files, padded arrays, batches of like lengths."""
import io
import json
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.config import ConfigError, check_type, require

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
# Argument of BertNormalizer: (key of tokenizer_config.json, type, default).
_NORMALIZER = {'lowercase': ('do_lower_case', bool, True),
               'strip_accents': ('strip_accents', bool | None, None),
               'handle_chinese_chars': ('tokenize_chinese_chars', bool, True)}


class Tokens(NamedTuple):
  """Token ids of N texts or pairs of texts, filled up with padding.

  Attributes:
    ids: int32 [N, T].
    mask: int32 [N, T], 1 on tokens.
    token_type: int32 [N, T], 1 on the second text of a pair where the tokenizer says so.
  """
  ids: np.ndarray
  mask: np.ndarray
  token_type: np.ndarray


def load_tokenizer(path):
  """The tokenizer of a local file or folder, without the truncation and padding it was saved with.

  Args:
    path: a folder with tokenizer.json, vocab.txt (WordPiece) or vocab.json and merges.txt
      (RoBERTa's byte-level BPE), looked for in this order, or a file tokenizer.json or vocab.txt.
      Beside a vocab.txt, tokenizer_config.json may have do_lower_case and tokenize_chinese_chars,
      by default true, and strip_accents, by default as do_lower_case.

  Returns:
    A `tokenizers.Tokenizer`.

  Raises:
    ConfigError: no such files, the package is not installed, or a setting of another type.
    ValueError: files that are no UTF-8, no tokenizer, or lack the special tokens.
  """
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  candidates = [path] if path.is_file() else [
      folder / name for name in ('tokenizer.json', 'vocab.txt', 'vocab.json')]
  found = next((file for file in candidates if file.is_file()), None)
  require(found is not None, 'tokenizer',
          'a folder with tokenizer.json, vocab.txt, or vocab.json and merges.txt', str(path))
  text = _read_utf8(found)
  if found.suffix == '.txt':
    tokenizer = _wordpiece(found, text)
  elif found.name == 'vocab.json':
    tokenizer = _byte_level(found)
  else:
    try:
      tokenizer = _tokenizers().Tokenizer.from_str(text)
    except Exception as error:  # pylint: disable=broad-except  (the package raises bare Exceptions)
      raise ValueError(f'{found}: expected a tokenizer: {error}') from error
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def encode(tokenizer, texts, pairs=None, *, max_length, length=None):
  """Token ids of texts, or of pairs of texts, with the tokenizer's special tokens.

  Args:
    tokenizer: as by `load_tokenizer`.
    texts: sequence of N strings.
    pairs: N second texts, or None. The longer of the two is cut first.
    max_length: most tokens of a row, special ones too.
    length: T; by default that of the longest row.

  Returns:
    Tokens.
  """
  tokenizer.enable_truncation(max_length, strategy='longest_first')
  try:
    rows = tokenizer.encode_batch(list(texts) if pairs is None else list(zip(texts, pairs)))
  finally:
    tokenizer.no_truncation()
  longest = max((len(row.ids) for row in rows), default=0)
  length = longest if length is None else length
  if length < longest:
    raise ValueError(f'length: expected at least {longest}, the longest row, got {length}')
  tokens = Tokens(*(np.full((len(rows), length), value, np.int32)
                    for value in (pad_id(tokenizer), 0, 0)))
  for i, row in enumerate(rows):
    count = len(row.ids)
    tokens.ids[i, :count], tokens.mask[i, :count] = row.ids, 1
    tokens.token_type[i, :count] = row.type_ids
  return tokens


def pad_id(tokenizer):
  """Id of the padding: of '[PAD]' or '<pad>', 0 where there is neither."""
  ids = [tokenizer.token_to_id(token) for token in ('[PAD]', '<pad>')]
  return next((i for i in ids if i is not None), 0)


def check_vocabulary(tokenizer, vocab_size, pad_token_id, where='tokenizer'):
  """Raises ConfigError unless a model's word table has the rows that the tokenizer names."""
  highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
  require(highest < vocab_size, where, f'ids below vocab_size={vocab_size}, the rows of the '
          "model's word table", highest)
  require(pad_id(tokenizer) == pad_token_id, where,
          f"the model's padding id {pad_token_id}", pad_id(tokenizer))


def train_wordpiece(texts, vocab_size, *, lowercase=True):
  """A WordPiece tokenizer, as BERT's, whose vocabulary is learned from some texts.

  Args:
    texts: iterable of strings.
    vocab_size: most entries; characters and special tokens come first.
    lowercase: whether case and accents are dropped.
  """
  t, texts = _tokenizers(), list(texts)
  tokenizer = _bert_pipeline(t.models.WordPiece(unk_token='[UNK]'), lowercase=lowercase)
  found = {c for one in texts for c in tokenizer.normalizer.normalize_str(one) if not c.isspace()}
  # The trainer numbers inner characters in an order that changes from run to run, and breaks ties
  # by these numbers. Told them as special tokens it takes ours, so the vocabulary is reproducible.
  alphabet = [prefix + c for prefix in ('', '##') for c in sorted(found)]
  trainer = t.trainers.WordPieceTrainer(vocab_size=vocab_size, show_progress=False,
                                        special_tokens=[*SPECIAL, *alphabet])
  tokenizer.train_from_iterator(texts, trainer)
  model = t.models.WordPiece(tokenizer.get_vocab(), unk_token='[UNK]')
  tokenizer = _bert_pipeline(model, lowercase=lowercase)
  _add_special_tokens(tokenizer)
  return tokenizer


def bucket(length, buckets=BUCKETS):
  """The smallest bucket that holds `length` tokens.

  >>> bucket(25), bucket(512)
  (32, 512)
  """
  found = next((size for size in buckets if size >= length), None)
  if found is None:
    raise ValueError(f'length: expected at most {buckets[-1]} tokens, got {length}')
  return found


def length_batches(lengths, batch_size, buckets=BUCKETS, *, tokens=None, parts=1):
  """Cuts rows, sorted by length, into batches of equal parts.

  Args:
    lengths: tokens of each row, [N].
    batch_size: most rows of a part.
    buckets: lengths that a batch may have.
    tokens: most tokens of a part, at least one row; None for any number.
    parts: of a batch, say one a device.

  Yields:
    (rows of the batch, its length, rows of a part), from long to short. The last batch of a length
    may have fewer rows than its parts take.

  >>> [(rows.tolist(), *sizes) for rows, *sizes in length_batches([9, 3, 30, 4], 2)]
  [([2, 0], 32, 2), ([3, 1], 8, 2)]
  """
  order = np.argsort(lengths, kind='stable')[::-1]
  while len(order):
    length = bucket(int(lengths[order[0]]), buckets)
    size = batch_size if tokens is None else max(1, min(batch_size, tokens // length))
    yield order[:size * parts], length, size
    order = order[size * parts:]


def _tokenizers():
  try:
    import tokenizers
    import tokenizers.models
    import tokenizers.trainers
  except ImportError as error:
    raise ConfigError("text needs: pip install 'jaxlab[text]'") from error
  return tokenizers


def _read_utf8(path):
  content = path.read_bytes()
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    column = error.start - content.rfind(b'\n', 0, error.start)
    raise ValueError(f'{path}: line {line}, column {column}: expected UTF-8, got byte '
                     f'{content[error.start]:#04x}') from error


def _wordpiece(path, text):
  vocabulary = {}
  for number, line in enumerate(io.StringIO(text), 1):  # a token may have U+2028 in it
    token = line.rstrip('\r\n')
    if token in vocabulary:
      raise ValueError(f'{path}: line {number}: expected each token once, got {token!r} again')
    vocabulary[token] = number - 1
  absent = [token for token in SPECIAL if token not in vocabulary]
  if absent:
    raise ValueError(f'{path}: expected a WordPiece vocabulary, a token a line; it lacks '
                     f'{", ".join(absent)}')
  config = path.with_name('tokenizer_config.json')
  settings = {}
  if config.is_file():
    try:
      settings = json.loads(_read_utf8(config))
    except json.JSONDecodeError as error:
      raise ValueError(f'{config}: line {error.lineno}: expected json: {error.msg}') from error
  check_type(settings, dict, str(config))
  options = {}
  for name, (key, kind, default) in _NORMALIZER.items():
    options[name] = settings.get(key, default)
    check_type(options[name], kind, f'{config}: {key}')
  model = _tokenizers().models.WordPiece(vocabulary, unk_token='[UNK]')
  tokenizer = _bert_pipeline(model, **options)
  _add_special_tokens(tokenizer)
  return tokenizer


def _bert_pipeline(model, **options):
  t = _tokenizers()
  tokenizer = t.Tokenizer(model)
  tokenizer.normalizer = t.normalizers.BertNormalizer(**options)
  tokenizer.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = t.decoders.WordPiece()
  return tokenizer


def _add_special_tokens(tokenizer):
  t = _tokenizers()
  tokenizer.add_special_tokens(list(SPECIAL))
  tokenizer.post_processor = t.processors.BertProcessing(
      ('[SEP]', tokenizer.token_to_id('[SEP]')), ('[CLS]', tokenizer.token_to_id('[CLS]')))


def _byte_level(path):
  merges = path.with_name('merges.txt')
  require(merges.is_file(), 'tokenizer', 'merges.txt beside vocab.json', str(path))
  _read_utf8(merges)
  t = _tokenizers()
  try:
    tokenizer = t.Tokenizer(t.models.BPE.from_file(str(path), str(merges)))
  except Exception as error:  # pylint: disable=broad-except  (the package raises bare Exceptions)
    raise ValueError(f'{path}, {merges}: expected byte-level BPE: {error}') from error
  absent = [token for token in ('<s>', '</s>', '<pad>') if tokenizer.token_to_id(token) is None]
  if absent:
    raise ValueError(f'{path}: expected the vocabulary of RoBERTa; it lacks {", ".join(absent)}')
  tokenizer.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = t.decoders.ByteLevel()
  tokenizer.add_special_tokens([token for token in ('<s>', '<pad>', '</s>', '<unk>', '<mask>')
                                if tokenizer.token_to_id(token) is not None])
  tokenizer.post_processor = t.processors.RobertaProcessing(
      ('</s>', tokenizer.token_to_id('</s>')), ('<s>', tokenizer.token_to_id('<s>')),
      add_prefix_space=False)
  return tokenizer
