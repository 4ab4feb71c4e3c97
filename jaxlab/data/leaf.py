"""FEMNIST and Shakespeare, partitioned by writer and by speaking role: LEAF json and TFF SQLite.

LEAF (arXiv 1812.01097) publishes scripts that write `train/*.json` and `test/*.json`, each
{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}. TensorFlow
Federated publishes SQLite files whose table examples(split_name, client_id,
serialized_example_proto) holds tf.train.Example protos. Of both, the rows of a user stand
together, and 'user' is an index into `builder.info.metadata['users']`, the same in both splits.
"""
import contextlib
import dataclasses
import itertools
import json
import pathlib
import sqlite3
import tempfile

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.config import ConfigError
from jaxlab.data import characters, leaf_demo, tfrecord
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.data.rows import parse_rows

LENGTH = 80  # characters of a LEAF row and of a sequence
FEMNIST_CLASSES = 62


@dataclasses.dataclass(eq=False, kw_only=True)
class LeafConfig(tfds.core.BuilderConfig):
  """A published form of the data.

  Attributes:
    source: path in the folder of official files: a folder with train/*.json and test/*.json, or a
      file *.sqlite.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  source: str
  on_bad_row: str = 'raise'


class _Leaf(ArrayRecordBuilder, skip_registration=True):
  """What the two data sets share; a data set says how a row of each form is read."""

  def _features(self):
    raise NotImplementedError

  def _write_demo(self, folder):
    """Writes the demo as LEAF's files into a folder."""
    raise NotImplementedError

  def _from_json(self, rows):
    """Examples with 'user' a name, from (where, user, x, y)."""
    raise NotImplementedError

  def _from_sqlite(self, rows):
    """Likewise, from (where, user, proto)."""
    raise NotImplementedError

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description=self.__doc__,
        features=tfds.features.FeaturesDict({**self._features(), 'user': np.int32}),
        metadata=tfds.core.MetadataDict(),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    manual_dir = None if self.builder_config.name == 'demo' else dl_manager.manual_dir
    ids = {}  # user -> index, in the order of appearance
    return {split: self._generate_examples(manual_dir, split, ids) for split in ('train', 'test')}

  def _generate_examples(self, manual_dir, split, ids):
    with contextlib.ExitStack() as stack:
      if manual_dir is None:
        manual_dir = stack.enter_context(tempfile.TemporaryDirectory())
        self._write_demo(pathlib.Path(manual_dir, self.builder_config.source))
      source = pathlib.Path(manual_dir, self.builder_config.source)
      if source.suffix == '.sqlite':
        examples = self._from_sqlite(read_sqlite(source, split))
      else:
        examples = self._from_json(read_json(source, split))
      for key, example in enumerate(examples):
        yield key, {**example, 'user': ids.setdefault(example['user'], len(ids))}
    self.info.metadata['users'] = list(ids)

  def _parse(self, rows, parse):
    return parse_rows(rows, parse, on_bad_row=self.builder_config.on_bad_row, where=self.name)


class Femnist(_Leaf):
  """Handwritten characters of EMNIST (arXiv 1702.05373) by their writers.

  'image' is float32 [28, 28], from 0 for ink to 1 for paper; 'label' is 0..61: ten digits, upper
  case, lower case. 'demo' is scikit-learn's handwritten digits, enlarged, dealt to 20 writers who
  each press a pen of their own.
  """

  BUILDER_CONFIGS = [
      LeafConfig(name='leaf', source='femnist', description="LEAF's json."),
      LeafConfig(name='tff', source='emnist_all.sqlite', description="TFF's SQLite, 3400 writers."),
      LeafConfig(name='demo', source='femnist', description='Enlarged digits of scikit-learn.'),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Config 'leaf': the folders data/train and data/test that LEAF's data/femnist/preprocess.sh "
      'writes (https://leaf.cmu.edu), as femnist/train and femnist/test. '
      "Config 'tff': emnist_all.sqlite, decompressed, from "
      'https://storage.googleapis.com/tff-datasets-public/emnist_all.sqlite.lzma.')

  def _features(self):
    return {
        'image': tfds.features.Tensor(shape=(28, 28), dtype=np.float32),
        'label': tfds.features.ClassLabel(num_classes=FEMNIST_CLASSES)
    }

  def _write_demo(self, folder):
    leaf_demo.write_femnist(folder)

  def _from_json(self, rows):
    return self._parse(rows, _femnist_row)

  def _from_sqlite(self, rows):
    decode = tfrecord.example_parser({'pixels': ((28, 28), np.float32), 'label': ((), np.int64)})

    def parse(where, user, proto):
      row = decode(proto, where)
      return _femnist_row(where, user, row['pixels'].ravel(), row['label'], x='pixels', y='label')

    return self._parse(rows, parse)


