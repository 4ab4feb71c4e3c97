"""Rankings of a page's sentences that learn nothing: word overlap and order.

Birch-like and PARADE-like models are `model.context` 'none' and 'sentences' of a config.
"""
import collections
import re

import numpy as np


def words(text):
  """Lower-cased words of a text.

  >>> words("BM25's k1, b")
  ['bm25', 's', 'k1', 'b']
  """
  return re.findall(r'\w+', text.lower())


def bm25(query, sentences, *, k1=1.2, b=0.75):
  """BM25 scores [n] of sentences; document frequencies are those within the page.

  score = sum over the query's words of idf f (k1 + 1) / (f + k1 (1 - b + b length / mean length)),
  idf = ln(1 + (n - df + .5) / (df + .5)) (Robertson and Zaragoza, 2009).

  Args:
    query: text.
    sentences: n texts.
    k1: saturation of repeated words.
    b: how much long sentences are held back, 0 to 1.
  """
  counts = [collections.Counter(words(sentence)) for sentence in sentences]
  lengths = np.array([sum(c.values()) for c in counts], np.float64)
  norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
  scores = np.zeros(len(sentences))
  for word in words(query):
    found = np.array([c[word] for c in counts], np.float64)
    holding = np.count_nonzero(found)
    idf = np.log(1 + (len(sentences) - holding + 0.5) / (holding + 0.5))
    scores += idf * found * (k1 + 1) / (found + norm)
  return scores


def tf_idf(query, sentences):
  """Overlap [n]: the sum of ln((n + 1) / (df + 1)) times the count of the query's words."""
  counts = [collections.Counter(words(sentence)) for sentence in sentences]
  scores = np.zeros(len(sentences))
  for word in set(words(query)):
    found = np.array([c[word] for c in counts], np.float64)
    scores += found * np.log((len(sentences) + 1) / (np.count_nonzero(found) + 1))
  return scores


def in_order(sentences):
  """Scores [n] that put the first sentences first."""
  return -np.arange(len(sentences), dtype=np.float64)


def padded(rows, length):
  """float32 [N, length] of N arrays [n], with zeros at their ends."""
  out = np.zeros((len(rows), length), np.float32)
  for i, row in enumerate(rows):
    out[i, :len(row)] = row
  return out
