"""The tab-separated files of the official code: pages with a gold sentence, judgements, scores."""
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.data.glue import read_tsv
from jaxlab.data.rows import parse_rows

SEPARATOR = '<sep>'
COLUMNS = ('query', 'title', 'snippet', 'body', 'url', 'lang', 'start_index', 'end_index')
JUDGED = ('query', 'url', '_', '_', 'judgement', 'lang', 'body', 'ref_start', '_', 'test_start',
          '_', 'title')
PREFERRED = 3.0  # a judgement from here on prefers the tested snippet


class Example(NamedTuple):
  """A query on a page.

  Attributes:
    query: text.
    title: of the page.
    sentences: of the page, in order.
    label: index of the first sentence of the gold snippet.
    lang: language, for metrics of each.
    url: of the page.
  """
  query: str
  title: str
  sentences: tuple[str, ...]
  label: int
  lang: str = 'en'
  url: str = ''


class Judgement(NamedTuple):
  """Two snippets of a page that people compared.

  Attributes:
    query: text.
    title: of the page.
    sentences: of the page.
    reference: index of the first sentence of one snippet.
    test: of the other.
    label: 0 if the judges prefer the first, else 1.
    confidence: |judgement - 3|.
    lang: language.
  """
  query: str
  title: str
  sentences: tuple[str, ...]
  reference: int
  test: int
  label: int
  confidence: float
  lang: str


def read_pages(path, *, max_sentences=160, on_bad_row='raise'):
  """Reads the format of 8 columns.

  Args:
    path: UTF-8 file without header: query, title, snippet, body (sentences joined by '<sep>'), url,
      lang, start_index, end_index (0-based, inclusive).
    max_sentences: sentences of a page that are kept.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.

  Returns:
    ([Example, ...], {'empty title': rows dropped, 'late label': rows dropped}): a row whose gold
    sentence is not among those kept cannot be learned from.

  Raises:
    ConfigError: there is no such file.
    ValueError: a malformed row, with file, line and column.
  """
  examples, dropped = [], {'empty title': 0, 'late label': 0}
  for example in parse_rows(read_tsv(pathlib.Path(path)), _example, on_bad_row=on_bad_row,
                            where=str(path)):
    if not example.title.strip():
      dropped['empty title'] += 1
    elif example.label >= max_sentences:
      dropped['late label'] += 1
    else:
      examples.append(example._replace(sentences=example.sentences[:max_sentences]))
  return examples, dropped


def read_judgements(path, *, on_bad_row='raise'):
  """[Judgement, ...] of the format of 12 columns: query, url, _, _, judgement, lang, body,
  ref_start, _, test_start, _, title. Arguments and errors are those of `read_pages`."""
  return list(parse_rows(read_tsv(pathlib.Path(path)), _judgement, on_bad_row=on_bad_row,
                         where=str(path)))


def write_pages(path, examples):
  """Writes the format of 8 columns; the snippet is the gold sentence."""
  with open(path, 'w', encoding='utf-8') as file:
    for e in examples:
      cells = (e.query, e.title, e.sentences[e.label], SEPARATOR.join(e.sentences), e.url, e.lang,
               str(e.label), str(e.label))
      file.write('\t'.join(' '.join(cell.split()) for cell in cells) + '\n')


def read_scores(path):
  """{line number of the example: float32 [n]} of a file of coarse scores.

  A line is `line_index<TAB>score score ...`, a score a real sentence.

  Raises:
    ConfigError: there is no such file.
    ValueError: a malformed line, or one that stands twice.
  """
  found = {}
  for where, cells in read_tsv(pathlib.Path(path)):
    if len(cells) != 2:
      raise ValueError(f'{where}: expected 2 columns, got {len(cells)}')
    number = _whole(where, 1, 'line_index', cells[0])
    if number in found:
      raise ValueError(f'{where}: column 1 (line_index): expected each line once, got {number} '
                       'again')
    try:
      found[number] = np.array(cells[1].split(), np.float32)
    except ValueError as error:
      raise ValueError(f'{where}: column 2 (scores): expected numbers: {error}') from error
  return found


def write_scores(path, scores):
  """Writes what `read_scores` reads, with 4 decimals.

  Args:
    path: file to write.
    scores: sequence of float [n], the real sentences of each example in the order of the data.
  """
  with open(path, 'w', encoding='utf-8') as file:
    for number, row in enumerate(scores):
      file.write(f'{number}\t' + ' '.join(f'{score:.4f}' for score in row) + '\n')


def _cells(where, cells, names):
  if len(cells) != len(names):
    raise ValueError(f'{where}: expected {len(names)} columns ({", ".join(names)}), got '
                     f'{len(cells)}')
  return cells


def _whole(where, column, name, text, below=None):
  wanted = 'a whole number' if below is None else f'a sentence of the page, 0 to {below - 1}'
  if not text.isdecimal() or below is not None and int(text) >= below:
    raise ValueError(f'{where}: column {column} ({name}): expected {wanted}, got {text!r}')
  return int(text)


def _sentences(where, column, body):
  if not body.strip():
    raise ValueError(f'{where}: column {column} (body): expected sentences joined by {SEPARATOR}, '
                     'got an empty page')
  return tuple(body.split(SEPARATOR))


def _example(where, cells):
  query, title, _, body, url, lang, start, end = _cells(where, cells, COLUMNS)
  sentences = _sentences(where, 4, body)
  label = _whole(where, 7, 'start_index', start, len(sentences))
  last = _whole(where, 8, 'end_index', end, len(sentences))
  if last < label:
    raise ValueError(f'{where}: column 8 (end_index): expected at least start_index={label}, got '
                     f'{last}')
  return Example(query, title, sentences, label, lang, url)


def _judgement(where, cells):
  query, _, _, _, score, lang, body, reference, _, test, _, title = _cells(where, cells, JUDGED)
  sentences = _sentences(where, 7, body)
  try:
    value = float(score)
  except ValueError:
    value = np.nan
  if not np.isfinite(value):
    raise ValueError(f'{where}: column 5 (judgement): expected a number, got {score!r}')
  starts = (_whole(where, 8, 'ref_start', reference, len(sentences)),
            _whole(where, 10, 'test_start', test, len(sentences)))
  return Judgement(query, title, sentences, *starts, int(value >= PREFERRED),
                   abs(value - PREFERRED), lang)
