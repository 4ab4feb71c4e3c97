"""Decoder-only language model: LLaMA, Qwen2, Qwen2.5 and Qwen3 in one module.

Sources: arXiv 2302.13971 (LLaMA), 2412.15115 (Qwen2.5), 2505.09388 (Qwen3).
"""
import dataclasses
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.models.pretrained import checked_mapping, stack_layers, unstack_layers
from jaxlab.nn.decoder import DecoderAttention, SwiGLU
from jaxlab.nn.norms import RMSNorm
from jaxlab.nn.rotary import rotary_tables


class Cache(NamedTuple):
  """Keys and values of the tokens so far.

  Attributes:
    layers: (keys, values) [B, KV, S, D] of each layer, or stacked [L, B, KV, S, D] for scanned
      layers.
    slot: int32 scalar, slots that are filled; the next token goes to this one.
  """
  layers: Any
  slot: jax.Array


def init_cache(config, batch, slots):
  """An empty Cache of `slots` tokens for `batch` rows."""
  shape = (batch, config.num_key_value_heads, slots, config.head_dim)
  empty = lambda: jnp.zeros(shape, jnp.dtype(config.dtype))
  layers = tuple((empty(), empty()) for _ in range(config.num_hidden_layers))
  if config.scan_layers:
    layers = jax.tree.map(lambda *x: jnp.stack(x), *layers)
  return Cache(layers, jnp.zeros((), jnp.int32))


class DecoderLayer(nn.Module):
  """Attention and SwiGLU, each behind an RMSNorm and added to the stream.

  Its result is sown as 'intermediates/hidden' for whoever asks for it.
  """
  config: DecoderConfig

  @nn.compact
  def __call__(self, x, cache, tables, visible, slot):
    """Maps [B, T, d] and this layer's cache to the same; see `DecoderAttention`."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    norm = lambda name: RMSNorm(c.rms_norm_eps, dtype, name=name)
    attended, cache = DecoderAttention(
        c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.attention_bias, c.output_bias,
        c.qk_norm, c.rms_norm_eps, c.initializer(c.hidden_size),
        c.initializer(c.num_attention_heads * c.head_dim, residual=True), dtype,
        name='attn')(norm('input_norm')(x), tables, visible, cache, slot)
    x = x + attended
    x = x + SwiGLU(c.intermediate_size, c.mlp_bias, c.initializer(c.hidden_size),
                   c.initializer(c.intermediate_size, residual=True), dtype,
                   name='mlp')(norm('post_norm')(x))
    self.sow('intermediates', 'hidden', x)
    return x, cache


class DecoderLM(nn.Module):
  """The model. `__call__` gives logits; `hidden` and `logits` are its two halves.

  `hidden` is what is scored in pieces (see `scoring`), so that logits of long sequences over large
  vocabularies never exist at once.
  """
  config: DecoderConfig

  def setup(self):
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    self.embed = nn.Embed(c.vocab_size, c.hidden_size, dtype=dtype,
                          embedding_init=c.initializer(c.hidden_size))
    layer = nn.remat(DecoderLayer, prevent_cse=not c.scan_layers) if c.remat else DecoderLayer
    if c.scan_layers:
      self.layers = nn.scan(
          layer, variable_axes={'params': 0, 'intermediates': 0}, split_rngs={'params': True},
          in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast), out_axes=0,
          length=c.num_hidden_layers)(c)
    else:
      self.layers = [layer(c) for _ in range(c.num_hidden_layers)]
    self.final_norm = RMSNorm(c.rms_norm_eps, dtype)
    if not c.tie_word_embeddings:
      self.lm_head = nn.Dense(c.vocab_size, use_bias=False, dtype=dtype,
                              kernel_init=c.initializer(c.hidden_size))

  def __call__(self, tokens, mask=None, positions=None, cache=None):
    """(logits float32 [B, T, V], cache); see `hidden`."""
    x, cache = self.hidden(tokens, mask, positions, cache)
    return self.logits(x), cache

  def hidden(self, tokens, mask=None, positions=None, cache=None):
    """The stream after the final norm.

    Args:
      tokens: ids int [B, T], or their embeddings [B, T, d].
      mask: [B, S], which tokens are no padding, S = T without a cache and the cache's slots with
        one; all by default. Padding may stand at either side.
      positions: int [B, T]; by default the number of real tokens before each, and 0 in padding at
        the left.
      cache: Cache that the tokens are added to, or None.

    Returns:
      ([B, T, d], the new cache or None).
    """
    c = self.config
    x = self.embed(tokens) if tokens.ndim == 2 else tokens.astype(jnp.dtype(c.dtype))
    batch, length = x.shape[:2]
    slot = jnp.zeros((), jnp.int32) if cache is None else cache.slot
    slots = length if cache is None else jax.tree.leaves(cache.layers)[0].shape[-2]
    mask = jnp.ones((batch, slots), bool) if mask is None else mask.astype(bool)
    mine = slot + jnp.arange(length)
    if positions is None:
      positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)[:, mine]
    tables = rotary_tables(positions, c.frequencies)
    visible = mask[:, None] & (jnp.arange(slots) <= mine[:, None])
    if c.scan_layers:
      x, layers = self.layers(x, None if cache is None else cache.layers, tables, visible, slot)
    else:
      layers = []
      for i, layer in enumerate(self.layers):
        x, own = layer(x, None if cache is None else cache.layers[i], tables, visible, slot)
        layers.append(own)
    x = self.final_norm(x)
    return x, None if cache is None else Cache(
        layers if c.scan_layers else tuple(layers), slot + length)

  def logits(self, x):
    """float32 logits [..., V] of `hidden`'s [..., d]."""
    x = self.embed.attend(x) if self.config.tie_word_embeddings else self.lm_head(x)
    return x.astype(jnp.float32)


