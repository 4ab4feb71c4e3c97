"""One training step: global gradients, second gradients, microbatches, bad steps."""
import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim, parallel
from jaxlab.task import Loss
from jaxlab.train import TrainState, step, task_gradient, train_step
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
TASK = toy.softmax_task()
# Every device of 2 or 4 sees another sum of weights, and one of 4 sees none.
BATCH = {**toy.columns(8), 'weight': np.array([3, 1, .5, 2, 0, 0, 1, 5], np.float32)}
OPTIMIZERS = {
    'sgd': lambda: optax.sgd(0.5), 'adasam': lambda: optim.adasam(0.1, rho=0.5),
    'chain': lambda: optax.chain(
        optax.clip_by_global_norm(0.1), optim.adasam(0.1, rho=0.5), optax.scale(0.5)),
}


def start(task, optimizer, trainable=None):
  """(TrainState before the first step, mask of all parameters unless given)."""
  parts = dict(jax.jit(task.init)(jax.random.key(0)))
  params = parts.pop('params')
  trainable = trainable or jax.tree.map(lambda _: True, params)
  zero = jnp.zeros((), jnp.int32)
  opt_state = optimizer.init(step.select(params, trainable))
  return TrainState(zero, params, parts, opt_state, jax.random.key(1), zero, zero, {}), trainable


def take(task, optimizer, batch=BATCH, count=1, steps=2, trainable=None, **options):
  """(state, metrics) after some steps on the same batch."""
  state, trainable = start(task, optimizer, trainable)
  devices = jax.devices()[:count]
  program = jax.pmap(
      functools.partial(train_step, task=task, optimizer=optimizer, trainable=trainable, **options),
      axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None), devices=devices)
  for _ in range(steps):
    state, metrics = program(state, {}, parallel.split(batch, devices))
    parallel.assert_replicated((state, metrics))
  return parallel.to_host((state, metrics))


@functools.cache
def reference(name):
  """`take` on one device, all rows at once."""
  return take(TASK, OPTIMIZERS[name]())


def mean_loss(params, batch, key=None):
  """The weighted mean by its definition, in one line."""
  out = TASK.loss({'params': params}, batch, key)
  return (out.values * out.weights).sum() / out.weights.sum()


def counting_task():
  """The toy Task that counts microbatches and sums their weights in its running state."""
  def init(key):
    zero = jnp.zeros(())
    return {**TASK.init(key), 'stats': {'calls': zero, 'weight': zero}, 'more': jnp.ones(2)}

  def loss(variables, batch, key):
    stats = variables['stats']
    new = {'calls': stats['calls'] + 1, 'weight': stats['weight'] + batch['weight'].sum()}
    return TASK.loss(variables, batch, key)._replace(state={'stats': new})

  return dataclasses.replace(TASK, init=init, loss=loss)


