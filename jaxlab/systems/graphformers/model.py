"""The encoders of a node with its neighbours: nested, cascaded, and of the text alone.

All have the same three methods. `neighbor_states(ids [M, S], mask) -> [M, ...]` is what a node
gives to others: it depends on the node's own text alone, so it can be kept and used again.
`center(ids [B, S], mask, states [B, K, ...], node_mask [B, 1 + K]) -> [B, D]` is the vector of
nodes with the states of their neighbours. Calling the module does both.
"""
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxlab.models.bert import Bert
from jaxlab.models.bert_config import BertConfig
from jaxlab.nn.attention import HIDDEN, attention_weights, mask_bias

AGGREGATORS = ('max', 'mean', 'att', 'gat')


class _NodeEncoder(nn.Module):
  """What the encoders share."""

  def __call__(self, ids, mask, node_mask, deterministic=True):
    """Vectors of nodes with their neighbours.

    Args:
      ids: int [B, N, S], node 0 the centre.
      mask: [B, N, S], non-zero on tokens; a node may have none.
      node_mask: [B, N], non-zero where there is a node. What stands in others changes nothing.
      deterministic: False draws dropout from the rng 'dropout'.

    Returns:
      [B, D].
    """
    batch, nodes, length = ids.shape
    flat = lambda x: x[:, 1:].reshape(-1, length)
    states = None
    if nodes > 1:
      states = self.neighbor_states(flat(ids), flat(mask), deterministic)
      states = states.reshape(batch, nodes - 1, *states.shape[1:])
    return self.center(ids[:, 0], mask[:, 0], states, node_mask, deterministic)


class GraphAttention(nn.Module):
  """The centre attends to all nodes; heads side by side, without an output projection.

  Attributes:
    config: BertConfig.
  """
  config: BertConfig

  @nn.compact
  def __call__(self, states, bias, deterministic):
    """Maps states [B, N, D], of which the first asks, and a bias [B, H or 1, 1, N] to [B, D]."""
    c = self.config

    def heads(name, x):
      y = nn.Dense(c.hidden_size, dtype=jnp.dtype(c.dtype), name=name,
                   kernel_init=nn.initializers.normal(c.initializer_range))(x)
      return y.reshape(*x.shape[:2], c.num_attention_heads, -1)

    query, key, value = heads('query', states[:, :1]), heads('key', states), heads('value', states)
    weights = attention_weights(query, key, bias)
    weights = nn.Dropout(c.attention_probs_dropout_prob)(weights, deterministic=deterministic)
    out = jnp.einsum('bhmn,bnhd->bmhd', weights.astype(value.dtype), value)
    return out.reshape(states.shape[0], -1)


