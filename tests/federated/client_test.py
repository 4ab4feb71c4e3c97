"""What a client does with its padded batches."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim, train
from jaxlab.federated import ClientData, client
from tests import toy

TASK = toy.softmax_task(rows=20)
TABLE = toy.columns(20)
GRADIENT = train.task_gradient(TASK)
OPTIMIZERS = {'momentum': lambda: optax.sgd(0.1, momentum=0.9),
              'adasam': lambda: optim.adasam(0.05, rho=0.2)}
KEY = jax.random.key(7)
P = -1  # padding
ROWS = [[3, 1, 4], [15, 9, 2], [6, 5, P]]
PADDED = {
    'nothing': ROWS, 'steps at the end': [*ROWS, [P] * 3, [P] * 3],
    'rows': [[*step, P, P] for step in ROWS],
}


def data(rows, bound=None):
  index = jnp.asarray(rows, jnp.int32)
  return ClientData(TABLE, index, jnp.asarray(len(rows) if bound is None else bound, jnp.int32))


def params():
  return TASK.init(jax.random.key(0))['params']


@functools.cache
def local(name):
  """A client that sends its last carry, its number of steps and its state plus one."""
  optimizer = optax.with_extra_args_support(OPTIMIZERS[name]())

  def step(carry, batch, key):
    *carry, sums = client.optimizer_step(GRADIENT, optimizer, *carry, batch, key)
    return tuple(carry), sums

  return jax.jit(client.client_update(
      lambda payload, client_state, key: (payload, optimizer.init(payload)), step,
      lambda payload, client_state, carry, count: (carry, client_state + 1, {'count': count})))


def by_hand(name, rows):
  """The same by a plain loop over the real rows."""
  optimizer = optax.with_extra_args_support(OPTIMIZERS[name]())
  gradient = jax.jit(GRADIENT)
  carry, losses, weights = (params(), optimizer.init(params())), [], []
  for step in rows:
    real = [row for row in step if row != P]
    if real:
      batch = {**{k: v[real] for k, v in TABLE.items()}, 'weight': np.ones(len(real), np.float32)}
      grads, sums = gradient(carry[0], batch, KEY)
      updates, state = optimizer.update(
          grads, carry[1], carry[0], grad_fn=lambda p, batch=batch: gradient(p, batch, KEY)[0])
      carry = optax.apply_updates(carry[0], updates), state
      losses.append(sums['loss'][0])
      weights.append(sums['loss'][1])
  return carry, np.sum(losses) / np.sum(weights)


class RowsTest(parameterized.TestCase):

  def test_rows_of_the_table(self):
    batch, real = client.batch_rows(data([[3, P], [P, P], [0, 19]]), 2)
    np.testing.assert_array_equal(batch['id'], [0, 19])
    np.testing.assert_array_equal(batch['x'], TABLE['x'][[0, 19]])
    np.testing.assert_array_equal(batch['weight'], 1)
    self.assertTrue(real)

  def test_padding_weighs_nothing(self):
    given = data([[3, P], [P, P]])
    for step, weights in ((0, [1, 0]), (1, [0, 0])):
      batch, real = client.batch_rows(given, step)
      np.testing.assert_array_equal(batch['weight'], weights)
      self.assertEqual(bool(real), any(weights))

  def test_weights_of_the_table_are_kept(self):
    table = {**TABLE, 'weight': np.arange(20, dtype=np.float32)}
    batch, _ = client.batch_rows(data([[3, P, 5]])._replace(table=table), 0)
    np.testing.assert_array_equal(batch['weight'], [3, 0, 5])


class ClientUpdateTest(parameterized.TestCase):

  @parameterized.product(name=list(OPTIMIZERS), padding=list(PADDED))
  def test_equals_a_plain_loop(self, name, padding):
    carry, state, metrics = local(name)(params(), jnp.zeros(()), data(PADDED[padding]), KEY)
    expected, loss = by_hand(name, ROWS)
    chex.assert_trees_all_close(carry, expected, atol=1e-5, rtol=1e-5)
    self.assertEqual((float(state), int(metrics['count'])), (1, 3))
    self.assertAlmostEqual(float(metrics['loss']), float(loss), places=5)
    self.assertEqual(set(metrics), {'loss', 'accuracy', 'count'})

  @parameterized.parameters(*OPTIMIZERS)
  def test_a_padded_step_keeps_every_bit_of_the_carry(self, name):
    bare, _, metrics = local(name)(params(), jnp.zeros(()), data(ROWS), KEY)
    more, _, padded = local(name)(params(), jnp.zeros(()), data([*ROWS, [P] * 3, [P] * 3]), KEY)
    toy.assert_trees_equal((bare, metrics), (more, padded))
    # It matters: a step with a zero gradient would move what has momentum.
    optimizer = OPTIMIZERS[name]()
    zero = jax.tree.map(jnp.zeros_like, bare[0])
    updates, _ = optax.with_extra_args_support(optimizer).update(
        zero, bare[1], bare[0], grad_fn=lambda p: zero)
    self.assertGreater(float(optax.tree.norm(updates)), 1e-3)

  def test_steps_at_or_beyond_the_bound_do_not_run(self):
    cut, _, metrics = local('momentum')(params(), jnp.zeros(()), data(ROWS, bound=2), KEY)
    chex.assert_trees_all_close(cut, by_hand('momentum', ROWS[:2])[0], atol=1e-5)
    self.assertEqual(int(metrics['count']), 2)

  def test_a_client_without_rows(self):
    for given in (data([[P] * 3] * 2), data(ROWS, bound=0)):
      carry, _, metrics = local('momentum')(params(), jnp.zeros(()), given, KEY)
      toy.assert_trees_equal(carry, (params(), OPTIMIZERS['momentum']().init(params())))
      self.assertEqual((int(metrics['count']), float(metrics['loss'])), (0, 0))

  def test_a_step_draws_by_its_number(self):
    def step(carry, batch, key):
      return jnp.concatenate([carry[1:], jax.random.normal(key, (1,))]), {}

    run = client.client_update(
        lambda payload, client_state, key: payload, step,
        lambda payload, client_state, carry, count: (carry, client_state, {}))
    draws = jax.jit(run)(jnp.zeros(3), (), data(ROWS), KEY)[0]
    np.testing.assert_allclose(
        draws, [jax.random.normal(jax.random.fold_in(KEY, i), ()) for i in range(3)], rtol=1e-6)

  @parameterized.parameters(1, 3)
  def test_vmapped_clients_do_what_single_ones_do(self, bound):
    index = np.array([ROWS, [[7, 8, P], [P] * 3, [P] * 3]], np.int32)
    both = jax.vmap(local('adasam'), in_axes=(None, 0, client.CLIENT_AXES, None))(
        params(), jnp.zeros(2), data(index[0], bound)._replace(index=index), KEY)
    for i in range(2):
      alone = local('adasam')(params(), jnp.zeros(()), data(index[i], bound), KEY)
      chex.assert_trees_all_close(jax.tree.map(lambda x: x[i], both), alone, atol=1e-5, rtol=1e-5)

  @parameterized.parameters(*OPTIMIZERS)
  def test_microbatches_change_nothing(self, name):
    weights = np.array([1, 1, 0, 2, 0, 0], np.float32)
    batch = {**{k: v[:6] for k, v in TABLE.items()}, 'weight': weights}
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name]())
    results = [jax.jit(functools.partial(
        client.optimizer_step, train.task_gradient(TASK, accumulate=accumulate), optimizer))(
            params(), optimizer.init(params()), batch, KEY) for accumulate in (1, 2, 3)]
    chex.assert_trees_all_close(*results, atol=1e-5, rtol=1e-5)


class HelpersTest(parameterized.TestCase):

  def test_parameters_keep_their_dtype(self):
    small = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params())
    batch = {**{k: v[:4] for k, v in TABLE.items()}, 'weight': np.ones(4, np.float32)}
    optimizer = optax.with_extra_args_support(optax.scale(np.float32(0.1)))  # float32 updates
    moved = client.optimizer_step(GRADIENT, optimizer, small, optimizer.init(small), batch, KEY)[0]
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(moved)}, {jnp.dtype(jnp.bfloat16)})

  def test_difference(self):
    toy.assert_trees_equal(client.difference({'x': np.array([3.0])}, {'x': np.array([1.0])}),
                           {'x': np.array([2.0])})


if __name__ == '__main__':
  absltest.main()
