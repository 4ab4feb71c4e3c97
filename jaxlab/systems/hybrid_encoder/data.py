"""Clicks on ads: three tab-separated files, as TFDS builders and as columns of numbers.

`ads.tsv`: ad id, title, description, advertiser. `pages.tsv`: page id, title. `clicks.tsv`: user
id, history, clicked ad id, shown ad ids separated by spaces, time in seconds since 1970. The
history is joined by \\x01, oldest first, and may be empty; an entry is a page id of pages.tsv or
the title of a page, which then has a space in it; any other is unknown, counted and left out.
UTF-8, no header, no quoting. Pages and ads are numbered from 1 in the order of the files, titles
that stand in a history follow; 0 is padding. An id that comes again must have the same columns. The
last day is the test split, the day before it validation. A history that holds the landing page of
its clicked ad, a page of the ad's title, gives the click away and is a malformed row.
"""
import contextlib
import dataclasses
import logging
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data import builders, mind
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.data.glue import read_tsv
from jaxlab.data.news import Ragged
from jaxlab.data.rows import parse_rows
from jaxlab.systems.hybrid_encoder import demo

FILES = {'ads': ('ad id', 'title', 'description', 'advertiser'), 'pages': ('page id', 'title'),
         'clicks': ('user id', 'history', 'clicked ad id', 'shown ad ids', 'time')}
SPLITS = ('train', 'validation', 'test')
DAY = 86_400


class Click(NamedTuple):
  """A row of clicks.tsv with numbers for ids.

  Attributes:
    user: id.
    history: page numbers, oldest first.
    ad: number of the clicked ad.
    shown: numbers of the ads shown beside it.
    time: seconds since 1970.
  """
  user: str
  history: tuple[int, ...]
  ad: int
  shown: tuple[int, ...]
  time: int


class Log(NamedTuple):
  """A folder of files.

  Attributes:
    ads: {id: (number, title, description)}.
    pages: {entry of a history: number}.
    titles: of the pages, number 1 first.
    clicks: list of `Click`.
  """
  ads: dict
  pages: dict
  titles: list
  clicks: list


def read_rows(path, names, parse, *, on_bad_row='raise'):
  """Yields `parse(where, columns)` of the rows of a file.

  Args:
    path: file.
    names: of its columns.
    parse: (file and line, list of strings) -> row; raises ValueError for a bad one.
    on_bad_row: see `rows.parse_rows`.

  Raises:
    ConfigError: there is no such file.
    ValueError: bytes that are no UTF-8; a malformed row under 'raise'.
  """
  def checked(where, columns):
    if len(columns) != len(names):
      raise ValueError(f'{where}: expected {len(names)} tab-separated columns '
                       f'({", ".join(names)}), got {len(columns)}')
    if not columns[0]:
      raise ValueError(f'{where}: {names[0]}: expected an id, got nothing')
    return parse(where, columns)

  return parse_rows(read_tsv(path), checked, on_bad_row=on_bad_row, where=str(path))


def _consistent(name):
  """The `parse` of rows in which an id, the column `name`, has the same other columns each time."""
  first = {}

  def parse(where, columns):
    known = first.setdefault(columns[0], columns)
    if known != columns:
      raise ValueError(f'{where}: {name}: expected {columns[0]!r} once, or as before {known[1:]}, '
                       f'got {columns[1:]}')
    return columns

  return parse


def read_folder(folder, *, on_bad_row='raise'):
  """The Log of a folder.

  Raises:
    ConfigError: a file is missing.
    ValueError: a malformed row under 'raise', naming file, line, column and what was expected;
      bytes that are no UTF-8.
  """
  folder = pathlib.Path(folder)
  read = lambda name, parse: read_rows(folder / f'{name}.tsv', FILES[name], parse,
                                       on_bad_row=on_bad_row)
  texts = lambda name: read(name, _consistent(FILES[name][0]))
  ads, numbers, titles = {}, {}, []
  for ad, title, description, _ in texts('ads'):
    ads.setdefault(ad, (len(ads) + 1, title, description))
  for page, title in texts('pages'):
    if page not in numbers:
      titles.append(title)
      numbers[page] = len(titles)
  parser = ClickParser(ads, numbers, titles)
  clicks = list(read('clicks', parser.click))
  parser.report(folder)
  return Log(ads, numbers, titles, clicks)


