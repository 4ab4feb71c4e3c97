"""MIND: the files of the Microsoft News Dataset (Wu et al. 2020, ACL), as builders and readers.

A folder of MIND has `train`, `dev` and perhaps `test`, each with `behaviors.tsv`, `news.tsv`,
`entity_embedding.vec` and `relation_embedding.vec`: UTF-8, tab separated, no header, no quoting.
News are numbered from 1 in the order of the files, train before dev before test; the first of
several rows of one news wins; 0 is the unknown news. Users are numbered from 0 as they appear.
"""
import contextlib
import dataclasses
import datetime
import json
import logging
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.config import ConfigError
from jaxlab.data import documents, mind_demo
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.data.rows import parse_rows

SPLITS = ('train', 'dev', 'test')
BEHAVIOR_COLUMNS = ('impression id', 'user id', 'time', 'history', 'impressions')
NEWS_COLUMNS = ('news id', 'category', 'subcategory', 'title', 'abstract', 'url', 'title entities',
                'abstract entities')
_WIDTH = 100  # of the published vectors
_TIME = '%m/%d/%Y %I:%M:%S %p'


class Behavior(NamedTuple):
  """A row of behaviors.tsv.

  Attributes:
    impression: its number; -1 where the file says null.
    user: id.
    time: seconds since 1970 (UTC); -1 where the file says null.
    history: ids of the news clicked before, oldest first.
    candidates: ids of the news shown.
    labels: 1 for a click and 0 for none; -1 for all where the file has no labels.
  """
  impression: int
  user: str
  time: int
  history: tuple[str, ...]
  candidates: tuple[str, ...]
  labels: tuple[int, ...]


class News(NamedTuple):
  """A row of news.tsv. Entities are lists of mappings with 'WikidataId', 'SurfaceForms', ...

  `split` is the first of `SPLITS` that has the news; '' where only a file is known.
  """
  news: str
  category: str
  subcategory: str
  title: str
  abstract: str
  url: str
  title_entities: list
  abstract_entities: list
  split: str = ''


def read_columns(path):
  """Yields (where, columns) of a file with tabs; raises as `documents.read_lines` does."""
  for where, line in documents.read_lines(path):
    yield where, line.split('\t')


def _check_columns(where, columns, names):
  if len(columns) != len(names):
    raise ValueError(f'{where}: expected {len(names)} tab-separated columns ({", ".join(names)}), '
                     f'got {len(columns)}')


def parse_behavior(where, columns, *, labelled=True):
  """Parses the columns of a row of behaviors.tsv; ValueError names place, column and expectation.

  Args:
    where: file and line, for errors.
    columns: list of strings.
    labelled: True where candidates must be `id-0` or `id-1`, False where they must be plain ids.
  """
  _check_columns(where, columns, BEHAVIOR_COLUMNS)
  impression, user, time, history, impressions = columns
  if impression != 'null' and not (impression.isdecimal() and int(impression) < 2**31):
    raise ValueError(f'{where}: impression id: expected a number below 2^31 or null, got '
                     f'{impression!r}')
  if not user:
    raise ValueError(f'{where}: user id: expected an id, got nothing')
  candidates, labels = [], []
  for item in impressions.split():
    news, dash, label = item.rpartition('-')
    if labelled and (not news or label not in ('0', '1')):
      raise ValueError(f'{where}: impressions: expected id-0 or id-1, got {item!r}')
    if not labelled and dash:
      raise ValueError(f'{where}: impressions: expected ids without labels, got {item!r}')
    candidates.append(news if labelled else item)
    labels.append(int(label) if labelled else -1)
  if not candidates:
    raise ValueError(f'{where}: impressions: expected at least one, got nothing')
  return Behavior(-1 if impression == 'null' else int(impression), user, _seconds(where, time),
                  tuple(history.split()), tuple(candidates), tuple(labels))


def _seconds(where, time):
  if time == 'null':
    return -1
  try:
    moment = datetime.datetime.strptime(time, _TIME)
  except ValueError as error:
    raise ValueError(f'{where}: time: expected M/D/YYYY h:mm:ss AM|PM or null, got '
                     f'{time!r}') from error
  return int(moment.replace(tzinfo=datetime.UTC).timestamp())


def parse_news(where, columns):
  """Parses the columns of a row of news.tsv; ValueError names place, column and expectation."""
  _check_columns(where, columns, NEWS_COLUMNS)
  if not columns[0]:
    raise ValueError(f'{where}: news id: expected an id, got nothing')
  entities = [_entities(f'{where}: {name}', text)
              for name, text in zip(NEWS_COLUMNS[-2:], columns[-2:])]
  return News(*columns[:6], *entities)


