"""Pages and queries from the docstrings of installed packages, in the official files' format."""
import itertools
import pathlib

import numpy as np

from jaxlab.data import docstrings
from jaxlab.systems.deepqse import formats

MODULES = ('numpy', 'jax.numpy', 'jax.lax', 'scipy.linalg', 'scipy.sparse', 'scipy.ndimage',
           'scipy.signal', 'scipy.stats', 'scipy.optimize', 'scipy.special', 'scipy.spatial',
           'sklearn.cluster', 'sklearn.decomposition', 'sklearn.ensemble', 'sklearn.linear_model',
           'sklearn.metrics', 'sklearn.model_selection', 'sklearn.preprocessing')
PAGE = 24  # sentences
SIZES = {'train': (120, 640), 'dev': (15, 200), 'test': (30, 300)}  # pages and queries of a split
WORDS = (2, 5)  # of a query


def pages():
  """[(title, sentences)]: the prose of each module cut into pages of `PAGE` different sentences."""
  made, seen = [], set()
  for module in MODULES:
    left = []
    for document in docstrings.sentences(module):
      for sentence in document:
        if sentence not in seen and formats.SEPARATOR not in sentence:
          seen.add(sentence)
          left.append(sentence)
    made += [(module.replace('.', ' '), tuple(left[i:i + PAGE]))
             for i in range(0, len(left) - PAGE + 1, PAGE)]
  return made


def ask(sentence, rng, words):
  """A query: some words of a sentence, in their order.

  Args:
    sentence: text.
    rng: NumPy generator.
    words: (least, most) words that are kept.
  """
  tokens = sentence.split()
  count = min(len(tokens), int(rng.integers(words[0], words[1] + 1)))
  kept = np.sort(rng.choice(len(tokens), count, replace=False))
  return ' '.join(tokens[i].strip('.,:;()`*"\'') for i in kept)


def questions(of_pages, count, rng, words):
  """`count` Examples, each asking for a random sentence of a random page of (title, sentences)."""
  made = []
  while len(made) < count:
    title, sentences = of_pages[rng.integers(len(of_pages))]
    label = int(rng.integers(len(sentences)))
    query = ask(sentences[label], rng, words).strip()
    if query:
      made.append(formats.Example(query, title, sentences, label))
  return made


def write(folder, seed=0):
  """Writes train.tsv, dev.tsv and test.tsv; no page stands in two of them.

  Args:
    folder: to write to; it is made.
    seed: of the choice of pages, sentences and words.
  """
  folder, rng = pathlib.Path(folder), np.random.default_rng([seed, 0])
  folder.mkdir(parents=True, exist_ok=True)
  found = pages()
  order = iter(rng.permutation(len(found)))
  for split, (count, queries) in SIZES.items():
    chosen = [found[i] for i in itertools.islice(order, count)]
    formats.write_pages(folder / f'{split}.tsv', questions(chosen, queries, rng, WORDS))
