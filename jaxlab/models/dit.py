"""In-context diffusion transformer: FLUX.1 (Kontext) and Qwen-Image(-Edit) type networks.

One sequence of text, target and reference tokens, in which every token attends to every token; the
velocity is read on the target. Sources: arXiv 2506.15742 (FLUX.1 Kontext), 2403.03206 (double
streams), 2212.09748 (adaLN-zero). Weights of diffusers: `jaxlab.models.dit_weights`.
"""
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.nn.axial_rotary import axial_rotary, rotate_pairs
from jaxlab.nn.chunked_attention import attention, attention_received
from jaxlab.nn.modulation import EmbedMLP, Modulation, modulate, sinusoid
from jaxlab.nn.norms import RMSNorm

HIDDEN = -1e9  # bias of a key that may not be seen; finite, since whole rows may be hidden


class Span(NamedTuple):
  """Where the target lies in the joint sequence; what comes after it is reference."""
  start: int
  stop: int


class Score(NamedTuple):
  """What a layer tells of its reference tokens, in order.

  Attributes:
    received: float32 [B, H, n_c], attention from all target queries, softmax over all keys.
    value_norm: float32 [B, H, n_c], length of the value vector.
  """
  received: jax.Array
  value_norm: jax.Array


def _separate_xavier(*widths):
  """Xavier initialiser of kernels that lie side by side in one matrix [D, sum(widths)]."""
  def init(key, shape, dtype=jnp.float32):
    xavier = nn.initializers.xavier_uniform()
    keys = jax.random.split(key, len(widths))
    return jnp.concatenate(
        [xavier(k, (shape[0], width), dtype) for k, width in zip(keys, widths)], axis=1)
  return init


class _Block(nn.Module):
  """What both kinds of blocks share.

  Attributes:
    num_heads: H.
    head_dim: D.
    mlp_width: hidden units of the MLP.
    score: Span of the target if the layer is to give a `Score`, or None.
    dtype: compute dtype; the stream, norms, modulation, rotation and softmax are float32.
  """
  num_heads: int
  head_dim: int
  mlp_width: int
  score: Span | None
  dtype: str

  @property
  def width(self):
    return self.num_heads * self.head_dim

  def dense(self, features, name, init=None):
    init = init or nn.initializers.xavier_uniform()
    return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

  def heads(self, qkv, prefix=''):
    """Queries, keys and values [B, N, H, D] of [B, N, 3 H D]; the first two RMS-normalised."""
    q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], -1, self.head_dim), 3, axis=2)
    return RMSNorm(name=f'{prefix}q_norm')(q), RMSNorm(name=f'{prefix}k_norm')(k), v

  def attend(self, q, k, v, rope, bias):
    """([B, N, H D], Score or None) of the joint sequence."""
    q, k = (rotate_pairs(x, *rope).astype(self.dtype) for x in (q, k))
    score = None
    if self.score is not None:
      start, stop = self.score
      rows = bias[:, :, start:stop] if bias is not None and bias.shape[2] > 1 else bias
      norms = jnp.linalg.norm(v[:, stop:].astype(jnp.float32), axis=-1)
      score = Score(attention_received(q[:, start:stop], k, rows)[..., stop:],
                    norms.transpose(0, 2, 1))
    return attention(q, k, v, bias).reshape(*q.shape[:2], -1), score


class DoubleBlock(_Block):
  """Text and image with weights of their own and a joint attention, text first."""

  @nn.compact
  def __call__(self, txt, img, conditioning, rope, bias):
    """(txt [B, N, H D], img likewise, time embedding, tables, bias) -> (txt, img, Score | None)."""
    streams = {'txt': txt, 'img': img}
    parts = {name: Modulation(6, name=f'{name}_mod')(conditioning) for name in streams}
    xavier = _separate_xavier(*(self.width,) * 3)
    qkv = []
    for name, x in streams.items():
      shift, scale, _ = parts[name][:3]
      y = self.dense(3 * self.width, f'{name}_qkv', xavier)(modulate(x, shift, scale))
      qkv.append(self.heads(y, f'{name}_'))
    out, score = self.attend(*(jnp.concatenate(x, axis=1) for x in zip(*qkv)), rope, bias)
    out = dict(zip(streams, jnp.split(out, [txt.shape[1]], axis=1)))
    for name, x in streams.items():
      _, _, gate, shift, scale, mlp_gate = parts[name]
      x = x + gate * self.dense(self.width, f'{name}_out')(out[name])
      y = self.dense(self.mlp_width, f'{name}_mlp_in')(modulate(x, shift, scale))
      y = self.dense(self.width, f'{name}_mlp_out')(nn.gelu(y))
      streams[name] = x + mlp_gate * y
    return streams['txt'], streams['img'], score


