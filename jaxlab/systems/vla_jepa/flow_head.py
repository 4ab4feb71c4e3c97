"""The action head of VLA-JEPA: a transformer that turns noise into a chunk of actions.

Flow matching with x_t = (1 - t) eps + t a and v = a - eps, so that t = 1 is the action (the head of
GR00T N1.5, arXiv 2503.14734).
"""
import math
import re
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models import vjepa2_weights
from jaxlab.nn.attention import HIDDEN, attention_weights
from jaxlab.nn.modulation import EmbedMLP

BUCKETS = 1000
TIME_SCALE = 0.999  # s of t = (s - b) / s, b ~ Beta(1.5, 1)


class Attention(nn.Module):
  """Attention from x to `context`, or to x itself.

  Attributes:
    num_heads: a divisor of the width of x.
  """
  num_heads: int

  @nn.compact
  def __call__(self, x, context=None, bias=None):
    """Maps [B, M, D] to the same; `context` [B, N, E], `bias` [B, 1, 1, N] over its tokens."""
    source = x if context is None else context
    dense = lambda name: nn.Dense(x.shape[-1], name=name)
    heads = lambda y: y.reshape(*y.shape[:2], self.num_heads, -1)
    query, key, value = (heads(dense(name)(y)) for name, y in
                         (('to_q', x), ('to_k', source), ('to_v', source)))
    weights = attention_weights(query, key, None if context is None else bias)
    return dense('to_out')(jnp.einsum('bhmn,bnhd->bmhd', weights, value).reshape(x.shape))


def _adaptive_norm(x, shift, scale, eps):
  norm = nn.LayerNorm(epsilon=eps, use_scale=False, use_bias=False, use_fast_variance=False)
  return norm(x) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
  """Adaptive norm, attention, norm, feed-forward with the tanh GELU; no gates.

  Attributes:
    num_heads: of the attention.
    dropout: rate, twice on what the attention adds and twice in the feed-forward part.
  """
  num_heads: int
  dropout: float

  @nn.compact
  def __call__(self, x, time, context=None, bias=None, deterministic=True):
    """Maps [B, M, D] to the same; `time` is the time embedding [B, D]."""
    drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
    scale, shift = jnp.split(nn.Dense(2 * x.shape[-1], name='norm1')(nn.silu(time)), 2, axis=-1)
    attended = Attention(self.num_heads, name='attn')(_adaptive_norm(x, shift, scale, 1e-5),
                                                      context, bias)
    x = x + drop(drop(attended))
    hidden = nn.LayerNorm(epsilon=1e-5, use_scale=False, use_bias=False,
                          use_fast_variance=False)(x)
    hidden = drop(nn.gelu(nn.Dense(4 * x.shape[-1], name='ff_in')(hidden)))
    return x + drop(nn.Dense(x.shape[-1], name='ff_out')(hidden))


class TwoLayers(nn.Module):
  """Linear, ReLU, linear.

  Attributes:
    hidden: width of the first.
    features: width of the second.
  """
  hidden: int
  features: int

  @nn.compact
  def __call__(self, x):
    """Maps [..., D] to [..., features]."""
    return nn.Dense(self.features, name='layer2')(
        nn.relu(nn.Dense(self.hidden, name='layer1')(x)))


class EmbedActions(nn.Module):
  """Noisy actions and their time as tokens.

  Attributes:
    width: of a token.
  """
  width: int

  @nn.compact
  def __call__(self, actions, bucket):
    """Maps actions [B, H, A] at time buckets int [B] to [B, H, width]."""
    dense = lambda name: nn.Dense(self.width, name=name)
    tokens = dense('layer1')(actions)
    time = jnp.broadcast_to(sine_cosine(bucket, self.width)[:, None], tokens.shape)
    x = dense('layer2')(jnp.concatenate([tokens, time], axis=-1))
    return dense('layer3')(nn.silu(x))


