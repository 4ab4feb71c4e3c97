"""The Task of debiased click prediction, its ablations and its baselines.

A training example is a click with the other news of its impression, of which negatives are drawn
afresh at each visit; the loss is over the preference and the bias score. What is served is the
preference alone. Every evaluation reports both: the served score, and as 'slot/...' the training
score, which on a biased log looks better because it repeats the log's bias.
"""
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import mind, pipeline
from jaxlab.metrics import ranking
from jaxlab.models import news as news_models
from jaxlab.systems.debiasedrec import data as data_lib
from jaxlab.systems.debiasedrec.model import BiasEncoder, BiasUser, ClickModel, CNNNews
from jaxlab.task import Loss, Task
from jaxlab.tasks.news import encode_all, gather, sample_negatives

CONFIG_KEYS = ('model', 'data', 'loss')
NEWS_MODELS = {'cnn': CNNNews, 'nrms': news_models.NRMSNews, 'lstur': news_models.LSTURNews,
               'naml': news_models.NAMLNews}
_NEVER = -1e9


def check(config):
  """Checks `config.model`, `config.data` and `config.loss` without loading data.

  Returns:
    Function Data -> (news encoder, ClickModel, options of `from_models`).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type, a loss that does not go
      with the model.
  """
  data = config_lib.section(config, 'data')
  arguments = config_lib.check_arguments(data_lib.load, data, 'data', drop=())
  data_lib.check_sizes(*(arguments.get(name, default) for name, default in (
      ('history_length', 50), ('negatives', 4), ('title_length', 30), ('min_count', 3),
      ('kinds', data_lib.KINDS), ('positions', 64), ('sizes', 4))))
  model = config_lib.section(config, 'model')
  config_lib.check_keys(model, ('news', 'bias', 'user', 'click'), 'model')
  part = lambda name: model.get(name, {})
  for name in ('bias', 'user', 'click'):
    config_lib.check_type(part(name), dict, f'model.{name}')
  news = config_lib.section(model, 'news')
  news_model = config_lib.choose_named(news, NEWS_MODELS, 'model.news')
  config_lib.check_arguments(news_model, news, 'model.news', injected=(
      'parent', 'vocab_size', 'num_categories', 'num_subcategories', 'mask_padding'))
  needs_abstract = news['name'] == 'naml'
  config_lib.require(not needs_abstract or data.get('abstract_length', 0) > 0,
                     'data.abstract_length', 'more than 0 under the model naml',
                     data.get('abstract_length', 0))
  config_lib.check_arguments(BiasEncoder, part('bias'), 'model.bias', injected=('parent', 'rows'))
  config_lib.check_arguments(BiasUser, part('user'), 'model.user', injected=('parent',))
  config_lib.check_arguments(ClickModel, part('click'), 'model.click',
                             injected=('parent', 'bias', 'user'))
  head, slot = part('click').get('head', 'additive'), part('click').get('serve_slot')
  kinds = arguments.get('kinds', data_lib.KINDS)
  config_lib.require(slot is not None or head != 'feature', 'model.click.serve_slot',
                     'a slot that all candidates are served with under the head feature', slot)
  config_lib.require(slot is None or len(slot) == len(kinds), 'model.click.serve_slot',
                     f'an index for each of {", ".join(kinds)}', slot)
  loss = config_lib.call(_loss_options, config.get('loss', {}), 'loss', drop=(), head=head)

  def make(data):
    config_lib.require(loss['weighting'] == 'none' or data.propensity is not None,
                       'loss.weighting', "'none' without a split 'randomised', from which "
                       'propensities are estimated', loss['weighting'])
    sizes = {'vocab_size': data.table.vocab_size, 'mask_padding': True}
    if needs_abstract:
      sizes.update(num_categories=data.table.num_categories,
                   num_subcategories=data.table.num_subcategories)
    encoder = news_model(**sizes, **{k: v for k, v in news.items() if k != 'name'})
    return encoder, make_click_model(data.index.rows, **model), loss

  return make


def make_click_model(rows, *, bias=None, user=None, click=None, news=None):
  """The ClickModel of the parts of `config.model`; `rows` are those of the kinds' tables."""
  del news
  slot = (click or {}).get('serve_slot')
  config_lib.require(slot is None or all(0 <= i < size for i, size in zip(slot, rows)),
                     'model.click.serve_slot',
                     f'0 to {", ".join(str(size - 1) for size in rows)}', slot)
  return ClickModel(BiasEncoder(rows, **(bias or {})), BiasUser(**(user or {})), **(click or {}))


def _loss_options(*, head, name: Literal['softmax', 'bce'] = 'softmax',
                  weighting: Literal['none', 'ipw'] = 'none', bias_dropout: float = 0.1):
  """Checks `config.loss`; see `from_models`."""
  config_lib.require(name == 'bce' or head != 'pal', 'loss.name', "'bce' under the head pal", name)
  config_lib.require(name == 'softmax' or weighting == 'none', 'loss.weighting',
                     "'none' under the loss bce", weighting)
  config_lib.require(0 <= bias_dropout < 1, 'loss.bias_dropout', 'in [0, 1)', bias_dropout)
  return {'loss_name': name, 'weighting': weighting, 'bias_dropout': bias_dropout}


