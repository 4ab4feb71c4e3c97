"""Aggregators that are running sums over the clients: means, the maximum, clipped means."""
import jax
import jax.numpy as jnp
import optax

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.federated.aggregators.stack import screen
from jaxlab.federated.types import Aggregator, Stream


def from_stream(stream):
  """The Aggregator of running sums; `apply` gives messages that are not finite no weight."""
  def apply(state, messages, weights, key):
    one = jax.tree.map(lambda x: x[0], messages)
    weights = screen(messages, weights)
    return stream.finish(stream.add(stream.zero(one), messages, weights), key), state, {}
  return Aggregator(lambda params: (), apply, stream)


def _accumulator_dtype(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def weighted_mean():
  """sum_i w_i message_i / sum_i w_i, accumulated in float32 or wider, client after client.

  The sequential sum makes the result independent of how clients are chunked, and leaves it
  unchanged, bit for bit, when a client of weight 0 is taken out.
  """
  def zero(message):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, _accumulator_dtype(x)), message), jnp.zeros(())

  def add(accumulator, messages, weights):
    def one(carry, client):
      (total, weight), (message, w) = carry, client
      # A client of weight 0 may hold anything.
      step = lambda t, x: t + jnp.where(w > 0, w.astype(t.dtype) * x.astype(t.dtype), 0)
      return (jax.tree.map(step, total, message), weight + w), None
    return jax.lax.scan(one, accumulator, (messages, weights.astype(accumulator[1].dtype)))[0]

  def finish(accumulator, key):
    del key
    total, weight = accumulator
    weight = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda t: t / weight.astype(t.dtype), total)

  return from_stream(Stream(zero, add, parallel.psum, finish))


def maximum():
  """Element-wise maximum over the clients with a positive weight."""
  def zero(message):
    return jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf, x.dtype), message)

  def add(accumulator, messages, weights):
    present = lambda x: jnp.where((weights > 0).reshape((-1,) + (1,) * (x.ndim - 1)), x, -jnp.inf)
    return jax.tree.map(lambda a, x: jnp.maximum(a, present(x).max(0)), accumulator, messages)

  return from_stream(Stream(zero, add, parallel.pmax, lambda accumulator, key: accumulator))


def by_part(**parts):
  """Aggregates the parts of a message (a mapping) by streaming aggregators of their own.

  Args:
    **parts: name of the part -> Aggregator with a `stream`.
  """
  streams = {name: aggregator.stream for name, aggregator in parts.items()}

  def zero(message):
    return {name: stream.zero(message[name]) for name, stream in streams.items()}

  def add(accumulator, messages, weights):
    return {name: stream.add(accumulator[name], messages[name], weights)
            for name, stream in streams.items()}

  def collect(accumulator, axis):
    return {name: stream.collect(accumulator[name], axis) for name, stream in streams.items()}

  def finish(accumulator, key):
    return {name: stream.finish(accumulator[name], key) for name, stream in streams.items()}

  return from_stream(Stream(zero, add, collect, finish))


def norm_bound(*, bound: float = 10.0):
  """Scales each message to a norm of `bound` at most, and averages by size.

  u_i min(1, bound / (|u_i| + 1e-6)) as in UA-FedRec's official code; the norm is over the whole
  message.

  Args:
    bound: largest norm of a message, > 0.
  """
  config_lib.require(bound > 0, 'bound', 'more than 0', bound)
  mean = weighted_mean().stream

  def clip(message):
    scale = jnp.minimum(1, bound / (optax.tree.norm(message) + 1e-6))
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), message)

  def add(accumulator, messages, weights):
    return mean.add(accumulator, jax.vmap(clip)(messages), weights)

  return from_stream(Stream(mean.zero, add, mean.collect, mean.finish))


def uniform_mean():
  """The mean that ignores the clients' sizes."""
  mean = weighted_mean().stream
  add = lambda accumulator, messages, weights: mean.add(
      accumulator, messages, (weights > 0).astype(weights.dtype))
  return from_stream(Stream(mean.zero, add, mean.collect, mean.finish))


def clipped_gaussian(*, clip_norm: float, noise_multiplier: float):
  """Central differential privacy: clip each message, uniform mean, Gaussian noise (DP-FedAvg).

  Messages are scaled to a global L2 norm of at most `clip_norm`; their mean gets noise of standard
  deviation noise_multiplier * clip_norm / participants (arXiv 1710.06963, flat clipping). Weights
  only say who is there. The privacy spent is `privacy.epsilon`'s to say.

  Args:
    clip_norm: largest norm of a message, > 0.
    noise_multiplier: noise in units of the sensitivity, >= 0.
  """
  config_lib.require(clip_norm > 0, 'clip_norm', 'more than 0', clip_norm)
  config_lib.require(noise_multiplier >= 0, 'noise_multiplier', 'at least 0', noise_multiplier)
  mean = weighted_mean().stream

  def clip(message):
    norm = optax.tree.norm(message)
    scale = jnp.minimum(1, clip_norm / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), message)

  def add(accumulator, messages, weights):
    return mean.add(accumulator, jax.vmap(clip)(messages), (weights > 0).astype(weights.dtype))

  def finish(accumulator, key):
    deviation = noise_multiplier * clip_norm / jnp.maximum(accumulator[1], 1)
    leaves, treedef = jax.tree.flatten(mean.finish(accumulator, key))
    keys = jax.random.split(key, len(leaves))
    noisy = [x + deviation.astype(x.dtype) * jax.random.normal(k, x.shape, x.dtype)
             for x, k in zip(leaves, keys)]
    return treedef.unflatten(noisy)

  return from_stream(Stream(mean.zero, add, mean.collect, finish))
