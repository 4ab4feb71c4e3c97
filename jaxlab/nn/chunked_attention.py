"""Softmax attention over blocks of queries: the [M, N] matrix is never whole in memory."""
import jax
import jax.numpy as jnp

BLOCK = 256  # queries at a time


def attention(q, k, v, bias=None):
  """softmax(q k^T / sqrt(D) + bias) v.

  On accelerators this is `jax.nn.dot_product_attention`.

  Args:
    q: [B, M, H, D].
    k: [B, N, H, D].
    v: [B, N, H, D].
    bias: finite float32 with 4 axes, broadcastable to [B, H, M, N], or None.

  Returns:
    [B, M, H, D] in the dtype of `v`; softmax in float32.
  """
  if jax.default_backend() != 'cpu':
    return jax.nn.dot_product_attention(q, k, v, bias=bias)
  q, k, v = _scaled(q), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

  def of_block(q, bias):
    weights = _weights(q, k, bias)[0].astype(v.dtype)
    total = weights.sum(-1, keepdims=True, dtype=jnp.float32)  # of the weights as they are rounded
    out = jnp.einsum('bhmn,bhnd->bhmd', weights, v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)

  whole, rest = _map_blocks(of_block, q, bias)
  if whole is not None:
    whole = jnp.moveaxis(whole, 0, 2).reshape(*q.shape[:2], -1, q.shape[3])
  out = [part for part in (whole, rest) if part is not None]
  return jnp.concatenate(out, axis=2).transpose(0, 2, 1, 3)


def attention_received(q, k, bias=None):
  """Attention that each key receives, summed over the queries.

  Args:
    q: [B, M, H, D], the queries that count.
    k: [B, N, H, D], all keys.
    bias: as in `attention`, with the rows of these queries.

  Returns:
    float32 [B, H, N]; its sum over N is M.
  """
  q, k = _scaled(q), k.transpose(0, 2, 1, 3)

  def of_block(q, bias):
    weights, total = _weights(q, k, bias)
    return jnp.einsum('bhmn,bhm->bhn', weights, 1 / total[..., 0])

  whole, rest = _map_blocks(of_block, q, bias)
  return sum(part for part in (None if whole is None else whole.sum(0), rest) if part is not None)


def _scaled(q):
  """q / sqrt(D), heads first."""
  return (q * jnp.asarray(q.shape[-1]**-0.5, q.dtype)).transpose(0, 2, 1, 3)


def _weights(q, k, bias):
  """exp(logits - max) [B, H, M, N] and its row sums [B, H, M, 1], float32."""
  logits = jnp.einsum('bhmd,bhnd->bhmn', q, k, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  return weights, weights.sum(-1, keepdims=True)


def _map_blocks(function, q, bias):
  """(function of each whole block of queries [blocks, ...], function of the rest), None if none."""
  blocks, rest = divmod(q.shape[2], BLOCK)
  if blocks + bool(rest) <= 1:
    return None, function(q, bias)
  varies = bias is not None and bias.shape[2] > 1
  rows = lambda x, start, stop: x[:, :, start:stop]
  cut = lambda x: jnp.moveaxis(
      rows(x, 0, blocks * BLOCK).reshape(*x.shape[:2], blocks, BLOCK, x.shape[3]), 2, 0)
  if varies:
    whole = jax.lax.map(lambda block: function(*block), (cut(q), cut(bias)))
  else:
    whole = jax.lax.map(lambda block: function(block, bias), cut(q))
  if not rest:
    return whole, None
  return whole, function(rows(q, -rest, None), rows(bias, -rest, None) if varies else bias)