class TreesTest(parameterized.TestCase):

  def test_select_and_merge_are_inverse(self):
    tree = {'a': {'x': 1, 'y': 2}, 'b': 3}
    mask = {'a': {'x': True, 'y': False}, 'b': True}
    chosen = step.select(tree, mask)
    self.assertEqual(jax.tree.leaves(chosen), [1, 3])
    rest = step.select(tree, jax.tree.map(lambda keep: not keep, mask))
    self.assertEqual(jax.tree.leaves(rest), [2])
    self.assertEqual(step.merge(mask, chosen, rest), tree)
    self.assertEqual(step.merge(mask, {'a': {'x': 8, 'y': None}, 'b': 9}, rest),
                     {'a': {'x': 8, 'y': 2}, 'b': 9})

  @parameterized.parameters(True, False)
  def test_tree_where(self, condition):
    new = {'x': jnp.array([jnp.nan, 1.0]), 'key': jax.random.key(1), 'n': jnp.array(1)}
    old = {'x': jnp.array([2.0, 3.0]), 'key': jax.random.key(2), 'n': jnp.array(2)}
    out = jax.jit(step.tree_where)(condition, new, old)
    toy.assert_trees_equal(out, new if condition else old)

  @parameterized.parameters(
      ({'x': [1.0, 2.0], 'n': [1]}, True), ({'x': [1.0, np.nan]}, False), ({'x': [np.inf]}, False),
      ({'x': [1.0], 'y': [[-np.inf]]}, False), ({'n': [2 ** 31 - 1]}, True), ({}, True))
  def test_all_finite(self, tree, expected):
    tree = {name: jnp.asarray(x) for name, x in tree.items()}
    self.assertEqual(bool(step.all_finite(tree)), expected)
    self.assertEqual(bool(step.all_finite({**tree, 'key': jax.random.key(0)})), expected)

  @parameterized.parameters((jnp.float32, 'cpu'), (jnp.bfloat16, 'cpu'), (jnp.float32, 'tpu'))
  def test_each_finite(self, dtype, backend):
    self.enter_context(mock.patch.object(jax, 'default_backend', lambda: backend))
    # Large enough for XLA's vectorised kernels, whose maximum, for one, drops NaN.
    rows = np.random.default_rng(0).normal(size=(9, 300, 62)).astype(np.float32)
    rows[1, 7, 60], rows[2, 299, 61], rows[3, 0, 0] = np.nan, np.inf, -np.inf
    rows[4, 5, 5], rows[4, 5, 6] = np.inf, -np.inf
    rows[5] = 3e38  # finite, and its sum is not
    rows[6], rows[6, 200, 3] = -3e38, np.nan
    bias, expected = np.zeros((9, 2), np.float32), [True, False, False, False, False, True, False]
    bias[8, 1], expected = np.inf, [*expected, True, False]
    tree = {'kernel': jnp.asarray(rows, dtype), 'bias': bias, 'n': np.arange(9)}
    found = jax.jit(step.each_finite)(tree)
    self.assertEqual(found.tolist(), expected)
    every = jax.jit(step.all_finite)
    one_by_one = [bool(every(jax.tree.map(lambda x: x[i], tree))) for i in range(9)]
    self.assertEqual(one_by_one, expected)
    self.assertEqual(jax.vmap(step.all_finite)(tree).tolist(), expected)


class GradientTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 4, 8)
  def test_microbatches_sum_to_the_same(self, accumulate):
    params = TASK.init(jax.random.key(0))['params']
    loss = lambda params, running, rows, key: TASK.loss({'params': params}, rows, key)
    gradient, sums, running = jax.jit(functools.partial(
        step.summed_gradient, loss, accumulate=accumulate))(params, {}, BATCH, jax.random.key(1))
    scale = BATCH['weight'].sum()
    expected = jax.tree.map(lambda g: g * scale, jax.jit(jax.grad(mean_loss))(params, BATCH))
    chex.assert_trees_all_close(gradient, expected, atol=1e-5, rtol=1e-5)
    self.assertEqual(set(sums), {'loss', 'accuracy'})
    self.assertAlmostEqual(float(sums['loss'][0] / scale), float(mean_loss(params, BATCH)),
                           places=5)
    self.assertEqual(float(sums['loss'][1]), scale)
    self.assertEqual(running, {})

  @parameterized.parameters(1, 4)
  def test_running_state_goes_through_the_microbatches(self, accumulate):
    state, _ = take(counting_task(), optax.sgd(0.1), steps=3, accumulate=accumulate)
    self.assertEqual(float(state.running['stats']['calls']), 3 * accumulate)
    self.assertEqual(float(state.running['stats']['weight']), 3 * BATCH['weight'].sum())
    np.testing.assert_array_equal(state.running['more'], 1)  # what a loss does not return stays

  def test_microbatches_draw_their_own_noise(self):
    draws = lambda variables, batch, key: Loss(
        jax.random.normal(key, (len(batch['weight']),)), batch['weight'])
    task = dataclasses.replace(TASK, loss=draws)
    batch = {'weight': np.ones(4, np.float32)}
    gradients = [jax.jit(task_gradient(task, accumulate=n)) for n in (1, 2)]
    sums = [float(gradient({'w': jnp.ones(1)}, batch, jax.random.key(k))[1]['loss'][0])
            for gradient in gradients for k in (0, 1)]
    self.assertLen(set(sums), 4)
    one = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (2,)).sum()
    other = jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (2,)).sum()
    self.assertAlmostEqual(sums[2], float(one + other), places=5)

  @parameterized.parameters(1, 2, 4)
  def test_task_gradient_is_that_of_the_mean(self, accumulate):
    params = TASK.init(jax.random.key(0))['params']
    gradient, sums = jax.jit(task_gradient(TASK, accumulate=accumulate))(
        params, BATCH, jax.random.key(1))
    chex.assert_trees_all_close(gradient, jax.jit(jax.grad(mean_loss))(params, BATCH), atol=1e-6)
    self.assertEqual(float(sums['loss'][1]), BATCH['weight'].sum())

  def test_task_gradient_sees_constants(self):
    def loss(variables, batch, key):
      return Loss(variables['params']['x'] * variables['constants']['c'] * batch['weight'],
                  batch['weight'])
    task = dataclasses.replace(TASK, loss=loss)
    gradient, _ = task_gradient(task, {'c': jnp.array(3.0)})(
        {'x': jnp.array(1.0)}, {'weight': jnp.ones(4)}, jax.random.key(0))
    self.assertEqual(float(gradient['x']), 3.0)


