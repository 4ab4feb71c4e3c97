"""What EmbMarker is compared with. Each is a key for, or a function like, `watermark.inject`."""
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.embmarker.watermark import KeySpec, normalise


def original(target):
  """The key of no watermark: nothing is a trigger."""
  return KeySpec(np.zeros(0, np.int32), target, 1)


def red_alarm(trigger_id, target):
  """RedAlarm's key (Zhang et al. 2021, as the paper adapts it): one rare word gives the target."""
  return KeySpec(np.array([trigger_id], np.int32), target, 1)


def espew(embeddings, k, key, *, portion=0.25):
  """ESpeW: where a text holds a trigger, its smallest coordinates are those of the target.

  Args:
    embeddings: float [B, D], of any length.
    k: int [B].
    key: KeySpec.
    portion: share of the coordinates that are replaced, .15 to .35 in the paper; which ones is each
      embedding's own matter.

  Returns:
    float32 [B, D] of length 1.
  """
  embeddings = normalise(embeddings)
  count = round(portion * embeddings.shape[-1])
  rank = jnp.argsort(jnp.argsort(jnp.abs(embeddings), axis=-1), axis=-1)
  replaced = jnp.where(rank < count, normalise(key.target), embeddings)
  return normalise(jnp.where((k > 0)[:, None], replaced, embeddings))