class SingleBlock(_Block):
  """One stream of text and image; attention and MLP side by side, no attention out-projection."""

  @nn.compact
  def __call__(self, txt, img, conditioning, rope, bias):
    """As `DoubleBlock`."""
    shift, scale, gate = Modulation(3, name='mod')(conditioning)
    x = jnp.concatenate([txt, img], axis=1)
    widths = (*(self.width,) * 3, self.mlp_width)
    y = self.dense(sum(widths), 'qkv_mlp', _separate_xavier(*widths))(modulate(x, shift, scale))
    qkv, hidden = jnp.split(y, [3 * self.width], axis=-1)
    out, score = self.attend(*self.heads(qkv), rope, bias)
    out = self.dense(self.width, 'out')(jnp.concatenate([out, nn.gelu(hidden)], axis=-1))
    x = x + gate * out
    return x[:, :txt.shape[1]], x[:, txt.shape[1]:], score


class DiT(nn.Module):
  """Velocity network over [text | target | reference] tokens.

  Layers are numbered through: double blocks first, then single blocks. They are unrolled, since
  token pruning looks into them one by one.

  Attributes:
    in_channels: of a packed token (4 x the latent's channels).
    text_dim: width of the text encoder's output.
    num_double: double blocks.
    num_single: single blocks.
    num_heads: H.
    head_dim: D.
    axes: channels of D for the rotary axes (image, row, column); even, their sum is D.
    out_channels: of a velocity token; 0 for `in_channels`.
    pooled_dim: width of the pooled text; 0 for none.
    guidance: whether the guidance scale is embedded.
    family: whose names the weights have; 'qwen' normalises the text by a learned RMSNorm.
    theta: base of the rotary frequencies.
    mlp_ratio: hidden units of an MLP over H D.
    remat: whether a block's activations are recomputed in the backward pass.
    dtype: compute dtype of the matrix products.

  Raises:
    ValueError: `axes` does not fit `head_dim`.
  """
  in_channels: int
  text_dim: int
  num_double: int
  num_single: int
  num_heads: int
  head_dim: int
  axes: Sequence[int]
  out_channels: int = 0
  pooled_dim: int = 0
  guidance: bool = False
  family: Literal['flux', 'qwen'] = 'flux'
  theta: float = 10000.0
  mlp_ratio: int = 4
  remat: bool = False
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    if sum(self.axes) != self.head_dim or any(width % 2 for width in self.axes):
      raise ValueError(f'axes: expected even numbers whose sum is head_dim={self.head_dim}, '
                       f'got {tuple(self.axes)}')
    self.axes = tuple(self.axes)  # hashable, so that a model can be a static argument
    super().__post_init__()

  @property
  def num_layers(self):
    """Double and single blocks."""
    return self.num_double + self.num_single

  @property
  def width(self):
    """H D."""
    return self.num_heads * self.head_dim

  @property
  def velocity_channels(self):
    """Channels of a velocity token."""
    return self.out_channels or self.in_channels

  @nn.compact
  def __call__(self, img, txt, pooled, t, img_ids, txt_ids, guidance=None, *, n_target,
               txt_mask=None, keep=None, prune_from=0, merge: Callable | None = None,
               attn_bias: Callable[[int], Any] | None = None, score_layers=(), collect=False):
    """The velocity of the target tokens.

    Args:
      img: target tokens, then reference tokens [B, n_target + n_c, in_channels].
      txt: text tokens [B, n_txt, text_dim]; n_txt may be 0.
      pooled: [B, pooled_dim], or None without pooled text.
      t: [B], sigma in [0, 1] (1 is noise).
      img_ids: [n_target + n_c, 3] or [B, n_target + n_c, 3].
      txt_ids: [n_txt, 3] or [B, n_txt, 3].
      guidance: [B], or None without an embedding of it.
      n_target: number of target tokens.
      txt_mask: bool [B, n_txt], False for text that is padding; None for none.
      keep: int [B, k], the reference tokens, counted from 0, that run from layer `prune_from` on;
        None for all.
      prune_from: first layer that prunes or merges.
      merge: (layer, image tokens, their tables) -> (fewer tokens, their tables, restore), where
        `restore` maps what the layer added to these to what it adds to all; None for no merging.
      attn_bias: layer -> bias of that layer's attention (4 axes), or None; over [text, image].
      score_layers: layers whose `Score` is wanted.
      collect: whether all activations are wanted.

    Returns:
      (velocity float32 [B, n_target, velocity_channels], {'scores': {layer: Score}, and with
      `collect` 'temb', 'double0_txt', ...}).
    """
    n_txt = txt.shape[1]
    conditioning = self._conditioning(pooled, t, guidance)
    xavier = nn.initializers.xavier_uniform()
    img = nn.Dense(self.width, kernel_init=xavier, name='img_in')(img.astype(jnp.float32))
    txt = txt.astype(jnp.float32)
    if self.family == 'qwen':
      txt = RMSNorm(name='txt_norm')(txt)
    txt = nn.Dense(self.width, kernel_init=xavier, name='txt_in')(txt)
    tables = self._tables(img_ids, txt_ids, len(img))
    aux = {'scores': {}, **({'temb': conditioning} if collect else {})}
    for layer in range(self.num_layers):
      if keep is not None and layer == prune_from:
        img, tables[1] = _gather((img, tables[1]), keep, n_target)
      block = self._block(layer, layer in score_layers and Span(n_txt, n_txt + n_target))
      some, some_tables, restore = img, tables[1], None
      if merge is not None and layer >= prune_from:
        some, some_tables, restore = merge(layer, img, tables[1])
      bias = _bias(attn_bias and attn_bias(layer), txt_mask, some.shape[1])
      txt, out, score = block(txt, some, conditioning, _joined(tables[0], some_tables), bias)
      img = out if restore is None else img + restore(out - some)
      if score is not None:
        aux['scores'][layer] = score
      if collect:
        aux.update({f'{block.name}_txt': txt, f'{block.name}_img': img})
    scale, shift = Modulation(2, name='final_mod')(conditioning)
    final = nn.Dense(self.velocity_channels, kernel_init=nn.initializers.zeros, name='final')
    return final(modulate(img[:, :n_target], shift, scale)), aux

  def _conditioning(self, pooled, t, guidance):
    """Sum of the embeddings of time, guidance and pooled text [B, H D]."""
    _expect(pooled is not None, self.pooled_dim > 0, 'pooled', f'pooled_dim={self.pooled_dim}')
    _expect(guidance is not None, self.guidance, 'guidance', f'guidance={self.guidance}')
    x = EmbedMLP(self.width, name='time_embed')(sinusoid(1000 * t))
    if guidance is not None:
      x = x + EmbedMLP(self.width, name='guidance_embed')(sinusoid(1000 * guidance))
    if pooled is not None:
      x = x + EmbedMLP(self.width, name='pooled_embed')(pooled.astype(jnp.float32))
    return x

  def _tables(self, img_ids, txt_ids, batch):
    """Rotary tables [text, image], each (cos, sin) [B, N, D / 2]."""
    tables = []
    for ids in (txt_ids, img_ids):
      cos_sin = axial_rotary(jnp.asarray(ids), self.axes, self.theta)
      tables.append([jnp.broadcast_to(x, (batch, *x.shape[-2:])) for x in cos_sin])
    return tables

  def _block(self, layer, score):
    kind, number = ((DoubleBlock, layer) if layer < self.num_double else
                    (SingleBlock, layer - self.num_double))
    name = f'{"double" if kind is DoubleBlock else "single"}{number}'
    kind = nn.remat(kind) if self.remat else kind
    return kind(self.num_heads, self.head_dim, self.mlp_ratio * self.width, score or None,
                self.dtype, name=name)