class GraphFormer(_NodeEncoder):
  """Graph attention before every layer of the text encoder but the first (section 3.2).

  Before layer i > 0 the [CLS] states of all nodes are aggregated into the station, a token at the
  front of the centre, which its other tokens attend to. Neighbours see themselves alone: of them
  only the states that enter layers 1 to L - 1 are needed, so that their last layer is not computed.

  Attributes:
    config: BertConfig of at least two layers, which are looked into and so never scanned; its
      rel_pos_bins R are the token rows of the table of biases, which has two more for the station
      and the neighbours.
  """
  config: BertConfig

  def setup(self):
    c = self.config
    self.bert = Bert(c)
    self.graph_attention = GraphAttention(c)
    if c.rel_pos_bins:
      self.graph_bias = self.param('graph_bias', nn.initializers.normal(c.initializer_range),
                                   (2, c.num_attention_heads), jnp.float32)

  def neighbor_states(self, ids, mask, deterministic=True):
    """[M, L - 1, D]: the [CLS] states that enter layers 1 to L - 1."""
    x, states = self._embed(ids, deterministic), []
    bias = self.bert.bias(mask, self._positions(ids))
    for layer in range(self.config.num_hidden_layers - 1):
      x, _ = self.bert.layer(layer, x, bias, None, deterministic)
      states.append(x[:, 0])
    return jnp.stack(states, 1)

  def center(self, ids, mask, states, node_mask, deterministic=True):
    """[B, D]: the last [CLS] states of nodes; `states` are None where there is no neighbour."""
    z = self._with_station(self._embed(ids, deterministic))
    node_bias = self._node_bias(node_mask)
    for layer in range(self.config.num_hidden_layers):
      if layer:
        nodes = z[:, 1:2]
        if states is not None:
          nodes = jnp.concatenate([nodes, states[:, :, layer - 1].astype(z.dtype)], 1)
        z = self._aggregate(z, nodes, node_mask, node_bias, deterministic)
      bias = self._token_bias(mask, self._positions(ids), layer > 0)
      z, _ = self.bert.layer(layer, z, bias, None, deterministic)
    return z[:, 1]

  def hidden_states(self, ids, mask, node_mask):
    """The last states [B, N, 1 + S, D] of all tokens of all nodes, as the paper writes them down.

    Index 0 is the station, whose own output means nothing. [:, 0, 1] are the vectors that calling
    the module gives; this spends a last layer on the neighbours too.
    """
    batch, nodes, length = ids.shape
    flat_ids, flat_mask = ids.reshape(-1, length), mask.reshape(-1, length)
    z = self._with_station(self._embed(flat_ids, True))
    is_center = jnp.arange(batch * nodes) % nodes == 0
    node_bias = self._node_bias(node_mask)
    for layer in range(self.config.num_hidden_layers):
      if layer:
        all_nodes = z.reshape(batch, nodes, *z.shape[1:])
        centers = self._aggregate(all_nodes[:, 0], all_nodes[:, :, 1], node_mask, node_bias, True)
        z = all_nodes.at[:, 0].set(centers).reshape(z.shape)
      bias = self._token_bias(flat_mask, self._positions(flat_ids), is_center & (layer > 0))
      z, _ = self.bert.layer(layer, z, bias, None, True)
    return z.reshape(batch, nodes, *z.shape[1:])

  def _positions(self, ids):
    return self.bert.positions(ids, None, ids.shape[1])

  def _embed(self, ids, deterministic):
    return self.bert.embed(ids, deterministic=deterministic)

  def _with_station(self, x):
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))

  def _aggregate(self, z, nodes, node_mask, node_bias, deterministic):
    """Writes the station of centres z [B, 1 + S, D] from the states of all nodes [B, N, D]."""
    nodes = jnp.where(node_mask[..., None] != 0, nodes, 0)  # before any product, so that no NaN of
    station = self.graph_attention(nodes, node_bias, deterministic)  # an absent node gets through
    return z.at[:, 0].set(station)

  def _nearest(self):
    """The bias [1, H, 1, 1] of a token for itself."""
    return self.bert.bias(jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int32))

  def _node_bias(self, node_mask):
    """float32 [B, 1 or H, 1, N]."""
    bias = mask_bias(node_mask)
    if self.config.rel_pos_bins:
      others = jnp.broadcast_to(self.graph_bias[1][None, :, None, None],
                                (1, self.config.num_attention_heads, 1, node_mask.shape[1] - 1))
      bias = bias + jnp.concatenate([self._nearest(), others], -1)
    return bias

  def _token_bias(self, mask, positions, station_visible):
    """What a layer adds to the scores of station and tokens, float32 [B, 1 or H, ., 1 + S]."""
    bias = self.bert.bias(mask, positions)
    visible = jnp.broadcast_to(station_visible, (len(mask),))[:, None, None, None]
    column = jnp.where(visible, 0.0, HIDDEN)
    if self.config.rel_pos_bins:
      # The station asks as if it stood at every key's place.
      row = self._nearest() + mask_bias(mask)
      bias = jnp.concatenate([row, bias], 2)
      column = column + self.graph_bias[0][None, :, None, None]
      column = jnp.broadcast_to(column, (*bias.shape[:3], 1))
    return jnp.concatenate([column, bias], -1)


