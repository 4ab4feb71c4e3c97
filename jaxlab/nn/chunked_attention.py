"""Softmax attention over blocks of queries: the [M, N] matrix is never whole in memory."""
import jax
import jax.numpy as jnp

BLOCK = 640  # most queries at a time; more of them go head by head, so that weights stay in cache


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

  def of_block(q, keys, bias, real):
    del real  # what padding asks is cut off
    k, v = keys
    weights = _weights(q, k, bias).astype(v.dtype)
    total = weights.sum(-1, keepdims=True, dtype=jnp.float32)  # of the weights as they are rounded
    out = jnp.matmul(weights, v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)

  out = _map_blocks(of_block, q, (k, v), bias)
  return out.reshape(*out.shape[:2], -1, out.shape[-1])[:, :, :q.shape[2]].transpose(0, 2, 1, 3)


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

  def of_block(q, keys, bias, real):
    weights = _weights(q, keys[0], bias)
    return jnp.einsum('...mn,...m->...n', weights, real / weights.sum(-1))

  return _map_blocks(of_block, q, (k,), bias).sum(2)


def _scaled(q):
  """q / sqrt(D), heads first."""
  return (q * jnp.asarray(q.shape[-1]**-0.5, q.dtype)).transpose(0, 2, 1, 3)


def _weights(q, k, bias):
  """exp(logits - max) [..., M, N], float32."""
  logits = jnp.einsum('...md,...nd->...mn', q, k, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  return jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))


def _map_blocks(function, q, keys, bias):
  """Results of blocks of equal numbers of queries, the last filled up with zeros.

  Args:
    function: maps queries [..., size, D], keys [..., N, D], a bias and a mask [size] of the queries
      that are real to [..., *result].
    q: [B, H, M, D].
    keys: tuple of [B, H, N, D].
    bias: as in `attention`.

  Returns:
    [B, H, blocks, *result].
  """
  count, heads, queries = q.shape[:3]
  blocks = -(-queries // BLOCK)
  if blocks == 1:
    return jnp.expand_dims(function(q, keys, bias, jnp.ones(queries)), 2)
  size = -(-queries // blocks)
  cut = lambda rows: jnp.pad(rows, ((0, blocks * size - queries), (0, 0))).reshape(
      blocks, size, -1)
  real = (jnp.arange(blocks * size) < queries).astype(jnp.float32).reshape(blocks, size)

  def of_head(head):
    number, q, keys = head
    shared, rows = None, None  # the bias of all queries alike, and that of each
    if bias is not None:
      places = zip((number // heads, number % heads), bias.shape)
      shared = jnp.asarray(bias)[tuple(i if width > 1 else 0 for i, width in places)]
      if len(shared) > 1:
        shared, rows = None, cut(shared)

    def of_block(block):
      q, real, rows = block
      return function(q, keys, shared if rows is None else rows, real)

    return jax.lax.map(of_block, (cut(q), real, rows))

  flat = lambda x: x.reshape(count * heads, *x.shape[2:])
  out = jax.lax.map(of_head, (jnp.arange(count * heads), flat(q), jax.tree.map(flat, keys)))
  return out.reshape(count, heads, *out.shape[1:])
