"""Click logs as TFDS builders, and as the rows of ids that the models read.

A builder streams a text file once a split and writes its tokens; what the tokens become (vocabulary
or hashing, integers as buckets or numbers) is settled when a run loads them.
"""
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import zlib
from typing import Literal, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds

from jaxlab import config as config_lib
from jaxlab.data import builders, documents, pipeline
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.data.rows import parse_rows
from jaxlab.systems.xdeepfm import demo, formats, vocabulary

BLOCK = 8192  # rows that are read at a time where a whole split is looked through
DEMO_ROWS, DEMO_GROUPS = 25_000, 500
SPLITS = {'train': (0.0, 0.8), 'validation': (0.8, 0.9), 'test': (0.9, 1.0)}


@dataclasses.dataclass(eq=False, kw_only=True)
class LogConfig(tfds.core.BuilderConfig):
  """A file of clicks.

  Attributes:
    source: its path, or that in the folder of official files; '' for the demo.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  source: str
  on_bad_row: str = 'raise'


def split_draws(count, start=0):
  """Uniform numbers [count] of the rows from `start`: those that split a file at random, 8:1:1."""
  numbers = np.arange(start, start + count, dtype=np.int64)
  return vocabulary.mix(numbers) / 2.0**64


class _Log(ArrayRecordBuilder, skip_registration=True):
  """What the builders share: splits by the number of the row, rows parsed one by one."""

  def _features(self):
    raise NotImplementedError

  def _read(self, path):
    """Yields the arguments of `_parse` of the rows of a file."""
    raise NotImplementedError

  def _parse(self, where, row):
    raise NotImplementedError

  def _write_demo(self, path):
    raise NotImplementedError

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, description=self.__doc__,
                                 features=tfds.features.FeaturesDict(self._features()),
                                 disable_shuffling=True)

  def _split_generators(self, dl_manager):
    source = self.builder_config.source
    if source and not os.path.isabs(source):
      source = dl_manager.manual_dir / source
    return {split: self._generate_examples(source, *bounds) for split, bounds in SPLITS.items()}

  def _generate_examples(self, source, low, high):
    if not source:
      with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'demo.txt'
        self._write_demo(path)
        yield from self._generate_examples(path, low, high)
      return
    rows = parse_rows(_of_split(self._read(source), low, high), self._parse,
                      on_bad_row=self.builder_config.on_bad_row, where=self.name)
    yield from enumerate(rows)


def _of_split(rows, low, high):
  """The rows whose draw is in [low, high)."""
  draws = np.zeros(0)
  for number, row in enumerate(rows):
    if not number % BLOCK:
      draws = split_draws(BLOCK, number)
    if low <= draws[number % BLOCK] < high:
      yield row


def _token_features(fields):
  return {'label': np.int8, 'tokens': tfds.features.Tensor(shape=(fields,), dtype=np.int64)}


class Criteo(_Log):
  """Criteo's display advertising challenge: 13 integers and 26 hashed categories, 45.8 M rows.

  'tokens' are the integers and the categories as numbers, `formats.ABSENT` where empty.
  """

  BUILDER_CONFIGS = [LogConfig(name='kaggle', source='criteo/train.txt',
                               description='train.txt of the challenge.')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'train.txt of the Criteo Display Advertising Challenge '
      '(https://ailab.criteo.com/ressources/), as criteo/train.txt.')

  def _features(self):
    return _token_features(len(formats.CRITEO))

  def _read(self, path):
    return formats.read_criteo(path)

  def _parse(self, where, row):
    return formats.criteo_row(where, row)


class Avazu(_Log):
  """Avazu's click-through challenge: 40.4 M rows, the hour taken apart, the id left out."""

  BUILDER_CONFIGS = [LogConfig(name='kaggle', source='avazu/train',
                               description='train of the challenge.')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'train, unpacked, of https://www.kaggle.com/c/avazu-ctr-prediction, as avazu/train.')

  def _features(self):
    return _token_features(len(formats.AVAZU))

  def _read(self, path):
    return formats.read_avazu(path)

  def _parse(self, where, row):
    return formats.avazu_row(where, row)


