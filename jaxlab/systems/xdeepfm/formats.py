"""The text formats of click logs, row by row: Criteo, Avazu, and the libffm-like one of xDeepFM.

A row is read into integer tokens, so that nothing of the size of a file is ever in memory. Criteo's
and Avazu's categories are 32-bit hashes in hex, and are kept as the numbers that they are.
"""
import calendar
import datetime
import json
import math
import re

import numpy as np

from jaxlab.data import documents

ABSENT = np.iinfo(np.int64).min  # the token of an empty field
INTEGERS = tuple(f'I{i}' for i in range(1, 14))
CATEGORIES = tuple(f'C{i}' for i in range(1, 27))
CRITEO = INTEGERS + CATEGORIES
_AVAZU_HEX = ('site_id', 'site_domain', 'site_category', 'app_id', 'app_domain', 'app_category',
              'device_id', 'device_ip', 'device_model')
_AVAZU_NUMBERS = ('C1', 'banner_pos', 'device_type', 'device_conn_type',
                  *(f'C{i}' for i in range(14, 22)))
AVAZU = ('hour_of_day', 'weekday', 'is_weekend', 'C1', 'banner_pos', *_AVAZU_HEX, 'device_type',
         'device_conn_type', *(f'C{i}' for i in range(14, 22)))


def table(path, columns, required):
  """Yields (where, {column: text}) of the rows of a file.

  It is JSONL where the name ends so; otherwise a header, if the first line holds one of the names
  `required`, says the columns and the separator, and without one there are tabs and `columns`.

  Args:
    path: file.
    columns: names of the columns of a file without header, the label first; it may be missing.
    required: names, all of which a header must hold. Headers and JSON keys may be spelled in any
      case; the names that are known come out as they are spelled here.

  Raises:
    ValueError: a row with another number of columns or no JSON object; the message says where.
  """
  names, separator = None, '\t'
  known = {name.lower(): name for name in (*columns, *required)}
  spelled = lambda header: [known.get(name.lower(), name) for name in header]
  for number, (where, text) in enumerate(documents.read_lines(path)):
    if str(path).endswith('.jsonl'):
      row = _json_row(where, text)
      yield where, dict(zip(spelled(row), row.values()))
      continue
    if not number:
      separator = '\t' if '\t' in text else ','
      header = spelled(text.split(separator))
      if set(header) & set(required):
        missing = [name for name in required if name not in header]
        if missing:
          raise ValueError(f'{where}: expected the columns {", ".join(missing)} in the header')
        names = header
        continue
      separator = '\t'
    cells = text.split(separator)
    found = names or (columns if len(cells) == len(columns) else columns[1:])
    if len(cells) != len(found):
      raise ValueError(f'{where}: expected {len(names or columns)} columns, got {len(cells)}')
    yield where, dict(zip(found, cells))


def _json_row(where, text):
  try:
    row = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where}, column {error.colno}: expected JSON: {error.msg}') from error
  if not isinstance(row, dict):
    raise ValueError(f'{where}: expected a JSON object, got {type(row).__name__}')
  return {key: '' if value is None else str(value) for key, value in row.items()}


def _integer(where, column, text, expected='an integer'):
  """The integer that a text spells, 260.0 too; ABSENT if it is empty."""
  if not text:
    return ABSENT
  match = re.fullmatch(r'(-?\d{1,18})(\.0*)?', text)
  if match is None:
    raise ValueError(f'{where}, column {column}: expected {expected}, got {text!r}')
  return int(match.group(1))


def _hexadecimal(where, column, text):
  if not text:
    return ABSENT
  if re.fullmatch('[0-9a-fA-F]{8}', text) is None:
    raise ValueError(f'{where}, column {column}: expected 8 hexadecimal digits, got {text!r}')
  return int(text, 16)


def _label(where, column, row, labelled):
  """0 or 1; -1 where there is none and none is needed."""
  text = row.get(column, '')
  if not text and not labelled:
    return -1
  value = _integer(where, column, text, 'a label 0 or 1')
  if value not in (0, 1):
    raise ValueError(f'{where}, column {column}: expected a label 0 or 1, got {text!r}')
  return value


