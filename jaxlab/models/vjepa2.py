"""V-JEPA 2 (arXiv 2506.09985): a ViT over video tubelets with rotary positions, and its predictor.

Tokens are ordered by time, row, column. There is no class token and no position table.
"""
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.nn import chunked_attention
from jaxlab.nn.activations import exact_gelu
from jaxlab.nn.attention import HIDDEN
from jaxlab.nn.encoder import layer_norm

SCAN_FROM = 12  # layers: from here on compile time matters more than looking into a layer
CONTEXT_ENCODINGS = ('causal_prefix', 'repeat_frame', 'shared')


@dataclasses.dataclass(frozen=True)
class VJEPA2Config:
  """The shape of the encoder and of its own predictor; the names are those of config.json.

  Attributes:
    crop_size: side of a frame in pixels.
    patch_size: side of a patch, a divisor of `crop_size`.
    tubelet_size: u, frames of a token.
    hidden_size: D, width of the encoder.
    num_attention_heads: of the encoder, a divisor of D.
    num_hidden_layers: of the encoder.
    mlp_ratio: width of the feed-forward layers over D.
    pred_hidden_size: width of the predictor; 0 for none.
    pred_num_attention_heads: of the predictor, a divisor of its width.
    pred_num_hidden_layers: of the predictor.
    pred_num_mask_tokens: learned mask tokens to choose from.
    pred_mlp_ratio: width of the predictor's feed-forward layers over its own.
    layer_norm_eps: of all norms.
    init_std: of the kernels, truncated at two units; 0 draws them from N(0, 1 / fan_in), which
      gives a random encoder features worth predicting.
    dtype: compute dtype; parameters are float32.
    scan_layers: whether the encoder's layers are one scanned layer; None for 12 layers and more.
    remat: whether a layer's activations are recomputed in the backward pass.
  """
  crop_size: int = 256
  patch_size: int = 16
  tubelet_size: int = 2
  hidden_size: int = 1024
  num_attention_heads: int = 16
  num_hidden_layers: int = 24
  mlp_ratio: float = 4.0
  pred_hidden_size: int = 384
  pred_num_attention_heads: int = 12
  pred_num_hidden_layers: int = 12
  pred_num_mask_tokens: int = 10
  pred_mlp_ratio: float = 4.0
  layer_norm_eps: float = 1e-6
  init_std: float = 0.02
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  scan_layers: bool | None = None
  remat: bool = False

  def __post_init__(self):
    config_lib.at_least(
        1, self, ('crop_size', 'patch_size', 'tubelet_size', 'hidden_size', 'num_attention_heads',
                  'num_hidden_layers'))
    config_lib.require(self.crop_size % self.patch_size == 0, 'patch_size',
                       f'a divisor of crop_size={self.crop_size}', self.patch_size)
    config_lib.require(self.hidden_size % self.num_attention_heads == 0, 'num_attention_heads',
                       f'a divisor of hidden_size={self.hidden_size}', self.num_attention_heads)
    if self.pred_hidden_size:
      config_lib.at_least(1, self, ('pred_num_attention_heads',))
      config_lib.require(self.pred_hidden_size % self.pred_num_attention_heads == 0,
                         'pred_num_attention_heads',
                         f'a divisor of pred_hidden_size={self.pred_hidden_size}',
                         self.pred_num_attention_heads)
    if self.scan_layers is None:
      object.__setattr__(self, 'scan_layers', self.num_hidden_layers >= SCAN_FROM)

  @property
  def grid(self):
    """Patches in a row, and rows."""
    return self.crop_size // self.patch_size

  @property
  def tokens_per_step(self):
    """N, tokens of one latent time step."""
    return self.grid**2

  @property
  def kernel_init(self):
    """Initialiser of the kernels."""
    if self.init_std == 0:
      return nn.initializers.lecun_normal()
    return truncated_normal(self.init_std)


def truncated_normal(std, scale=1.0):
  """N(0, std^2) cut at +-2, times `scale`; the cut is absolute, so it is none for small std."""
  draw = nn.initializers.truncated_normal(std, lower=-2 / std, upper=2 / std)
  return lambda *args, **kwargs: draw(*args, **kwargs) * scale


def token_positions(steps, rows, columns):
  """Positions int32 [steps * rows * columns, 3] of a block of tokens: (time, row, column)."""
  return np.stack(np.meshgrid(np.arange(steps), np.arange(rows), np.arange(columns),
                              indexing='ij'), -1).reshape(-1, 3).astype(np.int32)