class ClickParser:
  """Parses rows of clicks; pages that stand in them as titles get numbers.

  Args:
    ads: {id: (number, title, description)}.
    numbers: {page id: number}, to which titles that stand in histories are added.
    titles: of the pages, likewise.
  """

  def __init__(self, ads, numbers, titles):
    self._ads, self._numbers, self._titles = ads, numbers, titles
    self._unknown, self._seen = 0, 0

  def click(self, where, columns):
    """The `Click` of the columns; ValueError names place, column and expectation."""
    user, history, ad, shown, time = columns
    for name, one in (('clicked ad id', ad), *(('shown ad ids', one) for one in shown.split())):
      if one not in self._ads:
        raise ValueError(f'{where}: {name}: expected an id of ads.tsv, got {one!r}')
    if not time.isdecimal():
      raise ValueError(f'{where}: time: expected whole seconds since 1970, got {time!r}')
    number, title, _ = self._ads[ad]
    pages = self.history(history)
    plain = title.strip().casefold()
    for page in pages:
      if plain and self._titles[page - 1].strip().casefold() == plain:
        raise ValueError(f'{where}: history: expected no page of the title of the clicked ad, got '
                         f'{self._titles[page - 1]!r}')
    beside = dict.fromkeys(self._ads[one][0] for one in shown.split() if one != ad)
    return Click(user, pages, number, tuple(beside), int(time))

  def history(self, text):
    """Page numbers of a history."""
    pages = []
    for entry in filter(None, text.split('\x01')):
      self._seen += 1
      if entry not in self._numbers and ' ' in entry.strip():
        self._titles.append(entry)
        self._numbers[entry] = len(self._titles)
      if entry in self._numbers:
        pages.append(self._numbers[entry])
      else:
        self._unknown += 1
    return tuple(pages)

  def report(self, where):
    """Logs how many entries of the histories are unknown."""
    if self._unknown:
      logging.warning('%s: %d of %d pages in histories are in no pages.tsv', where, self._unknown,
                      self._seen)


def convert_mind(source, folder):
  """Writes a folder in MIND's format as these files: news are the pages and, clicked, the ads.

  Impressions without a click or without labels are left out; one with several clicks becomes
  several rows.

  Args:
    source: folder with train, dev and perhaps test of MIND.
    folder: to write to; it is made.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  news = mind.all_news(source)
  known = {row.news for row in news}
  with open(folder / 'pages.tsv', 'w', encoding='utf-8', newline='') as file:
    file.writelines(f'{row.news}\t{row.title}\n' for row in news)
  with open(folder / 'ads.tsv', 'w', encoding='utf-8', newline='') as file:
    file.writelines(f'{row.news}\t{row.title}\t{row.abstract}\t{row.category}\n' for row in news)
  with open(folder / 'clicks.tsv', 'w', encoding='utf-8', newline='') as file:
    for split in mind.present(source):
      path = pathlib.Path(source, split, 'behaviors.tsv')
      for row in mind.read_behaviors(path, labelled=split != 'test'):
        shown = [one for one in row.candidates if one in known]
        for ad, label in zip(row.candidates, row.labels):
          if label == 1 and ad in known:
            file.write('\t'.join([row.user, '\x01'.join(row.history), ad, ' '.join(shown),
                                  str(row.time)]) + '\n')


@dataclasses.dataclass(eq=False, kw_only=True)
class LogConfig(tfds.core.BuilderConfig):
  """A log.

  Attributes:
    source: its folder in the folder of official files; '' for the demo.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  source: str
  on_bad_row: str = 'raise'


class _Files(ArrayRecordBuilder, skip_registration=True):
  """What the builders share: a folder of the three files."""

  BUILDER_CONFIGS = [
      LogConfig(name='demo', source='', description='A world of two interests an ad.'),
      LogConfig(name='log', source='ad_log', description='A log of yours.'),
      # A page may have the title of a clicked news; such rows go.
      LogConfig(name='mind_small', source='MINDsmall', on_bad_row='skip',
                description='News of MIND in the place of ads.'),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'ads.tsv, pages.tsv and clicks.tsv as ad_log/...; for mind_small MIND as for the data set '
      'mind.')

  def _features(self):
    raise NotImplementedError

  def _examples(self, log):
    """{split: iterator of examples}."""
    raise NotImplementedError

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, description=self.__doc__, disable_shuffling=True,
                                 features=tfds.features.FeaturesDict(self._features()))

  def _split_generators(self, dl_manager):
    config = self.builder_config
    with contextlib.ExitStack() as stack:
      folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'log'
      if not config.source:
        demo.write(folder)
      elif config.name.startswith('mind'):
        convert_mind(dl_manager.manual_dir / config.source, folder)
      else:
        folder = dl_manager.manual_dir / config.source
      log = read_folder(folder, on_bad_row=config.on_bad_row)
    return {split: enumerate(rows) for split, rows in self._examples(log).items()}

  def _generate_examples(self):
    raise NotImplementedError('the splits bring their generators')


