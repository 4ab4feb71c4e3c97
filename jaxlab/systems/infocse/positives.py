"""Positives for a whole corpus: picked by the encoder, or by a rule that needs none."""
import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.systems.infocse import annotation, corpus
from jaxlab.systems.infocse.views import VIEWS

_CHUNK = 256  # windows that are annotated at a time


@dataclasses.dataclass(frozen=True)
class Positives:
  """The mapping `config.positives`.

  Attributes:
    name: 'annotated' (InfoCSE), 'neighbour' (the sentence before or after) or 'random' (any of the
      document).
    view: what is done to the tokens of every positive, see `views.view`.
    per_cluster: sentences of a cluster on average.
    iterations: of k-means.
    seeds: of k-means, 'plus_plus' or the 'first' sentences.
    min_cosine: least cosine of a positive.
    max_cosine: above it a sentence that is similar in surface too is trivial.
    max_jaccard: Jaccard index of the tokens above which two are similar in surface.
    pick: the 'nearest' candidate, or a 'sample'.
    temperature: of the softmax of cosines that is sampled from.
    no_positive: a sentence without candidates is its own positive, which dropout tells apart
      ('twin'), or is left out ('skip').
    hard_negatives: whether the nearest sentence of another cluster becomes a hard negative.
  """
  name: Literal['annotated', 'neighbour', 'random'] = 'annotated'
  view: Literal['none', 'crop', 'cutoff', 'shuffle'] = 'none'
  per_cluster: int = 4
  iterations: int = 10
  seeds: Literal['plus_plus', 'first'] = 'plus_plus'
  min_cosine: float = 0.3
  max_cosine: float = 0.98
  max_jaccard: float = 0.9
  pick: Literal['nearest', 'sample'] = 'sample'
  temperature: float = 0.1
  no_positive: Literal['twin', 'skip'] = 'twin'
  hard_negatives: bool = False

  def __post_init__(self):
    require = config_lib.require
    require(self.view in VIEWS, 'view', f'one of {", ".join(VIEWS)}', self.view)
    config_lib.at_least(1, self, ('per_cluster', 'iterations'))
    for name in ('min_cosine', 'max_cosine'):
      require(-1 <= getattr(self, name) <= 1, name, 'a cosine', getattr(self, name))
    require(0 <= self.max_jaccard <= 1, 'max_jaccard', 'a number 0 to 1', self.max_jaccard)
    require(self.temperature > 0, 'temperature', 'more than 0', self.temperature)
    require(not self.hard_negatives or self.name == 'annotated', 'hard_negatives',
            "False without name='annotated', for there are no clusters", self.hard_negatives)


class Picker:
  """Picks positives for a corpus, as often as asked.

  Args:
    settings: Positives.
    sentences: corpus.Corpus.
  """

  def __init__(self, settings, sentences):
    self.settings, self.windows = settings, sentences.windows
    similar, duplicate = corpus.surfaces(sentences, settings.max_jaccard)
    count = (sentences.windows >= 0).sum(1)
    longest = int(annotation.cluster_count(np.arange(count.max()) < count.max(),
                                           settings.per_cluster))
    self._fixed = similar, duplicate
    self._program = jax.jit(jax.vmap(functools.partial(
        _window, settings=settings, max_clusters=longest)))

  def __call__(self, vectors, key):
    """Picks.

    Args:
      vectors: float32 [N, D], unit vectors of the sentences; None for a rule that needs none.
      key: PRNG key.

    Returns:
      ({'positive': int32 [N], a row or -1, and 'hard': likewise, with hard negatives},
      cosine float32 [N]).
    """
    windows = self.windows
    positive = np.full(int(windows.max()) + 1, -1, np.int32)
    hard, cosine = positive.copy(), np.zeros(len(positive), np.float32)
    if vectors is None:
      vectors = np.zeros((len(positive), 1), np.float32)
    keys = jax.random.split(key, len(windows))
    size = min(_CHUNK, len(windows))
    for start in range(0, len(windows), size):
      # The last chunk begins earlier, so that one shape is compiled.
      part = slice(min(start, len(windows) - size), min(start + size, len(windows)))
      rows = windows[part]
      picked, other = self._program(keys[part], vectors[rows], rows >= 0,
                                    *(x[part] for x in self._fixed))
      real = rows >= 0
      to_rows = lambda index: np.where(
          index >= 0, np.take_along_axis(rows, np.maximum(index, 0), axis=1), -1)[real]
      positive[rows[real]] = to_rows(np.asarray(picked.index))
      hard[rows[real]] = to_rows(np.asarray(other))
      cosine[rows[real]] = np.asarray(picked.cosine)[real]
    found = {'positive': positive}
    return ({**found, 'hard': hard} if self.settings.hard_negatives else found), cosine


def _window(key, z, valid, similar, duplicate, *, settings, max_clusters):
  """(annotation.Picked, hard negatives [S]) of a window."""
  if settings.name != 'annotated':
    place = jnp.arange(len(z))
    near = jnp.abs(place[:, None] - place) == 1
    allowed = near if settings.name == 'neighbour' else place[:, None] != place
    allowed = allowed & valid & valid[:, None] & ~duplicate
    return annotation.choose(z, allowed, key=key, temperature=jnp.inf), jnp.full(len(z), -1)
  picked, cluster = annotation.annotate(
      key, z, valid, similar, duplicate, max_clusters=max_clusters,
      per_cluster=settings.per_cluster, iterations=settings.iterations, seeds=settings.seeds,
      min_cosine=settings.min_cosine, max_cosine=settings.max_cosine, pick=settings.pick,
      temperature=settings.temperature)
  return picked, annotation.hard_negatives(z, cluster)
