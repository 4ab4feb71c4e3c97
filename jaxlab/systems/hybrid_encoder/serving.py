"""Two-step serving from caches: what a request computes, and what it finds ready.

Ads are encoded offline, pages once when they are browsed; no text encoder runs at request time. The
rank score means something inside the retrieved list only: it is never searched with.
"""
import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data.glue import read_tsv
from jaxlab.systems.hybrid_encoder import task as task_lib
from jaxlab.systems.hybrid_encoder.data import ClickParser
from jaxlab.systems.hybrid_encoder.index import Index
from jaxlab.systems.hybrid_encoder.model import own_params
from jaxlab.train.checkpoints import fingerprint as tree_fingerprint
from jaxlab.train.checkpoints import flatten


class AdCache(NamedTuple):
  """What is kept of the ads.

  Attributes:
    ids: int64 [A].
    vectors: float32 [A, d], v of the retrieval step.
    codes: float32 [A, M, d], of the ranking step.
    fingerprint: of the parameters that the codes come from.
  """
  ids: np.ndarray
  vectors: np.ndarray
  codes: np.ndarray
  fingerprint: int

  def bytes_per_ad(self):
    """Bytes of the codes and of the vector of one ad: 4 (M d + d)."""
    return (self.codes[0].nbytes + self.vectors[0].nbytes) if len(self.ids) else 0


class UserCache(NamedTuple):
  """What is kept of a user: N pages, the oldest first.

  Attributes:
    pages: float32 [N, d].
    keys: float32 [N, d].
    values: float32 [N, d].
    count: int, how many are there; the rest is 0.
  """
  pages: np.ndarray
  keys: np.ndarray
  values: np.ndarray
  count: int

  @property
  def mask(self):
    """bool [N]."""
    return np.arange(len(self.pages)) < self.count


@dataclasses.dataclass(frozen=True, eq=False)
class Server:
  """The functions of one model.

  Attributes:
    net: HybridEncoder whose ranker is the hybrid one.
    encoders: task.Encoders.
    params: {'text', 'siamese', 'ranker'}; a part without parameters may be missing.
  """
  net: object
  encoders: task_lib.Encoders
  params: dict

  def apply(self, method, *arguments):
    """A method of the HybridEncoder, compiled once for each shape."""
    return _apply(self.net, method, own_params(self.params), *arguments)

  @functools.cached_property
  def retrieval_version(self):
    """`fingerprint` of the vectors of retrieval; all weights of the text encoder are read once."""
    return fingerprint(self.params)

  @functools.cached_property
  def ranking_version(self):
    """`fingerprint` of the codes of ranking."""
    return fingerprint(self.params, ranking=True)


def _apply_method(net, method, params, *arguments):
  return net.apply({'params': params}, *arguments, method=method)


_apply = jax.jit(_apply_method, static_argnums=(0, 1))


def fingerprint(params, *, ranking=False):
  """A number that changes with any weight that ad vectors depend on.

  Args:
    params: {'text', 'siamese', 'ranker'}.
    ranking: for the codes of the ranking step instead of the vectors of retrieval.
  """
  tower = params['ranker']['ad'] if ranking else params.get('siamese', {}).get('ad_pool', {})
  parts = {'text': params.get('text', {}), 'tower': tower}
  return tree_fingerprint(jax.tree.map(np.asarray, parts)) if flatten(parts) else 0


def build_ad_cache(server, features, ids):
  """The AdCache of ads.

  Args:
    server: Server.
    features: {name: [A, ...]} of their texts.
    ids: integers [A].
  """
  def one(part):
    tokens, mask = server.encoders.ads(server.params, part)
    apply = lambda method: _apply_method(server.net, method, own_params(server.params), tokens,
                                         mask)
    return apply('ad_retrieval'), apply('ad_codes')[0]

  vectors, codes = jax.jit(lambda f: task_lib.in_chunks(one, f))(features)
  return AdCache(np.asarray(ids, np.int64), np.asarray(vectors), np.asarray(codes),
                 server.ranking_version)


def build_index(server, cache, **options):
  """The Index of an AdCache; `options` are those of `Index`."""
  return Index(cache.vectors, cache.ids, server.retrieval_version, **options)


def user_cache(server, features, length):
  """The UserCache of a history.

  Args:
    server: Server.
    features: {name: [n, ...]} of its pages, the oldest first; n may be 0.
    length: N; of longer histories the last pages are kept.
  """
  count = min(len(next(iter(features.values()))), length)
  if count:
    kept = {name: x[-count:] for name, x in features.items()}
    pages = np.asarray(server.encoders.pages(server.params, kept))
    keys, values = (np.asarray(x) for x in server.apply('user_keys', pages))
  else:
    width = server.params['ranker']['user']['key']['kernel'].shape[0]
    pages = keys = values = np.zeros((0, width), np.float32)
  pad = lambda x: np.pad(x, ((0, length - count), (0, 0)))
  return UserCache(pad(pages), pad(keys), pad(values), count)


def append_page(server, cache, features):
  """The UserCache with one more page {name: [1, ...]}; a full one drops its oldest."""
  one = user_cache(server, features, 1)
  arrays = []
  for old, new in zip(cache[:3], one[:3]):
    kept = old[1:cache.count] if cache.count == len(old) else old[:cache.count]
    row = np.concatenate([kept, new])
    arrays.append(np.pad(row, ((0, len(old) - len(row)), (0, 0))))
  return UserCache(*arrays, min(cache.count + 1, len(cache.pages)))


