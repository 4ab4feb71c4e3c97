"""Vision-language trunks: the Qwen3-VL family, and a small one for the CPU.

A trunk maps (images [B, V, H, W, 3], tokens [B, L], mask [B, L]) to the stream [B, L, D] at the
tokens, by default as it is before the final norm: what VLA-JEPA (arXiv 2602.10098) reads out.
"""
import dataclasses
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.models.decoder_lm import DecoderLayer
from jaxlab.nn import chunked_attention
from jaxlab.nn.activations import exact_gelu
from jaxlab.nn.encoder import layer_norm
from jaxlab.nn.norms import RMSNorm
from jaxlab.nn.rotary import apply_rotary, rotary_tables

READOUTS = ('pre_norm', 'post_norm')


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The shape of the vision part of Qwen3-VL; the names are those of config.json.

  Attributes:
    depth: layers.
    hidden_size: width.
    num_heads: a divisor of `hidden_size`.
    intermediate_size: width of the feed-forward layers.
    patch_size: side of a patch in pixels.
    temporal_patch_size: copies of an image that make one patch.
    spatial_merge_size: side of the block of patches that becomes one token.
    num_position_embeddings: entries of the learned position grid, a square number.
    deepstack_visual_indexes: layers whose features are added behind the first decoder layers.
    out_hidden_size: width of the text part.
  """
  depth: int
  hidden_size: int
  num_heads: int
  intermediate_size: int
  patch_size: int
  out_hidden_size: int
  temporal_patch_size: int = 2
  spatial_merge_size: int = 2
  num_position_embeddings: int = 2304
  deepstack_visual_indexes: Sequence[int] = ()

  def merged(self, height, width):
    """(rows, columns) of tokens of an image; raises ValueError if it is no whole number."""
    side = self.patch_size * self.spatial_merge_size
    if height % side or width % side:
      raise ValueError(f'images: expected sides that are multiples of {side}, got '
                       f'{height} x {width}')
    return height // side, width // side


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
  """A Qwen3-VL.

  Attributes:
    text: DecoderConfig of the text part, unscanned layers.
    vision: VisionConfig.
    mrope_section: frequencies that turn with time, row and column.
    image_token_id: id of the token in whose places the image stands.
    readout: the stream before or after the final norm.
  """
  text: DecoderConfig
  vision: VisionConfig
  mrope_section: Sequence[int]
  image_token_id: int
  readout: Literal['pre_norm', 'post_norm'] = 'pre_norm'


def patches(images, config):
  """Flattened patches [B, n, 3 * t * p * p], the patches of a merged token side by side.

  Args:
    images: normalised [B, H, W, 3].
    config: VisionConfig.
  """
  p, m, t = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
  rows, columns = config.merged(*images.shape[1:3])
  x = images.reshape(len(images), rows, m, p, columns, m, p, 3)
  x = x.transpose(0, 1, 4, 2, 5, 7, 3, 6)  # [B, rows, columns, m, m, 3, p, p]
  x = jnp.broadcast_to(x[..., None, :, :], (*x.shape[:6], t, p, p))
  return x.reshape(len(images), -1, 3 * t * p * p)


def patch_positions(rows, columns, merge):
  """(row, column) int [n, 2] of the patches of rows x columns merged tokens, in their order."""
  grid = np.stack(np.meshgrid(np.arange(rows * merge), np.arange(columns * merge), indexing='ij'),
                  -1)
  grid = grid.reshape(rows, merge, columns, merge, 2).transpose(0, 2, 1, 3, 4)
  return grid.reshape(-1, 2)


def resampled_positions(table, positions, rows, columns):
  """Bilinear samples [n, D] of a square position grid [side^2, D] at the patches of an image.

  Args:
    table: [side^2, D].
    positions: (row, column) [n, 2].
    rows: rows of patches in the image.
    columns: and columns.
  """
  side = round(len(table)**0.5)
  place = [np.linspace(0, side - 1, count)[positions[:, i]].astype(np.float32)
           for i, count in enumerate((rows, columns))]
  low = [np.floor(x).astype(np.int32) for x in place]
  high = [np.minimum(x + 1, side - 1) for x in low]
  share = [x - y for x, y in zip(place, low)]
  total = 0
  for i, wi in ((low[0], 1 - share[0]), (high[0], share[0])):
    for j, wj in ((low[1], 1 - share[1]), (high[1], share[1])):
      total = total + table[i * side + j] * (wi * wj)[:, None]
  return total


class VisionBlock(nn.Module):
  """x + attention(LN(x)); x + W2 gelu(W1 LN(x)), the tanh GELU, rotary positions of two axes."""
  config: VisionConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, tables):
    """Maps [B, n, D] to the same."""
    c = self.config
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    qkv = dense(3 * c.hidden_size, 'qkv')(layer_norm(1e-6, self.dtype, name='norm1')(x))
    query, key, value = (y[:, :, 0] for y in jnp.split(
        qkv.reshape(*x.shape[:2], 3, c.num_heads, -1), 3, axis=2))
    out = chunked_attention.attention(apply_rotary(query, *tables), apply_rotary(key, *tables),
                                      value)
    x = x + dense(c.hidden_size, 'proj')(out.reshape(x.shape))
    hidden = dense(c.intermediate_size, 'linear_fc1')(layer_norm(1e-6, self.dtype,
                                                                 name='norm2')(x))
    return x + dense(c.hidden_size, 'linear_fc2')(nn.gelu(hidden))


class Merger(nn.Module):
  """Blocks of m^2 patches to one token of the text part's width.

  Attributes:
    config: VisionConfig.
    norm_first: whether each patch is normalised alone, or the block as a whole.
    dtype: compute dtype.
  """
  config: VisionConfig
  norm_first: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """Maps [B, n, D] to [B, n / m^2, out_hidden_size]."""
    c = self.config
    width = c.hidden_size * c.spatial_merge_size**2
    norm = layer_norm(1e-6, self.dtype, name='norm')
    block = lambda y: y.reshape(len(x), -1, width)
    x = block(norm(x)) if self.norm_first else norm(block(x))
    x = exact_gelu(nn.Dense(width, dtype=self.dtype, name='linear_fc1')(x))
    return nn.Dense(c.out_hidden_size, dtype=self.dtype, name='linear_fc2')(x)


class Vision(nn.Module):
  """The vision transformer: images to tokens of the text part, and the deepstack features."""
  config: VisionConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images):
    """Encodes each image alone.

    Args:
      images: normalised [B, H, W, 3].

    Returns:
      (tokens [B, n / m^2, out_hidden_size], list of the same, one a deepstack layer). The last
      layer is sown as 'intermediates/hidden'.
    """
    c = self.config
    merged = c.merged(*images.shape[1:3])
    place = patch_positions(*merged, c.spatial_merge_size)
    x = nn.Dense(c.hidden_size, dtype=self.dtype, name='patch_embed')(
        patches(images, c).astype(self.dtype))
    table = self.param('pos_embed', nn.initializers.normal(0.02),
                       (c.num_position_embeddings, c.hidden_size), jnp.float32)
    x = x + resampled_positions(table, place, *(s * c.spatial_merge_size for s in merged)).astype(
        self.dtype)
    depth = c.hidden_size // c.num_heads // 2
    frequencies = 10000.0**(-np.arange(0, depth, 2) / depth)
    angles = (place[:, :, None] * frequencies).reshape(len(place), -1)
    angles = np.concatenate([angles, angles], -1).astype(np.float32)[None]
    tables = jnp.cos(angles), jnp.sin(angles)
    deep = []
    for i in range(c.depth):
      x = VisionBlock(c, self.dtype, name=f'blocks_{i}')(x, tables)
      if i in c.deepstack_visual_indexes:
        deep.append(Merger(c, False, self.dtype, name=f'deepstack_{len(deep)}')(x))
    self.sow('intermediates', 'hidden', x)
    return Merger(c, True, self.dtype, name='merger')(x), deep


def mrope_positions(is_image, mask, rows, columns):
  """Positions int32 [3, B, L] (time, row, column) of prompts with whole images inside.

  A text token moves all three by one; an image begins where it stands, spreads over rows and
  columns, and the text after it goes on behind the larger side.

  Args:
    is_image: bool [B, L], the tokens in whose places images stand, rows * columns for each.
    mask: bool [B, L], False on padding, whose position is 0.
    rows: of tokens of an image.
    columns: likewise.
  """
  size = rows * columns
  number = jnp.cumsum(is_image, axis=1) - 1
  inside = number % size
  advance = jnp.where(is_image, (inside == size - 1) * max(rows, columns), 1) * mask
  start = jnp.cumsum(advance, axis=1) - advance
  spread = jnp.stack([jnp.zeros_like(inside), inside // columns, inside % columns])
  return (start + jnp.where(is_image, spread, 0)) * mask


def interleaved_tables(positions, frequencies, section):
  """Rotary tables (cos, sin) [B, L, D] whose frequencies take turns between the axes.

  Args:
    positions: int [3, B, L].
    frequencies: float32 [D / 2].
    section: (time, row, column), how many frequencies each axis has; frequency j < 3 section[a]
      with j % 3 = a belongs to axis a = 1, 2, all others to time.
  """
  index = np.arange(len(frequencies))
  axis = np.zeros(len(frequencies), np.int32)
  for a in (1, 2):
    axis[(index % 3 == a) & (index < 3 * section[a])] = a
  chosen = jnp.take(positions, axis, axis=0)  # [D / 2, B, L]
  angles = jnp.moveaxis(chosen, 0, -1).astype(jnp.float32) * frequencies
  angles = jnp.concatenate([angles, angles], axis=-1)
  return jnp.cos(angles), jnp.sin(angles)


class QwenVL(nn.Module):
  """Qwen3-VL as a trunk."""
  config: QwenVLConfig

  @nn.compact
  def __call__(self, images, tokens, mask):
    """The stream at the tokens.

    Args:
      images: normalised [B, V, H, W, 3].
      tokens: int [B, L]; the tokens `image_token_id` of a row are the V images', in order.
      mask: [B, L], False on padding, which may stand at either side.

    Returns:
      [B, L, D].
    """
    c, text = self.config, self.config.text
    dtype = jnp.dtype(text.dtype)
    batch, views = images.shape[:2]
    mask = mask.astype(bool)
    merged, deep = Vision(c.vision, dtype, name='visual')(images.reshape(-1, *images.shape[2:]))
    is_image = (tokens == c.image_token_id) & mask
    per_row = views * merged.shape[1]
    number = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, per_row - 1)[..., None]

    def placed(features):  # [B, L, D], zero at the text
      rows = features.reshape(batch, per_row, -1)
      return jnp.where(is_image[..., None], jnp.take_along_axis(rows, number, axis=1), 0)

    embed = nn.Embed(text.vocab_size, text.hidden_size, dtype=dtype, name='embed',
                     embedding_init=text.initializer(text.hidden_size))
    x = jnp.where(is_image[..., None], placed(merged), embed(tokens))
    positions = mrope_positions(is_image, mask, *c.vision.merged(*images.shape[2:4]))
    tables = interleaved_tables(positions, text.frequencies, c.mrope_section)
    order = np.arange(tokens.shape[1])
    visible = mask[:, None] & (order <= order[:, None])
    layer = nn.remat(DecoderLayer) if text.remat else DecoderLayer
    for i in range(text.num_hidden_layers):
      last, _ = layer(text, name=f'layers_{i}')(x, None, tables, visible, None)
      x = last + placed(deep[i]) if i < len(deep) else last
    normed = RMSNorm(text.rms_norm_eps, dtype, name='final_norm')(x)
    return last if c.readout == 'pre_norm' else normed  # what a hook on the last layer sees


@dataclasses.dataclass(frozen=True)
class KeypointConfig:
  """The small trunk: keypoints of a spatial softmax as tokens, and a causal decoder.

  Attributes:
    vocab_size: ids of words and query tokens.
    keypoints: per image.
    pixel_width: hidden width of the layers that see one pixel each.
    hidden_size: D.
    num_hidden_layers: of the decoder.
    num_attention_heads: of the decoder.
    sharpness: factor of the scores; a large one makes random keypoints look at single colours.
    readout: the stream before or after the final norm.
  """
  vocab_size: int
  keypoints: int = 12
  pixel_width: int = 32
  hidden_size: int = 64
  num_hidden_layers: int = 2
  num_attention_heads: int = 4
  sharpness: float = 10.0
  readout: Literal['pre_norm', 'post_norm'] = 'pre_norm'

  def __post_init__(self):
    config_lib.at_least(1, self, ('vocab_size', 'keypoints', 'pixel_width', 'sharpness'))
    _ = self.text

  @property
  def text(self):
    """The DecoderConfig of the decoder."""
    return DecoderConfig(self.vocab_size, self.hidden_size, self.num_hidden_layers,
                         self.num_attention_heads, 4 * self.hidden_size, init='scaled')


class KeypointTrunk(nn.Module):
  """Where things of a colour are, then a decoder over keypoints and words.

  A map of each pixel alone goes through a softmax over the image, whose mean place (x, y) and log
  mass are a keypoint (spatial softmax, arXiv 1509.06113).
  """
  config: KeypointConfig

  @nn.compact
  def __call__(self, images, tokens, mask):
    """The stream [B, L, D] at the tokens; arguments as those of `QwenVL`."""
    c, text = self.config, self.config.text
    batch, views, height, width = images.shape[:4]
    hidden = nn.relu(nn.Dense(c.pixel_width, name='pixel_1')(images.astype(jnp.float32)))
    scores = c.sharpness * nn.Dense(c.keypoints, name='pixel_2')(hidden)
    scores = scores.reshape(batch, views, height * width, c.keypoints)
    weights = nn.softmax(scores, axis=2)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing='ij')
    place = np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)
    mean = jnp.einsum('bvnk,nd->bvkd', weights, place)
    mass = jax.nn.logsumexp(scores, axis=2) - np.log(height * width)
    points = jnp.concatenate([mean, mass[..., None]], axis=-1).reshape(batch, -1, 3)
    number = self.param('keypoint_embedding', nn.initializers.normal(0.3),
                        (views * c.keypoints, c.hidden_size), jnp.float32)
    points = nn.Dense(c.hidden_size, name='keypoint')(points) + number
    words = nn.Embed(c.vocab_size, c.hidden_size, name='embed',
                     embedding_init=nn.initializers.normal(0.3))(tokens)
    stream = jnp.concatenate([points, words], axis=1)
    seen = jnp.concatenate([jnp.ones(points.shape[:2], bool), mask.astype(bool)], axis=1)
    positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
    tables = rotary_tables(positions, text.frequencies)
    order = np.arange(stream.shape[1])
    visible = seen[:, None] & (order <= order[:, None])
    for i in range(c.num_hidden_layers):
      stream, _ = DecoderLayer(text, name=f'layers_{i}')(stream, None, tables, visible, None)
    normed = RMSNorm(text.rms_norm_eps, name='final_norm')(stream)
    return (stream if c.readout == 'pre_norm' else normed)[:, points.shape[1]:]
