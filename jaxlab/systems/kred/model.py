"""KRED's layers (arXiv 1910.11494): entities with their neighbours, context, distillation, users.

`tables` is what does not train: {'graph': {'entity' [1 + n, De], 'relation' [1 + r, De], 'tails'
and 'relations' int [1 + h, S]}, 'news': {'entities', 'frequency', 'position', 'type' int
[1 + N, L], 'document' [1 + N, Dd]}}. Entities 1..h are those of the news; row 0 of everything is
padding.
"""
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_LARGE = 1e9  # finite, so that a fully masked row has a softmax
POPULARITIES = 4
_CHUNK = 4096  # news or entities encoded together when all are


class Variant(NamedTuple):
  """Where the official code leaves the paper.

  Attributes:
    neighbours: 'softmax' over the neighbours of an entity, or their plain 'sum', which the official
      softmax over an axis of one entry amounts to.
    score_relu: whether a ReLU stands between the attention scores and the softmax over entities and
      history.
    mask_padding: whether empty slots and padding news take no part.
    batch_softmax: whether the softmax of the history runs over the batch.
  """
  neighbours: str = 'softmax'
  score_relu: bool = False
  mask_padding: bool = True
  batch_softmax: bool = False


STRICT = Variant()
OFFICIAL = Variant('sum', True, False, True)


class PartsDense(nn.Module):
  """A dense layer over the concatenation of parts, which is never made: parts broadcast.

  Attributes:
    features: width of the output.
    dtype: compute dtype; parameters are float32.
  """
  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, *parts):
    """Maps parts [..., D_i] to [..., features].

    A part may be a pair (table [V, D_i], ids [...]) of looked-up rows: what is multiplied then is
    whichever is less, the rows or the table.
    """
    widths = [(part[0] if isinstance(part, tuple) else part).shape[-1] for part in parts]
    bound = 1 / math.sqrt(sum(widths))
    init = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    kernel = self.param('kernel', init, (sum(widths), self.features)).astype(self.dtype)
    out = self.param('bias', init, (self.features,)).astype(self.dtype)
    for part, weights in zip(parts, jnp.split(kernel, np.cumsum(widths)[:-1])):
      out = out + _product(part, weights, self.dtype)
    return out


def _product(part, weights, dtype):
  if not isinstance(part, tuple):
    return part.astype(dtype) @ weights
  table, ids = part
  if ids.size > len(table):
    return (table.astype(dtype) @ weights)[ids]
  return table[ids].astype(dtype) @ weights


def _softmax(scores, mask, relu, axis=-1):
  """float32 softmax; `mask` (or None) False has weight 0, and a row without any True is all 0."""
  scores = scores.astype(jnp.float32)
  scores = nn.relu(scores) if relu else scores
  if mask is None:
    return nn.softmax(scores, axis)
  return nn.softmax(jnp.where(mask, scores, -_LARGE), axis) * mask


class EntityLayer(nn.Module):
  """g = relu(W0 [e; n] + b0) with n the weighted sum of the neighbours' vectors.

  The weight of a neighbour is the softmax of w2 . relu(W1 [head; tail; relation] + b1) + b2. Pairs
  of tail 0 are padding, also without `mask_padding` of the variant 'softmax': an entity without
  neighbours has n = 0.

  Attributes:
    hidden: width of the attention, Dl.
    variant: Variant.
    dtype: compute dtype.
  """
  hidden: int
  variant: Variant = STRICT
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, graph, ids):
    """Maps entity ids [...] to (g [..., De], weights of the neighbours [..., S])."""
    entity, tails = graph['entity'], graph['tails'][ids]
    hidden = PartsDense(self.hidden, self.dtype, name='att1')(
        (entity, ids[..., None]), (entity, tails), (graph['relation'], graph['relations'][ids]))
    scores = PartsDense(1, self.dtype, name='att2')(nn.relu(hidden))[..., 0]
    real = tails > 0
    if self.variant.neighbours == 'sum':
      weights = real.astype(jnp.float32)
    else:
      weights = _softmax(scores, real, False)
    around = jnp.einsum('...s,...sd->...d', weights.astype(self.dtype),
                        entity[tails].astype(self.dtype))
    own = entity[ids].astype(self.dtype)
    return nn.relu(PartsDense(own.shape[-1], self.dtype, name='agg')(own, around)), weights


