"""Small federated data sets out of what is installed, written as LEAF's json files."""
import importlib
import inspect
import json
import re

import numpy as np

from jaxlab.data import characters

SPEAKERS = ('flax.linen', 'jax.lax', 'jax.numpy', 'numpy', 'numpy.linalg', 'numpy.ma', 'optax',
            'scipy.integrate', 'scipy.interpolate', 'scipy.linalg', 'scipy.ndimage',
            'scipy.optimize', 'scipy.signal', 'scipy.sparse', 'scipy.special', 'scipy.stats',
            'sklearn.cluster', 'sklearn.ensemble', 'sklearn.linear_model', 'sklearn.metrics')
ROWS = 120  # windows of a speaker
WRITERS = 20
TEST_SHARE = 5  # every fifth row of a writer, and the last fifth of a speaker, is for testing


def write_shakespeare(folder, length):
  """Writes docstrings as train and test json in LEAF's form.

  A module is a speaker, and its public functions and classes, by name, speak in turn: the first
  `ROWS` windows of `length` characters, which do not overlap.
  """
  splits = {'train': {}, 'test': {}}
  for name in SPEAKERS:
    text = speech(name)[:ROWS * length + 1]
    starts = range(0, len(text) - length, length)
    rows = [(text[i:i + length], text[i + length]) for i in starts]
    end = len(rows) - len(rows) // TEST_SHARE
    splits['train'][name], splits['test'][name] = rows[:end], rows[end:]
  _write(folder, splits)


def speech(name):
  """The docstrings of a module; what is no symbol of LEAF's becomes a space, many spaces one."""
  module = importlib.import_module(name)
  members = [getattr(module, key) for key in sorted(vars(module)) if not key.startswith('_')]
  texts = [inspect.getdoc(member) or '' for member in members if callable(member)]
  return re.sub(f'(?: |[^{re.escape(characters.LEAF)}])+', ' ', '\n'.join(texts))


def write_femnist(folder):
  """Writes scikit-learn's handwritten digits as train and test json in LEAF's form.

  A digit of 8 x 8 is enlarged to 24 x 24 inside 28 x 28, white on black is turned round, and each
  of the 20 writers has a pen that inks .5 to 1 of the full black.
  """
  from sklearn import datasets
  digits, rng = datasets.load_digits(), np.random.default_rng(0)
  pens = np.linspace(0.5, 1, WRITERS)
  ink = np.pad(np.kron(digits.images / 16, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
  splits = {'train': {}, 'test': {}}
  for writer, rows in enumerate(np.array_split(rng.permutation(len(ink)), WRITERS)):
    images = (1 - pens[writer] * ink[rows]).reshape(len(rows), -1).round(4).tolist()
    pairs = list(zip(images, digits.target[rows].tolist()))
    name = f'f{writer:04d}'
    splits['test'][name] = pairs[::TEST_SHARE]
    splits['train'][name] = [pair for i, pair in enumerate(pairs) if i % TEST_SHARE]
  _write(folder, splits)


def _write(folder, splits):
  for split, data in splits.items():
    content = {
        'users': list(data), 'num_samples': [len(rows) for rows in data.values()],
        'user_data': {
            user: dict(zip('xy', map(list, zip(*rows)))) for user, rows in data.items()
        }
    }
    (folder / split).mkdir(parents=True)
    (folder / split / 'demo.json').write_text(json.dumps(content), encoding='utf-8')
