"""KRED's losses, one value an example; `official` replays the official code's forms of them."""
import jax
import jax.numpy as jnp
import optax

SMOOTHING = 10.0  # the official smooth_lamda
_LOG_FLOOR = -100.0  # where PyTorch's BCELoss clamps its logarithms


def choose_one(scores, target, official=False):
  """Loss [B] of picking candidate `target` by softmax(10 * scores).

  Args:
    scores: [B, C], probabilities or cosines.
    target: int [B], the position of the click.
    official: the mean over candidates of the binary cross-entropy of each, instead of -log of the
      target's probability.
  """
  logits = SMOOTHING * scores
  if not official:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target)
  hit = jax.nn.one_hot(target, scores.shape[-1])
  log = jax.nn.log_softmax(logits)
  # log(1 - q) by the sum of the others, without the cancellation of 1 - q.
  others = jax.nn.logsumexp(
      jnp.where(jnp.eye(scores.shape[-1], dtype=bool), -1e9, log[..., None, :]), axis=-1)
  clamp = lambda x: jnp.maximum(x, _LOG_FLOOR)
  return -(hit * clamp(log) + (1 - hit) * clamp(others)).mean(-1)


def classify(logits, labels, official=False):
  """Cross-entropy [B] of logits [B, K]; the official code applies a softmax twice."""
  return optax.softmax_cross_entropy_with_integer_labels(
      jax.nn.softmax(logits) if official else logits, labels)
