"""News logs that say how each news was shown: MIND's files with a slot behind each news id.

An item is `N123@<position>:<size>` in the history and `N456-1@<position>:<size>` in the impression;
a missing part is unknown, and so is all of it in a plain `N123`: MIND's own files are legal, with
all slots unknown. Positions count from 1 on the page; a size is a class from 1 on, or a measure
(such as pixels) of which `prepare` makes classes. The slots of the history are those at the time of
the click.
"""
import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxlab import config as config_lib
from jaxlab.data import builders, mind
from jaxlab.data import news as news_data
from jaxlab.data.rows import parse_rows
from jaxlab.systems.debiasedrec import simulator

KINDS = ('position', 'size')
CONFIGS = [
    mind.MindConfig(name='demo', source='demo', test_labels=True, description='The simulator.'),
    mind.MindConfig(name='log', source='news_log', test_labels=True, description='A log of yours.'),
    *(config for config in mind.MindFiles.BUILDER_CONFIGS if config.name != 'demo'),
]


class Row(NamedTuple):
  """A row of behaviors.tsv with slots.

  Attributes:
    behavior: mind.Behavior.
    history_slots: float32 [H, 2], position and size of each click, 0 where unknown.
    slots: float32 [C, 2] of the candidates.
  """
  behavior: mind.Behavior
  history_slots: np.ndarray
  slots: np.ndarray


def parse_row(where, columns, *, labelled=True):
  """Parses the columns of a row; ValueError names place, column and expectation.

  Args:
    where: file and line, for errors.
    columns: list of strings.
    labelled: whether candidates have labels, see `mind.parse_behavior`.
  """
  columns, slots = list(columns), [np.zeros((0, len(KINDS)), np.float32)] * 2
  if len(columns) == len(mind.BEHAVIOR_COLUMNS):
    for i, place in enumerate((3, 4)):
      name = mind.BEHAVIOR_COLUMNS[place]
      items = [item.partition('@') for item in columns[place].split()]
      columns[place] = ' '.join(item for item, _, _ in items)
      slots[i] = np.array([_slot(f'{where}: {name}', ''.join(parts)) for parts in items],
                          np.float32).reshape(-1, len(KINDS))
  return Row(mind.parse_behavior(where, columns, labelled=labelled), *slots)


def _slot(where, item):
  news, at, slot = item.partition('@')
  if not at:
    return 0, 0
  position, _, size = slot.partition(':')
  try:
    values = int(position or 0), float(size or 0)
  except ValueError:
    values = -1, -1
  known = (position and values[0] < 1) or (size and not 0 < values[1] < np.inf)
  if not news or known or not (position or size):
    raise ValueError(f'{where}: expected id@position:size with a position from 1 on and a size '
                     f'above 0, one of which may be missing, got {item!r}')
  return values


def read_rows(path, *, labelled=True, on_bad_row='raise'):
  """Yields the `Row`s of a behaviors.tsv; `on_bad_row` as by `rows.parse_rows`."""
  parse = lambda where, columns: parse_row(where, columns, labelled=labelled)
  return parse_rows(mind.read_columns(path), parse, on_bad_row=on_bad_row, where=str(path))


def numbered(rows, news, users):
  """Yields mappings of arrays as `mind.numbered` does, with 'history_slots' and 'slots'."""
  slots = []

  def behaviors():
    for row in rows:
      slots.append(row)
      yield row.behavior

  for one in mind.numbered(behaviors(), news, users):
    row = slots.pop()
    yield {**one, 'history_slots': row.history_slots, 'slots': row.slots}


