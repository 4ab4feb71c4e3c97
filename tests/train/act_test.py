"""`act`: once a step, outside the gradient, the same on any number of devices, in clients too."""
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated, optim, parallel
from jaxlab.federated.client import ClientData
from jaxlab.task import Loss, row_keys
from jaxlab.train import TrainState, task_gradient, train_step
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
TOY = toy.softmax_task()
BATCH = {**toy.columns(8), 'weight': np.array([3, 1, .5, 2, 0, 0, 1, 5], np.float32)}


def noisy_act(variables, batch, key):
  """Inputs with a noise of each row, as large as the weights are."""
  scale = jnp.abs(variables['params']['w']).mean()
  noise = jax.vmap(lambda k: jax.random.normal(k, batch['x'].shape[1:]))(
      row_keys(key, len(batch['x'])))
  return {**batch, 'x': batch['x'] + scale * noise}


TASK = dataclasses.replace(TOY, act=noisy_act)


def take(task=TASK, optimizer=None, count=1, steps=2, accumulate=1):
  optimizer = optimizer or optax.sgd(0.5)
  params, zero = task.init(jax.random.key(0))['params'], jnp.zeros((), jnp.int32)
  state = TrainState(zero, params, {}, optimizer.init(params), jax.random.key(1), zero, zero, {})
  devices = jax.devices()[:count]
  program = jax.pmap(
      functools.partial(train_step, task=task, optimizer=optimizer, accumulate=accumulate,
                        trainable=jax.tree.map(lambda _: True, params)),
      axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None), devices=devices)
  for _ in range(steps):
    state, metrics = program(state, {}, parallel.split(BATCH, devices))
    parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


class ActTest(parameterized.TestCase):

  @parameterized.product(count=[1, 2, 4], accumulate=[1, 2])
  def test_devices_and_microbatches_change_nothing(self, count, accumulate):
    chex.assert_trees_all_close(take(), take(count=count, accumulate=accumulate), atol=1e-5)

  def test_it_matters_and_every_step_draws_anew(self):
    one, plain = take(steps=1), take(TOY, steps=1)
    self.assertGreater(np.abs(one[0]['w'] - plain[0]['w']).max(), 1e-3)
    frozen = optax.sgd(0.0)
    losses = [float(take(optimizer=frozen, steps=n)[1]['loss']) for n in (1, 2, 1)]
    self.assertEqual(losses[0], losses[2])
    self.assertNotEqual(losses[0], losses[1])

  def test_it_is_not_differentiated(self):
    # What is acted out depends on the parameters, but the gradient takes it as given.
    task = dataclasses.replace(
        TOY, act=lambda variables, batch, key: {**batch, 'seen': jnp.full(
            len(batch['weight']), variables['params']['w'].sum())},
        loss=lambda variables, batch, key: Loss(
            batch['seen'] * variables['params']['w'].sum(), batch['weight']))
    params = TOY.init(jax.random.key(0))['params']
    gradient, _ = task_gradient(task)(params, BATCH, jax.random.key(0))
    np.testing.assert_allclose(gradient['w'], params['w'].sum(), rtol=1e-5)

  def test_a_second_gradient_acts_no_more(self):
    params, key = TOY.init(jax.random.key(0))['params'], jax.random.key(3)
    gradient = task_gradient(TASK)
    acted = gradient.act(params, BATCH, key)
    first = gradient.given(params, acted, key)[0]
    chex.assert_trees_all_equal(first, gradient(params, BATCH, key)[0])
    elsewhere = jax.tree.map(lambda x: 3 * x, params)
    plain = task_gradient(TOY)(elsewhere, acted, key)[0]
    chex.assert_trees_all_close(gradient.given(elsewhere, acted, key)[0], plain, atol=1e-6)
    self.assertGreater(
        np.abs(gradient(elsewhere, BATCH, key)[0]['w'] - plain['w']).max(), 1e-3)
    optimizer = optim.sam(optax.sgd(0.5), rho=2.0)
    step_key = jax.random.fold_in(jax.random.key(1), 0)
    acted = gradient.act(params, BATCH, step_key)
    first = gradient.given(params, acted, step_key)[0]
    updates, _ = optimizer.update(first, optimizer.init(params), params,
                                  grad_fn=lambda p: gradient.given(p, acted, step_key)[0])
    expected = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(take(optimizer=optimizer, steps=1)[0], expected, atol=1e-5)

  def test_clients_act_too(self):
    config = {'seed': 0, 'federated': {
        'num_clients': 4, 'cohort_size': 2, 'rounds': 2, 'batch_size': 4, 'eval_every': 0,
        'partition': {'name': 'iid'}, 'algorithm': {'name': 'fedavg'},
        'client_optimizer': {'name': 'sgd', 'learning_rate': 0.5}}}
    run = lambda task: parallel.to_host(
        federated.simulate(task, config, devices=jax.devices()[:1]).params)
    acting, again, plain = run(TASK), run(TASK), run(TOY)
    toy.assert_trees_equal(acting, again)
    self.assertGreater(np.abs(acting['w'] - plain['w']).max(), 1e-3)

  @parameterized.parameters(0.0, 0.1)
  def test_a_clients_second_gradient_acts_no_more(self, proximal):
    """The client's one step is that of SAM at what was acted out before it."""
    params, key = TOY.init(jax.random.key(0))['params'], jax.random.key(2)
    gradient, optimizer = task_gradient(TASK), optim.sam(optax.sgd(0.5), rho=2.0)
    algorithm = federated.fedopt(gradient, optimizer, optax.sgd(1.0), proximal=proximal)
    rows = jnp.arange(8, dtype=jnp.int32)[None]
    data = ClientData(jax.tree.map(jnp.asarray, toy.columns(8)), rows, jnp.ones((), jnp.int32))
    delta, _, _ = algorithm.client(params, (), data, key)
    batch = {**toy.columns(8), 'weight': np.ones(8, np.float32)}
    step_key = jax.random.fold_in(key, 0)
    acted = gradient.act(params, batch, step_key)

    def given(p):
      grads = gradient.given(p, acted, step_key)[0]
      return jax.tree.map(lambda g, y, x: g + proximal * (y - x), grads, p, params)

    updates, _ = optimizer.update(given(params), optimizer.init(params), params, grad_fn=given)
    chex.assert_trees_all_close(delta, updates, atol=1e-5)

  def test_row_keys_number_the_rows_of_all_devices(self):
    key = jax.random.key(5)
    bits = lambda keys: np.asarray(jax.random.key_data(keys))
    whole = bits(row_keys(key, 8))
    split = jax.pmap(lambda _: jax.random.key_data(row_keys(key, 4)), axis_name=parallel.BATCH,
                     devices=jax.devices()[:2])(np.zeros(2))
    np.testing.assert_array_equal(np.reshape(split, whole.shape), whole)
    self.assertLen(np.unique(whole, axis=0), 8)


if __name__ == '__main__':
  absltest.main()