def sine_cosine(bucket, width):
  """sin and then cos of bucket * 10000^(-i / (width / 2)), float32 [B, width]."""
  half = width // 2
  angles = bucket.astype(jnp.float32)[:, None] * jnp.exp(
      -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def timestep_sinusoid(bucket, width=256):
  """cos and then sin, exponents -ln(10000) i / (width / 2 - 1): the other sinusoid of the release.
  """
  half = width // 2
  angles = bucket.astype(jnp.float32)[:, None] * jnp.exp(
      -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class FlowHead(nn.Module):
  """The velocity of noisy actions, given the trunk's tokens and the state of the robot.

  Even blocks attend to the trunk's tokens, odd blocks to the sequence [state, future tokens,
  actions] itself.

  Attributes:
    action_dim: A.
    horizon: H, actions of a chunk.
    state_dim: P, numbers of the robot's state; 0 for none.
    width: of the blocks.
    num_heads: of the blocks.
    num_layers: number of blocks.
    hidden: width of the encoders' and the decoder's hidden layers.
    out_width: of the transformer's output.
    future_tokens: learned tokens.
    max_positions: rows of the position table, at least H.
    dropout: rate in the blocks.
  """
  action_dim: int
  horizon: int
  state_dim: int = 0
  width: int = 768
  num_heads: int = 12
  num_layers: int = 16
  hidden: int = 1024
  out_width: int = 1024
  future_tokens: int = 32
  max_positions: int = 1024
  dropout: float = 0.2

  @nn.compact
  def __call__(self, actions, bucket, context, state=None, mask=None, deterministic=True):
    """The velocity.

    Args:
      actions: noisy actions [B, H, A].
      bucket: int [B], time in thousandths.
      context: [B, N, D], tokens of the trunk.
      state: [B, P], or None where state_dim is 0.
      mask: [B, N], which tokens of the context are no padding; None for all.
      deterministic: False draws dropout from the rng 'dropout'.

    Returns:
      float32 [B, H, A]. Features, time embedding and transformer output are sown as
      'intermediates/action_features', 'time' and 'out'.
    """
    batch, context = len(actions), context.astype(jnp.float32)
    features = EmbedActions(self.width, name='action_encoder')(actions, bucket)
    self.sow('intermediates', 'action_features', features)
    normal = nn.initializers.normal(0.02)
    table = self.param('positions', normal, (self.max_positions, self.width), jnp.float32)
    future = self.param('future_tokens', normal, (self.future_tokens, self.width), jnp.float32)
    parts = [jnp.broadcast_to(future, (batch, *future.shape)), features + table[:self.horizon]]
    if self.state_dim:
      parts.insert(0, TwoLayers(self.hidden, self.width, name='state_encoder')(state)[:, None])
    x = jnp.concatenate(parts, axis=1)
    time = EmbedMLP(self.width, name='time_embed')(timestep_sinusoid(bucket))
    self.sow('intermediates', 'time', time)
    bias = None if mask is None else jnp.where(mask.astype(bool), 0.0, HIDDEN)[:, None, None]
    for i in range(self.num_layers):
      x = Block(self.num_heads, self.dropout, name=f'blocks_{i}')(
          x, time, context if i % 2 == 0 else None, bias, deterministic)
    # The other order of the two halves than in the blocks: so is the release.
    shift, scale = jnp.split(nn.Dense(2 * self.width, name='out_mod')(nn.silu(time)), 2, axis=-1)
    x = nn.Dense(self.out_width, name='proj_out')(_adaptive_norm(x, shift, scale, 1e-6))
    self.sow('intermediates', 'out', x)
    return TwoLayers(self.hidden, self.action_dim, name='action_decoder')(x[:, -self.horizon:])


class RegressionHead(nn.Module):
  """The baseline without a flow: the chunk from the mean of the trunk's tokens (as OpenVLA-OFT).

  Attributes:
    action_dim: A.
    horizon: H.
    state_dim: P; 0 for none.
    hidden: width of the hidden layer.
  """
  action_dim: int
  horizon: int
  state_dim: int = 0
  hidden: int = 1024

  @nn.compact
  def __call__(self, context, state=None, mask=None):
    """Maps tokens [B, N, D] and the state [B, P] to a chunk [B, H, A]."""
    weights = jnp.ones(context.shape[:2]) if mask is None else mask.astype(jnp.float32)
    x = jnp.sum(context * weights[..., None], 1) / jnp.maximum(weights.sum(1), 1)[:, None]
    if self.state_dim:
      x = jnp.concatenate([x, state], axis=-1)
    return TwoLayers(self.hidden, self.horizon * self.action_dim, name='decoder')(
        x.astype(jnp.float32)).reshape(-1, self.horizon, self.action_dim)


def draw(key, shape, times: Literal['beta', 'uniform'] = 'beta'):
  """Noise and time of one example.

  Args:
    key: PRNG key.
    shape: (R, H, A): repeats of the example, horizon, action dimensions.
    times: 'beta' is the release's t = (s - b) / s, b ~ Beta(1.5, 1); 'uniform' the paper's text.

  Returns:
    (noise [R, H, A], t [R]); t may be slightly below 0.
  """
  noise_key, time_key = jax.random.split(key)
  if times == 'beta':
    # The inverse of the distribution function b^1.5; sampling by rejection compiles for seconds.
    b = jax.random.uniform(time_key, shape[:1])**(1 / 1.5)
    t = (TIME_SCALE - b) / TIME_SCALE
  else:
    t = jax.random.uniform(time_key, shape[:1])
  return jax.random.normal(noise_key, shape), t


def bucket_of(t):
  """int32 [B] thousandths of times [B]; those below 0 are 0."""
  return jnp.maximum((t * BUCKETS).astype(jnp.int32), 0)


def loss(velocity, actions, noise, t):
  """Squared error of the velocity, float32 [B, H]: the mean over the action's dimensions.

  Args:
    velocity: (x_t [B, H, A], bucket [B]) -> [B, H, A].
    actions: [B, H, A].
    noise: like `actions`.
    t: [B].
  """
  mix = t[:, None, None]
  error = velocity((1 - mix) * noise + mix * actions, bucket_of(t)) - (actions - noise)
  return jnp.mean(jnp.square(error), axis=-1)


def sample(velocity, noise, steps=4):
  """Actions [B, H, A] by `steps` Euler steps from noise.

  Args:
    velocity: as in `loss`.
    noise: [B, H, A].
    steps: of equal length.
  """
  buckets = jnp.array([int(i / steps * BUCKETS) for i in range(steps)], jnp.int32)
  step = lambda x, bucket: (
      x + velocity(x, jnp.broadcast_to(bucket, len(x))) / steps, None)
  return jax.lax.scan(step, noise, buckets)[0]


def init_params(head, context_dim, key):
  """Random parameters of a FlowHead whose trunk has tokens of `context_dim` channels."""
  return head.init(key, jnp.zeros((1, head.horizon, head.action_dim)), jnp.zeros(1, jnp.int32),
                   jnp.zeros((1, 1, context_dim)),
                   jnp.zeros((1, head.state_dim)) if head.state_dim else None)['params']


def params_from_torch(state_dict, head, context_dim):
  """Parameters of a FlowHead from the released names.

  Args:
    state_dict: {'model.transformer_blocks.0.attn1.to_q.weight': array, ...}. The state encoder is
      ignored where the head has no state.
    head: FlowHead.
    context_dim: channels of the trunk's tokens.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  shapes = jax.eval_shape(lambda: init_params(head, context_dim, jax.random.key(0)))
  ignored = () if head.state_dim else [
      name for name in state_dict if name.startswith('state_encoder.')]
  return vjepa2_weights.read_tensors(state_dict, shapes, _spell, vjepa2_weights.linear_layout,
                                     ignored=ignored)


def params_to_torch(params):
  """The inverse of `params_from_torch`: {released name: NumPy array}."""
  return vjepa2_weights.write_tensors(params, _spell, vjepa2_weights.linear_layout)


_NAMES = {'positions': 'position_embedding.weight', 'future_tokens': 'future_tokens.weight'}
_MODULES = ((r'^blocks_(\d+)', r'model.transformer_blocks.\1'), ('norm1$', 'norm1.linear'),
            (r'\.attn\.to_out$', '.attn1.to_out.0'), (r'\.attn\.', '.attn1.'),
            ('ff_in$', 'ff.net.0.proj'), ('ff_out$', 'ff.net.2'),
            (r'^time_embed\.', 'model.timestep_encoder.timestep_embedder.'),
            ('^out_mod$', 'model.proj_out_1'), ('^proj_out$', 'model.proj_out_2'))


def _spell(path):
  if path in _NAMES:
    return _NAMES[path]
  where, _, leaf = path.rpartition('/')
  name = where.replace('/', '.')
  for pattern, replacement in _MODULES:
    name = re.sub(pattern, replacement, name)
  return f'{name}.{vjepa2_weights.torch_leaf(leaf)}'
