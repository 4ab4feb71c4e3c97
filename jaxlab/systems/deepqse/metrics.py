"""Metrics of snippet extraction: hit rates among the best k sentences, agreement with judges."""
import numpy as np

from jaxlab.systems.deepqse.model import PADDING

CUTOFFS = (1, 3, 5, 10, 20)
LOST = np.iinfo(np.int64).max  # the rank of a gold sentence that is no candidate


def ranks_of(scores, labels, mask):
  """Rank int [N] of each page's gold sentence, 1 for the best; among equals the earlier is better.

  One that the first stage has lost, whose score is `model.PADDING`, has the rank `LOST`.

  Args:
    scores: [N, n].
    labels: int [N], index of the gold sentence.
    mask: [N, n], non-zero on real sentences.

  >>> ranks_of(np.array([[.1, .7, .7]]), np.array([2]), np.ones((1, 3))).tolist()
  [2]
  """
  scores = np.where(np.asarray(mask) != 0, scores, -np.inf)
  labels = np.asarray(labels)[:, None]
  gold = np.take_along_axis(scores, labels, 1)
  earlier = np.arange(scores.shape[1]) < labels
  found = 1 + (scores > gold).sum(1) + ((scores == gold) & earlier).sum(1)
  return np.where(gold[:, 0] <= PADDING, LOST, found)


def precision_at(scores, labels, mask, cutoffs=CUTOFFS):
  """{f'prec@{k}': share of pages whose gold sentence is among the best k}, a hit rate.

  A page of fewer than k sentences is hit, unless the first stage lost its gold one. Arguments are
  those of `ranks_of`.
  """
  ranks = ranks_of(scores, labels, mask)
  return {f'prec@{k}': float(np.mean(ranks <= k)) for k in cutoffs}


def judge_accuracy(reference, test, labels):
  """Share of pairs of snippets that are ordered as the judges do; equal scores are wrong.

  Args:
    reference: score [N] of one sentence.
    test: score [N] of another sentence of the page.
    labels: [N], 0 where the judges prefer the first, 1 where the second.
  """
  reference, test, labels = map(np.asarray, (reference, test, labels))
  return float(np.mean(np.where(labels == 0, reference > test, reference < test)))
