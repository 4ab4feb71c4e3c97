"""Corpora of documents cut into sentences: JSON lines, or plain text with blank lines between."""
import json
import pathlib
from typing import NamedTuple

from jaxlab.config import ConfigError
from jaxlab.data.rows import parse_rows


class Document(NamedTuple):
  """A document.

  Attributes:
    name: its id; its number where the file gives none.
    sentences: its sentences, in order.
  """
  name: str
  sentences: tuple[str, ...]


def read_lines(path):
  """Yields ('file: line n', text) of a UTF-8 file.

  Raises:
    ConfigError: there is no such file.
    ValueError: bytes that are no UTF-8, with file, line and column.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(f'{path}: no such file')
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      where = f'{path}: line {number}'
      try:
        yield where, line.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n')
      except UnicodeDecodeError as error:
        raise ValueError(f'{where}, column {error.start + 1}: expected UTF-8, got byte '
                         f'{line[error.start]:#04x}') from error


def read_documents(path, *, on_bad_row='raise'):
  """The documents of a file, [Document, ...].

  Args:
    path: .jsonl with an object {"doc_id": string, "sentences": [string, ...]} a line, or any other
      ending for plain text, a sentence a line and a blank line between documents.
    on_bad_row: of JSON lines, see `rows.parse_rows`.

  Raises:
    ConfigError: there is no such file.
    ValueError: a bad line, by file, line and what was expected, or no document at all.
  """
  path = pathlib.Path(path)
  if path.suffix == '.jsonl':
    lines = ((where, line) for where, line in read_lines(path) if line.strip())
    found = list(parse_rows(lines, _parse_json, on_bad_row=on_bad_row, where=str(path)))
  else:
    groups = [[]]
    for _, line in read_lines(path):
      if line.strip():
        groups[-1].append(line.strip())
      elif groups[-1]:
        groups.append([])
    found = [Document(str(i), tuple(group)) for i, group in enumerate(groups) if group]
  if not found:
    raise ValueError(f'{path}: expected at least one document with a sentence')
  return found


def _parse_json(where, line):
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where}, column {error.colno}: expected json: {error.msg}') from error
  if not isinstance(row, dict):
    raise ValueError(f'{where}: expected an object, got {type(row).__name__}')
  if not isinstance(row.get('doc_id'), str):
    raise ValueError(f"{where}: 'doc_id': expected a string, got {row.get('doc_id')!r}")
  sentences = row.get('sentences')
  if not (isinstance(sentences, list) and sentences and
          all(isinstance(s, str) and s.strip() for s in sentences)):
    raise ValueError(f"{where}: 'sentences': expected strings with letters in them, got "
                     f'{sentences!r}')
  return Document(row['doc_id'], tuple(sentences))