def criteo_row(where, row, labelled=True):
  """{'label', 'tokens' int64 [39]} of a row {column: text} of Criteo; absent columns are empty."""
  tokens = [_integer(where, name, row.get(name, '')) for name in INTEGERS]
  tokens += [_hexadecimal(where, name, row.get(name, '')) for name in CATEGORIES]
  return {'label': np.int8(_label(where, 'label', row, labelled)),
          'tokens': np.array(tokens, np.int64)}


def read_criteo(path):
  """Yields (where, row) of Criteo's train.txt (tabs, no header), a csv with header, or JSONL."""
  return table(path, ('label', *CRITEO), CRITEO)


def avazu_row(where, row, labelled=True):
  """{'label', 'tokens' int64 [24]} of a row of Avazu, in the order of `AVAZU`; the id is dropped.

  'hour', YYMMDDHH, becomes the hour of the day, the weekday (Monday 0) and whether it is a weekend.
  """
  match = re.fullmatch(r'(\d\d)(\d\d)(\d\d)(\d\d)', row.get('hour', ''))
  try:
    year, month, day, hour = (int(part) for part in match.groups())
    weekday = datetime.datetime(2000 + year, month, day, hour).weekday()
  except (AttributeError, ValueError) as error:
    raise ValueError(f'{where}, column hour: expected YYMMDDHH, got {row.get("hour", "")!r}'
                     ) from error
  derived = {'hour_of_day': hour, 'weekday': weekday, 'is_weekend': weekday >= calendar.SATURDAY}
  tokens = [
      derived[name] if name in derived else
      (_hexadecimal if name in _AVAZU_HEX else _integer)(where, name, row.get(name, ''))
      for name in AVAZU
  ]
  return {'label': np.int8(_label(where, 'click', row, labelled)),
          'tokens': np.array(tokens, np.int64)}


def read_avazu(path):
  """Yields (where, row) of Avazu's csv or JSONL."""
  columns = ('click', 'hour', *AVAZU[3:])
  return table(path, columns, columns[1:])


def libffm_row(where, text, labelled=True):
  """The pairs of a line `<label> <field>:<feature>:<value> ...[%<group>]`.

  Args:
    where: for messages.
    text: the line; field and feature ids start at 1, pairs may repeat a field.
    labelled: whether the label may be left out.

  Returns:
    {'label': 1 if the number is positive, else 0 (-1 if there is none), 'field', 'feature': int32
    [n], 0-based, 'value': float32 [n], 'group': text after '%', or ''}.
  """
  body, _, group = text.partition('%')
  cells = body.rstrip(' ').split(' ') if body.strip() else []
  label = -1
  if cells and ':' not in cells[0]:
    try:
      number = float(cells[0])
    except ValueError:
      number = math.nan
    if not math.isfinite(number):
      raise ValueError(f'{where}, column 1: expected a number as the label, got {cells[0]!r}')
    label = int(number > 0)
    cells = cells[1:]
  elif labelled:
    raise ValueError(f'{where}, column 1: expected a label, got {cells[0] if cells else ""!r}')
  pairs = []
  for column, cell in enumerate(cells, 2):
    match = re.fullmatch(r'([1-9]\d{0,8}):([1-9]\d{0,8}):(\S+)', cell)
    try:
      pairs.append((int(match.group(1)) - 1, int(match.group(2)) - 1, float(match.group(3))))
    except (AttributeError, ValueError) as error:
      raise ValueError(f'{where}, column {column}: expected field:feature:value with ids from 1, '
                       f'got {cell!r}') from error
  field, feature, value = zip(*pairs) if pairs else ((), (), ())
  with np.errstate(over='ignore'):
    values = np.array(value, np.float32)
  if not np.isfinite(values).all():
    raise ValueError(f'{where}: expected finite values (float32), got {value}')
  return {'label': np.int8(label), 'field': np.array(field, np.int32),
          'feature': np.array(feature, np.int32), 'value': values, 'group': group}


def format_libffm(row):
  """The line that `libffm_row` reads as `row`."""
  pairs = (f'{field + 1}:{feature + 1}:{float(value):.9g}'
           for field, feature, value in zip(row['field'], row['feature'], row['value']))
  group = f'%{row["group"]}' if row['group'] else ''
  return ' '.join([str(int(row['label'])), *pairs]) + group
