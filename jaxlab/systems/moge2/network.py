"""MoGe-2's network (arXiv 2507.02546): a ViT encoder, a pyramid neck, and heads."""
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models import dinov2
from jaxlab.systems.moge2 import geometry, resize

PLANE = (0.9, 0.9, 1.2)  # raw point map of a camera with about 65 degrees and a wall at e^1.2
_PLANE_NOISE = 0.03  # deviation of the last layer's weights beside it, over sqrt(fan_in)


class Prediction(NamedTuple):
  """What the network says of images, float32.

  Attributes:
    points: [B, H, W, 3], up to one scale and one shift in z.
    mask_logit: [B, H, W]; of MoGe-2, the sigmoid is the probability of finite depth.
    normal: [B, H, W, 3] of length 1, or None.
    metric_scale: [B], meters a unit of `points`, or None.
    features: the fused features [B, h, w, C] of the encoder.
    cls: its class token [B, D].
  """
  points: jax.Array
  mask_logit: jax.Array
  normal: jax.Array | None
  metric_scale: jax.Array | None
  features: jax.Array
  cls: jax.Array


def token_grid(num_tokens, aspect):
  """(rows, columns) of about `num_tokens` patches of an image of this aspect, width over height."""
  return (max(round((num_tokens / aspect)**0.5), 1), max(round((num_tokens * aspect)**0.5), 1))


