"""Rectified flow: its loss, the shifted grid of noise levels, Euler sampling, guidance.

x_t = (1 - t) x_0 + t eps, velocity eps - x_0, so that t = 1 is noise (arXiv 2403.03206).
"""
import math

import jax
import jax.numpy as jnp
import numpy as np


def draw(key, x0):
  """Noise and time of a training example or batch.

  Args:
    key: PRNG key.
    x0: clean tokens [..., N, C].

  Returns:
    (noise like x0, t [...] = sigmoid of a normal number).
  """
  noise_key, time_key = jax.random.split(key)
  return (jax.random.normal(noise_key, x0.shape),
          jax.nn.sigmoid(jax.random.normal(time_key, x0.shape[:-2])))


def interpolate(x0, noise, t):
  """(x_t, velocity) of clean tokens [B, N, C], noise likewise and times [B]."""
  t = t[:, None, None]
  return (1 - t) * x0 + t * noise, noise - x0


def loss(velocity, x0, noise, t):
  """Squared error of a velocity network on target tokens.

  Args:
    velocity: (x_t [B, N, C], t [B]) -> [B, N, C].
    x0: clean tokens [B, N, C].
    noise: like x0.
    t: [B], in [0, 1].

  Returns:
    Mean over tokens and channels of each example, float32 [B].
  """
  x, target = interpolate(x0, noise, t)
  return jnp.mean(jnp.square(velocity(x, t) - target), axis=(1, 2))


def shift_of(n_target):
  """The shift mu of the noise levels: linear in the TARGET's tokens, .5 at 256, 1.15 at 4096."""
  slope = (1.15 - 0.5) / (4096 - 256)
  return slope * (n_target - 256) + 0.5


def sigma_grid(steps, n_target):
  """Noise levels float32 [steps + 1]: from 1 to 1 / steps evenly, shifted, and 0 at the end."""
  sigmas = np.linspace(1.0, 1.0 / steps, steps)
  grow = math.exp(shift_of(n_target))
  return np.append(grow / (grow + 1 / sigmas - 1), 0.0).astype(np.float32)


def euler(velocity, x, sigmas):
  """Integrates from noise to data.

  Args:
    velocity: (x [B, N, C], t [B]) -> [B, N, C].
    x: noise [B, N, C].
    sigmas: falling noise levels [steps + 1].

  Returns:
    x after each step [steps, B, N, C].
  """
  def step(x, levels):
    x = euler_step(x, velocity(x, jnp.broadcast_to(levels[0], len(x))), levels)
    return x, x

  return jax.lax.scan(step, x, jnp.stack([sigmas[:-1], sigmas[1:]], axis=1))[1]


def euler_step(x, velocity, levels):
  """x at level levels[1] from x at levels[0]."""
  return x + (levels[1] - levels[0]) * velocity


def guide(positive, negative, scale):
  """Classifier-free guidance with each token rescaled to the length of the conditional velocity.

  Args:
    positive: velocity [B, N, C] with the prompt.
    negative: velocity with the negative or empty prompt.
    scale: 1 gives `positive`.
  """
  mixed = negative + scale * (positive - negative)
  length = lambda v: jnp.linalg.norm(v, axis=-1, keepdims=True)
  return mixed * (length(positive) / jnp.maximum(length(mixed), 1e-12))
