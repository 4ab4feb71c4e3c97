"""Which leaves an optimizer touches, and in which precision it does so.

Optimizers compute in accumulators: float32, or float64 for float64 parameters. Leaves that are not
floating (counters), and leaves that `optax.masked` hides, have no accumulator: an
`optax.MaskedNode`, which is an empty subtree to JAX, stands in their place.
"""
import jax
import jax.numpy as jnp
import optax


def left_out(node):
  """True for the placeholder of a leaf without accumulator; meant for `is_leaf=`."""
  return isinstance(node, optax.MaskedNode)


def accumulators(tree, like):
  """Casts `tree` to the dtypes of the accumulators of `like`.

  Args:
    tree: pytree of arrays, shaped like `like`.
    like: parameters or accumulators; leaves that are not floating, and placeholders, are left out.

  Returns:
    The tree with float32 leaves (float64 where `like` is float64) and placeholders.
  """
  def leaf(like, x):
    if left_out(like) or not jnp.issubdtype(jnp.result_type(like), jnp.floating):
      return optax.MaskedNode()
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(like), jnp.float32))
  return jax.tree.map(leaf, like, tree, is_leaf=left_out)


def constant(params, value, dtype=None):
  """Accumulators of `params` filled with `value`, in `dtype` instead of their own if given."""
  full = lambda x: jnp.full_like(x, value, dtype=dtype)
  return jax.tree.map(full, accumulators(params, params))


def to_updates(steps, like):
  """Casts accumulators to the dtypes of `like`, with 0 for the leaves that have none."""
  def leaf(step, like):
    if left_out(step):
      return jax.tree.map(jnp.zeros_like, like)
    return step.astype(jnp.result_type(like))
  return jax.tree.map(leaf, steps, like, is_leaf=left_out)
