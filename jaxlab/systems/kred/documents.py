"""Document vectors: any array file, or one of two small encoders of words."""
import pathlib

import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import glove, mind
from jaxlab.data import news as news_data


def read_file(path, news):
  """float32 [N, D] of a file of vectors by news id.

  Args:
    path: a .npz with 'news' [M] ids and 'vector' [M, D], or a text file 'id TAB floats' a line.
    news: N ids.

  Raises:
    ConfigError: no such file, or another content.
    ValueError: a news without a vector, by its id.
  """
  path = pathlib.Path(path).expanduser()
  config_lib.require(path.is_file(), 'data.documents.path', 'a file', str(path))
  if path.suffix == '.npz':
    with np.load(path) as file:
      config_lib.require({'news', 'vector'} <= set(file.files), 'data.documents.path',
                         "a .npz with 'news' and 'vector'", sorted(file.files))
      ids, vectors = file['news'].tolist(), np.asarray(file['vector'], np.float32)
    config_lib.require(vectors.shape[:1] == (len(ids),) and vectors.ndim == 2,
                       'data.documents.path', f"'vector' [{len(ids)}, D]", vectors.shape)
  else:
    rows = dict(mind.read_vectors(path))
    ids, vectors = list(rows), np.stack(list(rows.values())) if rows else np.zeros((0, 1))
  place = {name: row for row, name in enumerate(ids)}
  missing = [name for name in news if name not in place]
  if missing:
    raise ValueError(f'{path}: expected a vector of every news; {len(missing)} of {len(news)} have '
                     f'none, the first is {missing[0]!r}')
  return vectors[[place[name] for name in news]]


def _weights(texts, vocabulary):
  """TF-IDF as a sparse [N, V], rows of unit length."""
  from sklearn.feature_extraction.text import TfidfVectorizer
  model = TfidfVectorizer(tokenizer=news_data.tokenize, token_pattern=None, lowercase=False,
                          vocabulary=vocabulary, sublinear_tf=True)
  return model.fit_transform(texts)


def _unit(vectors):
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def lsa(texts, dim, min_count, seed):
  """float32 [N, dim]: TF-IDF and its leading directions (Deerwester et al. 1990), unit length."""
  from sklearn.decomposition import TruncatedSVD
  words = news_data.make_vocabulary(texts, min_count)
  config_lib.require(len(words) > dim, 'data.documents.dim',
                     f'less than the {len(words)} words that occur {min_count} times', dim)
  weights = _weights(texts, list(words))
  return _unit(TruncatedSVD(dim, random_state=seed).fit_transform(weights))


def mean_of_words(texts, path, min_count):
  """float32 [N, E]: TF-IDF weighted mean of the word vectors of a GloVe file, unit length."""
  words = news_data.make_vocabulary(texts, min_count)
  table = glove.read_table(path, words)[1:]
  return _unit(_weights(texts, list(words)) @ table)


def encode(config, news, texts):
  """Document vectors float32 [N, D] by `config.data.documents`.

  Args:
    config: {'name': 'file', 'path'}, {'name': 'lsa', 'dim', 'min_count', 'seed'} or
      {'name': 'glove', 'path', 'min_count'}.
    news: N ids.
    texts: N texts, title and abstract.
  """
  settings = options(config)
  if config['name'] == 'file':
    return read_file(settings['path'], news)
  if config['name'] == 'lsa':
    return lsa(texts, settings['dim'], settings['min_count'], settings['seed'])
  return mean_of_words(texts, settings['path'], settings['min_count'])


def options(config):
  """The checked `config.data.documents`."""
  def file(*, path: str):
    return {'path': path}

  def lsa_options(*, dim: int = 64, min_count: int = 3, seed: int = 0):
    config_lib.require(dim >= 1, 'data.documents.dim', 'at least 1', dim)
    return {'dim': dim, 'min_count': min_count, 'seed': seed}

  def glove_options(*, path: str, min_count: int = 3):
    return {'path': path, 'min_count': min_count}

  settings = config_lib.section({'data.documents': config}, 'data.documents')
  check = config_lib.choose_named(settings, {'file': file, 'lsa': lsa_options,
                                             'glove': glove_options}, 'data.documents')
  return config_lib.call(check, settings, 'data.documents')


