"""Reads golden arrays and remembers which ones a test has looked at."""
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'


class Golden:
  """The arrays of `tests/golden/<name>.npz` by key; `unread` lists those that nobody asked for."""

  def __init__(self, name):
    with np.load(FOLDER / f'{name}.npz') as file:
      self._arrays = dict(file)
    self._read = set()

  def __getitem__(self, key):
    array = self._arrays[key]
    self._read.add(key)
    return array

  def unread(self):
    """Keys that were never looked up, in order."""
    return sorted(self._arrays.keys() - self._read)