def _entities(where, text):
  if not text.strip():
    return []
  try:
    entities = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where}: expected a JSON list: {error}') from error
  if not isinstance(entities, list) or not all(
      isinstance(entity, dict) and isinstance(entity.get('WikidataId'), str) and
      isinstance(entity.get('OccurrenceOffsets', []), list) for entity in entities):
    raise ValueError(f'{where}: expected a JSON list of objects with a WikidataId (and a list of '
                     f'OccurrenceOffsets, if any), got {text!r}')
  return entities


def parse_vector(where, columns):
  """Parses a row of a .vec file, a key and floats, to (key, float32 [width]).

  An empty last field, which a trailing tab makes, is dropped.
  """
  key, *numbers = columns[:-1] if columns[-1] == '' else columns
  try:
    vector = np.array([float(number) for number in numbers], np.float32)
  except ValueError as error:
    raise ValueError(f'{where}: expected a key and floats, tab separated: {error}') from error
  if not key or not len(vector) or not np.isfinite(vector).all():
    raise ValueError(f'{where}: expected a key and finite floats, tab separated, got {columns!r}')
  return key, vector


def read_behaviors(path, *, labelled=True, on_bad_row='raise'):
  """Yields the `Behavior` rows of a file; `on_bad_row` as by `rows.parse_rows`."""
  parse = lambda where, columns: parse_behavior(where, columns, labelled=labelled)
  return parse_rows(read_columns(path), parse, on_bad_row=on_bad_row, where=str(path))


def read_news(path, *, on_bad_row='raise'):
  """Yields the `News` rows of a file; `on_bad_row` as by `rows.parse_rows`."""
  return parse_rows(read_columns(path), parse_news, on_bad_row=on_bad_row, where=str(path))


def read_vectors(path, *, width=None, on_bad_row='raise'):
  """Yields (key, float32 [width]) of a .vec file.

  Args:
    path: file.
    width: numbers of a row, by default those of the first.
    on_bad_row: as by `rows.parse_rows`.
  """
  def parse(where, columns):
    nonlocal width
    key, vector = parse_vector(where, columns)
    width = width or len(vector)
    if len(vector) != width:
      raise ValueError(f'{where}: expected {width} floats, got {len(vector)}')
    return key, vector

  return parse_rows(read_columns(path), parse, on_bad_row=on_bad_row, where=str(path))


def present(folder):
  """The splits of `SPLITS` that a folder has; ConfigError if there is no train, or a valid."""
  found = [split for split in SPLITS if pathlib.Path(folder, split, 'behaviors.tsv').exists()]
  if pathlib.Path(folder, 'valid').exists():
    raise ConfigError(f'{folder}: expected the folder valid to be called dev')
  if 'train' not in found:
    raise ConfigError(f'{folder}: expected the folders train, dev and perhaps test of MIND, each '
                      'with behaviors.tsv and news.tsv')
  return found


def all_news(folder, *, on_bad_row='raise'):
  """The `News` of all splits of a folder in the order of their numbers, from 1."""
  found = {}
  for split in present(folder):
    for row in read_news(pathlib.Path(folder, split, 'news.tsv'), on_bad_row=on_bad_row):
      found.setdefault(row.news, row._replace(split=split))
  return list(found.values())


def numbered(rows, news, users):
  """Yields the rows with numbers for ids, as mappings of arrays; unknown news are counted.

  Args:
    rows: iterable of `Behavior`.
    news: {id: number}.
    users: {id: number}; new users are added.
  """
  unknown, total = 0, 0

  def lookup(ids):
    nonlocal unknown, total
    numbers = np.array([news.get(i, 0) for i in ids], np.int32)
    unknown, total = unknown + int((numbers == 0).sum()), total + len(ids)
    return numbers

  for row in rows:
    yield {'impression': np.int32(row.impression),
           'user': np.int32(users.setdefault(row.user, len(users))), 'time': np.int64(row.time),
           'history': lookup(row.history), 'candidates': lookup(row.candidates),
           'labels': np.array(row.labels, np.int8)}
  if unknown:
    logging.warning('%d of %d clicked or shown news are in no news.tsv', unknown, total)


