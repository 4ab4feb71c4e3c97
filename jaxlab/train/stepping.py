"""Training inside one of the compiled runs of `parallel.map_runs`."""
import jax
import jax.numpy as jnp
import optax


def draw_batches(columns, rows, size, key):
  """The function step number -> (batch, key of the step), of rows drawn with replacement.

  Args:
    columns: {name: [N, ...]}.
    rows: how many of the N are drawn from, the first ones.
    size: of a batch, all of whose weights are 1.
    key: JAX key.
  """
  def batch_of(number):
    draw_key, step_key = jax.random.split(jax.random.fold_in(key, number))
    chosen = jax.random.randint(draw_key, (size,), 0, rows)
    return {**jax.tree.map(lambda x: x[chosen], columns), 'weight': jnp.ones(size)}, step_key
  return batch_of


def update_step(gradient, optimizer, batch_of):
  """The body of a scan over step numbers: ((params, optimizer state), number) -> (the same, aux).

  Args:
    gradient: (params, batch, key) -> (gradient, aux).
    optimizer: GradientTransformation.
    batch_of: number -> (batch, key).
  """
  def step(carry, number):
    params, state = carry
    grads, aux = gradient(params, *batch_of(number))
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), aux
  return step