def tiled_rotary_tables(positions, head_dim):
  """(cos, sin) [..., N, d] of positions [..., N, 3], as the released models have them.

  Each axis has 2 floor(floor(d / 3) / 2) channels; what is left of d is not rotated. The angles of
  the n frequencies of an axis stand as w_0..w_(n-1), w_0..w_(n-1), though the pairs that
  `rotate_tiled` mixes are neighbours: no true rotation, but what the weights were trained with.
  """
  part = 2 * (head_dim // 3 // 2)
  half = part // 2
  omega = 10000.0**(-np.arange(half, dtype=np.float64) / max(half, 1))
  angles = positions[..., None].astype(np.float32) * omega.astype(np.float32)  # [..., N, 3, half]
  angles = jnp.concatenate([angles, angles], axis=-1)
  angles = angles.reshape(*angles.shape[:-2], 3 * part)
  angles = jnp.concatenate(
      [angles, jnp.zeros((*angles.shape[:-1], head_dim - 3 * part))], axis=-1)
  return jnp.cos(angles), jnp.sin(angles)


def rotate_tiled(x, cos, sin):
  """x cos + y sin with y_2i = -x_(2i+1), y_(2i+1) = x_2i.

  Args:
    x: [B, N, H, d].
    cos: [N, d] or [B, N, d].
    sin: likewise.
  """
  even = np.arange(x.shape[-1]) % 2 == 0
  cos, sin = (t[..., None, :].astype(x.dtype) for t in (cos, sin))
  # Rolls fuse with the products; slices of stride 2 would not.
  turned = jnp.where(even, -jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))
  return x * cos + turned * sin


class Attention(nn.Module):
  """Self-attention with tiled rotary positions and biases on all projections.

  Attributes:
    num_heads: H.
    kernel_init: initialiser of q, k, v.
    out_init: initialiser of the output projection.
    dtype: compute dtype.
  """
  num_heads: int
  kernel_init: Callable[..., Any]
  out_init: Callable[..., Any]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, tables, bias=None):
    """Maps [B, N, D] to the same; `bias` is finite and broadcastable to [B, H, N, N]."""
    heads = (*x.shape[:2], self.num_heads, x.shape[-1] // self.num_heads)
    dense = lambda name, init: nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name=name)
    query, key, value = (dense(name, self.kernel_init)(x).reshape(heads)
                         for name in ('query', 'key', 'value'))
    query, key = (rotate_tiled(y, *tables) for y in (query, key))
    out = chunked_attention.attention(query, key, value, bias)
    return dense('proj', self.out_init)(out.reshape(x.shape))


class Block(nn.Module):
  """x + attention(LN(x)); x + W2 gelu(W1 LN(x)), the exact GELU.

  What it returns is sown as 'intermediates/hidden'.

  Attributes:
    num_heads: of the attention.
    width: of the hidden layer of the feed-forward part.
    eps: of the layer norms.
    kernel_init: initialiser of the kernels.
    out_init: initialiser of the two kernels whose results are added to the stream.
    dtype: compute dtype.
  """
  num_heads: int
  width: int
  eps: float
  kernel_init: Callable[..., Any]
  out_init: Callable[..., Any]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, tables, bias=None):
    """Maps [B, N, D] to the same; see `Attention`."""
    norm = lambda name: layer_norm(self.eps, self.dtype, name=name)
    x = x + Attention(self.num_heads, self.kernel_init, self.out_init, self.dtype,
                      name='attention')(norm('norm1')(x), tables, bias)
    hidden = nn.Dense(self.width, dtype=self.dtype, kernel_init=self.kernel_init, name='fc1')(
        norm('norm2')(x))
    x = x + nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.out_init, name='fc2')(
        exact_gelu(hidden))
    self.sow('intermediates', 'hidden', x)
    return x


