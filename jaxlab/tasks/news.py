"""News recommendation: which of the news shown to a user is clicked. NRMS, LSTUR, NAML.

A training example is a click with the impression's other news, of which `negatives` are drawn
afresh at each visit (the Task's `act`); the loss is the softmax cross-entropy of the click among
them. An example of any other split is a whole impression.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab.data import news as news_data
from jaxlab.data import pipeline
from jaxlab.metrics import ranking
from jaxlab.models import news as models
from jaxlab.task import Loss, Task

CONFIG_KEYS = ('model', 'data', 'rows')
DATASETS = {  # name -> (builder, its config)
    'mind_small': ('mind', 'small'), 'mind_large': ('mind', 'large'), 'mind_demo': ('mind', 'demo'),
    'adressa': ('adressa', 'week'), 'adressa_demo': ('adressa', 'demo')
}
NEWS_MODELS = {'nrms': models.NRMSNews, 'lstur': models.LSTURNews, 'naml': models.NAMLNews}
USER_MODELS = {'nrms': models.NRMSUser, 'lstur': models.LSTURUser, 'naml': models.NAMLUser}
_CHUNK = 1024  # news encoded together when all are
_WORDS = 'news/words/embedding'  # of which row-wise updates touch the words that are read


class Data(NamedTuple):
  """A data set in memory.

  Attributes:
    table: NewsTable.
    splits: {split: columns}, see `data.news.click_samples` for 'train' and `impression_rows` for
      the others.
    negatives: drawn for each click.
  """
  table: news_data.NewsTable
  splits: dict
  negatives: int


@dataclasses.dataclass(frozen=True, eq=False)
class NewsTask(Task):
  """A Task whose parameters are {'news', 'user'}, with the two halves of its model.

  Attributes:
    encode: (params of the news encoder, features [M, ...], key or None) -> vectors [M, D]; a key
      turns dropout on.
    click_loss: (params of the user encoder, candidates [B, C, D], clicked [B, H, D], batch, key) ->
      Loss over [B]; candidate 0 is the click.
  """
  encode: Callable[..., jax.Array] | None = None
  click_loss: Callable[..., Loss] | None = None


def prepare(news, splits, *, history_length: int, pad_side: Literal['front', 'back'],
            negatives: int, title_length: int = 30, abstract_length: int = 0, min_count: int = 3,
            word_vectors: str | None = None):
  """Makes the Data of news columns and impressions.

  Args:
    news: {'title', 'abstract', 'category', 'subcategory': N texts}.
    splits: {split: data.news.Impressions}; 'train' is turned into samples.
    history_length: clicks of a history, the last ones.
    pad_side: where shorter histories are filled up.
    negatives: drawn for each click, without replacement.
    title_length: words of a title.
    abstract_length: words of an abstract; 0 for none.
    min_count: occurrences that make a word known.
    word_vectors: file of GloVe vectors to start the word table from.
  """
  config_lib.at_least(
      1, {'history_length': history_length, 'negatives': negatives, 'title_length': title_length,
          'min_count': min_count}, where='data')
  table = news_data.make_table(news, title_length=title_length, abstract_length=abstract_length,
                               min_count=min_count, word_vectors=word_vectors)
  history = {'history_length': history_length, 'pad_side': pad_side}
  columns = {name: news_data.click_samples(split, min_pool=negatives, **history)
             if name == 'train' else news_data.impression_rows(split, **history)
             for name, split in splits.items()}
  return Data(table, columns, negatives)


def load_data(*, name: str, history_length: int, pad_side: Literal['front', 'back'], negatives: int,
              title_length: int = 30, abstract_length: int = 0, min_count: int = 3,
              word_vectors: str | None = None):
  """Loads a data set of `DATASETS` into memory; the other arguments are those of `prepare`."""
  builder, config = config_lib.choose(name, DATASETS, 'data.name')
  news, splits = news_data.load(builder, config)
  return prepare(news, splits, history_length=history_length, pad_side=pad_side,
                 negatives=negatives, title_length=title_length, abstract_length=abstract_length,
                 min_count=min_count, word_vectors=word_vectors)


def check(config):
  """Checks `config.model`, `config.data` and `config.rows` without loading data.

  Returns:
    Function NewsTable -> (news encoder, user encoder).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  config_lib.check_type(config.get('rows', False), bool, 'config.rows')
  data = config_lib.section(config, 'data')
  config_lib.check_arguments(load_data, data, 'data', drop=())
  config_lib.choose(data['name'], DATASETS, 'data.name')
  model = config_lib.section(config, 'model')
  config_lib.check_keys(model, ('news', 'user'), 'model')
  parts = {}
  for side, known in (('news', NEWS_MODELS), ('user', USER_MODELS)):
    part = config_lib.section(model, side)
    module = config_lib.choose_named(part, known, f'model.{side}')
    injected = ('parent', 'vocab_size', 'num_categories', 'num_subcategories')
    config_lib.check_arguments(module, part, f'model.{side}', injected=injected)
    parts[side] = functools.partial(module, parent=None, **{
        key: value for key, value in part.items() if key != 'name'})
  needs_abstract = model['news']['name'] == 'naml'
  config_lib.require(not needs_abstract or data.get('abstract_length', 0) > 0,
                     'data.abstract_length', 'more than 0 under the model naml',
                     data.get('abstract_length', 0))

  def make_models(table):
    sizes = {'vocab_size': table.vocab_size}
    if needs_abstract:
      sizes.update(num_categories=table.num_categories, num_subcategories=table.num_subcategories)
    return parts['news'](**sizes), parts['user']()

  return make_models