class SlottedMind(mind.Mind):
  """Impressions of a news log with slots, see the module; splits are the folders with behaviors.

  Beside what `mind.Mind` has: 'history_slots' [H, 2] and 'slots' [C, 2] float32, position and size,
  0 where unknown. The demo is `simulator.write`.
  """

  BUILDER_CONFIGS = CONFIGS
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'A log as news_log/train, news_log/dev, ... with behaviors.tsv and news.tsv (config log), or '
      'MIND as for the data set mind.')

  def _features(self):
    slots = tfds.features.Tensor(shape=(None, len(KINDS)), dtype=np.float32)
    return {**super()._features(), 'history_slots': slots, 'slots': slots}

  def _write_demo(self, folder):
    simulator.write(folder)

  def _split_names(self, folder):
    return split_names(folder)

  def _examples(self, folder, split):
    config = self.builder_config
    if self._news is None:
      rows = mind.all_news(folder, on_bad_row=config.on_bad_row)
      self._news = {row.news: number for number, row in enumerate(rows, 1)}
    rows = read_rows(pathlib.Path(folder, split, 'behaviors.tsv'), on_bad_row=config.on_bad_row,
                     labelled=split != 'test' or config.test_labels)
    yield from numbered(rows, self._news, self._users)
    self.info.metadata['users'] = list(self._users)


class SlottedNews(mind.MindNews):
  """The news of `SlottedMind`: those of its train, dev and test."""

  BUILDER_CONFIGS = CONFIGS
  MANUAL_DOWNLOAD_INSTRUCTIONS = SlottedMind.MANUAL_DOWNLOAD_INSTRUCTIONS

  def _write_demo(self, folder):
    simulator.write(folder)


builders.BUILDERS.update(slotted_mind=f'{__name__}:SlottedMind',
                         slotted_mind_news=f'{__name__}:SlottedNews')
DATASETS = {'simulator': 'demo', 'log': 'log', 'mind_small': 'small', 'mind_large': 'large'}


def split_names(folder):
  """The folders with a behaviors.tsv, train, dev and test first."""
  others = sorted(path.parent.name for path in pathlib.Path(folder).glob('*/behaviors.tsv'))
  return [*mind.present(folder), *(name for name in others if name not in mind.SPLITS)]


class Split(NamedTuple):
  """A split in memory.

  Attributes:
    impressions: data.news.Impressions.
    history_slots: float32 [V, 2], of the values of `impressions.history`.
    slots: float32 [V, 2], of the values of `impressions.candidates`.
  """
  impressions: news_data.Impressions
  history_slots: np.ndarray
  slots: np.ndarray


def collect(examples):
  """The Split of examples as `numbered` or the builder give them."""
  examples = list(examples)
  joined = lambda name: np.concatenate(
      [np.zeros((0, len(KINDS)), np.float32), *(one[name] for one in examples)])
  return Split(news_data.collect(examples), joined('history_slots'), joined('slots'))


def read_folder(folder):
  """(news columns, {split: Split}) of a folder of files."""
  rows = mind.all_news(folder)
  numbers, users = {row.news: i for i, row in enumerate(rows, 1)}, {}
  splits = {
      name: collect(numbered(read_rows(pathlib.Path(folder, name, 'behaviors.tsv')), numbers,
                             users)) for name in split_names(folder)}
  return {text: [getattr(row, text) for row in rows] for text in news_data.COLUMNS}, splits


def load_files(name):
  """(news columns, {split: Split}, {news id: number}) of a data set of `DATASETS`."""
  builder = builders.load('slotted_mind', config=DATASETS[name])
  splits = {split: collect(builder.as_data_source(split).__getitems__(range(info.num_examples)))
            for split, info in builder.info.splits.items()}
  table = builders.load('slotted_mind_news', config=DATASETS[name])
  rows = table.as_data_source('news').__getitems__(range(table.info.splits['news'].num_examples))
  columns = {text: [row[text].decode() for row in rows] for text in news_data.COLUMNS}
  return columns, splits, {row['news'].decode(): i for i, row in enumerate(rows, 1)}