class Shakespeare(_Leaf):
  """Lines of Shakespeare by speaking role, as sequences of 80 characters to predict the next of.

  'input' and 'target' are token ids uint8 [80], see `characters`: target t is the character after
  input t. LEAF's rows are windows of 80 characters and the one that follows, ids of
  `characters.LEAF`. Of TFF's, each snippet of a role becomes BOS, characters, EOS; these are joined
  and cut in sequences, the last filled up with PAD; ids of `characters.TFF`. 'demo' is not
  Shakespeare: real text that is at hand, the docstrings of installed packages, each module a
  speaker, in windows that do not overlap, as LEAF's json.
  """

  BUILDER_CONFIGS = [
      LeafConfig(name='leaf', source='shakespeare', description="LEAF's json."),
      LeafConfig(name='tff', source='shakespeare.sqlite', description="TFF's SQLite, 715 roles."),
      LeafConfig(name='demo', source='shakespeare', description='Docstrings, a module a speaker.'),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Config 'leaf': the folders data/train and data/test that LEAF's "
      'data/shakespeare/preprocess.sh writes (https://leaf.cmu.edu), as shakespeare/train and '
      "shakespeare/test. Config 'tff': shakespeare.sqlite, decompressed, from "
      'https://storage.googleapis.com/tff-datasets-public/shakespeare.sqlite.lzma.')

  def _features(self):
    return {name: tfds.features.Tensor(shape=(LENGTH,), dtype=np.uint8)
            for name in ('input', 'target')}

  def _write_demo(self, folder):
    leaf_demo.write_shakespeare(folder, LENGTH)

  def _from_json(self, rows):
    return self._parse(rows, _shakespeare_row)

  def _from_sqlite(self, rows):
    decode = tfrecord.example_parser({'snippets': ((), np.object_)})

    def parse(where, user, proto):
      text = decode(proto, where)['snippets'].decode('latin-1')  # ids are of bytes
      tokens = characters.encode(text, characters.TFF)
      return user, [characters.BOS, *tokens, characters.EOS]

    for user, snippets in itertools.groupby(self._parse(rows, parse), key=lambda row: row[0]):
      tokens = np.concatenate([tokens for _, tokens in snippets])
      for pair in sequences(tokens):
        yield {**pair, 'user': user}


def sequences(tokens, length=LENGTH):
  """Yields {'input', 'target'} uint8 [length] of a stream of tokens; the last is padded with PAD.

  >>> [pair['target'].tolist() for pair in sequences([1, 5, 6, 2], 2)]
  [[5, 6], [2, 0]]
  """
  pad = -(len(tokens) - 1) % length
  pairs = np.stack([tokens[:-1], tokens[1:]]).astype(np.uint8)
  pairs = np.pad(pairs, ((0, 0), (0, pad)), constant_values=characters.PAD)
  for x, y in pairs.reshape(2, -1, length).swapaxes(0, 1):
    yield {'input': x, 'target': y}


