"""The leaky baseline: latent actions by a code that has seen both frames (LAPA, arXiv 2410.11758).

An inverse-dynamics encoder names the change between two states by codes of a small table (VQ-VAE,
arXiv 1711.00937), a forward model must find the next state from the codes, and the trunk learns to
tell the codes from the first frame alone. The codes have seen the frame that they help to predict:
that is the leak which VLA-JEPA avoids.
"""
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.systems.vla_jepa import world_model

COMMITMENT = 0.25  # weight of the encoder's step towards its code


class Codes(NamedTuple):
  """What `Coder` finds.

  Attributes:
    vectors: [B, S * K, D] of the codes, whose gradient is the encoder's.
    index: int [B, S, K].
    loss: float32 [B], what draws codes and encoder together.
  """
  vectors: jax.Array
  index: jax.Array
  loss: jax.Array


class Coder(nn.Module):
  """Inverse dynamics: codes of the change from a state to the next.

  Attributes:
    num_codes: entries of the table.
    per_step: K, codes of a change.
    width: of the hidden layer.
    features: D, width of a code.
  """
  num_codes: int
  per_step: int
  width: int
  features: int

  @nn.compact
  def __call__(self, states, following):
    """The Codes of states and those that follow, [B, S, F] each."""
    pair = jnp.concatenate([states, following - states], axis=-1)
    hidden = nn.relu(nn.Dense(self.width, name='hidden')(pair))
    found = nn.Dense(self.per_step * self.features, name='code')(hidden)
    found = nn.LayerNorm(use_scale=False, use_bias=False, name='norm')(
        found.reshape(*states.shape[:2], self.per_step, self.features))
    table = self.param('table', nn.initializers.normal(1.0), (self.num_codes, self.features),
                       jnp.float32)
    index = jnp.argmin(jnp.square(found[..., None, :] - table).sum(-1), axis=-1)
    chosen, still = table[index], jax.lax.stop_gradient
    loss = (jnp.square(still(found) - chosen) + COMMITMENT * jnp.square(found - still(chosen)))
    vectors = found + still(chosen - found)
    return Codes(vectors.reshape(len(states), -1, self.features), index, loss.mean((1, 2, 3)))


class LatentActions(nn.Module):
  """Codes, forward model, and what reads the codes off the trunk's latent-action tokens.

  Attributes:
    predictor: ACPredictor, of the forward model.
    num_codes: see `Coder`.
    width: of the coder's hidden layer.
    features: of a code.
  """
  predictor: world_model.ACPredictor
  num_codes: int = 16
  width: int = 64
  features: int = 16

  @nn.compact
  def __call__(self, context, target, latent):
    """The loss of stage 1.

    Args:
      context: [B, S * N, F], states 0..S-1.
      target: likewise, of states 1..S.
      latent: [B, S * K, D], the trunk's latent-action tokens, from the first frame alone.

    Returns:
      float32 [B]: error of the forward model, pull of the codes, cross-entropy of the codes.
    """
    per_step = self.predictor.actions_per_step
    by_step = lambda x: x.reshape(len(x), -1, self.predictor.grid**2 * x.shape[-1])
    codes = Coder(self.num_codes, per_step, self.width, self.features, name='coder')(
        by_step(context), by_step(target))
    error = world_model.l1(self.predictor(context, codes.vectors), target)
    logits = nn.Dense(self.num_codes, name='classifier')(latent)
    told = jnp.take_along_axis(nn.log_softmax(logits), codes.index.reshape(*latent.shape[:2], 1),
                               axis=-1)
    return error + codes.loss - told.mean((1, 2))
