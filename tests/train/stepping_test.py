"""Updates inside a scan, and the batches they are made on."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from jaxlab.train import stepping


class SteppingTest(absltest.TestCase):

  def test_batches_are_whole_rows_of_the_first_and_differ_by_step(self):
    columns = {'a': jnp.arange(10.0), 'b': 2 * jnp.arange(10.0)[:, None]}
    batch_of = stepping.draw_batches(columns, 6, 64, jax.random.key(0))
    batch, key = batch_of(3)
    self.assertEqual(set(np.asarray(batch['a']).tolist()), set(range(6)))
    np.testing.assert_array_equal(batch['b'][:, 0], 2 * batch['a'])
    np.testing.assert_array_equal(batch['weight'], np.ones(64))
    other, other_key = batch_of(4)
    self.assertFalse(np.array_equal(batch['a'], other['a']))
    self.assertNotEqual(*(jax.random.key_data(k).tobytes() for k in (key, other_key)))
    np.testing.assert_array_equal(batch_of(3)[0]['a'], batch['a'])

  def test_a_scan_is_the_same_as_updates_one_by_one(self):
    x = jax.random.normal(jax.random.key(1), (20, 3))
    gradient = lambda w, batch, key: jax.grad(lambda w: (
        ((batch['x'] @ w - 1 - jax.random.normal(key))**2).mean(), batch['x'].sum()),
        has_aux=True)(w)
    batch_of = stepping.draw_batches({'x': x}, 20, 4, jax.random.key(2))
    optimizer, start = optax.adam(0.1), jnp.zeros(3)
    step = stepping.update_step(gradient, optimizer, batch_of)
    (scanned, _), sums = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(5))
    params, state = start, optimizer.init(start)
    for number in range(5):
      batch, key = batch_of(number)
      grads, total = gradient(params, batch, key)
      np.testing.assert_allclose(sums[number], total, rtol=1e-5)
      change, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, change)
    np.testing.assert_allclose(scanned, params, rtol=1e-5)
    self.assertGreater(np.abs(params).min(), 0)


if __name__ == '__main__':
  absltest.main()