class Libffm(_Log):
  """Rows `<label> <field>:<feature>:<value> ...[%<group>]` with any number of pairs a field.

  'group' is a hash of the text after '%', 0 where there is none. 'demo' is a made-up world of six
  fields in which a product of three hidden signs decides, see `demo`.
  """

  BUILDER_CONFIGS = [
      LogConfig(name='demo', source='', description='A planted cross of three fields.'),
      LogConfig(name='file', source='libffm/train.txt', description='A file of that format.')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'A libffm-like file as libffm/train.txt.'

  def _features(self):
    ragged = lambda dtype: tfds.features.Tensor(shape=(None,), dtype=dtype)
    return {'label': np.int8, 'field': ragged(np.int32), 'feature': ragged(np.int32),
            'value': ragged(np.float32), 'group': np.int64}

  def _read(self, path):
    return documents.read_lines(path)

  def _parse(self, where, row):
    row = formats.libffm_row(where, row)
    return {**row, 'group': group_number(row['group'])}

  def _write_demo(self, path):
    demo.write(path, demo.make(0, DEMO_ROWS), groups=DEMO_GROUPS)


def group_number(text):
  """A number of 63 bits for a group; 0 for none."""
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return np.int64(int.from_bytes(digest, 'little') >> 1) if text else np.int64(0)


class Source(NamedTuple):
  """A data set that a config can name.

  Attributes:
    builder: its class.
    config: name of the builder's config for the official files.
    fields: number of integer fields, and of categorical ones; None for libffm.
  """
  builder: type
  config: str
  fields: tuple[int, int] | None


SOURCES = {
    'criteo': Source(Criteo, 'kaggle', (len(formats.INTEGERS), len(formats.CATEGORIES))),
    'avazu': Source(Avazu, 'kaggle', (0, len(formats.AVAZU))),
    'libffm': Source(Libffm, 'file', None),
    'ctr_demo': Source(Libffm, 'demo', None),
}
builders.BUILDERS.update({
    name: f'{__name__}:{source.builder.__name__}' for name, source in SOURCES.items()
})


class Layout(NamedTuple):
  """What a model must know of the rows.

  Attributes:
    num_features: V.
    num_fields: m.
    slots: K, pairs of a row.
    univalent: slot f is field f with value 1: rows have no 'field' and 'values'.
    numeric: n, numbers beside the fields.
  """
  num_features: int
  num_fields: int
  slots: int
  univalent: bool
  numeric: int = 0


def load(*, name: str, file: str = '', train: str = 'train',
         validation: str = 'validation', test: str = 'test', min_count: int = 5,
         buckets: int = 0, integers: Literal['bucket', 'vector', 'dense'] = 'bucket',
         rare: Literal['one', 'count'] = 'one', count_on: str = '', stream: bool = False):
  """Prepares a data set where needed and reads it.

  Args:
    name: a data set of `SOURCES`.
    file: a file of that format instead of the official one; '' for none.
    train: TFDS split, such as 'train' or 'train+validation[:50%]'.
    validation: likewise.
    test: likewise.
    min_count: times that a category must occur to have an id of its own.
    buckets: instead of a vocabulary, this many hashed ids a field; 0 for a vocabulary.
    integers: what Criteo's integers become: categories by `integer_bucket`; a field each whose
      vector is multiplied by the number; or plain numbers for the linear part and the DNN. Numbers
      are scaled to sign(v) ln(1 + |v|) / 10, 0 where absent.
    rare: see `vocabulary.from_counts`.
    count_on: split that is counted, `train` by default.
    stream: reads examples from disk as they are needed, for data larger than memory.

  Returns:
    (Layout, {split: grain.MapDataset of {'label', 'ids', ...}}, encode), where `encode` makes
    columns of ids from columns of tokens or padded pairs.
  """
  builder = _builder(name, file)
  splits = {'train': train, 'validation': validation, 'test': test}
  if SOURCES[name].fields is None:
    layout = _cached(builder, 'layout', {'splits': splits}, lambda: _pair_layout(builder, splits))
    encode = lambda columns: encode_pairs(columns, layout)
  else:
    words = _vocabulary(builder, name, min_count, buckets, integers, rare, count_on or train)
    layout, encode = token_encoder(words, SOURCES[name].fields, integers)
  read = _stream if stream else _in_memory
  datasets = {key: read(builder, split, layout, encode) for key, split in splits.items()}
  return layout, datasets, encode


def _builder(name, file):
  source = SOURCES[name]
  if not file:
    return builders.load(name, config=source.config)
  path = pathlib.Path(file).expanduser().absolute()
  config_lib.require(path.is_file(), 'data.file', 'a file', str(file))
  # What was prepared belongs to these bytes: a file that changes is another data set.
  status = path.stat()
  version = zlib.crc32(f'{path} {status.st_size} {status.st_mtime_ns}'.encode())
  config = LogConfig(name=f'{path.stem}-{version:08x}', source=str(path), description=str(path))
  source.builder.builder_configs.setdefault(config.name, config)
  return builders.load(name, config=config.name)


def _blocks(builder, split):
  """Yields lists of examples of a split."""
  source = builder.as_data_source(split)
  for start in range(0, len(source), BLOCK):
    yield source.__getitems__(range(start, min(start + BLOCK, len(source))))


def _cached(builder, what, key, make):
  """`make()`, a NamedTuple of arrays and numbers, kept beside the data set where one may write."""
  name = f'{what}-{zlib.crc32(json.dumps(key, sort_keys=True).encode()):08x}.npz'
  path = pathlib.Path(builder.data_dir) / name
  if path.exists():
    with np.load(path) as file:
      kind = vocabulary.Vocabulary if what == 'vocabulary' else Layout
      return kind(**{field: file[field] if file[field].ndim else file[field].item()
                     for field in kind._fields})
  value = make()
  try:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix='.npz', delete=False) as file:
      np.savez(file, **value._asdict())
    os.replace(file.name, path)
  except OSError:
    pass  # a folder of others: it is counted again the next time
  return value