def read_json(folder, split):
  """Yields (where, user, x, y) of every row of LEAF's folder/split/*.json, file by file.

  Raises:
    ConfigError: there are no such files.
    ValueError: a file is no json or lacks a part; the message names file and key.
  """
  paths = sorted(pathlib.Path(folder, split).glob('*.json'))
  if not paths:
    raise ConfigError(f'{folder}/{split}: expected json files of LEAF, found none')
  for path in paths:
    content = _load_json(path)
    users, sizes, data = (_get(content, key, kind, path) for key, kind in (
        ('users', list), ('num_samples', list), ('user_data', dict)))
    if len(users) != len(sizes):
      raise ValueError(f'{path}: num_samples: expected {len(users)}, one a user, got {len(sizes)}')
    for user, size in zip(users, sizes):
      where = f'{path}: user {user!r}'
      rows = _get(data, user, dict, f'{path}: user_data')
      x, y = (_get(rows, key, list, where) for key in 'xy')
      if not len(x) == len(y) == size:
        raise ValueError(f'{where}: expected {size} x and y (num_samples), got {len(x)} x and '
                         f'{len(y)} y')
      for row, pair in enumerate(zip(x, y)):
        yield f'{where}: row {row}', user, *pair


def read_sqlite(path, split):
  """Yields (where, user, proto) of the rows of a split of TFF's SQLite file, sorted by user.

  Raises:
    ConfigError: there is no such file.
    ValueError: it is no SQLite file, or lacks the table, its columns or the split.
  """
  if not path.exists():
    raise ConfigError(f'{path}: no such file')
  query = ('SELECT rowid, client_id, serialized_example_proto FROM examples '
           'WHERE split_name = ? ORDER BY client_id, rowid')
  empty = True
  with contextlib.closing(sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro', uri=True)) as file:
    try:
      for row, user, proto in file.execute(query, (split,)):
        empty = False
        user = user.decode() if isinstance(user, bytes) else user
        yield f'{path}: user {user!r}: row {row}', user, proto
    except sqlite3.Error as error:
      raise ValueError(f'{path}: expected an SQLite file with a table examples(split_name, '
                       f'client_id, serialized_example_proto): {error}') from error
  if empty:
    raise ValueError(f'{path}: split_name: expected rows of {split!r}, found none')


def _load_json(path):
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: line {error.lineno}, column {error.colno}: expected json: '
                     f'{error.msg}') from error
  if not isinstance(content, dict):
    raise ValueError(f'{path}: expected a json object, got {type(content).__name__}')
  return content


def _get(mapping, key, kind, where):
  if key not in mapping:
    raise ValueError(f'{where}: {key}: missing')
  if not isinstance(mapping[key], kind):
    raise ValueError(f'{where}: {key}: expected {kind.__name__}, got '
                     f'{type(mapping[key]).__name__}')
  return mapping[key]


def _femnist_row(where, user, pixels, label, x='x', y='y'):
  try:
    image = np.asarray(pixels, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{where}: {x}: expected numbers: {error}') from error
  if image.shape != (784,):
    raise ValueError(f'{where}: {x}: expected 784 numbers, got shape {image.shape}')
  if not ((image >= 0) & (image <= 1)).all():
    raise ValueError(f'{where}: {x}: expected numbers in [0, 1], got {image.min()}..{image.max()}')
  if type(label) is not int or not 0 <= label < FEMNIST_CLASSES:
    raise ValueError(f'{where}: {y}: expected an integer 0..{FEMNIST_CLASSES - 1}, got {label!r}')
  return {'image': image.reshape(28, 28), 'label': label, 'user': user}


def _shakespeare_row(where, user, x, y):
  for key, value, length in (('x', x, LENGTH), ('y', y, 1)):
    if not isinstance(value, str) or len(value) != length:
      got = f'{len(value)}' if isinstance(value, str) else type(value).__name__
      raise ValueError(f'{where}: {key}: expected a string of {length} characters, got {got}')
  tokens = characters.encode(x + y, characters.LEAF)
  return {'input': tokens[:-1], 'target': tokens[1:], 'user': user}