def make_task(config):
  """Makes the NewsTask from `config.model` and `config.data` (the arguments of `load_data`).

  `config.model` has 'news' and 'user', each {name, ...fields} of a module of `models.news`. With
  `config.rows` only the word vectors that a batch, or a federated round, looks at are updated.
  """
  make_models = check(config)
  data = config_lib.call(load_data, config['data'], 'data', drop=())
  return from_models(*make_models(data.table), data, rows=config.get('rows', False))


def sample_negatives(keys, pool, sizes, count):
  """Draws negatives without replacement, uniformly.

  Where a pool has fewer than `count`, all of it comes in order, and then 0 (the unknown news).

  Args:
    keys: [B] PRNG keys.
    pool: int [B, P], P >= count; the real ones first.
    sizes: int [B], how many are real.
    count: n.

  Returns:
    int [B, n].
  """
  def one(key, pool, size):
    place = jnp.arange(len(pool))
    order = jnp.where(size < count, place / len(pool), jax.random.uniform(key, pool.shape))
    chosen = jnp.argsort(jnp.where(place < size, order, 2.0 + place))[:count]
    return jnp.where(jnp.arange(count) < size, pool[chosen], 0)

  return jax.vmap(one)(keys, pool, sizes)


def gather(features, ids):
  """The features of some news: {name: [*ids.shape, ...]}."""
  return {name: column[ids] for name, column in features.items()}


