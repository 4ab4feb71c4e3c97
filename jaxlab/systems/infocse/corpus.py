"""A corpus as arrays: its sentences, and the windows of its documents that are annotated."""
import collections
from typing import NamedTuple

import numpy as np

from jaxlab.data import docstrings, text
from jaxlab.data.documents import Document

# The packages whose docstrings are the demo. Functions of one name in both packages of a pair are
# described in other words: retrieval pairs for the test.
DEMO_MODULES = ('numpy', 'scipy.linalg', 'scipy.ndimage', 'scipy.signal', 'scipy.stats',
                'sklearn.cluster', 'sklearn.linear_model', 'sklearn.metrics',
                'sklearn.preprocessing')
DEMO_PAIRS = ('jax.numpy', 'numpy')


class Corpus(NamedTuple):
  """N sentences of documents.

  Attributes:
    ids: int32 [N, T], token ids.
    mask: uint8 [N, T].
    document: int32 [N].
    windows: int32 [W, S], the sentences of at most S that follow each other in a document, by their
      row; -1 is padding.
    ends: whether the first and the last token of a sentence are special ones.
  """
  ids: np.ndarray
  mask: np.ndarray
  document: np.ndarray
  windows: np.ndarray
  ends: bool


def make_corpus(documents, tokenizer, *, max_length, max_sentences):
  """The Corpus of some Documents.

  Args:
    documents: sequence of Document.
    tokenizer: as by `text.load_tokenizer`.
    max_length: tokens after which a sentence is cut off.
    max_sentences: S; a longer document is annotated in several windows.
  """
  lengths = [len(document.sentences) for document in documents]
  tokens = text.encode(tokenizer, [s for d in documents for s in d.sentences],
                       max_length=max_length)
  document = np.repeat(np.arange(len(documents), dtype=np.int32), lengths)
  return from_tokens(tokens.ids, tokens.mask, document, max_sentences=max_sentences, ends=True)


def from_tokens(ids, mask, document, *, max_sentences, ends):
  """The Corpus of token ids [N, T], the sentences of a document standing together."""
  starts = np.flatnonzero(np.diff(document, prepend=document[0] - 1))
  stops = np.append(starts[1:], len(document))
  pieces = [range(first, min(first + max_sentences, stop)) for start, stop in zip(starts, stops)
            for first in range(start, stop, max_sentences)]
  windows = np.full((len(pieces), max(map(len, pieces))), -1, np.int32)
  for row, piece in zip(windows, pieces):
    row[:len(piece)] = piece
  return Corpus(ids, mask.astype(np.uint8), document, windows, ends)


def surfaces(corpus, max_jaccard):
  """(similar, duplicate) bool [W, S, S] of the sentences of each window.

  Two are similar if the sets of their tokens have a Jaccard index above `max_jaccard`, special
  tokens not counted, and duplicates if their tokens are the same.
  """
  shape = (*corpus.windows.shape, corpus.windows.shape[1])
  similar, duplicate = np.zeros(shape, bool), np.zeros(shape, bool)
  first = int(corpus.ends)
  for i, window in enumerate(corpus.windows):
    rows = window[window >= 0]
    ids, n = np.where(corpus.mask[rows] != 0, corpus.ids[rows], -1), len(rows)
    duplicate[i, :n, :n] = (ids[:, None] == ids).all(-1)
    words, local = np.unique(ids, return_inverse=True)
    has = np.zeros((n, len(words)), np.float32)
    inner = corpus.mask[rows] != 0
    inner[:, :first] = False
    if corpus.ends:
      inner[np.arange(n), corpus.mask[rows].sum(1) - 1] = False
    sentence, place = inner.nonzero()
    has[sentence, local.reshape(ids.shape)[sentence, place]] = 1
    both, size = has @ has.T, has.sum(1)
    either = np.maximum(size[:, None] + size - both, 1)
    similar[i, :n, :n] = both / either > max_jaccard
  return similar, duplicate


def demo_documents():
  """The docstrings of installed packages as Documents of two sentences and more."""
  return [Document(f'{module} {i}', tuple(sentences)) for module in DEMO_MODULES
          for i, sentences in enumerate(docstrings.sentences(module)) if len(sentences) > 1]


def demo_pairs():
  """[(sentence, sentence), ...]: how two packages describe the function of one name.

  Signatures, and what a package says of several functions, are left out.
  """
  packages = []
  for module in DEMO_PAIRS:
    first = {}
    for name, docstring in docstrings.public(module):
      prose = [s for s in docstrings.prose(docstring) if not s.startswith(f'{name}(')]
      if prose:
        first[name] = prose[0]
    times = collections.Counter(first.values())
    packages.append({name: s for name, s in first.items() if times[s] == 1})
  ours, theirs = packages
  return [(ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())
          if ours[name] != theirs[name]]
