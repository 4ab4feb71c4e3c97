"""Model replacement: one round of the weighted mean lands on the attacker's model."""
import jax
import jax.numpy as jnp

from jaxlab.federated.attacks.crafted import replace
from jaxlab.federated.types import Attack
from jaxlab.train import checkpoints


def replacement(target):
  """Every malicious client sends (sum of sizes / malicious sizes) (target - model).

  Args:
    target: params -> the model to land on, where updates are averaged by size and added.
  """
  def apply(state, payload, messages, weights, malicious, key):
    del key
    malicious = malicious & (weights > 0)
    boost = weights.sum() / jnp.maximum(jnp.where(malicious, weights, 0).sum(), 1e-30)
    made = jax.tree.map(lambda goal, model: (boost * (goal - model))[None], state, payload)
    return replace(messages, made, malicious), weights, state
  return Attack(target, apply)


def model_replacement(*, workdir: str):
  """Model replacement (Bagdasaryan et al. 2020) by the model of another run.

  Args:
    workdir: folder of the run, with checkpoints.
  """
  return replacement(lambda params: checkpoints.load_collection(workdir, params))
