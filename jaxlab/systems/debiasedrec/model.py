"""The modules of DebiasedRec (arXiv 2104.07360): bias vectors, a user that knows them, two scores.

How a news was shown is a slot: an index for each of K kinds of bias (position on the page, size of
the card), 0 where unknown. One bias encoder serves the clicks of the history and the candidates.
"""
import itertools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models.news import LSTURNews, SelfAttention
from jaxlab.nn.embedding import Table

_LARGE = 1e9  # finite, so that a user without clicks has a softmax
_TABLE_INIT = nn.initializers.normal(0.1)


class CNNNews(LSTURNews):
  """LSTUR's title encoder with a convolution at every word; a title without words gives 0."""
  mask_padding: bool = True
  padding: Literal['SAME', 'VALID'] = 'SAME'


class BiasEncoder(nn.Module):
  """Joint vectors of slots: relu(W [e_1; ..; e_K; e_1 * e_2; ..] + c), a product a pair of kinds.

  Attributes:
    rows: rows of the table of each kind, the unknown 0 among them.
    dim: width of e_k.
    features: width of the joint vector.
    interaction: 'product' as above, 'none' without the products, 'table' a free vector for each
      combination of indices in place of all this.
    dtype: compute dtype.
  """
  rows: Sequence[int]
  dim: int = 32
  features: int = 64
  interaction: Literal['product', 'none', 'table'] = 'product'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, slots):
    """Maps slots int [..., K], index k in 0..rows[k]-1, to [..., features]."""
    if self.interaction == 'table':
      cell = jnp.zeros(slots.shape[:-1], jnp.int32)
      for k, rows in enumerate(self.rows):
        cell = cell * rows + slots[..., k]
      table = Table(int(np.prod(self.rows)), (self.features,), _TABLE_INIT, name='cells')
      return table(cell).astype(self.dtype)
    parts = [Table(rows, (self.dim,), _TABLE_INIT, name=f'kind{k}')(slots[..., k])
             for k, rows in enumerate(self.rows)]
    if self.interaction == 'product':
      parts += [a * b for a, b in itertools.combinations(parts, 2)]
    joint = nn.Dense(self.features, dtype=self.dtype, name='joint')
    return nn.relu(joint(jnp.concatenate(parts, axis=-1)))


class BiasUser(nn.Module):
  """User vector u = sum of a_i r_i, a = softmax of q . tanh(W_r r_i + W_b b_i + c) over clicks.

  The bias says how much a click counts, never what it is about. Without clicks u is 0.

  Attributes:
    queries: width of q.
    bias: whether W_b is there.
    heads: heads of a self-attention over the clicks before the pooling; 0 for none. Their number
      times `head_dim` must be the width of the news.
    head_dim: width of a head.
    dtype: compute dtype; the softmax is float32.
  """
  queries: int = 200
  bias: bool = True
  heads: int = 0
  head_dim: int = 16
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, clicked, slot_vectors, real):
    """(u [B, n], weights [B, H]).

    Args:
      clicked: [B, H, n], vectors of the clicked news.
      slot_vectors: [B, H, F], of how they were shown when they were clicked.
      real: bool [B, H], False for padding.
    """
    x = clicked.astype(self.dtype)
    if self.heads:
      config_lib.require(self.heads * self.head_dim == x.shape[-1], 'model.user.heads',
                         f'heads x head_dim = {x.shape[-1]}, the width of the news',
                         self.heads * self.head_dim)
      x = SelfAttention(self.heads, self.head_dim, self.dtype, name='attention')(x, real)
    hidden = nn.Dense(self.queries, dtype=self.dtype, name='news')(x)
    if self.bias:
      hidden += nn.Dense(self.queries, use_bias=False, dtype=self.dtype, name='slot')(slot_vectors)
    query = self.param('query', nn.initializers.normal(self.queries**-0.5), (self.queries,))
    logits = jnp.tanh(hidden).astype(jnp.float32) @ query
    weights = nn.softmax(jnp.where(real, logits, -_LARGE)) * real
    return jnp.einsum('bh,bhn->bn', weights, x.astype(jnp.float32)), weights


class Hidden(nn.Module):
  """w . relu(W x + c) + d, a number for each vector."""
  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.features, dtype=self.dtype, name='hidden')(x))
    return nn.Dense(1, name='out')(x.astype(jnp.float32))[..., 0]


class ClickModel(nn.Module):
  """Scores of candidates from vectors of news and slots.

  Attributes:
    bias: BiasEncoder.
    user: BiasUser.
    head: what the slot of a candidate does in training. 'additive' and 'pal': a bias score beside
      the preference u . r, which the loss adds or multiplies; 'none': nothing; 'feature': an
      ordinary input feature, u . r + a network of [u * r; b].
    hidden: width of the bias score's layer.
    serve_slot: indices of a slot that all candidates are served with, or None. 'feature' needs one;
      under 'additive' it shifts all scores alike.
  """
  bias: BiasEncoder
  user: BiasUser
  head: Literal['additive', 'none', 'feature', 'pal'] = 'additive'
  hidden: int = 64
  serve_slot: Sequence[int] | None = None

  def setup(self):
    if self.head != 'none':
      self.score = Hidden(self.hidden)

  def __call__(self, clicked, history_slots, real, candidates, slots):
    return self.train_scores(clicked, history_slots, real, candidates, slots)

  def user_vector(self, clicked, history_slots, real):
    """(u [B, n], attention [B, H]) of clicked [B, H, n], history_slots [B, H, K], real [B, H]."""
    return self.user(clicked, self.bias(history_slots), real)

  def slot_scores(self, slots):
    """The bias score [...] of slots [..., K] under 'additive' and 'pal'."""
    return self.score(self.bias(slots))

  def _scores(self, users, candidates, slots):
    preference = jnp.einsum('bn,bcn->bc', users, candidates)
    if self.head == 'none':
      return preference, jnp.zeros_like(preference)
    if self.head == 'feature':
      shape = preference.shape
      vectors = jnp.broadcast_to(self.bias(slots), (*shape, self.bias.features))
      mixed = jnp.concatenate([users[:, None] * candidates, vectors], -1)
      return preference + self.score(mixed), jnp.zeros_like(preference)
    return preference, jnp.broadcast_to(self.slot_scores(slots), preference.shape)

  def train_scores(self, clicked, history_slots, real, candidates, slots):
    """(preference [B, C], bias score [B, C]).

    Args:
      clicked: [B, H, n] vectors of clicked news.
      history_slots: int [B, H, K], how they were shown when they were clicked.
      real: bool [B, H], False for padding.
      candidates: [B, C, n].
      slots: int [B, C, K], how the candidates were shown.
    """
    users, _ = self.user_vector(clicked, history_slots, real)
    return self._scores(users, candidates, slots)

  def serve(self, clicked, history_slots, real, candidates):
    """The served score [B, C]: what the candidates' slots were is no argument."""
    users, _ = self.user_vector(clicked, history_slots, real)
    if self.serve_slot is None:
      return jnp.einsum('bn,bcn->bc', users, candidates)
    preference, bias = self._scores(users, candidates, jnp.asarray(self.serve_slot))
    return preference + bias if self.head == 'additive' else preference
