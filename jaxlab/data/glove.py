"""GloVe word vectors (Pennington et al. 2014, EMNLP): text files, a word and floats a line."""
import numpy as np

from jaxlab.config import ConfigError
from jaxlab.data.documents import read_lines


def read_vectors(path, words):
  """{word: float32 [E]} of those of `words` that a GloVe file has.

  Words of the 840B file may contain spaces: a line is split from its end. E is what the first line
  says.

  Args:
    path: of the text file.
    words: container of the words to keep.

  Raises:
    ConfigError: no such file.
    ValueError: a bad line, or bytes that are no UTF-8; the message names file and line.
  """
  found, width = {}, None
  for where, line in read_lines(path):
    if width is None:
      width = len(line.split(' ')) - 1
    word, *numbers = line.rsplit(' ', width)
    if len(numbers) != width or not width or not word:
      raise ValueError(f'{where}: expected a word and {width} floats, got {line[:60]!r}')
    if word in words and word not in found:
      try:
        found[word] = np.array(numbers, np.float32)
      except ValueError as error:
        raise ValueError(f'{where}: expected {width} floats after the word: {error}') from error
  if width is None:
    raise ValueError(f'{path}: line 1: expected a word and floats, got an empty file')
  return found


def read_table(path, vocabulary):
  """float32 [V, E] of a vocabulary {word: id from 1}; row 0 and words without a vector are 0."""
  found = read_vectors(path, vocabulary)
  if not found:
    raise ConfigError(f'{path}: has none of the {len(vocabulary)} words of the data')
  table = np.zeros((len(vocabulary) + 1, len(next(iter(found.values())))), np.float32)
  for word, vector in found.items():
    table[vocabulary[word]] = vector
  return table