class Cascade(_NodeEncoder):
  """A text encoder for each node by itself, then one aggregation: PLM + GraphSAGE and its like.

  With h the [CLS] states and m over the neighbours that are there (zero without any):
  'max' and 'mean' are m(relu(Wp h + bp)) (GraphSAGE, arXiv 1706.02216); 'att' is their sum weighed
  by softmax(h_0 h / sqrt(D)); each ends in relu(Wg [h_0; .]). 'gat' (arXiv 1710.10903) is
  sum_n a_n W h_n over centre and neighbours, a = softmax(leaky_relu(u W h_0 + v W h_n)), heads side
  by side.

  Attributes:
    config: BertConfig.
    aggregator: one of `AGGREGATORS`.
  """
  config: BertConfig
  aggregator: Literal['max', 'mean', 'att', 'gat'] = 'max'

  def setup(self):
    c = self.config
    dense = lambda bias=True: nn.Dense(c.hidden_size, use_bias=bias, dtype=jnp.dtype(c.dtype),
                                       kernel_init=nn.initializers.normal(c.initializer_range))
    self.bert = Bert(c)
    if self.aggregator == 'gat':
      self.transform = dense(bias=False)
      shape = (2, c.num_attention_heads, c.hidden_size // c.num_attention_heads)
      self.scorers = self.param('scorers', nn.initializers.normal(c.initializer_range), shape,
                                jnp.float32)
    else:
      self.pooling_transform, self.graph_transform = dense(), dense(bias=False)

  def neighbor_states(self, ids, mask, deterministic=True):
    """[M, D]: the [CLS] states."""
    return self.bert(ids, mask, deterministic=deterministic).last[:, 0]

  def center(self, ids, mask, states, node_mask, deterministic=True):
    """[B, D]; `states` are None where there is no neighbour."""
    h = self.bert(ids, mask, deterministic=deterministic).last[:, 0]
    if states is None:
      states = jnp.zeros((len(h), 0, h.shape[-1]), h.dtype)
    here = node_mask[:, 1:, None] != 0
    states = jnp.where(here, states, 0)
    if self.aggregator == 'gat':
      return self._gat(jnp.concatenate([h[:, None], states], 1), node_mask)
    pooled = jnp.where(here, nn.relu(self.pooling_transform(states)), 0)
    if self.aggregator == 'max':
      around = pooled.max(1, initial=0.0)  # relu is never negative
    elif self.aggregator == 'mean':
      around = pooled.sum(1) / jnp.maximum(here.sum(1), 1)
    else:
      weights = attention_weights(h[:, None, None], states[:, :, None], mask_bias(here[..., 0]))
      around = jnp.einsum('bn,bnd->bd', weights[:, 0, 0].astype(pooled.dtype), pooled)
    return nn.relu(self.graph_transform(jnp.concatenate([h, around.astype(h.dtype)], -1)))

  def _gat(self, nodes, node_mask):
    x = self.transform(nodes).reshape(*nodes.shape[:2], self.config.num_attention_heads, -1)
    own, others = jnp.einsum('bnhd,phd->pbhn', x.astype(jnp.float32), self.scorers)
    scores = nn.leaky_relu(own[..., :1] + others, 0.2) + mask_bias(node_mask)[:, 0]
    weights = nn.softmax(scores).astype(x.dtype)
    return jnp.einsum('bhn,bnhd->bhd', weights, x).reshape(len(nodes), -1)


class TextOnly(_NodeEncoder):
  """The [CLS] state of the node's own text.

  Attributes:
    config: BertConfig.
  """
  config: BertConfig

  def setup(self):
    self.bert = Bert(self.config)

  def neighbor_states(self, ids, mask, deterministic=True):
    """[M, 1] zeros: a node gives nothing to others."""
    del mask, deterministic
    return jnp.zeros((len(ids), 1))

  def center(self, ids, mask, states, node_mask, deterministic=True):
    """[B, D]."""
    del states, node_mask
    return self.bert(ids, mask, deterministic=deterministic).last[:, 0]