def encode_all(encode, params, features, key=None, chunk=_CHUNK):
  """Vectors [N, D] of all rows of the features, `chunk` at a time; chunk i gets fold_in(key, i).

  The gradient encodes each chunk again, so that memory is bounded by the chunk.

  Args:
    encode: `NewsTask.encode`.
    params: of the news encoder.
    features: {name: [N, ...]}.
    key: PRNG key of dropout, or None for none.
    chunk: news encoded together.
  """
  rows = len(features['title'])
  chunk = min(chunk, rows)
  padding = -rows % chunk
  fold = lambda x: jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(
      -1, chunk, *x.shape[1:])

  @jax.checkpoint
  def one(part, index):  # closes over the parameters, among which may be the stand-in of a table
    return encode(params, part, None if key is None else jax.random.fold_in(key, index))

  folded = {name: fold(jnp.asarray(column)) for name, column in features.items()}
  numbers = jnp.arange((rows + padding) // chunk)
  vectors = jax.lax.map(lambda inputs: one(*inputs), (folded, numbers))
  return vectors.reshape(-1, vectors.shape[-1])[:rows]


def from_models(news_model, user_model, data, *, rows=False):
  """Makes the NewsTask of two Flax modules; the features of the news are its 'constants'.

  Args:
    news_model: module called as (features, train) -> vectors [M, D], rng 'dropout' when training.
    user_model: module called as (vectors [B, H, D], real [B, H], train) -> [B, D], likewise.
    data: Data.
    rows: True has the word table updated row by row (`Task.rows`), for encoders that have one.
  """
  features = {name: jnp.asarray(column) for name, column in data.table.features.items()}
  datasets = {name: pipeline.from_arrays(columns) for name, columns in data.splits.items()}
  history_length = data.splits['train']['history'].shape[1]

  def init(key):
    news_key, user_key = jax.random.split(key)
    first = gather(features, np.zeros(1, int))
    news = news_model.init(news_key, first)['params']
    if data.table.vectors is not None:
      given, table = data.table.vectors, news['words']['embedding']
      config_lib.require(given.shape[1] == table.shape[1], 'model.news.embed',
                         f'{given.shape[1]}, as the word vectors', table.shape[1])
      news = {**news, 'words': {'embedding': jnp.asarray(given)}}
    width = jax.eval_shape(news_model.apply, {'params': news}, first).shape[-1]
    user = user_model.init(user_key, jnp.zeros((1, history_length, width)),
                           jnp.ones((1, history_length), bool))['params']
    return {'params': {'news': news, 'user': user}, 'constants': {'news': features}}

  def encode(params, some, key=None):
    rngs = {} if key is None else {'dropout': key}
    return news_model.apply({'params': params}, some, train=key is not None, rngs=rngs)

  def act(variables, batch, key):
    del variables
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch['row'])
    drawn = sample_negatives(keys, batch['pool'], batch['pool_size'], data.negatives)
    return {**batch, 'candidates': jnp.concatenate([batch['click'][:, None], drawn], axis=1)}

  def click_loss(params, candidates, clicked, batch, key):
    users = user_model.apply({'params': params}, clicked, batch['history'] > 0, train=True,
                             rngs={'dropout': key})
    scores = jnp.einsum('bd,bcd->bc', users, candidates)
    labels = jnp.zeros(len(scores), jnp.int32)
    correct = (scores.argmax(-1) == 0).astype(jnp.float32)
    values = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return Loss(values, batch['weight'], {'accuracy': (correct, batch['weight'])})

  def vectors_of(variables, ids, key):
    """Vectors [*ids.shape, D], encoding what is less: each occurrence, or all news once."""
    table, params = variables['constants']['news'], variables['params']['news']
    if ids.size < len(table['title']):
      flat = encode(params, gather(table, ids.ravel()), key)
      return flat.reshape(*ids.shape, -1)
    if not rows:
      return encode_all(encode, params, table, key)[ids]
    # The words of other news may not be at hand; what fills up is news whose words are.
    some = jnp.unique(ids, size=len(table['title']), fill_value=ids.max())
    return encode_all(encode, params, gather(table, some), key)[jnp.searchsorted(some, ids)]

  def words_of(batch):
    """The words of the news of a batch, before `act` of all that it may draw."""
    shown = ([batch['candidates']] if 'candidates' in batch else
             [batch['click'][:, None], batch['pool']])
    ids = jnp.concatenate([*shown, batch['history']], axis=1)
    views = [name for name in ('title', 'abstract') if name in features]
    return {_WORDS: jnp.concatenate([features[name][ids].ravel() for name in views])}

  def loss(variables, batch, key):
    news_key, user_key = jax.random.split(key)
    width = batch['candidates'].shape[1]
    ids = jnp.concatenate([batch['candidates'], batch['history']], axis=1)
    vectors = vectors_of(variables, ids, news_key)
    return click_loss(variables['params']['user'], vectors[:, :width], vectors[:, width:], batch,
                      user_key)

  def predict(variables, batch, key):
    del key
    width = batch['candidates'].shape[1]
    ids = jnp.concatenate([batch['candidates'], batch['history']], axis=1)
    vectors = vectors_of(variables, ids, None)
    users = user_model.apply({'params': variables['params']['user']}, vectors[:, width:],
                             batch['history'] > 0)
    return {'score': jnp.einsum('bd,bcd->bc', users, vectors[:, :width]),
            'impression': batch['impression'], 'count': batch['count']}

  def evaluate(pairs):
    def ordered():
      for outputs, batch in pairs:
        labels, scores = ranking.clicks_first(batch['labels'], outputs['score'])
        yield labels, scores, labels >= 0
    return ranking.mean_metrics(ordered())

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return NewsTask(init, loss, predict, evaluate, dataset, act, words_of if rows else None,
                  encode=encode, click_loss=click_loss)
