"""Contrastive losses whose negatives are the other examples of the batch of all devices."""
import jax
import jax.numpy as jnp

from jaxlab import parallel

_NEVER = -1e9


def in_batch_logits(queries, keys, *, temperature=1.0, axis=parallel.BATCH):
  """Inner products of this device's queries with the keys of all devices.

  The keys are gathered over the axis, so the objective does not depend on the number of devices.

  Args:
    queries: [B, D].
    keys: [B, D]; key i belongs to query i.
    temperature: what the products are divided by.
    axis: name of the device axis.

  Returns:
    (logits float32 [B, N], int32 [B]: the column of each query's own key), N = devices x B.
  """
  everyone = parallel.all_gather(keys, axis)
  logits = jnp.matmul(queries, everyone.T, preferred_element_type=jnp.float32) / temperature
  own = parallel.axis_index(axis) * len(queries) + jnp.arange(len(queries))
  return logits, own


def cross_entropy(logits, own, allowed=None):
  """-log softmax of the own column, for each row.

  Args:
    logits: [B, N].
    own: int [B], columns.
    allowed: bool [B, N], the columns that count (padding and false negatives do not); the own one
      always does. None for all.

  Returns:
    float32 [B].
  """
  logits = logits.astype(jnp.float32)
  mine = jnp.take_along_axis(logits, own[:, None], axis=1)
  if allowed is not None:
    allowed = allowed | (jnp.arange(logits.shape[1]) == own[:, None])
    logits = jnp.where(allowed, logits, _NEVER)
  return jax.nn.logsumexp(logits, axis=1) - mine[:, 0]


def normalise(x):
  """Rows [..., D] of length 1, float32; a row of zeros stays, with a gradient of zero."""
  x = x.astype(jnp.float32)
  squares = jnp.sum(x * x, -1, keepdims=True)
  some = squares > 1e-24
  return jnp.where(some, x * jax.lax.rsqrt(jnp.where(some, squares, 1)), 0)


def info_nce(anchors, positives, *, temperature, groups=None, real=None, symmetric=False, hard=None,
             has_hard=None, hard_weight=0.0, axis=parallel.BATCH):
  """InfoNCE (arXiv 1807.03748) with cosines and in-batch negatives, as in SimCSE (2104.08821).

  -log exp(cos(a_i, p_i) / t) / sum_j exp(cos(a_i, p_j) / t), j over the batch of all devices.

  Args:
    anchors: [B, D], of any length.
    positives: [B, D]; positive i belongs to anchor i.
    temperature: t > 0.
    groups: int [B], such as documents: others of the same group are no negatives. None for none.
    real: [B], 0 on padding, which is no negative. None for all.
    symmetric: whether the mean with the loss of positives against anchors is taken.
    hard: [B, D], a hard negative of each anchor, which is a negative of the others too; for anchors
      against positives only.
    has_hard: bool [B], which rows of `hard` are there; all by default.
    hard_weight: what is added to the logit of an anchor's own hard negative.
    axis: name of the device axis.

  Returns:
    float32 [B].
  """
  rows = len(anchors)
  gather = lambda x: parallel.all_gather(x, axis)
  others = jnp.ones((rows, len(gather(jnp.zeros(rows)))), bool)
  if groups is not None:
    others = others & (groups[:, None] != gather(groups))
  allowed = others if real is None else others & (gather(real) > 0)
  anchors, positives = normalise(anchors), normalise(positives)
  logits, own = in_batch_logits(anchors, positives, temperature=temperature, axis=axis)
  columns = allowed
  if hard is not None:
    more, _ = in_batch_logits(anchors, normalise(hard), temperature=temperature, axis=axis)
    mine = jnp.arange(more.shape[1]) == own[:, None]
    there = allowed | mine
    if has_hard is not None:
      there = there & gather(has_hard)
    columns = jnp.concatenate([allowed | mine, there], axis=1)
    logits = jnp.concatenate([logits, more + hard_weight * mine], axis=1)
  values = cross_entropy(logits, own, columns)
  if symmetric:
    back, _ = in_batch_logits(positives, anchors, temperature=temperature, axis=axis)
    values = (values + cross_entropy(back, own, allowed)) / 2
  return values


def alignment(anchors, positives):
  """|f(a) - f(p)|^2 [B] of unit vectors of [B, D] each: small is good (arXiv 2005.10242)."""
  return jnp.sum((normalise(anchors) - normalise(positives))**2, -1)


def uniformity(vectors, t=2.0):
  """log of the mean of exp(-t |x - y|^2) over the pairs of different rows: small is good.

  Args:
    vectors: [N, D], N >= 2; their directions are what counts.
    t: > 0.
  """
  vectors, rows = normalise(vectors), len(vectors)
  exponents = -t * (2 - 2 * vectors @ vectors.T)
  pairs = jnp.arange(rows)[:, None] < jnp.arange(rows)
  return jax.nn.logsumexp(jnp.where(pairs, exponents, _NEVER)) - jnp.log(rows * (rows - 1) / 2)