def hidden_states(model, params, tokens, mask=None):
  """Embeddings and the stream after each layer, the last one after the final norm too.

  Returns:
    List of L + 1 arrays [B, T, d].
  """
  config = model.config
  (last, _), sown = model.apply({'params': params}, tokens, mask, method='hidden',
                                mutable=['intermediates'])
  sown = sown['intermediates']
  if config.scan_layers:
    streams = list(sown['layers']['hidden'][0])
  else:
    streams = [sown[f'layers_{i}']['hidden'][0] for i in range(config.num_hidden_layers)]
  first = params['embed']['embedding'][tokens].astype(last.dtype)
  return [first, *streams[:-1], last]


_RENAMED = {'embed': 'model.embed_tokens', 'final_norm': 'model.norm', 'input_norm':
            'input_layernorm', 'post_norm': 'post_attention_layernorm', 'attn': 'self_attn'}


def checkpoint_name(path):
  """The public checkpoints' name of a parameter of unstacked layers; a bijection.

  >>> checkpoint_name('layers_3/attn/q_proj/kernel')
  'model.layers.3.self_attn.q_proj.weight'
  >>> checkpoint_name('final_norm/scale')
  'model.norm.weight'
  """
  *parts, leaf = path.split('/')
  parts = [re.sub(r'^layers_(\d+)$', r'model.layers.\1', _RENAMED.get(part, part))
           for part in parts]
  return '.'.join([*parts, 'bias' if leaf == 'bias' else 'weight'])


def named_parameters(params):
  """{checkpoint name: leaf in our layout} of parameters in either layout, in order."""
  leaves = jax.tree_util.tree_flatten_with_path(unstack_layers(params))[0]
  return {checkpoint_name(jax.tree_util.keystr(path, simple=True, separator='/')): leaf
          for path, leaf in leaves}


def params_from_torch(state_dict, config):
  """Our parameters from a public checkpoint's tensors.

  Args:
    state_dict: {'model.layers.0.self_attn.q_proj.weight': array, ...}; linear weights are
      [out, in], `pretrained.StoredTensor`s are read one by one. 'lm_head.weight' is ignored where
      the embeddings are tied, and so are stored rotary frequencies.
    config: DecoderConfig.

  Returns:
    Flax params as NumPy arrays of the dtypes given, layers stacked if the config says so.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  shapes = _shapes(config)
  spell = lambda path: checkpoint_name(jax.tree_util.keystr(path, simple=True, separator='/'))
  wanted = {name: leaf.shape[::-1] if _is_transposed(name) else leaf.shape
            for name, leaf in ((spell(path), leaf) for path, leaf in
                               jax.tree_util.tree_flatten_with_path(shapes)[0])}
  ignored = [name for name in state_dict if name.endswith('rotary_emb.inv_freq')]
  if config.tie_word_embeddings:
    ignored.append('lm_head.weight')
  tensors = checked_mapping(state_dict, wanted, ignored=ignored)

  def leaf(path, _):
    value = tensors[spell(path)]
    return value.T if _is_transposed(spell(path)) else value

  params = jax.tree_util.tree_map_with_path(leaf, shapes)
  params = stack_layers(params) if config.scan_layers else params
  return jax.tree.map(np.asarray, params)  # here stored tensors are read, if stacking did not


def params_to_torch(params):
  """The inverse of `params_from_torch`: {checkpoint name: NumPy array}, C-contiguous."""
  return {name: np.ascontiguousarray(np.asarray(leaf).T if _is_transposed(name) else leaf)
          for name, leaf in named_parameters(params).items()}


def _is_transposed(name):
  return name.endswith('_proj.weight') or name == 'lm_head.weight'


def _shapes(config):
  model = DecoderLM(dataclasses.replace(config, scan_layers=False))
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
