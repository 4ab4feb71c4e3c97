"""DINOv2 vision transformer as an encoder of features (arXiv 2304.07193; registers: 2309.16588).

Exact to the public checkpoints for any image whose sides are multiples of the patch. Weights of
others: `jaxlab.models.dinov2_weights`.
"""
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.nn.activations import exact_gelu
from jaxlab.nn.chunked_attention import attention

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the inputs lack
_BASES = {
    'vits14': {'width': 384, 'depth': 12, 'num_heads': 6},
    'vitb14': {'width': 768, 'depth': 12, 'num_heads': 12},
    'vitl14': {'width': 1024, 'depth': 24, 'num_heads': 16},
    'vitg14': {'width': 1536, 'depth': 40, 'num_heads': 24, 'ffn': 'swiglu'},
}
VARIANTS = {
    **_BASES,
    **{f'{name}_reg': {**fields, 'registers': 4, 'offset': 0.0, 'antialias': True}
       for name, fields in _BASES.items()},
}
_FAN_IN = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Layer(NamedTuple):
  """Features of one block.

  Attributes:
    patches: [B, N, D], rows of the image first; [B, h, w, D] where they are asked for as a map.
    cls: [B, D].
  """
  patches: jax.Array
  cls: jax.Array


class Features(NamedTuple):
  """What the encoder gives.

  Attributes:
    layers: `Layer`s of the wanted blocks, in the order of the blocks.
    cls: class token [B, D] after the final norm.
    registers: [B, R, D] after the final norm.
    patches: [B, N, D] after the final norm.
    prenorm: all tokens [B, 1 + R + N, D] before it.
    tokens: all tokens before the first block.
  """
  layers: tuple[Layer, ...]
  cls: jax.Array
  registers: jax.Array
  patches: jax.Array
  prenorm: jax.Array
  tokens: jax.Array


def normalize(image):
  """Maps RGB [..., 3] in [0, 1] to what the encoder takes."""
  return (image - jnp.array(MEAN, jnp.float32)) / jnp.array(STD, jnp.float32)


def _cubic(t, a):
  t = np.abs(t)
  near = (a + 2) * t**3 - (a + 3) * t**2 + 1
  far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
  return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def cubic_matrix(size, source, scale):
  """Weights [size, source] of cubic convolution with A = -0.75 and replicated borders.

  Output d reads the source around (d + 0.5) / scale - 0.5; there is no low-pass filter.
  """
  position = (np.arange(size) + 0.5) / scale - 0.5
  first = np.floor(position).astype(int)
  matrix = np.zeros((size, source))
  for tap in range(-1, 3):
    column = np.clip(first + tap, 0, source - 1)
    np.add.at(matrix, (np.arange(size), column), _cubic(position - first - tap, -0.75))
  return matrix.astype(np.float32)


def interpolate_positions(positions, grid, *, offset=0.1, antialias=False):
  """Positional embeddings of another grid of patches.

  Args:
    positions: [1, 1 + M^2, D], the class token's first.
    grid: (h, w), rows and columns of patches.
    offset: added to h and w in the scale of the sampling (the official models without registers
      were trained with 0.1).
    antialias: True resizes with A = -0.5 and a low-pass filter, for which `offset` has to be 0.

  Returns:
    [1, 1 + h w, D] in the dtype of `positions`; untouched where the grid is the native one.
  """
  h, w = grid
  native = math.isqrt(positions.shape[1] - 1)
  if h == w == native:
    return positions
  cls, patches = positions[:, :1], positions[0, 1:].astype(jnp.float32)
  patches = patches.reshape(native, native, -1)
  if antialias:
    patches = jax.image.resize(patches, (h, w, patches.shape[-1]), 'cubic')
  else:
    rows, columns = (cubic_matrix(n, native, (n + offset) / native) for n in (h, w))
    patches = jnp.einsum('ih,hwd,jw->ijd', rows, patches, columns)
  return jnp.concatenate([cls, patches.reshape(1, h * w, -1).astype(cls.dtype)], axis=1)


