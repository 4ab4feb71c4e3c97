"""What a request costs with warm caches: multiply-adds by formula, milliseconds by the clock.

A whole request: the user's vector from cached pages, all products of retrieval, and the ranking of
k candidates by the siamese score alone, by the hybrid ranker, or by the cross encoder.
"""
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.hybrid_encoder.model import own_params


class Sizes(NamedTuple):
  """What the formulas need.

  Attributes:
    ads: A, all that retrieval looks at.
    candidates: k.
    pages: N.
    tokens: L of an ad, and of a page's title.
    width: d.
    codes: M.
    queries: width of the attention pools.
    cross_layers: layers of the cross encoder, of feed-forward width 4 d.
    text_layers: likewise of the text encoder, which runs where nothing is cached.
    hidden: width of the hybrid ranker's 'mlp', 0 for the other aggregates.
  """
  ads: int
  candidates: int
  pages: int
  tokens: int
  width: int
  codes: int
  queries: int
  cross_layers: int
  text_layers: int
  hidden: int = 0


def _pool(length, s):
  return length * (s.width * s.queries + s.queries + s.width)


def _transformer(length, layers, width):
  return layers * length * (12 * width**2 + 2 * length * width)


def multiply_adds(kind, s, *, cached=True):
  """Multiply-adds of a request.

  Args:
    kind: 'siamese', 'hybrid' or 'cross'.
    s: Sizes.
    cached: False for a hybrid request that encodes the pages and the candidates' texts anew.
  """
  total = _pool(s.pages, s) + s.ads * s.width
  if kind == 'hybrid':
    total += s.candidates * s.codes * (2 * s.pages + 1) * s.width
    total += s.candidates * s.hidden * (s.codes * s.width + 1)
    if not cached:
      texts = s.pages + s.candidates
      total += texts * _transformer(s.tokens, s.text_layers, s.width)
      total += s.pages * 2 * s.width**2  # keys and values
      total += s.candidates * (2 * s.tokens * s.width**2 + 2 * s.codes * s.tokens * s.width)
  if kind == 'cross':
    length = s.pages + s.tokens + 2
    total += s.candidates * (_transformer(length, s.cross_layers, s.width) + s.width)
  return total


def request(kind, net, encoders, candidates, *, cached=True):
  """The function of a request, user -> (ad places [k], scores [k]) best first, to be compiled.

  It takes (params, user, ads): `user` has 'pages', 'keys', 'values' [N, d] and 'features' of the
  texts; `ads` 'vectors' [A, d], 'codes' [A, M, d], 'states' [A, L, d], 'mask' [A, L] and
  'features'.

  Args:
    kind: 'siamese', 'hybrid' or 'cross'.
    net: HybridEncoder with the ranker of that kind.
    encoders: task.Encoders of the texts.
    candidates: k.
    cached: see `multiply_adds`.
  """
  def run(params, user, ads):
    apply = lambda method, *x: net.apply({'params': own_params(params)}, *x, method=method)
    pages = user['pages'] if cached else encoders.pages(params, user['features'])
    mask = jnp.ones((1, len(pages)), bool)
    vector = apply('user_retrieval', pages[None], mask)
    scores, places = jax.lax.top_k(ads['vectors'] @ vector[0], candidates)
    if kind == 'siamese':
      return places, scores
    if kind == 'cross':
      ranked = apply('rank', pages[None], mask, ads['states'][places][None],
                     ads['mask'][places][None])[0]
    elif cached:
      ranked = apply('rank_cached', ads['codes'][places][None], user['keys'][None],
                     user['values'][None], mask)[0]
    else:
      states, real = encoders.ads(params, {
          name: x[places] for name, x in ads['features'].items()})
      ranked = apply('rank', pages[None], mask, states[None], real[None])[0]
    scores, order = jax.lax.top_k(ranked, candidates)
    return places[order], scores

  return jax.jit(run)


def milliseconds(function, *arguments, repeats=30):
  """Median time of a call, in ms, after a first one that compiles."""
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    times.append(time.perf_counter() - start)
  return 1e3 * float(np.median(times))