def retrieve(server, cache, index, k):
  """(ids [k], scores [k]) of step 1, fewer where faiss finds fewer.

  ConfigError if the index is of other parameters.
  """
  index.check(server.retrieval_version)
  users = server.apply('user_retrieval', cache.pages[None], cache.mask[None])
  ids, scores = index.search(users, min(k, len(index)))
  found = ids[0] >= 0
  return ids[0][found], scores[0][found]


def rank(server, cache, ads, ids):
  """Rank scores float32 [k] of the ads with ids [k].

  ConfigError if the codes are of other parameters, or an id is not in the cache.
  """
  config_lib.require(ads.fingerprint == server.ranking_version, 'ad cache',
                     'codes of these parameters; build the cache anew', ads.fingerprint)
  order = np.argsort(ads.ids, kind='stable')
  place = order.take(np.searchsorted(ads.ids, ids, sorter=order), mode='clip')
  missing = np.asarray(ids)[ads.ids[place] != ids]
  config_lib.require(not len(missing), 'ids', 'ids of the ad cache', missing.tolist()[:8])
  scores = server.apply('rank_cached', ads.codes[place][None], cache.keys[None],
                        cache.values[None], cache.mask[None])
  return np.asarray(scores[0])


def recommend(server, cache, ads, index, *, retrieve_k=100, n=10, retrieval_share=0.0,
              popularity=None):
  """(ids [n], scores [n]) after both steps, best first.

  Args:
    server: Server.
    cache: UserCache.
    ads: AdCache.
    index: Index of the same ads.
    retrieve_k: length of the short list.
    n: ads that are returned.
    retrieval_share: times the retrieval score, added to the rank score.
    popularity: {id: number}, which orders all ads for a user without pages; None for their ids.
  """
  if not cache.count:
    known = popularity or {}
    scores = np.array([known.get(int(i), 0.0) for i in ads.ids], np.float32)
    order = np.lexsort((ads.ids, -scores))[:n]
    return ads.ids[order], scores[order]
  ids, first = retrieve(server, cache, index, retrieve_k)
  scores = rank(server, cache, ads, ids) + retrieval_share * first
  order = np.argsort(-scores, kind='stable')[:n]
  return ids[order], scores[order]


def predict_input(config, params, path, output):
  """Writes the ads recommended to the users of a file: user id, then `id:score` of each, by tabs.

  Args:
    config: the experiment; 'predict' has retrieve, recommend, backend, factory, probes and
      retrieval_share, see `task.predict_options` and `recommend`.
    params: of a checkpoint.
    path: file of user id, tab, history as in clicks.tsv; page ids are those of the data.
    output: file to write.

  Raises:
    ConfigError: a ranker that has nothing to cache, no such file, or what `build` says.
    ValueError: a malformed row, by file, line and what was expected; bytes that are no UTF-8.
  """
  task_lib.check(config)
  ranker = config['model'].get('ranker', {'name': 'hybrid'})['name']
  config_lib.require(ranker == 'hybrid', 'model.ranker.name',
                     "'hybrid', whose parts are cached, to recommend", ranker)
  net, encoders, data, _ = task_lib.build(config)
  options = task_lib.predict_options(**config.get('predict', {}))
  server = Server(net, encoders, jax.tree.map(jnp.asarray, params))
  features, ad_ids = {name: x[1:] for name, x in data.ads.items()}, data.ids['ads']
  cache = build_ad_cache(server, features, np.arange(1, len(ad_ids) + 1))
  index = build_index(server, cache, backend=options['backend'], factory=options['factory'],
                      probes=options['probes'])
  counts = np.bincount(data.splits['train']['click'], minlength=len(ad_ids) + 1)
  popularity = dict(enumerate(counts.tolist()))
  length = data.splits['train']['history'].shape[1]
  titles = list(data.titles)
  parser = ClickParser({}, {page: i for i, page in enumerate(data.ids['pages'], 1)}, titles)
  with open(output, 'w', encoding='utf-8') as out:
    for where, columns in read_tsv(pathlib.Path(path)):
      if len(columns) != 2 or not columns[0]:
        raise ValueError(f'{where}: expected 2 tab-separated columns (user id, history), got '
                         f'{len(columns)}')
      pages = [titles[page - 1] for page in parser.history(columns[1])]
      tokens = data.tokenize(pages) if pages else {
          name: x[:0] for name, x in data.pages.items()}
      user = user_cache(server, tokens, length)
      ids, scores = recommend(server, user, cache, index, retrieve_k=options['retrieve'],
                              n=options['recommend'], popularity=popularity,
                              retrieval_share=options['retrieval_share'])
      listed = (f'{ad_ids[i - 1]}:{score:.6g}' for i, score in zip(ids, scores))
      out.write('\t'.join([columns[0], *listed]) + '\n')
    parser.report(path)


def save_ad_cache(path, cache):
  """Writes an AdCache to an .npz file."""
  with open(pathlib.Path(path), 'wb') as file:
    np.savez(file, **cache._asdict())


def load_ad_cache(path):
  """Reads what `save_ad_cache` wrote."""
  with np.load(pathlib.Path(path)) as file:
    return AdCache(file['ids'], file['vectors'], file['codes'], int(file['fingerprint']))