def _vocabulary(builder, name, min_count, buckets, integers, rare, split):
  numbers, categories = SOURCES[name].fields
  kept = numbers if integers == 'bucket' else 0
  if buckets:
    return vocabulary.hashed(kept + categories, buckets)
  blocks = (_fields_of(np.stack([row['tokens'] for row in block]), numbers, integers)
            for block in _blocks(builder, split))
  min_counts = [1] * kept + [min_count] * categories
  key = {'split': split, 'min_count': min_count, 'integers': integers, 'rare': rare}
  return _cached(builder, 'vocabulary', key, lambda: vocabulary.from_counts(
      *vocabulary.count(blocks), min_counts, rare))


def _fields_of(tokens, numbers, integers):
  """The tokens that have a vocabulary: buckets of the integers, if wanted, and the categories."""
  categories = tokens[..., numbers:]
  if integers != 'bucket':
    return categories
  return np.concatenate([vocabulary.integer_tokens(tokens[..., :numbers]), categories], -1)


def scaled(values):
  """sign(v) ln(1 + |v|) / 10 of integers, float32; 0 where absent."""
  values = np.where(values == formats.ABSENT, 0, values)
  return (np.sign(values) * np.log1p(np.abs(values)) / 10).astype(np.float32)


def token_encoder(words, fields, integers):
  """(Layout, encode) of rows of tokens.

  Args:
    words: Vocabulary of the fields that are categories.
    fields: numbers of integer and categorical fields.
    integers: see `load`.
  """
  numbers, categories = fields
  vectors = numbers if integers == 'vector' else 0
  num_fields = (numbers if integers != 'dense' else 0) + categories
  layout = Layout(words.size + vectors, num_fields, num_fields, not vectors,
                  numbers if integers == 'dense' else 0)

  def encode(columns):
    tokens = columns['tokens']
    ids = words.encode(_fields_of(tokens, numbers, integers))
    rows = {'label': np.asarray(columns['label'], np.float32), 'ids': ids}
    amounts = scaled(tokens[..., :numbers])
    if vectors:
      own = np.broadcast_to(words.size + np.arange(numbers, dtype=np.int32), amounts.shape)
      rows['ids'] = np.concatenate([own, ids], -1)
      rows['values'] = np.concatenate([amounts, np.ones(ids.shape, np.float32)], -1)
      rows['field'] = np.broadcast_to(np.arange(num_fields, dtype=np.int32), rows['ids'].shape)
    if layout.numeric:
      rows['numeric'] = amounts
    return rows

  return layout, encode


