"""BERT (arXiv 1810.04805), RoBERTa (1907.11692), XLM-R (1911.02116), UniLM's relative bias.

One encoder for all their sizes. Parameters come from public checkpoints through `bert_weights`.
"""
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models.bert_config import ACTIVATIONS, BertConfig
from jaxlab.nn.attention import HIDDEN, mask_bias
from jaxlab.nn.encoder import PostNormLayer, layer_norm
from jaxlab.nn.relative_position import RelativePositionBias

POOLERS = ('cls', 'pooler', 'mean', 'first_last_avg', 'max')


class KeysValues(NamedTuple):
  """Keys and values of a sequence, for another one to attend to.

  Attributes:
    layers: (keys, values) [B, S, H, d] of each layer.
    mask: [B, S], which of them are visible.
  """
  layers: tuple[tuple[jax.Array, jax.Array], ...]
  mask: jax.Array


class Output(NamedTuple):
  """What the encoder gives.

  Attributes:
    hidden_states: L + 1 arrays [B, S, D], the embeddings first; of scanned layers only the first
      and the last of these.
    pooled: [B, D], tanh of a dense layer on the first token; None without a pooler.
    keys_values: KeysValues; None of scanned layers.
  """
  hidden_states: tuple[jax.Array, ...]
  pooled: jax.Array | None
  keys_values: KeysValues | None

  @property
  def last(self):
    """The last hidden state [B, S, D]."""
    return self.hidden_states[-1]


def pool(output, mask, how):
  """Vectors [B, D] of sequences.

  Args:
    output: Output.
    mask: [B, S] of the tokens; a row without any gives zeros under 'mean', 'first_last_avg' and
      'max'.
    how: 'cls', the last state of the first token (SimCSE's cls_before_pooler); 'pooler', its tanh
      layer; 'mean' over the tokens, special ones too; 'first_last_avg', the mean of (embeddings +
      last state) / 2; 'max' over the tokens.

  Raises:
    ValueError: another `how`, or 'pooler' of a model without one.
  """
  weights = mask.astype(jnp.float32)[..., None]
  mean = lambda x: (jnp.sum(x.astype(jnp.float32) * weights, 1) /
                    jnp.maximum(jnp.sum(weights, 1), 1e-9))
  if how == 'cls':
    return output.last[:, 0]
  if how == 'pooler':
    if output.pooled is None:
      raise ValueError("pooler: expected another one than 'pooler' of a model without that layer")
    return output.pooled
  if how == 'mean':
    return mean(output.last)
  if how == 'first_last_avg':
    return mean((output.hidden_states[0] + output.last) / 2)
  if how == 'max':
    best = jnp.max(jnp.where(weights > 0, output.last.astype(jnp.float32), HIDDEN), 1)
    return jnp.where(jnp.any(weights > 0, 1), best, 0)
  raise ValueError(f'pooler: expected one of {", ".join(POOLERS)}, got {how!r}')


