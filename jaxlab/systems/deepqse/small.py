"""DeepQSE at small scale: a few trained layers over the token vectors of a frozen encoder.

Queries and sentences are encoded alone by the frozen part, so 'query-aware' means attention in the
trained part. The score is the scorer's plus a multiple of the cosine of the frozen vectors.
"""
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.bert_config import BertConfig
from jaxlab.nn.attention import mask_bias
from jaxlab.nn.encoder import PostNormLayer, layer_norm
from jaxlab.systems.deepqse.model import PADDING, Ranker, listwise_loss
from jaxlab.task import Loss, Task

WIDTH, SEGMENT, LAYERS, HEADS, INNER = 64, 8, 2, 2, 128
PRIOR = 15.0


class Tower(nn.Module):
  """Frozen token vectors, projected, and `LAYERS` layers; a segment has dimensions of its own."""

  def setup(self):
    self.project = nn.Dense(WIDTH - SEGMENT)
    self.norm = layer_norm(1e-6)
    signs = lambda key: jax.random.rademacher(key, (1, SEGMENT), jnp.float32)
    self.segments = self.param('segments', lambda key: signs(key) * jnp.array([[1.0], [-1.0]]))
    self.layers = [
        PostNormLayer(HEADS, INNER, nn.relu, eps=1e-6, kernel_init=nn.initializers.lecun_normal())
        for _ in range(LAYERS)]

  def embed(self, tokens, segment):
    """[B, S, F] -> [B, S, WIDTH]."""
    x = self.norm(self.project(tokens))
    own = jnp.broadcast_to(self.segments[segment], (*x.shape[:-1], SEGMENT))
    return jnp.concatenate([x, own], axis=-1)

  def __call__(self, x, mask, prefix=None):
    """(states [B, S, WIDTH] before each layer and after the last, (keys and values of each layer,
    mask)).

    Args:
      x: as by `embed`.
      mask: [B, S].
      prefix: what another call returned second, of B other sequences to attend to.
    """
    states, exported = [x], []
    bias = mask_bias(mask)
    if prefix is not None:
      bias = jnp.concatenate([mask_bias(prefix[1]), bias], axis=-1)
    for i, layer in enumerate(self.layers):
      x, own = layer(x, bias, None if prefix is None else prefix[0][i])
      states.append(x)
      exported.append(own)
    return states, (exported, mask)

  def last(self, x, mask, prefix):
    """The last layer alone, of states [B, S, WIDTH] before it; arguments as above."""
    bias = jnp.concatenate([mask_bias(prefix[1]), mask_bias(mask)], axis=-1)
    return self.layers[-1](x, bias, prefix[0][-1])[0]


def _mean(x, mask):
  weights = mask.astype(jnp.float32)[..., None]
  return jnp.sum(x * weights, axis=-2) / jnp.maximum(jnp.sum(weights, axis=-2), 1.0)


class Small(nn.Module):
  """The small model.

  The arm 'fine' is the cross transformer but for its last layer: there the query's positions attend
  to the sentence's, and it is read where 'joint' is. Read at the sentence's positions, of which few
  match, it learns little in as few steps as it has here.

  Attributes:
    arm: 'joint', 'coarse' or 'fine'.
    positions: rows of the document encoder's position table.
    context: see Ranker.
  """
  arm: Literal['joint', 'coarse', 'fine']
  positions: int
  context: Literal['query', 'sentences', 'none'] = 'query'

  def setup(self):
    self.tower = Tower()
    if self.arm == 'fine':
      self.sentence_tower = Tower()
    document = BertConfig(
        0, WIDTH, 1, HEADS, INNER, max_position_embeddings=self.positions, type_vocab_size=1,
        hidden_act='relu', initializer_range=0.1, add_pooler=False)
    self.ranker = Ranker(document, self.context)
    self.prior = self.param('prior', lambda _: jnp.float32(PRIOR))

  def __call__(self, batch):
    """Scores [B, C] of `batch`: 'query' [B, Sq, F], 'query_mask', 'sentences' [B, C, Ss, F],
    'sentence_mask', 'mask' [B, C], 'positions' int [B, C], 'cosine' [B, C]."""
    query, query_mask = batch['query'], batch['query_mask']
    pages, count, length = batch['sentence_mask'].shape
    sentences = batch['sentences'].reshape(pages * count, length, -1)
    mask = batch['sentence_mask'].reshape(pages * count, length)
    each = lambda x: jnp.repeat(x, count, axis=0)
    embedded = self.tower.embed(query, 0)
    states, exported = self.tower(embedded, query_mask)
    if self.arm == 'joint':
      both = jnp.concatenate([each(embedded), self.tower.embed(sentences, 1)], axis=1)
      visible = jnp.concatenate([each(query_mask), mask], axis=1)
      found, _ = self.tower(both, visible)
      vectors = _mean(found[-1][:, :query.shape[1]], each(query_mask))
    elif self.arm == 'coarse':
      found, _ = self.tower(self.tower.embed(sentences, 1), mask)
      vectors = _mean(found[-1], mask)
    else:
      tower = self.sentence_tower
      _, back = tower(tower.embed(sentences, 1), mask, jax.tree.map(each, exported))
      read = self.tower.last(each(states[-2]), each(query_mask), back)
      vectors = _mean(read, each(query_mask))
    scores = self.ranker(_mean(states[-1], query_mask), vectors.reshape(pages, count, -1),
                         batch['mask'], batch['positions'])
    return scores + self.prior * batch['cosine']


def token_match(params):
  """Lets attention start as a match of tokens, as it is in a pretrained encoder.

  Keys are projected as queries are, blind to segments; the fine model's two towers start alike.
  """
  tower = {**params['tower']}
  for i in range(LAYERS):
    layer = tower[f'layers_{i}']
    kernel = layer['attention']['query']['kernel'].at[-SEGMENT:].set(0.0)
    attention = {**layer['attention'], **{name: {**layer['attention'][name], 'kernel': kernel}
                                          for name in ('query', 'key')}}
    tower[f'layers_{i}'] = {**layer, 'attention': attention}
  return {name: tower if name.endswith('tower') else part for name, part in params.items()}


def start_from(coarse, params):
  """`params` of the fine model with both towers and the Ranker of the coarse one, if it is given.

  The paper's two stages start from the same pretrained layers; here the first stage is what has
  been trained before.

  Args:
    coarse: params of the coarse model, or {}.
    params: of the fine model.
  """
  return {name: coarse[name.removeprefix('sentence_')] if coarse else part
          for name, part in params.items()}


def make_task(model, example):
  """The Task of a Small, without data; the gold sentence is candidate 0 in training.

  Args:
    model: Small.
    example: a batch, for shapes.
  """
  def init(key):
    return {'params': token_match(model.init(key, example)['params'])}

  def loss(variables, batch, key):
    del key
    scores = model.apply(variables, batch)
    values = listwise_loss(scores, jnp.zeros(len(scores), jnp.int32))
    best = (scores.argmax(-1) == 0).astype(jnp.float32)
    return Loss(values, batch['weight'], {'prec@1': (best, batch['weight'])})

  def predict(variables, batch, key):
    del key
    return jnp.maximum(model.apply(variables, batch), PADDING)

  return Task(init, loss, predict, evaluate=lambda pairs: {}, dataset=lambda split: None)