def make_task(config):
  """Makes the Task of a config.

  Args:
    config: 'data', the arguments of `data.load`; 'model' with 'news' {name of `NEWS_MODELS`, its
      fields}, 'bias', 'user' and 'click', fields of `BiasEncoder`, `BiasUser` and `ClickModel`; and
      loss: name: 'softmax' over the click and its negatives, or 'bce' for each of them alone.
        weighting: 'ipw' divides a click by the chance that its slot is seen.
        bias_dropout: chance with which an example is trained on its preference alone.
  """
  make = check(config)
  data, _ = config_lib.call(data_lib.load, config['data'], 'data', drop=())
  news_model, click_model, loss = make(data)
  return from_models(news_model, click_model, data, **loss)


def file_dataset(config, path):
  """The impressions of a behaviors.tsv as a data set for `predict`; labels are not needed.

  Its news are those of the data of `config`; slots of candidates do not touch the served score.
  """
  config_lib.require(config['data']['name'] in data_lib.DATASETS, 'data.name', 'a known data set',
                     config['data']['name'])
  data, numbers = config_lib.call(data_lib.load, config['data'], 'data', drop=())
  _, first = next(mind.read_columns(path), (None, ['']))
  items = first[-1].split()
  labelled = all(item.partition('@')[0].endswith(('-0', '-1')) for item in items)
  split = data_lib.collect(data_lib.numbered(
      data_lib.read_rows(path, labelled=labelled), numbers, {}))
  length = data.splits['train']['history'].shape[1]
  return pipeline.from_arrays(data_lib.impression_columns(split, data.index, length))


def joint_loss(preference, bias, real, *, name, product):
  """Losses [B] of scores [B, C] whose candidate 0 is the click.

  Args:
    preference: [B, C].
    bias: [B, C].
    real: bool [B, C], False for negatives that are not there.
    name: 'softmax', -log softmax of the click, or 'bce', the mean of the candidates' log losses.
    product: whether chances are multiplied, sigmoid(bias) sigmoid(preference) (PAL), and not scores
      added.
  """
  if name == 'softmax':
    logits = jnp.where(real, preference + bias, _NEVER)
    return -jax.nn.log_softmax(logits)[:, 0]
  if product:
    log_yes = jax.nn.log_sigmoid(preference) + jax.nn.log_sigmoid(bias)
    either = jnp.logaddexp(jnp.logaddexp(-preference, -bias), -preference - bias)
    log_no = either - jax.nn.softplus(-preference) - jax.nn.softplus(-bias)
  else:
    logits = preference + bias
    log_yes, log_no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  values = -jnp.concatenate([log_yes[:, :1], log_no[:, 1:]], axis=1)
  return (values * real).sum(1) / real.sum(1)