class AdClicks(_Files):
  """Clicks by day: 'user' is a number, the others as in `Click`."""

  def _features(self):
    ids = tfds.features.Sequence(tfds.features.Scalar(np.int32))
    return {'user': np.int32, 'history': ids, 'ad': np.int32, 'shown': ids, 'time': np.int64}

  def _examples(self, log):
    users = {}
    for click in log.clicks:
      users.setdefault(click.user, len(users))
    return {split: ({**click._asdict(), 'user': users[click.user],
                     'history': np.array(click.history, np.int32),
                     'shown': np.array(click.shown, np.int32)} for click in clicks)
            for split, clicks in by_day(log.clicks).items()}


class AdTexts(_Files):
  """Texts in the order of their numbers: splits 'ads' (id, title, description) and 'pages'."""

  def _features(self):
    return {name: tfds.features.Text() for name in ('id', 'title', 'description')}

  def _examples(self, log):
    return {'ads': ({'id': ad, 'title': title, 'description': description}
                    for ad, (_, title, description) in log.ads.items()),
            'pages': ({'id': page, 'title': log.titles[number - 1], 'description': ''}
                      for page, number in log.pages.items())}


builders.BUILDERS.update(ad_clicks=f'{__name__}:AdClicks', ad_texts=f'{__name__}:AdTexts')
DATASETS = tuple(config.name for config in _Files.BUILDER_CONFIGS)


def by_day(clicks):
  """{'train', 'validation', 'test': clicks}: the last day is test, the one before validation.

  Raises:
    ValueError: fewer than three days.
  """
  days = [click.time // DAY for click in clicks]
  last = sorted(set(days))[-2:]
  if not days or min(days) >= last[0]:
    raise ValueError(f'clicks.tsv: expected clicks of at least three days, got {len(set(days))}')
  place = {last[0]: 'validation', last[1]: 'test'}
  parts = {split: [] for split in SPLITS}
  for day, click in zip(days, clicks):
    parts[place.get(day, 'train')].append(click)
  return parts


class Split(NamedTuple):
  """A split in memory: `user` int32 [R], `ad` int32 [R], `history` and `shown` Ragged [R]."""
  user: np.ndarray
  ad: np.ndarray
  history: Ragged
  shown: Ragged


def collect(examples):
  """The Split of examples as the builder gives them."""
  examples = list(examples)
  column = lambda name: np.array([one[name] for one in examples], np.int32)
  ragged = lambda name: Ragged.of([np.asarray(one[name]) for one in examples], np.int32)
  return Split(column('user'), column('ad'), ragged('history'), ragged('shown'))


def load(name):
  """({'ads', 'pages': texts}, their ids likewise, {split: Split}) of one of `DATASETS`."""
  clicks, texts = (builders.load(kind, config=name) for kind in ('ad_clicks', 'ad_texts'))
  everything = lambda builder, split: builder.as_data_source(split).__getitems__(
      range(builder.info.splits[split].num_examples))
  splits = {split: collect(everything(clicks, split)) for split in SPLITS}
  rows = {kind: everything(texts, kind) for kind in ('ads', 'pages')}
  text = lambda row: f'{row["title"].decode()} {row["description"].decode()}'.strip()
  every = lambda what: {kind: [what(row) for row in rows[kind]] for kind in rows}
  return every(text), every(lambda row: row['id'].decode()), splits


def click_sets(users, ads):
  """int32 [R, C]: the ads that the user of each row clicked in any of the rows, 0 filled up."""
  order = np.lexsort((ads, users))
  pairs = np.unique(np.stack([users[order], ads[order]], 1), axis=0)
  who, start = np.unique(pairs[:, 0], return_index=True)
  sets = Ragged(pairs[:, 1].astype(np.int32), np.append(start, len(pairs)))
  table = sets.padded(max(1, sets.sizes.max(initial=0)))
  return table[np.searchsorted(who, users)]


def train_columns(split, history_length):
  """Columns int32: 'row', 'user', 'click' [R], 'history' [R, N], 'clicked' [R, C] (`click_sets`).

  Histories keep their last `history_length` pages and are filled up with 0.
  """
  return {'row': np.arange(len(split.ad), dtype=np.int32), 'user': split.user,
          'click': split.ad, 'history': split.history.padded(history_length, keep='last'),
          'clicked': click_sets(split.user, split.ad)}


def test_columns(split, history_length):
  """Columns: those of `train_columns` but 'row', 'clicked', and the lists to rank.

  'candidates' int32 [R, S] are the click and the ads shown beside it, 'labels' int8 [R, S] 1 for
  the click, -1 on padding, 'count' int32 [R].
  """
  shown = split.shown.padded(max(1, split.shown.sizes.max(initial=0)))
  candidates = np.concatenate([split.ad[:, None], shown], axis=1)
  labels = np.where(candidates > 0, 0, -1).astype(np.int8)
  labels[:, 0] = 1
  return {'user': split.user, 'click': split.ad, 'candidates': candidates, 'labels': labels,
          'history': split.history.padded(history_length, keep='last'),
          'count': (candidates > 0).sum(1).astype(np.int32)}
