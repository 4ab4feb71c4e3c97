"""Log-probabilities of given tokens under a decoder, in pieces of the sequence."""
import jax
import jax.numpy as jnp


def over_chunks(function, chunk, *arrays, axis=1):
  """Applies a function to pieces of an axis, so that what it makes inside exists for one piece.

  Args:
    function: (arrays with C along `axis`) -> pytree of arrays likewise, position by position. Its
      inside is computed again in the backward pass.
    chunk: C, positions of a piece; 0 or at least T for the whole at once.
    *arrays: pytrees of arrays with T along `axis`.
    axis: 1 for the time of [B, T, ...], 0 for its rows.

  Returns:
    Pytree of arrays with T along `axis`.
  """
  length = jax.tree.leaves(arrays)[0].shape[axis]
  if not 0 < chunk < length:
    return function(*arrays)
  padding = -length % chunk

  def cut(x):
    x = jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1:]), axis, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2:])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)

  piece = jax.checkpoint(lambda one: function(*one))
  return jax.tree.map(join, jax.lax.map(piece, jax.tree.map(cut, arrays)))


def gather_logprobs(logits, tokens):
  """log softmax(logits) [..., V] at tokens [...], in float32: logit - logsumexp, no second array.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  chosen = jnp.take_along_axis(logits, tokens[..., None].astype(jnp.int32), axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logprobs(model, params, tokens, mask=None, *, temperature=1.0, chunk=0, first=1):
  """log p(tokens[:, t] | tokens[:, :t]) for t = first .. T - 1.

  Args:
    model: DecoderLM.
    params: its parameters.
    tokens: int [B, T].
    mask: [B, T], 0 on padding at either side; None for none.
    temperature: > 0; logits are divided by it.
    chunk: positions whose logits exist at once; 0 for all.
    first: position of the first scored token, at least 1: the length of the prompt.

  Returns:
    float32 [B, T - first]; what stands at padding means nothing.
  """
  x, _ = model.apply({'params': params}, tokens, mask, method='hidden')

  def score(x, targets):
    logits = model.apply({'params': params}, x, method='logits')
    return gather_logprobs(logits / temperature, targets)

  return over_chunks(score, chunk, x[:, first - 1:-1], tokens[:, first:])