def _pair_layout(builder, splits):
  features, fields, slots, univalent, rows = 0, 0, 0, True, []
  for split in dict.fromkeys(splits.values()):
    for block in _blocks(builder, split):
      for row in block:
        slots = max(slots, len(row['field']))
        features = max(features, row['feature'].max(initial=-1) + 1)
        fields = max(fields, row['field'].max(initial=-1) + 1)
        rows.append(len(row['field']))
        univalent &= bool((row['value'] == 1).all() and
                          (row['field'] == np.arange(len(row['field']))).all())
  univalent &= min(rows) == slots == fields
  return Layout(int(features), int(fields), int(slots), bool(univalent))


def pad_pairs(rows, slots):
  """Columns of padded pairs [N, slots] from rows of pairs; 'field' is -1 and 'value' 0 on padding.

  Raises:
    ValueError: a row has more pairs than `slots`.
  """
  columns = {name: np.full((len(rows), slots), empty, dtype) for name, empty, dtype in (
      ('field', -1, np.int32), ('feature', 0, np.int32), ('value', 0, np.float32))}
  for number, row in enumerate(rows):
    if len(row['field']) > slots:
      raise ValueError(f'row {number + 1}: expected at most {slots} pairs, got '
                       f'{len(row["field"])}')
    for name, column in columns.items():
      column[number, :len(row[name])] = row[name]
  return {**columns, 'label': np.array([row['label'] for row in rows]),
          'group': np.array([row['group'] for row in rows])}


def encode_pairs(columns, layout):
  """Columns of ids from padded pairs.

  A model for univalent rows takes others too: where a row here is not, all have 'values' and
  'field'.

  Raises:
    ValueError: an id that the model does not know.
  """
  for name, size in (('feature', layout.num_features), ('field', layout.num_fields)):
    beyond = np.argwhere(columns[name] >= size)
    if len(beyond):
      number, slot = beyond[0]
      raise ValueError(f'row {number + 1}: {name} {columns[name][number, slot] + 1}: expected ids '
                       f'up to {size}, the largest of the data that the model was made for')
  rows = {'label': np.asarray(columns['label'], np.float32), 'ids': columns['feature'],
          'group': columns['group']}
  fields = np.arange(columns['field'].shape[1])
  if not layout.univalent or (columns['value'] != 1).any() or (columns['field'] != fields).any():
    rows.update(values=columns['value'], field=columns['field'])
  return rows


def _in_memory(builder, split, layout, encode):
  if 'tokens' in builder.info.features:
    return pipeline.from_arrays(encode(builders.arrays(builder, split)))
  rows = [row for block in _blocks(builder, split) for row in block]
  return pipeline.from_arrays(encode(pad_pairs(rows, layout.slots)))


def _stream(builder, split, layout, encode):
  def one(row):
    if 'tokens' in row:
      return encode(row)
    columns = encode(pad_pairs([row], layout.slots))
    return {name: column[0] for name, column in columns.items()}
  return grain.MapDataset.source(builder.as_data_source(split)).map(one)


def read_file(name, path, layout, encode):
  """The rows of a file, in its order and with or without labels, as a data set for `predict`.

  Args:
    name: a data set of `SOURCES`.
    path: file of that format.
    layout: of the model's data.
    encode: as `load` gives it.

  Raises:
    ConfigError: there is no such file.
    ValueError: a malformed row, or no row at all.
  """
  read, parse = {'criteo': (formats.read_criteo, formats.criteo_row),
                 'avazu': (formats.read_avazu, formats.avazu_row)}.get(
                     name, (documents.read_lines, formats.libffm_row))
  rows = [parse(where, row, labelled=False) for where, row in read(path)]
  if not rows:
    raise ValueError(f'{path}: expected rows, got none')
  if SOURCES[name].fields is None:
    rows = [{**row, 'group': group_number(row['group'])} for row in rows]
    try:
      return pipeline.from_arrays(encode(pad_pairs(rows, layout.slots)))
    except ValueError as error:
      raise ValueError(f'{path}: {error}') from error
  return pipeline.from_arrays(encode({key: np.stack([row[key] for row in rows])
                                      for key in ('label', 'tokens')}))