class ContextLayer(nn.Module):
  """x = g + C_position + C_frequency + C_type.

  Attributes:
    positions: rows of the table of positions.
    frequencies: likewise.
    types: likewise.
  """
  positions: int
  frequencies: int
  types: int

  @nn.compact
  def __call__(self, g, news):
    """Maps g [..., L, De] and the columns [..., L] of the news to x [..., L, De]."""
    init = nn.initializers.variance_scaling(1e-4, 'fan_avg', 'normal')  # Xavier, gain .01
    for name, rows in (('position', self.positions), ('frequency', self.frequencies),
                       ('type', self.types)):
      table = self.param(name, init, (rows, g.shape[-1]))
      g = g + table.astype(g.dtype)[news[name]]
    return g


class Distill(nn.Module):
  """Entities weighted by the document, then tanh(W7 relu(W6 [e_O; v] + b6) + b7).

  Attributes:
    features: width of the output.
    hidden: of the attention and of the last layer but one, Dl.
    variant: Variant.
    dtype: compute dtype.
  """
  features: int
  hidden: int
  variant: Variant = STRICT
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, real, document):
    """Maps x [..., L, De], real [..., L], documents [..., Dd] to ([..., D], weights [..., L])."""
    dense = lambda features, name: PartsDense(features, self.dtype, name=name)
    hidden = nn.relu(dense(self.hidden, 'att1')(x, document[..., None, :]))
    weights = _softmax(dense(1, 'att2')(hidden)[..., 0],
                       real if self.variant.mask_padding else None, self.variant.score_relu)
    distilled = jnp.einsum('...l,...ld->...d', weights.astype(self.dtype), x)
    hidden = nn.relu(dense(self.hidden, 'final1')(distilled, document))
    return jnp.tanh(dense(self.features, 'final2')(hidden)), weights


class NewsEncoder(nn.Module):
  """The knowledge-enhanced document vector. Attributes are those of `KRED`."""
  features: int
  hidden: int
  positions: int
  frequencies: int
  types: int
  entity_layer: bool = True
  variant: Variant = STRICT
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    if self.entity_layer:
      self.entity = EntityLayer(self.hidden, self.variant, self.dtype)
    self.context = ContextLayer(self.positions, self.frequencies, self.types)
    self.distill = Distill(self.features, self.hidden, self.variant, self.dtype)

  def entities(self, tables, ids):
    """(g [..., De], weights of the neighbours [..., S]) of entity ids [...]."""
    if self.entity_layer:
      return self.entity(tables['graph'], ids)
    graph = tables['graph']
    return graph['entity'][ids].astype(self.dtype), jnp.zeros(graph['tails'][ids].shape)

  def __call__(self, tables, ids, entities=None):
    """Encodes news.

    Args:
      tables: see the module.
      ids: news [...].
      entities: `entities` of 0..h, already computed; None computes those of the news.

    Returns:
      (vectors [..., D], {'g' [..., L, De], 'entity' [..., L], 'neighbour' [..., L, S] weights}).
    """
    news = {name: column[ids] for name, column in tables['news'].items()}
    slots = news['entities']
    if entities is None:
      g, neighbour = self.entities(tables, slots)
    else:
      g, neighbour = (x[slots] for x in entities)
    vectors, weights = self.distill(self.context(g, news), slots > 0, news['document'])
    return vectors, {'g': g, 'entity': weights, 'neighbour': neighbour}


class UserEncoder(nn.Module):
  """The history, weighted by softmax(w9 . relu(W8 d + b8) + b9).

  Attributes:
    hidden: width of the attention, Dl.
    variant: Variant.
    dtype: compute dtype.
  """
  hidden: int
  variant: Variant = STRICT
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, clicked, real):
    """Maps vectors [B, H, D] and real [B, H] to [B, D]; an empty history becomes 0."""
    hidden = nn.relu(PartsDense(self.hidden, self.dtype, name='att1')(clicked))
    scores = PartsDense(1, self.dtype, name='att2')(hidden)[..., 0]
    weights = _softmax(scores, real if self.variant.mask_padding else None,
                       self.variant.score_relu, 0 if self.variant.batch_softmax else -1)
    return jnp.einsum('bh,bhd->bd', weights.astype(self.dtype), clicked)


class Head(nn.Module):
  """Two dense layers with a ReLU between, over joined parts: float32 [..., outputs]."""
  hidden: int
  outputs: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, *parts):
    hidden = nn.relu(PartsDense(self.hidden, self.dtype, name='hidden')(*parts))
    return PartsDense(self.outputs, self.dtype, name='out')(hidden).astype(jnp.float32)


