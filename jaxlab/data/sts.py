"""Pairs of sentences with a similarity from 0 to 5: STS-B's files, and a year of STS 2012-2016."""
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.config import require
from jaxlab.data.documents import read_lines


class Pairs(NamedTuple):
  """N pairs, subset after subset.

  Attributes:
    first: N sentences.
    second: N sentences.
    score: float32 [N].
    subset: int32 [N], rising from 0.
  """
  first: list[str]
  second: list[str]
  score: np.ndarray
  subset: np.ndarray


def read(path):
  """Reads STS-B's sts-*.csv, one subset, or a folder of SentEval: a year and its subsets.

  Args:
    path: a tab-separated file without header, genre, file, year, index, score, sentence, sentence,
      in which quotes are letters; or a folder with STS.input.NAME.txt (sentence, sentence) and
      STS.gs.NAME.txt (score or nothing) of each subset.

  Raises:
    ConfigError: no such file, or a folder without such files.
    ValueError: a bad row, by file, line, column and what was expected.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return _pairs([[_stsb_row(where, line) for where, line in read_lines(path)]], path)
  names = sorted(file.name.removeprefix('STS.input.') for file in path.glob('STS.input.*.txt'))
  require(names, 'sts', 'a folder with STS.input.NAME.txt and STS.gs.NAME.txt', str(path))
  return _pairs([_subset(path, name) for name in names], path)


def _pairs(subsets, path):
  rows = [(*row, number) for number, subset in enumerate(subsets) for row in subset]
  if not rows:
    raise ValueError(f'{path}: expected at least one pair')
  first, second, score, subset = zip(*rows)
  return Pairs(list(first), list(second), np.array(score, np.float32), np.array(subset, np.int32))


def _stsb_row(where, line):
  cells = line.split('\t')
  if len(cells) < 7:
    raise ValueError(f'{where}: expected at least 7 columns between tabs, got {len(cells)}')
  return cells[5], cells[6], _score(f'{where}, column 5', cells[4])


def _subset(folder, name):
  inputs = list(read_lines(folder / f'STS.input.{name}'))
  gold = list(read_lines(folder / f'STS.gs.{name}'))
  if len(inputs) != len(gold):
    raise ValueError(f'{folder}: STS.input.{name} has {len(inputs)} lines and STS.gs.{name} '
                     f'{len(gold)}; expected as many')
  rows = []
  for (where, line), (gold_where, score) in zip(inputs, gold):
    if score.strip():  # pairs without a score were not rated
      cells = line.split('\t')
      if len(cells) < 2:
        raise ValueError(f'{where}: expected two sentences and a tab between them')
      rows.append((cells[0], cells[1], _score(f'{gold_where}, column 1', score)))
  return rows


def _score(where, text):
  try:
    value = float(text)
  except ValueError:
    value = np.nan
  if not 0 <= value <= 5:
    raise ValueError(f'{where}: expected a number 0 to 5, got {text!r}')
  return value
