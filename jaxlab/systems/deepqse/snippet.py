"""Snippets of pages: cached sentence vectors, two stages, and the verb of `launch.predict`."""
import functools
import hashlib
import json
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import require
from jaxlab.systems.deepqse import data as data_lib
from jaxlab.systems.deepqse import page as page_lib
from jaxlab.systems.deepqse import task as task_lib
from jaxlab.systems.deepqse.model import top_k
from jaxlab.train.checkpoints import fingerprint


class Extractor(NamedTuple):
  """A trained model that answers queries on pages.

  Attributes:
    networks: task.Networks.
    tokenizer: a `tokenizers.Tokenizer`.
    data: data.DataConfig, for lengths.
    params: {'coarse', 'fine'}, or DeepQSE's.
    version: number of these parameters, part of the cache's keys.
  """
  networks: task_lib.Networks
  tokenizer: Any
  data: data_lib.DataConfig
  params: Any
  version: int


class PageCache(NamedTuple):
  """What is kept of a page (of a window of it) for any query.

  Attributes:
    title: int32 [1, St].
    sentences: int32 [1, n, Ss], the ids.
    vectors: float32 [1, n, D] of the coarse encoder; None without that stage.
  """
  title: np.ndarray
  sentences: np.ndarray
  vectors: jax.Array | None


def make_extractor(config, params):
  """The Extractor of an experiment config and parameters of its Task."""
  networks, tokenizer, _ = task_lib.prepare(config)
  _, data, _, _ = task_lib.check(config)
  return Extractor(networks, tokenizer, data, params, fingerprint(params))


@functools.partial(jax.jit, static_argnames='networks')
def encode_sentences(networks, params, title, sentences):
  """Vectors [1, n, D] of a page's sentences by the first stage; they depend on no query.

  Args:
    networks: Networks of kind 'efficient'.
    params: of the coarse network.
    title: int [1, St].
    sentences: int [1, n, Ss].
  """
  row = task_lib.coarse_row(networks, {'title': title, 'sentences': sentences})
  return networks.coarse.apply({'params': params}, row, method='encode')


@functools.partial(jax.jit, static_argnames='networks')
def coarse_scores(networks, params, cache, query):
  """Scores [1, n] of the first stage from a PageCache and the query's ids [1, Sq]."""
  row = task_lib.query_row(networks, {'query': query, 'title': cache.title})
  vector = networks.coarse.apply({'params': params}, row, method='encode')
  mask = task_lib.sentence_mask(networks, cache.sentences)
  return networks.coarse.apply({'params': params}, vector, cache.vectors, mask, method='rank')


@functools.partial(jax.jit, static_argnames='networks')
def two_stages(networks, params, cache, query):
  """(candidates int [K], scores [K], coarse scores [n]) of a PageCache and the ids [1, Sq].

  The candidates are in descending order of the coarse score; see `model.top_k` for ties.
  """
  coarse = coarse_scores(networks, params['coarse'], cache, query)
  chosen = top_k(coarse, task_lib.sentence_mask(networks, cache.sentences), networks.candidates)
  batch = {'query': query, 'title': cache.title, 'sentences': cache.sentences}
  fine = task_lib.fine_scores(networks, params['fine'], batch, chosen)
  return chosen[0], fine[0], coarse[0]


@functools.partial(jax.jit, static_argnames='networks')
def joint_scores(networks, params, cache, query):
  """Scores [1, n] of DeepQSE."""
  batch = {'query': query, 'title': cache.title, 'sentences': cache.sentences}
  return task_lib.joint_scores(networks, params, batch)


def page_key(page):
  """Name of a page's content: the sentence vectors depend on title and sentences."""
  return hashlib.sha256(json.dumps([page.title, page.sentences]).encode()).hexdigest()


def open_page(extractor, page, cache=None):
  """The PageCaches of the windows of `max_sentences` sentences of a Page.

  Args:
    extractor: Extractor.
    page: page.Page.
    cache: dict that keeps them by (version of the parameters, key of the page), or None.
  """
  key = extractor.version, page_key(page)
  if cache is not None and key in cache:
    return cache[key]
  size, windows = extractor.data.max_sentences, []
  for start in range(0, len(page.sentences), size):
    made = data_lib.pieces(extractor.tokenizer, extractor.data, [''], [page.title],
                           [page.sentences[start:start + size]])
    vectors = None
    if extractor.networks.fine is not None:
      vectors = encode_sentences(extractor.networks, extractor.params['coarse'], made.title,
                                 made.sentences)
    windows.append(PageCache(made.title, made.sentences, vectors))
  if cache is not None:
    cache[key] = windows
  return windows


def score(extractor, windows, query):
  """{sentence of the page: score} of a query.

  With two stages only the candidates of each window have one.

  Args:
    extractor: Extractor.
    windows: as by `open_page`.
    query: text.
  """
  ids = data_lib.piece(extractor.tokenizer, [query], extractor.data.max_query)
  found, networks = {}, extractor.networks
  for number, window in enumerate(windows):
    count = int(np.asarray(task_lib.sentence_mask(networks, window.sentences)).sum())
    if networks.fine is None:
      scores = joint_scores(networks, extractor.params, window, ids)[0]
      chosen = np.arange(len(scores))
    else:
      chosen, scores, _ = two_stages(networks, extractor.params, window, ids)
    for i, value in zip(np.asarray(chosen), np.asarray(scores)):
      if i < count:
        found[number * extractor.data.max_sentences + int(i)] = float(value)
  return found


def extract(extractor, page, query, *, sentences=1, cache=None):
  """[(number of the sentence, score), ...] of the best sentences, in the order of the page.

  Args:
    extractor: Extractor.
    page: page.Page.
    query: text.
    sentences: how many.
    cache: see `open_page`.
  """
  scores = score(extractor, open_page(extractor, page, cache), query)
  best = sorted(scores, key=lambda i: (-scores[i], i))[:sentences]
  return [(i, scores[i]) for i in sorted(best)]


def predict_input(config, params, path, output):
  """Prints and writes the snippets of pages for `config.predict.query`.

  Args:
    config: experiment.
    params: of its Task.
    path: a page, see `page.read`, or a folder of pages.
    output: .jsonl file to write: {'page', 'title', 'query', 'snippet': [{'sentence', 'text',
      'score', 'highlights': [[start, end], ...]}, ...]} a page.

  Raises:
    ConfigError: no query, another ending, no page.
    ValueError: a page that is no UTF-8 or empty.
  """
  _, _, settings, _ = task_lib.check(config)
  require(settings.query.strip(), 'predict.query', 'what was searched for, as '
          '--config.predict.query=...', settings.query)
  require(pathlib.Path(output).suffix == '.jsonl', '--output', 'a file ending in .jsonl',
          str(output))
  extractor, lines = make_extractor(config, jax.tree.map(jnp.asarray, params)), []
  for file in page_lib.files(path):
    page = page_lib.read(file)
    chosen = extract(extractor, page, settings.query, sentences=settings.sentences)
    found = [{'sentence': i, 'text': page.sentences[i], 'score': value,
              'highlights': page_lib.highlights(settings.query, page.sentences[i])}
             for i, value in chosen]
    lines.append({'page': file.name, 'title': page.title, 'query': settings.query,
                  'snippet': found})
    marks = page_lib.TERMINAL if sys.stdout.isatty() else page_lib.PLAIN
    shown = ' ... '.join(page_lib.marked(part['text'], part['highlights'], marks)
                         for part in found)
    print(f'{file.name}: {page.title}\n  {shown}')
  with open(output, 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