class Encoder(nn.Module):
  """The encoder. The tokens before the first layer are sown as 'intermediates/embedded'."""
  config: VJEPA2Config

  @nn.compact
  def __call__(self, frames):
    """Encodes frames.

    Args:
      frames: normalised [B, T, crop, crop, 3]; T is a multiple of the tubelet.

    Returns:
      [B, T / u * N, D], after the final norm.

    Raises:
      ValueError: frames of another shape.
    """
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    # A convolution whose stride is its kernel is a product with flattened tubelets.
    x = nn.Dense(c.hidden_size, dtype=dtype, kernel_init=c.kernel_init, name='patch')(
        _tubelets(frames, c).astype(dtype))
    self.sow('intermediates', 'embedded', x)
    steps = frames.shape[1] // c.tubelet_size
    tables = tiled_rotary_tables(token_positions(steps, c.grid, c.grid),
                                 c.hidden_size // c.num_attention_heads)
    kind = nn.remat(Block, prevent_cse=not c.scan_layers) if c.remat else Block
    block = lambda name: kind(c.num_attention_heads, int(c.hidden_size * c.mlp_ratio),
                              c.layer_norm_eps, c.kernel_init, c.kernel_init, dtype, name=name)
    if c.scan_layers:
      x, _ = nn.scan(lambda layer, x, _: (layer(x, tables), None),
                     variable_axes={'params': 0, 'intermediates': 0}, split_rngs={'params': True},
                     length=c.num_hidden_layers)(block('layers'), x, None)
    else:
      for i in range(c.num_hidden_layers):
        x = block(f'layers_{i}')(x, tables)
    return layer_norm(c.layer_norm_eps, dtype, name='norm')(x)


def _tubelets(frames, config):
  """[B, T / u * N, u p p 3] of frames [B, T, crop, crop, 3]."""
  p, u, g = config.patch_size, config.tubelet_size, config.grid
  expected = (config.crop_size, config.crop_size, 3)
  if frames.ndim != 5 or frames.shape[2:] != expected or frames.shape[1] % u:
    raise ValueError(f'frames: expected [B, a multiple of {u}, {p * g}, {p * g}, 3], '
                     f'got {frames.shape}')
  batch, length = frames.shape[:2]
  x = frames.reshape(batch, length // u, u, g, p, g, p, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(batch, -1, u * p * p * 3)


class MaskedPredictor(nn.Module):
  """V-JEPA 2's own predictor: encodings of context tokens to those of masked target tokens."""
  config: VJEPA2Config

  @nn.compact
  def __call__(self, encoded, context, target, mask_index=0):
    """Predicts.

    Args:
      encoded: [B, N, D], the encoder's output.
      context: int [B, C], numbers of the tokens to see.
      target: int [B, M], numbers of the tokens to predict.
      mask_index: which learned mask token stands for the targets, modulo their number.

    Returns:
      [B, M, D].
    """
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    width, grid = c.pred_hidden_size, c.grid
    tokens = self.param('mask_tokens', nn.initializers.zeros,
                        (c.pred_num_mask_tokens, width), jnp.float32)
    seen = jnp.take_along_axis(encoded, context[..., None], axis=1)
    seen = nn.Dense(width, dtype=dtype, kernel_init=c.kernel_init, name='embed')(seen)
    hidden = jnp.broadcast_to(tokens[mask_index % c.pred_num_mask_tokens].astype(dtype),
                              (*target.shape, width))
    x = jnp.concatenate([seen, hidden], axis=1)
    # The reference sorts the tokens and undoes it; with explicit positions the order is no matter.
    number = jnp.concatenate([context, target], axis=1)
    positions = jnp.stack([number // grid**2, number % grid**2 // grid, number % grid], axis=-1)
    tables = tiled_rotary_tables(positions, width // c.pred_num_attention_heads)
    for i in range(c.pred_num_hidden_layers):
      x = Block(c.pred_num_attention_heads, int(width * c.pred_mlp_ratio), c.layer_norm_eps,
                c.kernel_init, c.kernel_init, dtype, name=f'layers_{i}')(x, tables)
    x = layer_norm(c.layer_norm_eps, dtype, name='norm')(x)[:, context.shape[1]:]
    return nn.Dense(c.hidden_size, dtype=dtype, kernel_init=c.kernel_init, name='proj')(x)


def block_causal_bias(steps, per_step):
  """float32 [1, 1, n, n]: a token sees its own and earlier steps of `per_step` tokens each."""
  step = np.arange(steps * per_step) // per_step
  return np.where(step[:, None] >= step, 0.0, HIDDEN).astype(np.float32)[None, None]


def context_states(encode, frames, *, how, tubelet, targets='clip'):
  """Latent states of a clip at its context steps, and the targets.

  Args:
    encode: frames [B, T', ...] -> tokens [B, T' / u * N, D], the frozen encoder; T' varies.
    frames: [B, T, ...], the clip; G = T / u latent steps.
    how: 'shared' slices one encoding of the whole clip, as the released code does, so that the
      past knows the future; 'causal_prefix' takes step k from the last tokens of encode(frames up
      to the end of step k); 'repeat_frame' encodes the last frame of step k alone, u times.
    tubelet: u.
    targets: 'clip' takes them from one encoding of the whole clip, 'context' from the same kind of
      encoding as the context's.

  Returns:
    (context [B, (G - 1) * N, D], of steps 0..G-2; target likewise, of steps 1..G-1).
  """
  config_lib.choose(how, dict.fromkeys(CONTEXT_ENCODINGS), 'context_encoding')
  steps = frames.shape[1] // tubelet
  whole = encode(frames)
  size = whole.shape[1] // steps
  own = whole
  if how == 'causal_prefix':
    parts = [encode(frames[:, :k * tubelet])[:, -size:] for k in range(1, steps)]
    own = jnp.concatenate([*parts, whole[:, -size:]], axis=1)
  elif how == 'repeat_frame':
    last = frames[:, tubelet - 1::tubelet]  # [B, G, ...]
    single = jnp.repeat(last.reshape(-1, 1, *last.shape[2:]), tubelet, axis=1)
    own = encode(single).reshape(whole.shape)
  return own[:, :-size], (whole if targets == 'clip' else own)[:, size:]