@dataclasses.dataclass(frozen=True)
class SlotIndex:
  """From slots to indices.

  Attributes:
    kinds: those that are kept, of `KINDS`.
    positions: largest position; later ones count as it.
    sizes: number of sizes.
    edges: borders between the classes of a measured size, or None where sizes are classes.
  """
  kinds: tuple[str, ...]
  positions: int
  sizes: int
  edges: np.ndarray | None = None

  @property
  def rows(self):
    """Rows of the table of each kind, with the unknown."""
    return tuple({'position': self.positions, 'size': self.sizes}[kind] + 1 for kind in self.kinds)

  def __call__(self, slots):
    """Indices int32 [V, len(kinds)] of slots [V, 2]; 0 stays unknown."""
    position, size = slots.T
    if self.edges is not None:
      size = np.where(size > 0, 1 + np.searchsorted(self.edges, size, side='right'), 0)
    elif ((size != np.rint(size)) | (size > self.sizes)).any():
      bad = size[(size != np.rint(size)) | (size > self.sizes)][0]
      raise ValueError(f'size: expected whole numbers up to data.sizes={self.sizes}, got {bad:g} '
                       '(data.measured_sizes=True makes classes of measures)')
    indices = {'position': np.minimum(position, self.positions), 'size': size}
    return np.stack([indices[kind] for kind in self.kinds], axis=-1).astype(np.int32)


class Data(NamedTuple):
  """A data set in memory.

  Attributes:
    table: data.news.NewsTable.
    splits: {split: columns}, see `click_columns` for 'train' and `impression_columns`.
    negatives: drawn for each click.
    index: SlotIndex.
    propensity: float32 [rows of the kinds] of `propensities` on the split 'randomised', or None
      without that split.
  """
  table: news_data.NewsTable
  splits: dict
  negatives: int
  index: SlotIndex
  propensity: np.ndarray | None


def prepare(news, splits, *, history_length: int = 50, negatives: int = 4, title_length: int = 30,
            abstract_length: int = 0, min_count: int = 3, word_vectors: str | None = None,
            kinds: Sequence[str] = KINDS, positions: int = 64, sizes: int = 4,
            measured_sizes: bool = False):
  """Makes the Data of news columns and splits.

  Args:
    news: {'title', 'abstract', 'category', 'subcategory': N texts}.
    splits: {split: Split}; 'train' is turned into samples.
    history_length: clicks of a history, the last ones, filled up at the back.
    negatives: drawn for each click from its impression, without replacement.
    title_length: words of a title.
    abstract_length: words of an abstract; 0 for none.
    min_count: occurrences that make a word known.
    word_vectors: file of GloVe vectors to start the word table from.
    kinds: the kinds of bias that are used.
    positions: largest position; later ones count as it.
    sizes: number of sizes.
    measured_sizes: whether sizes are measures, of which quantiles of the training impressions make
      `sizes` classes.
  """
  check_sizes(history_length, negatives, title_length, min_count, kinds, positions, sizes)
  table = news_data.make_table(news, title_length=title_length, abstract_length=abstract_length,
                               min_count=min_count, word_vectors=word_vectors)
  edges = None
  if measured_sizes:
    known = splits['train'].slots[:, 1]
    known = known[known > 0]
    config_lib.require(len(known) > 0, 'data.measured_sizes', 'sizes in the training log', 0)
    edges = np.quantile(known, np.arange(1, sizes) / sizes)
  index = SlotIndex(tuple(kinds), positions, sizes, edges)
  columns = {name: click_columns(split, index, history_length, negatives) if name == 'train'
             else impression_columns(split, index, history_length)
             for name, split in splits.items()}
  randomised = splits.get('randomised')
  propensity = None if randomised is None else propensities(
      index(randomised.slots), randomised.impressions.labels.values, index.rows)
  return Data(table, columns, negatives, index, propensity)


