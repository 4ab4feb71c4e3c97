"""Adressa (Gulla et al. 2017, WI): a week of a Norwegian newspaper's log, converted to MIND's form.

Seven files, whose names end in the digit of the day, hold a JSON object a line. An event with a
news id and a title is a click. Days 1 to 5 are history, day 6 trains, day 7 tests. The conversion
follows the official code of Efficient-FedRec (arXiv 2109.05446).
"""
import json
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.config import ConfigError
from jaxlab.data import documents, mind, mind_demo
from jaxlab.data.rows import parse_rows

NEGATIVES = 20
_SPLIT_SEED = 2021
_VALID_SHARE = 0.2


class Click(NamedTuple):
  """A click: `user` and `news` are ids, `time` is in seconds since 1970."""
  user: str
  news: str
  title: str
  time: int


def parse_event(where, line):
  """The `Click` of a line, None for an event that is none; ValueError names what is wrong."""
  try:
    event = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where}: expected a JSON object: {error}') from error
  if not isinstance(event, dict):
    raise ValueError(f'{where}: expected a JSON object, got {type(event).__name__}')
  if 'id' not in event or 'title' not in event:
    return None
  for key, kind in (('userId', str), ('id', str), ('title', str), ('time', int)):
    if not isinstance(event.get(key), kind) or isinstance(event.get(key), bool):
      raise ValueError(f'{where}: {key}: expected {kind.__name__}, got {event.get(key)!r}')
  return Click(event['userId'], event['id'], event['title'], event['time'])


def read_week(folder, *, on_bad_row='raise'):
  """{day 1..7: list of `Click` in the order of the file}.

  Raises:
    ConfigError: not one file for each day.
    ValueError: a bad line, or two titles of one news.
  """
  files = {}
  for path in sorted(pathlib.Path(folder).glob('*')):
    if path.name[-1:] in list('1234567') and not path.name.startswith('.'):
      files.setdefault(int(path.name[-1]), []).append(path)
  if sorted(files) != list(range(1, 8)) or any(len(paths) > 1 for paths in files.values()):
    raise ConfigError(f'{folder}: expected seven files, whose names end in 1 to 7, the day')
  titles, days = {}, {}

  def parse(where, line):
    click = parse_event(where, line)
    if click and titles.setdefault(click.news, click.title) != click.title:
      raise ValueError(f'{where}: title: expected that of news {click.news} before, '
                       f'{titles[click.news]!r}, got {click.title!r}')
    return click

  for day in range(1, 8):
    path, = files[day]
    rows = parse_rows(documents.read_lines(path), parse, on_bad_row=on_bad_row, where=str(path))
    days[day] = [click for click in rows if click]
  return days


def convert(source, folder, *, on_bad_row='raise'):
  """Writes a week as the files of MIND: train (day 6), dev and test (day 7, one to four).

  Each click becomes an impression: the click first, then up to 20 news drawn uniformly without
  replacement from all that the user did not click in the week. News and users are numbered as they
  first appear. Nothing is deduplicated.

  Args:
    source: folder of the seven files.
    folder: to write to; it is made.
    on_bad_row: see `rows.parse_rows`.
  """
  days = read_week(source, on_bad_row=on_bad_row)
  news, users, titles, clicked = {}, {}, [], {}
  for day in range(1, 8):
    for click in days[day]:
      if click.news not in news:
        news[click.news] = len(news) + 1
        titles.append(' '.join(click.title.split()))
      users.setdefault(click.user, len(users))
      clicked.setdefault(click.user, set()).add(news[click.news])
  rng = np.random.default_rng(_SPLIT_SEED)

  def history_of(*which):
    found = {}
    for click in sorted((c for day in which for c in days[day]), key=lambda c: c.time):
      found.setdefault(click.user, []).append(news[click.news])
    return found

  def rows(day, history):
    for click in sorted(days[day], key=lambda c: c.time):
      others = draw_negatives(rng, len(news), clicked[click.user])
      shown = [f'{news[click.news]}-1', *(f'{n}-0' for n in others)]
      yield '\t'.join(['null', str(users[click.user]), 'null',
                       ' '.join(map(str, history.get(click.user, []))), ' '.join(shown)])

  train = list(rows(6, history_of(1, 2, 3, 4, 5)))
  held_out = list(rows(7, history_of(1, 2, 3, 4, 5, 6)))
  order = np.random.default_rng([_SPLIT_SEED, 1]).permutation(len(held_out))
  cut = int(_VALID_SHARE * len(order))
  news_rows = [f'{number}\t\t\t{title}\t\t\t\t' for number, title in enumerate(titles, 1)]
  for split, lines in (('train', train), ('dev', [held_out[i] for i in sorted(order[:cut])]),
                       ('test', [held_out[i] for i in sorted(order[cut:])])):
    path = pathlib.Path(folder, split)
    path.mkdir(parents=True)
    for name, content in (('behaviors', lines), ('news', news_rows)):
      text = ''.join(f'{line}\n' for line in content)
      (path / f'{name}.tsv').write_text(text, encoding='utf-8', newline='')


def draw_negatives(rng, num_news, clicked, count=NEGATIVES):
  """`count` distinct numbers of 1..num_news, none of them clicked; fewer if no more are left.

  Args:
    rng: NumPy generator.
    num_news: N.
    clicked: set of numbers.
    count: how many to draw.
  """
  if num_news - len(clicked) <= 4 * count:  # few are left: draw among them
    left = np.setdiff1d(np.arange(1, num_news + 1), list(clicked))
    return rng.permutation(left)[:count].tolist()
  chosen = []
  while len(chosen) < count:
    one = int(rng.integers(1, num_news + 1))
    if one not in clicked and one not in chosen:
      chosen.append(one)
  return chosen


class _Adressa(mind.MindFiles, skip_registration=True):
  """How Adressa's files become a folder in MIND's format."""

  BUILDER_CONFIGS = [
      mind.MindConfig(name='week', source='adressa', test_labels=True,
                      description='The light version of one week.'),
      mind.MindConfig(name='demo', source='demo', test_labels=True,
                      description='The world of `mind_demo` as seven files.'),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'Adressa (https://reclab.idi.ntnu.no/dataset): unpack one_week.tar.gz, the seven files '
      '20170101 to 20170107, to the folder adressa.')

  def _write_demo(self, folder):
    mind_demo.write_adressa(folder)

  def _prepare(self, source, folder):
    convert(source, folder, on_bad_row=self.builder_config.on_bad_row)
    return folder


class Adressa(_Adressa, mind.Mind):
  """Impressions of Adressa, as those of `mind.Mind`; every split has labels."""


class AdressaNews(_Adressa, mind.MindNews):
  """News of Adressa, as those of `mind.MindNews`; there are titles alone."""