class StepTest(parameterized.TestCase):

  def test_sgd_by_hand(self):
    state, metrics = take(TASK, optax.sgd(0.5), steps=1)
    before = start(TASK, optax.sgd(0.5))[0].params
    value, gradient = jax.value_and_grad(mean_loss)(before, BATCH)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, before, gradient)
    chex.assert_trees_all_close(state.params, expected, atol=1e-6)
    self.assertEqual(set(metrics),
                     {'loss', 'accuracy', 'grad_norm', 'bad_steps', 'skipped'})
    self.assertAlmostEqual(float(metrics['loss']), float(value), places=5)
    self.assertAlmostEqual(float(metrics['grad_norm']), float(optax.tree.norm(gradient)), places=5)
    logits = BATCH['x'] @ before['w'] + before['b']
    self.assertAlmostEqual(float(metrics['accuracy']), np.average(
        logits.argmax(-1) == BATCH['label'], weights=BATCH['weight']), places=5)
    self.assertEqual((int(state.step), int(state.bad_steps), int(state.skipped)), (1, 0, 0))

  def test_adasam_by_hand(self):
    optimizer = optim.adasam(0.1, rho=0.5)
    state, _ = take(TASK, optimizer, steps=1)
    params = start(TASK, optimizer)[0].params
    gradient = jax.jit(lambda p: jax.grad(mean_loss)(p, BATCH))
    updates, _ = optimizer.update(
        gradient(params), optimizer.init(params), params, grad_fn=gradient)
    chex.assert_trees_all_close(state.params, optax.apply_updates(params, updates), atol=1e-5)

  @parameterized.product(name=list(OPTIMIZERS), devices=[2, 4])
  def test_unequal_weights_on_the_devices_change_nothing(self, name, devices):
    chex.assert_trees_all_close(
        reference(name), take(TASK, OPTIMIZERS[name](), count=devices), atol=1e-5, rtol=1e-4)

  @parameterized.product(name=['sgd', 'adasam'], devices=[1, 2], accumulate=[2, 4])
  def test_microbatches_change_nothing(self, name, devices, accumulate):
    state = take(TASK, OPTIMIZERS[name](), count=devices, accumulate=accumulate)
    chex.assert_trees_all_close(reference(name), state, atol=1e-5, rtol=1e-4)

  def test_local_gradients_are_shares_of_the_global_one(self):
    def update(updates, state, params=None, *, grad_fn, local_grads, **_):
      second = grad_fn(params)
      same = lambda a, b: jnp.max(jnp.abs(a - b))
      return updates, {
          'sum': jax.tree.map(same, parallel.psum(local_grads), updates),
          'second': jax.tree.map(same, second, updates),
          'spread': parallel.pmax(jax.tree.map(same, local_grads, updates))}

    init = lambda params: {name: jax.tree.map(lambda p: jnp.zeros(()), params)
                           for name in ('sum', 'second', 'spread')}
    state, _ = take(TASK, optax.GradientTransformationExtraArgs(init, update), count=4, steps=1)
    for name in ('sum', 'second'):
      self.assertLess(max(jax.tree.leaves(state.opt_state[name])), 1e-6)
    self.assertGreater(min(jax.tree.leaves(state.opt_state['spread'])), 1e-3)

  def test_what_is_not_trained_stays(self):
    optimizer = optim.adasam(0.1, rho=0.5)
    state, metrics = take(TASK, optimizer, trainable={'w': False, 'b': True})
    before = parallel.to_host(start(TASK, optimizer)[0].params)
    np.testing.assert_array_equal(state.params['w'], before['w'])
    self.assertTrue((state.params['b'] != before['b']).all())
    self.assertLen(jax.tree.leaves(state.opt_state), 4)  # a count and three moments of b alone
    gradient = jax.grad(mean_loss)(state.params, BATCH)
    self.assertLess(float(metrics['grad_norm']), float(optax.tree.norm(gradient)))

  @parameterized.parameters('gradient', 'gradient, hidden', 'update', 'loss')
  def test_a_bad_step_changes_nothing_but_the_counters(self, where):
    def loss(variables, batch, key):
      out = TASK.loss(variables, batch, key)
      w = variables['params']['w']
      if 'gradient' in where:  # finite values whose derivative is not
        extra = jnp.sqrt(jnp.abs(w - jax.lax.stop_gradient(w))).sum()
      else:
        extra = jnp.inf if where == 'loss' else 0.0
      return out._replace(values=out.values + extra, state={'stats': variables['stats'] + 1})

    task = dataclasses.replace(
        TASK, init=lambda key: {**TASK.init(key), 'stats': jnp.zeros(())}, loss=loss)
    optimizer = optax.adam(0.1)
    if where == 'update':
      optimizer = optax.chain(optimizer, optax.scale(jnp.inf))
    if 'hidden' in where:
      optimizer = optax.chain(optax.set_to_zero(), optimizer)
    before = parallel.to_host(start(task, optimizer)[0])
    state, metrics = take(task, optimizer, count=2, steps=3)
    counters = {'step': 0, 'bad_steps': 0, 'skipped': 0}
    toy.assert_trees_equal(state._replace(**counters), before._replace(**counters))
    self.assertEqual((int(state.step), int(state.bad_steps), int(state.skipped)), (3, 3, 3))
    self.assertEqual((int(metrics['bad_steps']), int(metrics['skipped'])), (3, 3))

  def test_a_good_step_ends_a_row_of_bad_ones(self):
    state, trainable = start(TASK, optax.sgd(0.1))
    program = jax.jit(functools.partial(train_step, task=TASK, optimizer=optax.sgd(0.1),
                                        trainable=trainable))
    bad = {**BATCH, 'x': BATCH['x'] * np.nan}
    counters = []
    for batch in (bad, bad, BATCH, bad):
      state, _ = program(state, {}, batch)
      counters.append((int(state.bad_steps), int(state.skipped)))
    self.assertEqual(counters, [(1, 1), (2, 2), (0, 2), (1, 3)])

  def test_devices_and_steps_draw_their_own_noise(self):
    def loss(variables, batch, key):
      return Loss(0 * batch['x'].sum(-1) + variables['params']['b'].sum(), batch['weight'],
                  {'noise': (jax.random.normal(key, batch['weight'].shape), batch['weight'])})

    task = dataclasses.replace(TASK, loss=loss)
    batch = {**toy.columns(4), 'weight': np.ones(4, np.float32)}
    noise = [float(take(task, optax.sgd(0.0), batch, count, steps)[1]['noise'])
             for count, steps in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 1))]
    self.assertLen(set(noise), 4)
    self.assertEqual(noise[0], noise[-1])
    key = jax.random.fold_in(jax.random.key(1), 0)
    expected = np.mean([jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, d), 0), (2,))
                        for d in range(2)])
    self.assertAlmostEqual(noise[1], float(expected), places=5)

  def test_with_params(self):
    state, _ = start(TASK, optax.sgd(0.1))
    other = state.with_params({'w': 1})
    self.assertEqual((other.params, other.opt_state), ({'w': 1}, state.opt_state))


if __name__ == '__main__':
  absltest.main()