def check_sizes(history_length, negatives, title_length, min_count, kinds, positions, sizes):
  """Raises ConfigError for an argument of `prepare` that is out of its range."""
  config_lib.at_least(
      1, {'history_length': history_length, 'negatives': negatives, 'title_length': title_length,
          'min_count': min_count, 'positions': positions, 'sizes': sizes}, where='data')
  config_lib.require(len(kinds) and set(kinds) <= set(KINDS) and len(set(kinds)) == len(kinds),
                     'data.kinds', f'one or more of {", ".join(KINDS)}', kinds)


def _with_slots(make, split, index, **options):
  """`make(impressions)`, and the same of each kind of slot in place of the news, stacked last."""
  impressions = split.impressions
  columns = make(impressions, **options)
  history, shown = index(split.history_slots), index(split.slots)
  parts = [make(impressions._replace(
      history=impressions.history._replace(values=history[:, k]),
      candidates=impressions.candidates._replace(values=shown[:, k])), **options)
           for k in range(len(index.kinds))]
  stacked = lambda name: np.stack([part[name] for part in parts], axis=-1)
  slots = {name: stacked(name) for name in ('history', 'click', 'pool', 'candidates')
           if name in columns}
  return columns, slots


def click_columns(split, index, history_length, negatives):
  """Training samples: those of `data.news.click_samples` with slots; padded slots are unknown.

  Clicks of impressions in which all was clicked are left out and counted: there is no negative.

  Returns:
    Its columns, and int32 'history_slots' [S, H, K], 'click_slot' [S, K], 'pool_slots' [S, P, K].
  """
  columns, slots = _with_slots(news_data.click_samples, split, index,
                               history_length=history_length, pad_side='back', min_pool=negatives)
  columns.update(history_slots=slots['history'], click_slot=slots['click'],
                 pool_slots=slots['pool'])
  usable = columns['pool_size'] > 0
  if not usable.all():
    logging.warning('%d of %d clicks have no news beside them that was not clicked',
                    (~usable).sum(), len(usable))
  return {name: column[usable] for name, column in columns.items()}


def impression_columns(split, index, history_length):
  """Whole impressions: those of `data.news.impression_rows` with slots.

  Returns:
    Its columns, and int32 'history_slots' [R, H, K], 'slots' [R, L, K].
  """
  columns, slots = _with_slots(news_data.impression_rows, split, index,
                               history_length=history_length, pad_side='back')
  return {**columns, 'history_slots': slots['history'], 'slots': slots['candidates']}


def propensities(indices, labels, rows):
  """Click-through rates of slots in a randomised log, the largest 1: what is seen how often.

  Five views at the mean rate are added to each, so that none is 0.

  Args:
    indices: int [V, K].
    labels: int [V], 1 for a click.
    rows: rows of the table of each kind.

  Returns:
    float32 [*rows].
  """
  clicks, shown = np.zeros(rows), np.zeros(rows)
  np.add.at(clicks, tuple(indices.T), labels == 1)
  np.add.at(shown, tuple(indices.T), 1)
  mean = max(clicks.sum(), 0.5) / max(shown.sum(), 1)
  rate = (clicks + 5 * mean) / (shown + 5)
  return (rate / rate.max()).astype(np.float32)


def load(*, name: Literal['simulator', 'log', 'mind_small', 'mind_large'],
         history_length: int = 50, negatives: int = 4, title_length: int = 30,
         abstract_length: int = 0, min_count: int = 3, word_vectors: str | None = None,
         kinds: Sequence[str] = KINDS, positions: int = 64, sizes: int = 4,
         measured_sizes: bool = False):
  """(Data, {news id: number}) of a data set of `DATASETS`; see `prepare` for the arguments."""
  news, splits, numbers = load_files(name)
  return prepare(news, splits, history_length=history_length, negatives=negatives,
                 title_length=title_length, abstract_length=abstract_length, min_count=min_count,
                 word_vectors=word_vectors, kinds=kinds, positions=positions, sizes=sizes,
                 measured_sizes=measured_sizes), numbers
