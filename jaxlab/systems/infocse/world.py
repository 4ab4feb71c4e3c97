"""A synthetic world in which meanings are known: documents that say the same in other words.

A meaning has private words, a document words that only mark the document. A sentence says one
meaning by some of its words, with a word of its document and function words. Two sentences of one
meaning in one document are the positives that the paper is after; two others of the document share
its words only.
"""
from typing import NamedTuple

import numpy as np

MEANINGS, WORDS = 60, 6  # private words of a meaning
DOCUMENTS, TOPICS, REPEATS = 150, 4, 3  # meanings of a document, sentences of each
MARKS, OF_DOCUMENT = 40, 3  # words that mark documents, how many a document has
FUNCTION, FILLERS = 60, 3  # function words, how many a sentence has
SENTENCES = TOPICS * REPEATS
VOCABULARY = 1 + MEANINGS * WORDS + MARKS + FUNCTION  # 0 is padding
RIGHT, TRIVIAL, COARSE, FALSE = range(4)  # kinds of positives


class World(NamedTuple):
  """The sentences of a world, D documents of S.

  Attributes:
    ids: int32 [D, S, T].
    meaning: int32 [D, S].
    kind: int8 [D, S, S], what it were if the one were the other's positive: RIGHT, of one meaning
      in other words; TRIVIAL, of the same words; COARSE, of another meaning and with a word of the
      document in common; FALSE, of another meaning and without.
  """
  ids: np.ndarray
  meaning: np.ndarray
  kind: np.ndarray


def make(seed, said=3, marks=1):
  """The World of a seed.

  Args:
    seed: a non-negative integer.
    said: words of its meaning in a sentence.
    marks: words of its document in a sentence.
  """
  rng = np.random.default_rng([seed, 0x1f0])
  first_mark, first_function = 1 + MEANINGS * WORDS, 1 + MEANINGS * WORDS + MARKS
  ids = np.zeros((DOCUMENTS, SENTENCES, said + marks + FILLERS), np.int32)
  meaning = np.zeros((DOCUMENTS, SENTENCES), np.int32)
  draw = lambda words, count: rng.choice(words, count, replace=False)
  for d in range(DOCUMENTS):
    meaning[d] = rng.permutation(np.repeat(draw(MEANINGS, TOPICS), REPEATS))
    own = first_mark + draw(MARKS, OF_DOCUMENT)
    for s in range(SENTENCES):
      ids[d, s] = [*(1 + meaning[d, s] * WORDS + draw(WORDS, said)), *draw(own, marks),
                   *(first_function + draw(FUNCTION, FILLERS))]
  same = meaning[:, :, None] == meaning[:, None]
  mark = ids[:, :, said:said + marks]
  common = (mark[:, :, None, :, None] == mark[:, None, :, None]).any((-1, -2))
  ordered = np.sort(ids, axis=-1)
  equal = (ordered[:, :, None] == ordered[:, None]).all(-1)
  kind = np.select([equal, same, common], [TRIVIAL, RIGHT, COARSE], FALSE)
  return World(ids, meaning, kind.astype(np.int8))