class Conv(nn.Module):
  """1 x 1 or 3 x 3 convolution; the edge is replicated.

  Unlike `jaxlab.nn.PatchConv` it is XLA's own: outside of loops that is several times as fast at
  the large maps and few channels of the last levels, and needs no ninefold memory.

  Attributes:
    features: output channels.
    size: 1 or 3.
    gain: variance of the kernel times its fan-in (PyTorch's default is 1 / 3).
    dtype: compute dtype.
    equal: output channels side by side that start with one filter.
  """
  features: int
  size: int = 1
  gain: float = 1 / 3
  dtype: str = 'float32'
  equal: int = 1

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, features]."""
    draw = nn.initializers.variance_scaling(self.gain, 'fan_in', 'uniform')
    init = lambda key, shape: jnp.repeat(draw(key, shape), self.equal, axis=-1)
    shape = (self.size, self.size, x.shape[-1], self.features // self.equal)
    kernel = self.param('kernel', init, shape).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.size == 1:
      return x @ kernel[0, 0] + bias
    return jax.lax.conv_general_dilated(resize.pad_edge(x), kernel, (1, 1), 'VALID',
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + bias


class ConvTranspose(nn.Module):
  """Transposed convolution that doubles the grid; its four taps start equal: no checkerboard."""
  features: int
  gain: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape

    def init(key, shape):
      one = nn.initializers.variance_scaling(self.gain, 'fan_in', 'uniform')(key, shape[:2])
      return jnp.broadcast_to(one[:, :, None, None], shape)

    taps = self.param('taps', init, (c, self.features, 2, 2)).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    y = x.astype(self.dtype) @ taps.transpose(0, 2, 3, 1).reshape(c, -1)
    y = y.reshape(b, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, 2 * h, 2 * w, self.features) + bias


class Resampler(nn.Module):
  """Doubles the grid, then a 3 x 3 convolution."""
  features: int
  kind: str
  gain: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    if self.kind == 'conv_transpose':
      x = ConvTranspose(self.features, self.gain, self.dtype, name='up')(x)
    elif self.kind == 'bilinear':
      x = resize.double(x)
    elif self.kind == 'nearest':
      x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    else:
      # Torch's order: channel o of the result comes from the channels 4 o .. 4 o + 3.
      # The four start equal: no checkerboard.
      x = Conv(4 * self.features, 3, self.gain, self.dtype, 4, name='up')(x)
      x = x.reshape(b, h, w, self.features, 2, 2).transpose(0, 1, 4, 2, 5, 3)
      x = x.reshape(b, 2 * h, 2 * w, self.features)
    return Conv(self.features, 3, self.gain, self.dtype, name='conv')(x)


class ResidualBlock(nn.Module):
  """x + conv(act(conv(act(x)))), with GroupNorm of 1 and of C / 32 groups in MoGe-1's form."""
  features: int
  hidden: int
  norms: bool
  gain: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    norm = lambda groups, name: nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, name=name)
    conv = lambda features, name: Conv(features, 3, self.gain, self.dtype, name=name)
    y = norm(1, 'norm_in')(x) if self.norms else x
    y = conv(self.hidden, 'conv_in')(nn.relu(y))
    y = norm(max(self.hidden // 32, 1), 'norm_hidden')(y) if self.norms else y
    return x + conv(self.features, 'conv_out')(nn.relu(y))


class ConvStack(nn.Module):
  """A pyramid: each level adds its input, runs its blocks, and is doubled for the next.

  Attributes:
    dims: channels of the levels.
    blocks: residual blocks of the levels.
    resamplers: kinds of the doublings, one fewer than the levels.
    out: channels of the last level's output, or None for the features of all levels.
    norms: whether blocks normalise.
    gain: see `Conv`.
    out_gain: of the output layer.
    dtype: compute dtype.
  """
  dims: Sequence[int]
  blocks: Sequence[int]
  resamplers: Sequence[str]
  out: int | None = None
  norms: bool = False
  gain: float = 1 / 3
  out_gain: float = 1 / 3
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, inputs):
    """The maps [B, H_i, W_i, dims_i] of the levels, or [B, H_-1, W_-1, out] as the one element."""
    x, features = None, []
    for level, (given, width) in enumerate(zip(inputs, self.dims)):
      y = Conv(width, 1, self.gain, self.dtype, name=f'input_{level}')(given)
      x = y if x is None else x + y
      for number in range(self.blocks[level]):
        x = ResidualBlock(width, width, self.norms, self.gain, self.dtype,
                          name=f'block_{level}_{number}')(x)
      features.append(x)
      if level + 1 < len(self.dims):
        x = Resampler(self.dims[level + 1], self.resamplers[level], self.gain, self.dtype,
                      name=f'resampler_{level}')(x)
    if self.out is None:
      return features
    return [Conv(self.out, 1, self.out_gain, self.dtype, name='output')(x)]


class MoGe(nn.Module):
  """The network. The defaults are those of the released models but for the widths.

  Attributes:
    encoder: the ViT.
    layers: blocks of it that are fused, in rising order; the last one's class token is used.
    dims: channels of the levels; a level has twice the grid of the one before.
    neck_blocks: residual blocks of the neck's levels.
    head_blocks: residual blocks of the heads' levels; None for heads that are one layer each on
      the neck's last level (a small variant of ours).
    resamplers: kinds of doubling: 'conv_transpose', 'bilinear', 'nearest', 'pixel_shuffle'.
    fused: channels of the fused features; 0 for dims[0].
    scale_widths: hidden widths of the head of the metric scale.
    normal: whether there is a normal head.
    metric: whether there is a head of the metric scale.
    remap: what makes points of the raw map.
    plane: whether a learned plane `PLANE` is added to the raw map, with small output layers.
    norms: whether residual blocks normalise (as in MoGe-1).
    gain: see `Conv`.
    dtype: compute dtype of the decoder; the encoder has its own, outputs are float32.
  """
  encoder: dinov2.DINOv2
  layers: Sequence[int]
  dims: Sequence[int]
  neck_blocks: Sequence[int]
  head_blocks: Sequence[int] | None
  resamplers: Sequence[str]
  fused: int = 0
  scale_widths: Sequence[int] = (1024, 1024)
  normal: bool = True
  metric: bool = True
  remap: Literal['exp', 'linear', 'sinh', 'sinh_exp'] = 'exp'
  plane: bool = False
  norms: bool = False
  gain: float = 1 / 3
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'

  @nn.compact
  def __call__(self, image, *, num_tokens):
    """Predicts images of one size.

    Args:
      image: [B, H, W, 3], RGB in [0, 1].
      num_tokens: about how many patches to cut it into.

    Returns:
      Prediction.
    """
    b, h, w, _ = image.shape
    rows, columns = token_grid(num_tokens, w / h)
    features, cls = self._encode(image.astype(jnp.float32), rows, columns)
    levels = self._levels(features, w / h)
    stack = {'dims': self.dims, 'resamplers': self.resamplers, 'norms': self.norms,
             'gain': self.gain, 'dtype': self.dtype}
    levels = ConvStack(blocks=self.neck_blocks, name='neck', **stack)(levels)

    def head(name, channels, out_gain):
      if self.head_blocks is None:
        x = Conv(channels, 1, out_gain, self.dtype, name=name)(levels[-1])
      else:
        x, = ConvStack(blocks=self.head_blocks, out=channels, out_gain=out_gain, name=name,
                       **stack)(levels)
      return resize.bilinear(x.astype(jnp.float32), h, w)

    raw = head('points_head', 3, _PLANE_NOISE**2 if self.plane else self.gain)
    if self.plane:
      plane = self.param('plane', lambda key: jnp.array(PLANE))
      uv = geometry.view_plane(h, w)
      raw += plane * np.concatenate([uv, np.ones((h, w, 1), np.float32)], axis=-1)
    normal = geometry.normalize(head('normal_head', 3, self.gain)) if self.normal else None
    mask = head('mask_head', 1, self.gain)[..., 0]
    scale = jnp.exp(self._scale(cls)) if self.metric else None
    return Prediction(remap_points(raw, self.remap), mask, normal, scale, features, cls)

  def _encode(self, image, rows, columns):
    """(fused features [B, rows, columns, C], class token [B, D])."""
    patch = self.encoder.patch
    image = resize.bilinear(image, rows * patch, columns * patch, antialias=True)
    encoder = self.encoder.copy(name='backbone')
    layers = encoder(dinov2.normalize(image), layers=self.layers, reshape=True).layers
    total = 0
    for number, layer in enumerate(layers):
      total += Conv(self.fused or self.dims[0], 1, self.gain, self.dtype,
                    name=f'projection_{number}')(layer.patches)
    return total, layers[-1].cls

  def _levels(self, features, aspect):
    """Inputs of the neck: features and coordinates, then coordinates alone."""
    b, rows, columns, _ = features.shape
    # One map for all images, but where the features join it.
    uv = [jnp.asarray(geometry.view_plane(rows * 2**level, columns * 2**level, aspect),
                      features.dtype)[None] for level in range(len(self.dims))]
    first = jnp.broadcast_to(uv[0], (b, *uv[0].shape[1:]))
    return [jnp.concatenate([features, first], axis=-1), *uv[1:]]

  def _scale(self, cls):
    """Logarithm of the metric scale [B]."""
    init = nn.initializers.variance_scaling(self.gain, 'fan_in', 'uniform')
    for number, width in enumerate(self.scale_widths):
      cls = nn.relu(nn.Dense(width, kernel_init=init, name=f'scale_head_{number}')(cls))
    last = len(self.scale_widths)
    return nn.Dense(1, kernel_init=init, name=f'scale_head_{last}')(cls)[..., 0]


def remap_points(raw, kind) -> Any:
  """Points of a raw map [..., 3]."""
  xy, z = raw[..., :2], raw[..., 2:]
  if kind == 'linear':
    return raw
  if kind == 'sinh':
    return jnp.sinh(raw)
  z = jnp.exp(z)
  return jnp.concatenate([jnp.sinh(xy) if kind == 'sinh_exp' else xy * z, z], axis=-1)
