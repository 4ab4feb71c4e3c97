"""Token losses of distillation, all of log-probabilities: p is the student's, q the teacher's.

Sources: arXiv 2605.11739 (EffOPD), 2306.13649 (GKD), 2602.12125 (G-OPD, ExOPD). Functions of the
whole vocabulary take log-probabilities [..., V], functions of the sampled token take [...].
"""
from typing import Literal

import jax
import jax.numpy as jnp

EPSILON = 1e-8  # added to the divisors of `aggregate`
Aggregation = Literal['token-mean', 'seq-mean-token-sum', 'seq-mean-token-mean']


def reverse_kl(p, q):
  """KL(p || q) [...] = sum_v p (log p - log q), the student's own mistakes."""
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def forward_kl(p, q):
  """KL(q || p) [...], the loss of supervised distillation."""
  return reverse_kl(q, p)


def generalized_jsd(p, q, beta):
  """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p (arXiv 2306.13649).

  Args:
    p: student's log-probabilities [..., V].
    q: teacher's.
    beta: Python float in [0, 1]; the ends are defined as `forward_kl` (0) and `reverse_kl` (1).
  """
  if beta == 0:
    return forward_kl(p, q)
  if beta == 1:
    return reverse_kl(p, q)
  m = jnp.logaddexp(q + jnp.log(beta), p + jnp.log1p(-beta))
  return beta * reverse_kl(q, m) + (1 - beta) * reverse_kl(p, m)


def k1(p, q):
  """log p - log q at the sampled token: unbiased for the reverse KL; as a loss its gradient is 0 in
  the mean, so it serves as a reward only."""
  return p - q


def k2(p, q):
  """Half the squared log-ratio: biased, small variance."""
  return 0.5 * jnp.square(q - p)


def k3(p, q):
  """exp(d) - d - 1 with d = log q - log p clamped to +-20, the result to +-10."""
  d = jnp.clip(q - p, -20, 20)
  return jnp.clip(jnp.exp(d) - d - 1, -10, 10)


def opd_advantage(p, q, base=None, lam=1.0):
  """-[(log p - log b) - lam (log q - log b)]; with lam = 1 it is log q - log p (ExOPD, OPD).

  Args:
    p: student's log-probabilities of the sampled tokens, not to be differentiated.
    q: teacher's.
    base: the reference's; not looked at where lam is 1.
    lam: extrapolation of the teacher's reward.
  """
  return q - p if lam == 1 else -((p - base) - lam * (q - base))


def reward_to_go(p, q, mask):
  """sum_{t' >= t} (log p - log q) [B, T]: the exact coefficient of the sequence objective."""
  terms = mask * (p - q)
  return jnp.flip(jnp.cumsum(jnp.flip(terms, axis=-1), axis=-1), axis=-1)


def importance_weights(old, rollout, mask, threshold=5.0):
  """min(pi_old / pi_rollout, threshold) [B, T]: what the sampler computed unlike the trainer."""
  ratio = jnp.exp(jnp.clip(old - rollout, -20, 20))
  return jax.lax.stop_gradient(jnp.minimum(ratio, threshold) * mask)


def policy_gradient(p, old, advantage, *, clip_low=0.2, clip_high=0.2, dual_clip=3.0):
  """Clipped policy-gradient loss of each token, to be minimised.

  Args:
    p: student's log-probabilities of the sampled tokens [...]; differentiated.
    old: those of the policy that the advantage is of.
    advantage: [...], not differentiated.
    clip_low: the ratio p / old counts from 1 - clip_low ...
    clip_high: ... to 1 + clip_high where that makes the loss larger.
    dual_clip: where the advantage is negative, the loss is at most -dual_clip * advantage.

  Returns:
    (loss [...], bool [...]: where one of the clips decided).
  """
  advantage = jax.lax.stop_gradient(advantage)
  ratio = jnp.exp(jnp.clip(p - old, -20, 20))
  plain = -advantage * ratio
  clipped = -advantage * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  loss = jnp.maximum(plain, clipped)
  ceiling = -dual_clip * advantage
  dual = (advantage < 0) & (loss > ceiling)
  return jnp.where(dual, ceiling, loss), dual | (clipped > plain)


def _at(logprobs, ids):
  return jnp.take_along_axis(logprobs, ids, axis=-1)


def _renormalised(logprobs, ids):
  chosen = _at(logprobs, ids)
  return chosen - jax.nn.logsumexp(chosen, axis=-1, keepdims=True)


def _with_tail(logprobs, ids):
  """Appends the log of the mass that is left, K + 1 buckets.

  The mass is that of the other tokens: 1 - the mass of these is noise where they are nearly sure.
  """
  least = jnp.finfo(logprobs.dtype).min  # finite, for where there is no other token
  others = jnp.put_along_axis(logprobs, ids, least, axis=-1, inplace=False)
  rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
  return jnp.concatenate([_at(logprobs, ids), rest], axis=-1)


_SUPPORTS = {'raw': _at, 'renorm': _renormalised, 'tail': _with_tail}


def reverse_kl_topk(p, q, k, form='tail'):
  """Reverse KL over the student's K likeliest tokens.

  Args:
    p: student's log-probabilities [..., V].
    q: teacher's.
    k: K.
    form: 'raw' is the partial sum, which the student can shrink by draining its own top K; 'renorm'
      renormalises both; 'tail' adds one bucket for everything else.
  """
  ids = jax.lax.top_k(p, k)[1]
  shape = _SUPPORTS[form]
  return reverse_kl(shape(p, ids), shape(q, ids))


def forward_kl_topk(p, q, k, form='raw'):
  """Forward KL over the teacher's K likeliest tokens; `form` as in `reverse_kl_topk`."""
  ids = jax.lax.top_k(q, k)[1]
  shape = _SUPPORTS[form]
  return forward_kl(shape(p, ids), shape(q, ids))


def overlap_ratio(p, q, k):
  """Share [...] of the student's K likeliest tokens that are among the teacher's."""
  mine, theirs = jax.lax.top_k(p, k)[1], jax.lax.top_k(q, k)[1]
  return (mine[..., :, None] == theirs[..., None, :]).any(-1).mean(-1, dtype=p.dtype)


def entropy_gap(p, q):
  """|H(q) - H(p)| [...] in nats."""
  entropy = lambda x: -jnp.sum(jnp.exp(x) * x, axis=-1)
  return jnp.abs(entropy(q) - entropy(p))


def loss_pairs(values, mask, aggregation):
  """(values, weights) whose weighted mean is the aggregation of token losses.

  Args:
    values: [B, T].
    mask: [B, T], 0 where padded.
    aggregation: 'token-mean' gives every token the same weight, [B, T]; the other two every
      sequence that has a token, [B]: its sum or its mean.
  """
  mask = mask.astype(values.dtype)
  if aggregation == 'token-mean':
    return values, mask
  total, count = jnp.sum(values * mask, axis=-1), jnp.sum(mask, axis=-1)
  if aggregation == 'seq-mean-token-mean':
    total = total / (count + EPSILON)
  return total, (count > 0).astype(values.dtype)


def aggregate(values, mask, aggregation='token-mean'):
  """The scalar of `loss_pairs` on one device, 1e-8 added to the divisor."""
  values, weights = loss_pairs(values, mask, aggregation)
  return jnp.sum(values * weights) / (jnp.sum(weights) + EPSILON)