@dataclasses.dataclass(eq=False, kw_only=True)
class MindConfig(tfds.core.BuilderConfig):
  """A published size of the data, or the demo.

  Attributes:
    source: folder in the folder of official files.
    test_labels: whether the test split has labels; MIND's own has none.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  source: str
  test_labels: bool = False
  on_bad_row: str = 'raise'


class MindFiles(ArrayRecordBuilder, skip_registration=True):
  """What the builders of news data share: a folder in MIND's format."""

  VERSION = tfds.core.Version('1.1.0')  # 1.0.0: news did not say which split has them
  BUILDER_CONFIGS = [
      MindConfig(name='small', source='MINDsmall', description='50 000 users; train and dev.'),
      MindConfig(name='large', source='MINDlarge', description='A million users; with test.'),
      MindConfig(name='demo', source='demo', description='Made by `mind_demo`.'),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'MIND (https://msnews.github.io, under the Microsoft Research licence): unpack '
      'MINDsmall_train.zip and MINDsmall_dev.zip to MINDsmall/train and MINDsmall/dev; for the '
      'config large the three of MINDlarge likewise, to train, dev and test.')

  def _features(self):
    raise NotImplementedError

  def _examples(self, folder, split):
    """Yields the examples of a split of a folder in MIND's format."""
    raise NotImplementedError

  def _write_demo(self, folder):
    mind_demo.write_mind(folder)

  def _prepare(self, source, folder):
    """The folder in MIND's format of the official files at `source`; `folder` is for writing."""
    del folder
    return source

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, description=self.__doc__,
                                 features=tfds.features.FeaturesDict(self._features()),
                                 metadata=tfds.core.MetadataDict(), disable_shuffling=True)

  def _split_names(self, folder):
    return present(folder)

  def _split_generators(self, dl_manager):
    self._stack = contextlib.ExitStack()
    work = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
    if self.builder_config.name == 'demo':
      source = work / self.builder_config.source
      self._write_demo(source)
    else:
      source = pathlib.Path(dl_manager.manual_dir, self.builder_config.source)
    folder = self._prepare(source, work / 'mind')
    return {split: enumerate(self._examples(folder, split)) for split in self._split_names(folder)}

  def _generate_examples(self):
    raise NotImplementedError('the splits bring their generators')

  def _download_and_prepare(self, dl_manager, download_config):
    try:
      return super()._download_and_prepare(dl_manager, download_config)
    finally:
      self._stack.close()


class Mind(MindFiles):
  """Impressions of MIND: who was shown which news, what was clicked, and the clicks before.

  'impression' and 'user' are int32, 'time' int64 seconds, 'history' and 'candidates' int32 [.] news
  numbers, 'labels' int8 [.] of the candidates: 1 clicked, 0 not, -1 unknown. Users are indexes
  into `builder.info.metadata['users']`. The demo is made by `mind_demo.write_mind`.
  """

  def _features(self):
    ids = lambda dtype: tfds.features.Sequence(tfds.features.Scalar(dtype))
    return {'impression': tfds.features.Scalar(np.int32), 'user': tfds.features.Scalar(np.int32),
            'time': tfds.features.Scalar(np.int64), 'history': ids(np.int32),
            'candidates': ids(np.int32), 'labels': ids(np.int8)}

  def _split_generators(self, dl_manager):
    self._users, self._news = {}, None
    return super()._split_generators(dl_manager)

  def _examples(self, folder, split):
    config = self.builder_config
    if self._news is None:
      rows = all_news(folder, on_bad_row=config.on_bad_row)
      self._news = {row.news: number for number, row in enumerate(rows, 1)}
    labelled = split != 'test' or config.test_labels
    rows = read_behaviors(pathlib.Path(folder, split, 'behaviors.tsv'), labelled=labelled,
                          on_bad_row=config.on_bad_row)
    yield from numbered(rows, self._news, self._users)
    self.info.metadata['users'] = list(self._users)


class MindNews(MindFiles):
  """News of MIND, one split 'news' in the order of their numbers: row r is news r + 1.

  All columns are texts; entities are JSON lists.
  """

  def _features(self):
    return {name: tfds.features.Text() for name in News._fields}

  def _split_names(self, folder):
    present(folder)
    return ['news']

  def _examples(self, folder, split):
    for row in all_news(folder, on_bad_row=self.builder_config.on_bad_row):
      yield {**row._asdict(), 'title_entities': json.dumps(row.title_entities),
             'abstract_entities': json.dumps(row.abstract_entities)}


class MindEntities(MindFiles):
  """TransE vectors of MIND's entities and relations, splits 'entity' and 'relation'.

  'key' is a Wikidata id, 'vector' float32 [100]. Not every entity of the news has one. Of a key in
  several splits the first row wins.
  """

  def _features(self):
    return {'key': tfds.features.Text(), 'vector': tfds.features.Tensor(shape=(_WIDTH,),
                                                                        dtype=np.float32)}

  def _split_names(self, folder):
    present(folder)
    return ['entity', 'relation']

  def _examples(self, folder, split):
    seen = set()
    for part in present(folder):
      path = pathlib.Path(folder, part, f'{split}_embedding.vec')
      for key, vector in read_vectors(path, width=_WIDTH,
                                      on_bad_row=self.builder_config.on_bad_row):
        if key not in seen:
          seen.add(key)
          yield {'key': key, 'vector': vector}