class KRED(nn.Module):
  """The encoders and the heads of the five tasks.

  Attributes:
    categories: classes of the category head.
    features: width of the vector of a news, D.
    hidden: Dl.
    positions: rows of the table of positions: 0 none, 1 title, 2 abstract.
    frequencies: rows of that of frequencies.
    types: rows of that of entity types.
    share_news_encoder: whether candidates and history have one encoder.
    entity_layer: False leaves the neighbours out, g = e.
    variant: Variant.
    dtype: compute dtype.
  """
  categories: int
  features: int = 100
  hidden: int = 128
  positions: int = 3
  frequencies: int = 21
  types: int = 100
  share_news_encoder: bool = True
  entity_layer: bool = True
  variant: Variant = STRICT
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    make = lambda: NewsEncoder(self.features, self.hidden, self.positions, self.frequencies,
                               self.types, self.entity_layer, self.variant, self.dtype)
    self.news = make()
    if not self.share_news_encoder:
      self.history = make()
    self.user = UserEncoder(self.hidden, self.variant, self.dtype)
    self.user2item = Head(self.hidden, 1, self.dtype)
    self.category = Head(self.hidden, self.categories, self.dtype)
    self.popularity = Head(self.hidden, POPULARITIES, self.dtype)
    self.local = Head(self.hidden, 1, self.dtype)

  def _tower(self, clicked):
    return self.history if clicked and not self.share_news_encoder else self.news

  def encode(self, tables, ids, entities=None, clicked=False):
    """`NewsEncoder.__call__` of the candidates' or (`clicked`) the history's encoder."""
    return self._tower(clicked)(tables, ids, entities)

  def entities(self, tables, ids, clicked=False):
    """`NewsEncoder.entities`, likewise."""
    return self._tower(clicked).entities(tables, ids)

  def users(self, clicked, real):
    """`UserEncoder.__call__`."""
    return self.user(clicked, real)

  def click_logits(self, users, candidates):
    """[B, C] of users [B, D] and candidates [B, C, D]."""
    return self.user2item(users[:, None], candidates)[..., 0]

  def classify(self, vectors):
    """{'category' [..., K], 'popularity' [..., 4], 'local' [...]} logits of vectors [..., D]."""
    return {'category': self.category(vectors), 'popularity': self.popularity(vectors),
            'local': self.local(vectors)[..., 0]}

  def __call__(self, tables, history, candidates):
    """Everything at once, of history [B, H] and candidates [B, C] (news ids)."""
    vectors, weights = self.encode(tables, candidates)
    users = self.users(self.encode(tables, history, clicked=True)[0], history > 0)
    return {'vectors': vectors, 'users': users, 'weights': weights,
            'user2item': self.click_logits(users, vectors), **self.classify(vectors)}


def cosine(a, b):
  """Cosine in [-1, 1] of [..., D] and [..., D], 0 where one is zero."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  norm = lambda x: jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-16))
  return jnp.clip((a * b).sum(-1) / (norm(a) * norm(b)), -1, 1)


def _all_of(encode, count):
  """`encode` of ids 0..count-1, a chunk at a time; its gradient encodes each chunk again."""
  if count <= _CHUNK:
    return encode(jnp.arange(count))
  ids = jnp.minimum(jnp.arange(count + -count % _CHUNK), count - 1).reshape(-1, _CHUNK)
  chunks = jax.lax.map(jax.checkpoint(encode), ids)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], chunks)


def vectors_of(model: KRED, variables: Any, ids, clicked=False):
  """Vectors [*ids.shape, D] of news, at the least cost.

  The news of `ids` are encoded where they are fewer than all news, else all of them once; the same
  goes for the entities in their slots.

  Args:
    model: KRED.
    variables: with 'params' and 'constants', the tables.
    ids: news [...].
    clicked: whether they are a history's.
  """
  params, tables = {'params': variables['params']}, variables['constants']
  count, length = tables['news']['entities'].shape
  heads = len(tables['graph']['tails'])
  entities = None
  if min(ids.size, count) * length >= heads:
    entities = _all_of(lambda some: model.apply(params, tables, some, clicked,
                                                method='entities'), heads)
  encode = lambda some: model.apply(params, tables, some, entities, clicked, method='encode')[0]
  return encode(ids) if ids.size < count else _all_of(encode, count)[ids]