def from_host(pretrained, like):
  """Pretrained parameters that are read on the host when the program runs, for a Task's `init`.

  As constants they would be compiled into the program.

  Args:
    pretrained: pytree of NumPy arrays of any dtype.
    like: pytree of arrays of the same shapes, and of the dtypes to convert to.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
  fetch = lambda: jax.tree.map(lambda x, s: np.asarray(x, s.dtype), pretrained, shapes)
  return jax.pure_callback(fetch, shapes)


def roberta_positions(ids, pad_token_id):
  """Positions [B, S] that count from pad + 1, and pad itself where the id is pad."""
  real = (ids != pad_token_id).astype(jnp.int32)
  return pad_token_id + jnp.cumsum(real, axis=1) * real


class Embeddings(nn.Module):
  """LN(word + position + token type), then dropout.

  As PyTorch's padding_idx has it, the row of the padding starts at zero and gets no gradient from
  where it is looked up: of the words, and of RoBERTa's positions. `attend` does give it one.
  """
  config: BertConfig

  def setup(self):
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    normal = nn.initializers.normal(c.initializer_range)
    table = lambda rows, init=normal: nn.Embed(rows, c.hidden_size, dtype=dtype,
                                               embedding_init=init)

    def padded(*args):
      return normal(*args).at[c.pad_token_id].set(0)

    if c.vocab_size:
      self.word = table(c.vocab_size, padded)
    self.position = table(c.max_position_embeddings, padded if c.is_roberta else normal)
    if c.type_vocab_size:
      self.token_type = table(c.type_vocab_size)
    self.norm = layer_norm(c.layer_norm_eps, dtype)
    self.dropout = nn.Dropout(c.hidden_dropout_prob)

  def __call__(self, ids, token_type, positions, inputs_embeds, deterministic):
    def fixed_padding(x, index):
      pad = (index == self.config.pad_token_id)[..., None]
      return jnp.where(pad, jax.lax.stop_gradient(x), x)

    if inputs_embeds is None:
      x = fixed_padding(self.word(ids), ids)
    else:
      x = inputs_embeds.astype(self.config.dtype)
    position = self.position(positions)
    x = x + (fixed_padding(position, positions) if self.config.is_roberta else position)
    if self.config.type_vocab_size:
      x = x + self.token_type(jnp.zeros((1, 1), jnp.int32) if token_type is None else token_type)
    return self.dropout(self.norm(x), deterministic=deterministic)

  def attend(self, x):
    """x @ word.T: [..., D] -> [..., V]."""
    return self.word.attend(x)


class Bert(nn.Module):
  """The encoder. `embed` and `layer` are its parts, for who puts something between the layers."""
  config: BertConfig

  def setup(self):
    c = self.config
    self.embeddings = Embeddings(c)
    layer, kernel_init = PostNormLayer, nn.initializers.normal(c.initializer_range)
    if c.remat:
      layer = nn.remat(layer, static_argnums=(4,), prevent_cse=not c.scan_layers)
    arguments: dict[str, Any] = {
        'num_heads': c.num_attention_heads, 'width': c.intermediate_size,
        'activation': ACTIVATIONS[c.hidden_act], 'eps': c.layer_norm_eps,
        'dropout': c.hidden_dropout_prob, 'attention_dropout': c.attention_probs_dropout_prob,
        'kernel_init': kernel_init, 'dtype': jnp.dtype(c.dtype)}
    if c.scan_layers:
      self.layers = nn.scan(
          layer, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
          in_axes=(nn.broadcast,) * 3, length=c.num_hidden_layers)(**arguments)
    else:
      self.layers = [layer(**arguments) for _ in range(c.num_hidden_layers)]
    if c.rel_pos_bins:
      self.rel_pos_bias = RelativePositionBias(c.rel_pos_bins, c.max_rel_pos,
                                               c.num_attention_heads)
    if c.add_pooler:
      self.pooler = nn.Dense(c.hidden_size, dtype=jnp.dtype(c.dtype), kernel_init=kernel_init)

  def __call__(self, ids, mask=None, token_type=None, position_ids=None, inputs_embeds=None,
               rel_bias=None, kv_prefix=None, deterministic=True):
    """Encodes.

    Args:
      ids: int [B, S]; None with `inputs_embeds`.
      mask: [B, S], non-zero where a token is visible; all by default. What stands elsewhere changes
        no visible output, and a row that sees nothing is finite.
      token_type: int [B, S]; zeros by default.
      position_ids: int [B, S]; 0, 1, ... by default, or RoBERTa's, which follow from the ids.
      inputs_embeds: [B, S, D], in place of the word vectors only.
      rel_bias: float32 [B or 1, H, S, P + S], added to the scaled scores of every layer.
      kv_prefix: KeysValues of another sequence of P tokens, which every token may attend to; layers
        must not be scanned.
      deterministic: False draws dropout from the rng 'dropout'.

    Returns:
      Output.

    Raises:
      ValueError: more tokens than the model has positions, where `position_ids` are not given.
    """
    c = self.config
    batch, length = (ids.shape if inputs_embeds is None else inputs_embeds.shape)[:2]
    mask = jnp.ones((batch, length), bool) if mask is None else mask
    positions = self.positions(ids, position_ids, length)
    x = self.embed(ids, token_type, positions, inputs_embeds, deterministic)
    bias = self.bias(mask, positions, rel_bias, kv_prefix)
    if c.scan_layers:
      if kv_prefix is not None:
        raise ValueError('kv_prefix: expected a config with scan_layers=False')
      last, _ = self.layers(x, bias, None, deterministic)
      hidden_states, keys_values = (x, last), None
    else:
      hidden_states, layers = [x], []
      for i in range(c.num_hidden_layers):
        prefix = None if kv_prefix is None else kv_prefix.layers[i]
        x, own = self.layer(i, x, bias, prefix, deterministic)
        hidden_states.append(x)
        layers.append(own)
      hidden_states, keys_values = tuple(hidden_states), KeysValues(tuple(layers), mask)
    pooled = nn.tanh(self.pooler(hidden_states[-1][:, 0])) if c.add_pooler else None
    return Output(hidden_states, pooled, keys_values)

  def positions(self, ids, position_ids, length):
    """The position ids [B or 1, S] that `__call__` uses; see there."""
    c = self.config
    if position_ids is not None:
      return position_ids
    if length > c.max_length:  # a row beyond the table would be NaN
      raise ValueError(f'ids: expected at most {c.max_length} tokens, as there are positions, got '
                       f'{length}')
    if c.is_roberta and ids is not None:
      return roberta_positions(ids, c.pad_token_id)
    first = c.pad_token_id + 1 if c.is_roberta else 0
    return first + jnp.arange(length)[None]

  def embed(self, ids, token_type=None, positions=None, inputs_embeds=None, deterministic=True):
    """The normalised embeddings [B, S, D]; see `__call__`."""
    if positions is None:
      positions = self.positions(ids, None, (ids if inputs_embeds is None else
                                             inputs_embeds).shape[1])
    return self.embeddings(ids, token_type, positions, inputs_embeds, deterministic)

  def bias(self, mask, positions=None, rel_bias=None, kv_prefix=None):
    """What the layers add to their scores, float32 [B, 1 or H, 1 or S, P + S]."""
    bias = mask_bias(mask)
    if self.config.rel_pos_bins:
      relative = self.rel_pos_bias(positions)
      if kv_prefix is not None:  # another sequence is at no distance: no bias
        relative = jnp.pad(relative, ((0, 0),) * 3 + ((kv_prefix.mask.shape[1], 0),))
      rel_bias = relative if rel_bias is None else relative + rel_bias
    if kv_prefix is not None:
      bias = jnp.concatenate([mask_bias(kv_prefix.mask), bias], axis=-1)
    return bias if rel_bias is None else bias + rel_bias

  def layer(self, index, x, bias=None, prefix=None, deterministic=True):
    """Layer number `index` of layers that are not scanned; see `PostNormLayer`."""
    return self.layers[index](x, bias, prefix, deterministic)

  def word_logits(self, x):
    """x @ word.T, float32: [..., D] -> [..., V]."""
    return self.embeddings.attend(x).astype(jnp.float32)


class MaskedLM(nn.Module):
  """An encoder and the head that predicts masked tokens, tied to the word table."""
  config: BertConfig

  def setup(self):
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    self.bert = Bert(c)
    self.mlm_dense = nn.Dense(c.hidden_size, dtype=dtype,
                              kernel_init=nn.initializers.normal(c.initializer_range))
    self.mlm_norm = layer_norm(c.layer_norm_eps, dtype)
    self.mlm_bias = self.param('mlm_bias', nn.initializers.zeros, (c.vocab_size,), jnp.float32)

  def __call__(self, ids, mask=None, token_type=None, deterministic=True):
    """(logits float32 [B, S, V], Output); arguments as those of `Bert`."""
    output = self.bert(ids, mask, token_type, deterministic=deterministic)
    x = ACTIVATIONS[self.config.hidden_act](self.mlm_dense(output.last))
    return self.bert.word_logits(self.mlm_norm(x)) + self.mlm_bias, output


class SequenceClassifier(nn.Module):
  """An encoder and a linear head on the first token, as fine-tuning on GLUE has it.

  BERT: dropout and a linear layer on the pooler. RoBERTa: dropout, dense, tanh, dropout, linear on
  the last state; the encoder has no pooler then.

  Attributes:
    config: BertConfig.
    num_classes: K; 1 for regression.
  """
  config: BertConfig
  num_classes: int

  @nn.compact
  def __call__(self, ids, mask=None, token_type=None, deterministic=True):
    """Logits float32 [B, K]; arguments as those of `Bert`."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    dense = lambda width, name: nn.Dense(
        width, dtype=dtype, kernel_init=nn.initializers.normal(c.initializer_range), name=name)
    drop = lambda x: nn.Dropout(c.hidden_dropout_prob)(x, deterministic=deterministic)
    output = Bert(c, name='bert')(ids, mask, token_type, deterministic=deterministic)
    x = output.pooled
    if not c.add_pooler:
      x = nn.tanh(dense(c.hidden_size, 'head_dense')(drop(output.last[:, 0])))
    return dense(self.num_classes, 'head_out')(drop(x)).astype(jnp.float32)