class _PatchEmbed(nn.Module):
  """Convolution of non-overlapping patches: a reshape and a product."""
  width: int
  patch: int
  dtype: str

  @nn.compact
  def __call__(self, image):
    p, (b, h, w, c) = self.patch, image.shape
    kernel = self.param('kernel', _FAN_IN, (p, p, c, self.width))
    bound = (p * p * c)**-0.5
    bias = self.param('bias', lambda key, shape: jax.random.uniform(key, shape, minval=-bound,
                                                                    maxval=bound), (self.width,))
    patches = image.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(b, (h // p) * (w // p), p * p * c).astype(self.dtype)
    return patches @ kernel.reshape(-1, self.width).astype(self.dtype) + bias.astype(self.dtype)


class _Attention(nn.Module):
  """Self-attention whose queries, keys and values [3, heads, head_dim] are one product."""
  num_heads: int
  init_std: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    width, init = x.shape[-1], nn.initializers.normal(self.init_std)
    dense = lambda features, name: nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)
    qkv = dense(3 * width, 'qkv')(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
    out = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    return dense(width, 'proj')(out.reshape(x.shape))


class _MLP(nn.Module):
  """Feed-forward network: GELU in its exact form, or SwiGLU."""
  ffn: str
  init_std: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    width, init = x.shape[-1], nn.initializers.normal(self.init_std)
    dense = lambda features, name: nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)
    if self.ffn == 'mlp':
      return dense(width, 'fc2')(exact_gelu(dense(4 * width, 'fc1')(x)))
    hidden = (8 * width // 3 + 7) // 8 * 8
    gate, value = jnp.split(dense(2 * hidden, 'w12')(x), 2, axis=-1)
    return dense(width, 'w3')(nn.silu(gate) * value)


class Block(nn.Module):
  """Pre-norm transformer block with LayerScale."""
  num_heads: int
  ffn: str
  init_std: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    """Maps tokens [B, L, D] to tokens."""
    norm = lambda name: nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)
    scale = lambda name: self.param(name, nn.initializers.ones, x.shape[-1:]).astype(x.dtype)
    attend = _Attention(self.num_heads, self.init_std, self.dtype, name='attn')
    x = x + scale('ls1') * attend(norm('norm1')(x))
    mlp = _MLP(self.ffn, self.init_std, self.dtype, name='mlp')
    return x + scale('ls2') * mlp(norm('norm2')(x))


class DINOv2(nn.Module):
  """The encoder. Blocks are unrolled, since heads look into them.

  Attributes:
    width: D.
    depth: number of blocks.
    num_heads: a divisor of D.
    ffn: 'mlp' or 'swiglu'.
    patch: pixels of a patch's side.
    grid: M, patches of the native image's side.
    registers: R, register tokens.
    offset: see `interpolate_positions`.
    antialias: likewise.
    remat: whether a block's activations are recomputed in the backward pass.
    init_std: standard deviation of the blocks' kernels and the positions at the start; .02 is
      PyTorch's, whose cut at +-2 is 100 of them away. Narrow encoders want more, to learn soon.
    dtype: compute dtype; parameters, softmax, norms' statistics and the interpolation of positions
      are float32.
  """
  width: int
  depth: int
  num_heads: int
  ffn: Literal['mlp', 'swiglu'] = 'mlp'
  patch: int = 14
  grid: int = 37
  registers: int = 0
  offset: float = 0.1
  antialias: bool = False
  remat: bool = False
  init_std: float = 0.02
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'

  @nn.compact
  def __call__(self, image, mask=None, *, layers: int | Sequence[int] = 1, norm=True,
               reshape=False):
    """Encodes images.

    Args:
      image: [B, H, W, 3], normalised (`normalize`); H and W multiples of `patch`.
      mask: bool [B, N], True where the mask token stands for a patch; None for nowhere.
      layers: that many last blocks, or the blocks of these numbers from 0.
      norm: whether the final norm is applied to `Features.layers`.
      reshape: whether their patches are maps.

    Returns:
      Features, float32.

    Raises:
      ValueError: sides that are no multiples of `patch`, or blocks that are not there.
    """
    b, h, w, _ = image.shape
    if h % self.patch or w % self.patch or not h or not w:
      raise ValueError(f'image: expected sides that are multiples of {self.patch}, got {h} x {w}')
    wanted = wanted_layers(layers, self.depth)
    grid = (h // self.patch, w // self.patch)
    x = _PatchEmbed(self.width, self.patch, self.dtype, name='patch_embed')(image)
    token = lambda name, count, init: self.param(name, init, (1, count, self.width))
    mask_token = self.param('mask_token', nn.initializers.zeros, (1, self.width))
    if mask is not None:
      x = jnp.where(mask[..., None], mask_token.astype(x.dtype), x)
    tiny = nn.initializers.normal(1e-6)
    join = lambda first, x: jnp.concatenate(
        [jnp.broadcast_to(first, (b, *first.shape[1:])).astype(x.dtype), x], axis=1)
    x = join(token('cls_token', 1, tiny), x)
    positions = interpolate_positions(self._positions(), grid, offset=self.offset,
                                      antialias=self.antialias)
    x = x + positions.astype(x.dtype)
    if self.registers:
      registers = token('register_tokens', self.registers, tiny)
      x = jnp.concatenate([x[:, :1], join(registers, x[:, 1:])], axis=1)
    tokens, outputs = x, {}
    kind = nn.remat(Block) if self.remat else Block
    for number in range(self.depth):
      x = kind(self.num_heads, self.ffn, self.init_std, self.dtype, name=f'blocks_{number}')(x)
      if number in wanted:
        outputs[number] = x
    final = nn.LayerNorm(epsilon=1e-6, name='norm')
    start = 1 + self.registers
    picked = []
    for out in outputs.values():
      out = (final(out) if norm else out).astype(jnp.float32)
      patches = out[:, start:]
      picked.append(Layer(patches.reshape(b, *grid, -1) if reshape else patches, out[:, 0]))
    last = final(x).astype(jnp.float32)
    return Features(tuple(picked), last[:, 0], last[:, 1:start], last[:, start:],
                    x.astype(jnp.float32), tokens.astype(jnp.float32))

  def _positions(self):
    """The embeddings [1, 1 + M^2, D]; those of a checkpoint with another native grid stay so."""
    if self.has_variable('params', 'pos_embed'):
      return self.get_variable('params', 'pos_embed')
    return self.param('pos_embed', nn.initializers.normal(self.init_std),
                      (1, 1 + self.grid**2, self.width))


def wanted_layers(layers, depth):
  """The set of block numbers that `layers` (a count from the end, or numbers) asks for."""
  single = isinstance(layers, (int, np.integer))
  wanted = [int(number) for number in (range(depth - layers, depth) if single else layers)]
  if not wanted or any(not 0 <= number < depth for number in wanted):
    raise ValueError(f'layers: expected numbers of {depth} blocks, or how many, got {layers!r}')
  if len(set(wanted)) < len(wanted):
    raise ValueError(f'layers: expected each block once, got {layers!r}')
  return set(wanted)


def make_encoder(name, **options):
  """The encoder of a public name ('vits14', 'vitl14_reg', ...) with other fields changed.

  >>> make_encoder('vits14').width
  384
  """
  return DINOv2(**{**config_lib.choose(name, VARIANTS, 'encoder.name'), 'parent': None, **options})