def from_models(news_model, click_model, data, *, loss_name='softmax', weighting='none',
                bias_dropout=0.1):
  """Makes the Task of two Flax modules; its 'constants' are the features of the news.

  The outputs of `predict` are 'score' [B, C], what is served, 'slot_score' [B, C], the training
  score, 'impression' and 'count'.

  Args:
    news_model: module called as (features, train) -> vectors [M, n].
    click_model: ClickModel.
    data: data.Data.
    loss_name: 'softmax' or 'bce', see `joint_loss`.
    weighting: 'none' or 'ipw', which weighs a click by 1 / propensity of its slot.
    bias_dropout: chance with which an example's loss is of its preference alone.
  """
  features = {name: jnp.asarray(column) for name, column in data.table.features.items()}
  datasets = {name: pipeline.from_arrays(columns) for name, columns in data.splits.items()}
  history_length = data.splits['train']['history'].shape[1]
  constants = {'news': features}
  if weighting == 'ipw':
    constants['inverse_propensity'] = jnp.asarray(1 / data.propensity)
  product = click_model.head == 'pal'
  drops_bias = bias_dropout if click_model.head == 'additive' else 0.0

  def init(key):
    news_key, click_key = jax.random.split(key)
    first = gather(features, np.zeros(1, int))
    news = news_model.init(news_key, first)['params']
    if data.table.vectors is not None:
      table = news['words']['embedding']
      config_lib.require(data.table.vectors.shape == table.shape, 'model.news.embed',
                         f'{data.table.vectors.shape[1]}, as the word vectors', table.shape[1])
      news = {**news, 'words': {'embedding': jnp.asarray(data.table.vectors)}}
    width = jax.eval_shape(news_model.apply, {'params': news}, first).shape[-1]
    slots = lambda length: jnp.zeros((1, length, len(data.index.kinds)), jnp.int32)
    click = click_model.init(click_key, jnp.zeros((1, history_length, width)),
                             slots(history_length), jnp.ones((1, history_length), bool),
                             jnp.zeros((1, 2, width)), slots(2))['params']
    return {'params': {'news': news, 'click': click}, 'constants': constants}

  def encode(params, some, key=None):
    rngs = {} if key is None else {'dropout': key}
    return news_model.apply({'params': params}, some, train=key is not None, rngs=rngs)

  def vectors_of(variables, batch, key):
    """Vectors of the candidates [B, C, n] and of the history [B, H, n]."""
    ids = jnp.concatenate([batch['candidates'], batch['history']], axis=1)
    table, params = variables['constants']['news'], variables['params']['news']
    if ids.size < len(table['title']):
      vectors = encode(params, gather(table, ids.ravel()), key).reshape(*ids.shape, -1)
    else:
      vectors = encode_all(encode, params, table, key)[ids]
    width = batch['candidates'].shape[1]
    return vectors[:, :width], vectors[:, width:]

  def act(variables, batch, key):
    """Draws negatives with their slots, 'drawn' [B, 1 + negatives], which says which are there, and
    'keep_bias' [B], which examples are trained with their bias score."""
    del variables
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch['row'])
    places = jnp.broadcast_to(1 + jnp.arange(batch['pool'].shape[1]), batch['pool'].shape)
    place = sample_negatives(keys, places, batch['pool_size'], data.negatives)
    taken = jnp.maximum(place - 1, 0)
    drawn = jnp.take_along_axis(batch['pool'], taken, axis=1) * (place > 0)
    slots = jnp.take_along_axis(batch['pool_slots'], taken[..., None], axis=1) * (
        place > 0)[..., None]
    first = lambda one, others: jnp.concatenate([one[:, None], others], axis=1)
    draw = jax.vmap(lambda row_key: jax.random.uniform(jax.random.fold_in(row_key, 1)))
    return {**batch, 'keep_bias': draw(keys) >= drops_bias,
            'candidates': first(batch['click'], drawn),
            'slots': first(batch['click_slot'], slots),
            'drawn': first(jnp.ones(len(place), bool), place > 0)}

  def loss(variables, batch, key):
    candidates, clicked = vectors_of(variables, batch, key)
    preference, bias = click_model.apply(
        {'params': variables['params']['click']}, clicked, batch['history_slots'],
        batch['history'] > 0, candidates, batch['slots'], method='train_scores')
    bias = bias * batch['keep_bias'][:, None]
    values = joint_loss(preference, bias, batch['drawn'], name=loss_name, product=product)
    weights = batch['weight']
    if weighting == 'ipw':
      table = variables['constants']['inverse_propensity']
      weights = weights * table[tuple(jnp.moveaxis(batch['click_slot'], -1, 0))]
    best = jnp.where(batch['drawn'], preference, _NEVER).argmax(-1) == 0
    return Loss(values, weights, {'accuracy': (best.astype(jnp.float32), batch['weight'])})

  def predict(variables, batch, key):
    del key
    candidates, clicked = vectors_of(variables, batch, None)
    apply = functools.partial(click_model.apply, {'params': variables['params']['click']}, clicked,
                              batch['history_slots'], batch['history'] > 0, candidates)
    preference, bias = apply(batch['slots'], method='train_scores')
    with_slot = jax.nn.log_sigmoid(preference) + jax.nn.log_sigmoid(bias) if product else (
        preference + bias)
    return {'score': apply(method='serve'), 'slot_score': with_slot,
            'impression': batch['impression'], 'count': batch['count']}

  def evaluate(pairs):
    pairs = list(pairs)

    def metrics(name):
      return ranking.mean_metrics(_clicks_first(outputs[name], batch['labels'])
                                  for outputs, batch in pairs)

    out = {**metrics('score'),
           **{f'slot/{name}': value for name, value in metrics('slot_score').items()}}
    if 'position' in data.index.kinds:
      column = data.index.kinds.index('position')
      positions, scores = zip(*(
          _known_positions(outputs['score'], batch['slots'][..., column], batch['labels'])
          for outputs, batch in pairs))
      positions, scores = np.concatenate(positions), np.concatenate(scores)
      if len(positions) and np.ptp(positions) and np.ptp(scores):
        out['position_correlation'] = float(np.corrcoef(positions, scores)[0, 1])
    return out

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset, act)


def _clicks_first(scores, labels):
  labels, scores = ranking.clicks_first(labels, scores)
  return labels, scores, labels >= 0


def _known_positions(scores, positions, labels):
  """Positions and scores of the candidates whose position is known, less their impression's mean.

  Only what varies inside an impression counts: users differ in the level of their scores.
  """
  known = (labels >= 0) & (positions > 0)
  count = np.maximum(known.sum(1, keepdims=True), 1)
  centred = lambda x: x - (x * known).sum(1, keepdims=True) / count
  return centred(positions.astype(np.float64))[known], centred(scores.astype(np.float64))[known]
