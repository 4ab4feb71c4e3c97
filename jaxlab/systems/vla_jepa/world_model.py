"""The world model of VLA-JEPA (arXiv 2602.10098): the next latent state from past ones and actions.
"""
import math
import re
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models import vjepa2, vjepa2_weights
from jaxlab.nn.encoder import layer_norm

VIEW_ORDERS = ('intended', 'released_code')


class ACPredictor(nn.Module):
  """A transformer over latent time steps of [K action tokens, N patch tokens], block-causal.

  Action tokens are rotated by time alone, patches by time, row and column.

  Attributes:
    state_dim: channels of a state token, D_v of each of the `world_views`.
    grid: patches in a row, and rows; N = grid^2.
    actions_per_step: K.
    width: of the blocks.
    num_layers: number of blocks.
    num_heads: a divisor of `width`.
    eps: of the layer norms. The release has the library's default here, not V-JEPA 2's 1e-6.
    residual: the output, zero at the start, is added to the current state (CHOICE for small runs:
      then training starts at the copy of the last state).
    dtype: compute dtype.
  """
  state_dim: int
  grid: int
  actions_per_step: int
  width: int = 1024
  num_layers: int = 12
  num_heads: int = 8
  eps: float = 1e-5
  residual: bool = False
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  @nn.compact
  def __call__(self, states, actions):
    """Predicts.

    Args:
      states: [B, S * N, state_dim], latent steps 0..S-1.
      actions: [B, S * K, D].

    Returns:
      [B, S * N, state_dim]; the tokens of step t are those of step t + 1, predicted from steps
      <= t.
    """
    patches, per_action = self.grid**2, self.actions_per_step
    batch, steps = len(states), states.shape[1] // patches
    init, dtype = vjepa2.truncated_normal(0.02), jnp.dtype(self.dtype)
    dense = lambda name: nn.Dense(self.width, dtype=dtype, kernel_init=init, name=name)
    x = jnp.concatenate([
        dense('action_encoder')(actions).reshape(batch, steps, per_action, self.width),
        dense('predictor_embed')(states).reshape(batch, steps, patches, self.width)], axis=2)
    x = x.reshape(batch, -1, self.width)
    tables = vjepa2.tiled_rotary_tables(_positions(steps, per_action, self.grid),
                                        self.width // self.num_heads)
    bias = vjepa2.block_causal_bias(steps, per_action + patches)
    for i in range(self.num_layers):
      out_init = vjepa2.truncated_normal(0.02, 1 / math.sqrt(2 * (i + 1)))
      x = vjepa2.Block(self.num_heads, 4 * self.width, self.eps, init, out_init, dtype,
                       name=f'blocks_{i}')(x, tables, bias)
    x = layer_norm(self.eps, dtype, name='predictor_norm')(x)
    x = x.reshape(batch, steps, -1, self.width)[:, :, per_action:].reshape(batch, -1, self.width)
    out = nn.Dense(self.state_dim, dtype=dtype, name='predictor_proj',
                   kernel_init=nn.initializers.zeros if self.residual else init)(x)
    return states + out if self.residual else out


def _positions(steps, actions, grid):
  """Positions [S * (K + N), 3] of (time, row, column); position 0 is no rotation."""
  patches = vjepa2.token_positions(steps, grid, grid).reshape(steps, -1, 3)
  times = np.zeros((steps, actions, 3), np.int32)
  times[..., 0] = np.arange(steps)[:, None]
  return np.concatenate([times, patches], axis=1).reshape(-1, 3)


def world_views(cameras):
  """Numbers of the cameras whose states the world model has: of three the release drops one."""
  return (0, 2) if cameras == 3 else tuple(range(cameras))


def join_views(states, views, order='intended'):
  """States of several views side by side: [B, n, V * D].

  Args:
    states: [B * V, n, D], batch-major: row b * V + v.
    views: V.
    order: 'intended' pairs the views of a sample. 'released_code' cuts the rows into V pieces, as
      the release does, which pairs different samples as soon as B > 1; for exact replay only.
  """
  if order == 'released_code':
    return jnp.concatenate(jnp.split(states, views, axis=0), axis=-1)
  config_lib.require(order == 'intended', 'view_order', ' or '.join(VIEW_ORDERS), order)
  batch = len(states) // views
  return states.reshape(batch, views, *states.shape[1:]).transpose(0, 2, 1, 3).reshape(
      batch, states.shape[1], -1)


def encode_views(encode, videos, *, how, tubelet, order='intended', targets='clip'):
  """Context and target states of clips from several cameras.

  Args:
    encode: frames [B', T', H, W, 3] -> tokens [B', n, D], the frozen encoder.
    videos: normalised [B, V, T, H, W, 3], of the `world_views`.
    how: see `vjepa2.context_states`.
    tubelet: frames of a latent step.
    order: see `join_views`.
    targets: see `vjepa2.context_states`.

  Returns:
    (context, target), each [B, (G - 1) * N, V * D], without a gradient.
  """
  views = videos.shape[1]
  frames = videos.reshape(-1, *videos.shape[2:])
  pair = vjepa2.context_states(encode, frames, how=how, tubelet=tubelet,
                               targets=targets)
  return tuple(jax.lax.stop_gradient(join_views(x, views, order)) for x in pair)


def l1(prediction, target):
  """Mean absolute difference over tokens and channels, float32 [B]."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(jnp.abs(difference), axis=(1, 2))


_UNUSED = ('state_encoder.', 'extrinsics_encoder.')  # in the release, without a use


def params_from_torch(state_dict, model, action_dim):
  """Parameters of an ACPredictor from the released names.

  Args:
    state_dict: {'predictor_blocks.0.attn.qkv.weight': array, ...}.
    model: ACPredictor.
    action_dim: D, width of an action token.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  split = {}
  for name, value in state_dict.items():
    if '.attn.qkv.' in name:
      split.update({name.replace('qkv', part): piece
                    for part, piece in zip(_QKV, np.split(np.asarray(value), 3))})
    else:
      split[name] = value
  shapes = jax.eval_shape(lambda: init_params(model, action_dim, jax.random.key(0)))
  ignored = [name for name in split if name.startswith(_UNUSED)]
  return vjepa2_weights.read_tensors(split, shapes, _spell, vjepa2_weights.linear_layout,
                                     ignored=ignored)


def params_to_torch(params):
  """The inverse of `params_from_torch`, without the release's unused tensors."""
  split = vjepa2_weights.write_tensors(params, _spell, vjepa2_weights.linear_layout)
  joined = {}
  for name, value in split.items():
    if '.attn.query.' in name:
      parts = [split[name.replace('query', part)] for part in _QKV]
      joined[name.replace('query', 'qkv')] = np.concatenate(parts)
    elif '.attn.key.' not in name and '.attn.value.' not in name:
      joined[name] = value
  return joined


def init_params(model, action_dim, key):
  """Random parameters of an ACPredictor for action tokens [B, K, action_dim]."""
  return model.init(key, jnp.zeros((1, model.grid**2, model.state_dim)),
                    jnp.zeros((1, model.actions_per_step, action_dim)))['params']


_QKV = ('query', 'key', 'value')


def _spell(path):
  where, _, leaf = path.rpartition('/')
  name = re.sub(r'^blocks_(\d+)/', r'predictor_blocks.\1.', where).replace('attention/', 'attn.')
  name = re.sub(r'\.(fc[12])$', r'.mlp.\1', name)
  return f'{name}.{vjepa2_weights.torch_leaf(leaf)}'
