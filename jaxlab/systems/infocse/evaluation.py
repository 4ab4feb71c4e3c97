"""Evaluation of sentence embeddings: STS as in SentEval, retrieval, and how the vectors lie."""
import numpy as np

from jaxlab.losses import contrastive
from jaxlab.metrics import glue, retrieval, sts

_ROWS = 1000  # of the score matrix at a time, and the most vectors whose uniformity is measured
SAME = 4.0  # pairs of at least this score count as positives for the alignment


def spread(vectors):
  """Standard deviation of the coordinates of unit vectors [N, D] times sqrt(D).

  1 where the directions are spread evenly, 0 where all are one: the alarm for a collapse.
  """
  vectors = np.asarray(vectors, np.float64)
  return float(np.sqrt(vectors.var(0).mean() * vectors.shape[1]))


def geometry(first, second):
  """{'alignment', 'uniformity', 'spread': float} of unit vectors of positive pairs [N, D] each."""
  return {'alignment': float(np.mean(contrastive.alignment(first, second))),
          'uniformity': float(contrastive.uniformity(np.asarray(first)[:_ROWS])),
          'spread': spread(first)}


def similarity(first, second, score, subset=None):
  """STS metrics of pairs of sentences, Spearman and Pearson times 100.

  Args:
    first: float32 [N, D], unit vectors.
    second: likewise.
    score: [N], what people say.
    subset: int [N], the subset of each pair; one by default.

  Returns:
    {'spearman': of all pairs, 'spearman_mean', 'spearman_wmean': over the subsets, 'pearson', and
    the `geometry` of the pairs with a score of at least 4}.
  """
  subset = np.zeros(len(score), np.int32) if subset is None else np.asarray(subset)
  order = np.argsort(subset, kind='stable')
  cosines = np.sum(np.asarray(first, np.float64) * second, axis=1)
  sizes = np.unique(subset, return_counts=True)[1].tolist()
  found = sts.spearman_subsets(cosines[order], np.asarray(score)[order], sizes)
  same = np.asarray(score) >= SAME
  return {'spearman': 100 * found['all'], 'spearman_mean': 100 * found['mean'],
          'spearman_wmean': 100 * found['wmean'], 'pearson': 100 * glue.pearson(cosines, score),
          **(geometry(first[same], second[same]) if same.sum() > 1 else {})}


def pair_retrieval(queries, items):
  """Retrieval of item i by query i from all N items, and the `geometry` of the pairs.

  Args:
    queries: float32 [N, D], unit vectors.
    items: likewise.
  """
  rows = np.arange(len(queries))
  found = [retrieval.ranks(queries[part] @ items.T, part)
           for part in np.array_split(rows, -(-len(rows) // _ROWS))]
  return {**retrieval.report(np.concatenate(found)), **geometry(queries, items)}


def page_retrieval(queries, pages, relevant):
  """Retrieval of the sentence of a page that answers a query.

  Args:
    queries: float32 [Q, D], unit vectors.
    pages: Q arrays [n, D], the unit vectors of the sentences of each query's page.
    relevant: Q numbers, the relevant sentence of each page.
  """
  found = [retrieval.ranks(query[None] @ page.T, [own])[0]
           for query, page, own in zip(queries, pages, relevant)]
  return retrieval.report(found)


def annotation_quality(positive, cosine, previous=None, label=None):
  """How an annotation looks.

  Args:
    positive: int [N], the row of each sentence's positive, -1 for none.
    cosine: [N], to the positive.
    previous: positives of the round before, or None.
    label: int [N], what each sentence means where that is known, or None.

  Returns:
    {'share': of sentences with a positive, 'cosine': mean over them, 'agreement': share of the
    positives that are those of `previous`, 'precision': share that have the sentence's own label}.
  """
  positive = np.asarray(positive)
  has = positive >= 0
  mean = lambda x: float(np.mean(x[has])) if has.any() else 0.0
  found = {'share': float(has.mean()), 'cosine': mean(np.asarray(cosine))}
  if previous is not None:
    found['agreement'] = mean(positive == previous)
  if label is not None:
    found['precision'] = mean(np.asarray(label)[np.maximum(positive, 0)] == label)
  return found