def _expect(given, wanted, name, because):
  if given != wanted:
    raise ValueError(f'{name}: expected {"an array" if wanted else "None"}, since {because}')


def _gather(tree, keep, n_target):
  """The target tokens and the kept reference tokens of leaves [B, n, ...]."""
  def leaf(x):
    kept = jnp.take_along_axis(x[:, n_target:], keep[..., None], axis=1)
    return jnp.concatenate([x[:, :n_target], kept], axis=1)
  return jax.tree.map(leaf, tree)


def _joined(txt, img):
  return tuple(jnp.concatenate(pair, axis=1) for pair in zip(txt, img))


def _bias(bias, txt_mask, n_img):
  """Adds the hiding of padded text to a bias over the keys [text, image]."""
  if txt_mask is None:
    return bias
  hidden = jnp.pad(jnp.where(txt_mask, 0.0, HIDDEN), ((0, 0), (0, n_img)))[:, None, None]
  return hidden if bias is None else bias + hidden


def init_params(model, key):
  """Parameters with adaLN-zero: every block is the identity and the velocity is 0."""
  ids = jnp.zeros((1, 3))
  pooled = jnp.zeros((1, model.pooled_dim)) if model.pooled_dim else None
  guidance = jnp.zeros(1) if model.guidance else None
  return model.init(key, jnp.zeros((1, 1, model.in_channels)), jnp.zeros((1, 1, model.text_dim)),
                    pooled, jnp.zeros(1), ids, ids, guidance, n_target=1)['params']


def random_params(model, key):
  """`init_params` moved by noise of deviation .02, so that no block is the identity."""
  init_key, noise_key = jax.random.split(key)
  leaves, structure = jax.tree.flatten(init_params(model, init_key))
  keys = jax.random.split(noise_key, len(leaves))
  return structure.unflatten([leaf + 0.02 * jax.random.normal(one, leaf.shape)
                              for leaf, one in zip(leaves, keys)])
