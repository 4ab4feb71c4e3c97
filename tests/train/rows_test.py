"""Row-wise updates: what they touch, what rests, and that they are the dense step elsewhere."""
import dataclasses
import functools
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim, parallel
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.task import Loss, Task
from jaxlab.train import Hook, TrainState, fit, rows, step, train_step
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
V = 40
TABLE, BIAS = 'embed/table', 'embed/bias'


def make_task(named=lambda ids: ids):
  """Two ids a row into two tables of one set of ids; `named` is what `rows` says of them."""
  def init(key):
    table = jax.random.normal(key, (V, 3))
    return {'params': {'embed': {'table': table, 'bias': jnp.zeros(V)}, 'w': jnp.ones(3),
                       'table': jnp.ones((V, 3))}}  # a path that ends like a table's is none

  def loss(variables, batch, key):
    params = variables['params']
    x = params['embed']['table'][batch['ids']].sum(1)
    logit = x @ params['w'] + params['embed']['bias'][batch['ids']].sum(1)
    values = optax.sigmoid_binary_cross_entropy(logit, batch['label'])
    return Loss(values + params['table'].mean(), batch['weight'])

  def name_rows(batch):
    ids = named(batch['ids'])
    return {TABLE: ids, BIAS: ids}

  data = {**make_batch(16), 'id': np.arange(16)}
  del data['weight']
  return Task(init, loss, None, lambda pairs: {}, lambda split: pipeline.from_arrays(data),
              rows=name_rows)


def make_batch(size=8, high=20, seed=0):
  rng = np.random.default_rng(seed)
  return {'ids': rng.integers(0, high, (size, 2)).astype(np.int32),
          'label': rng.integers(0, 2, size).astype(np.float32),
          'weight': rng.integers(1, 4, size).astype(np.float32)}


def dense(task):
  return dataclasses.replace(task, rows=None)


def take(task, optimizer, batches, count=1, trainable=None, **options):
  """The TrainState after a step on each batch."""
  params = jax.jit(task.init)(jax.random.key(0))['params']
  trainable = trainable or jax.tree.map(lambda _: True, params)
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(zero, params, {}, optimizer.init(step.select(params, trainable)),
                     jax.random.key(1), zero, zero, {})
  devices = jax.devices()[:count]
  program = jax.pmap(
      functools.partial(train_step, task=task, optimizer=optimizer, trainable=trainable, **options),
      axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None), devices=devices)
  for batch in batches:
    state, metrics = program(state, {}, parallel.split(batch, devices))
    parallel.assert_replicated((state, metrics))
  return parallel.to_host((state, metrics))


OPTIMIZERS = {
    'adam': lambda: optax.adam(0.1),
    'clipped': lambda: optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.1)),
    'sgd, clipped': lambda: optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0)),
    'adasam': lambda: optim.adasam(0.1, rho=0.5, max_norm=0.1),
    'groups': lambda: optim.make_optimizer({
        'name': 'adam', 'learning_rate': 0.1, 'clip_norm': 0.05,
        'groups': ({'match': 'embed/.*'}, {'match': 'w|table', 'learning_rate': 0.01})}),
}


class StepTest(parameterized.TestCase):

  @parameterized.parameters(('adam', 1, 1), ('adam', 4, 1), ('sgd, clipped', 2, 1),
                            ('clipped', 2, 2), ('adasam', 2, 2), ('groups', 1, 1))
  def test_equals_the_dense_step_on_rows_touched_every_step(self, name, count, accumulate):
    task, batch = make_task(), make_batch()
    row_wise = take(task, OPTIMIZERS[name](), [batch] * 3, count, accumulate=accumulate)
    expected = take(dense(task), OPTIMIZERS[name](), [batch] * 3)
    chex.assert_trees_all_close(row_wise, expected, atol=2e-5, rtol=1e-4)
    self.assertGreater(np.ptp(expected[0].params['embed']['table'] -
                              make_task().init(jax.random.key(0))['params']['embed']['table']), .01)

  def test_untouched_rows_and_moments_are_bit_identical(self):
    task, first, second = make_task(), make_batch(), make_batch(high=10, seed=1)
    before, _ = take(task, optax.adam(0.1), [first])
    after, _ = take(task, optax.adam(0.1), [first, second])
    touched = np.isin(np.arange(V), second['ids'])
    resting = np.isin(np.arange(V), first['ids']) & ~touched  # Adam's momentum would move these
    self.assertGreater(resting.sum(), 3)
    for tree in (lambda s: s.params, lambda s: s.opt_state[0].mu, lambda s: s.opt_state[0].nu):
      for leaf in ('table', 'bias'):
        old, new = tree(before)['embed'][leaf], tree(after)['embed'][leaf]
        np.testing.assert_array_equal(new[~touched], old[~touched])
        self.assertTrue((new[touched] != old[touched]).any(tuple(range(1, old.ndim))).all())
    moved = take(dense(task), optax.adam(0.1), [first, second])[0].params['embed']['table']
    self.assertTrue((moved[resting] != before.params['embed']['table'][resting]).all())

  def test_ids_out_of_range_name_nothing(self):
    task, batch = make_task(), make_batch()
    wide = {**batch, 'ids': np.concatenate([batch['ids'], [[V, -1]] * 8], 1).astype(np.int32)}
    chex.assert_trees_all_close(take(task, optax.adam(0.1), [wide]),
                                take(task, optax.adam(0.1), [batch]), atol=1e-6)

  def test_a_table_smaller_than_the_batch(self):
    task, batch = make_task(), make_batch(64, high=V)
    chex.assert_trees_all_close(take(task, optax.sgd(1.0), [batch] * 2),
                                take(dense(task), optax.sgd(1.0), [batch] * 2), atol=1e-5)

  def test_a_row_that_is_not_named_spoils_the_step_instead_of_standing_still(self):
    state, _ = take(make_task(lambda ids: ids[:, :1]), optax.sgd(1.0), [make_batch()])
    self.assertEqual(int(state.skipped), 1)
    toy.assert_trees_equal(state.params, make_task().init(jax.random.key(0))['params'])

  def test_a_frozen_table_stays_whole(self):
    trainable = {'embed': {'table': False, 'bias': True}, 'w': True, 'table': True}
    results = [take(task, optax.adam(0.1), [make_batch()] * 2, trainable=trainable)[0].params
               for task in (make_task(), dense(make_task()))]
    chex.assert_trees_all_close(*results, atol=1e-5)

  def test_the_program_holds_no_second_table(self):
    # Big enough that a copy of the table, or a gradient of its shape, would be seen.
    def init(key):
      return {'params': {'embed': {'table': jnp.ones((100_000, 3)), 'bias': jnp.zeros(100_000)},
                         'w': jnp.ones(3), 'table': jnp.ones((V, 3))}}
    task = dataclasses.replace(make_task(), init=init)
    optimizer, zero = optax.adam(0.1), jnp.zeros((), jnp.int32)
    params = init(None)['params']
    state = TrainState(zero, params, {}, optimizer.init(params), jax.random.key(1), zero, zero, {})
    temporary = []
    for one in (task, dense(task)):
      program = jax.jit(functools.partial(
          train_step, task=one, optimizer=optimizer,
          trainable=jax.tree.map(lambda _: True, params)), donate_argnums=0)
      memory = program.lower(state, {}, make_batch()).compile().memory_analysis()
      temporary.append(memory.temp_size_in_bytes)
    self.assertLess(temporary[0], 100_000)
    self.assertGreater(temporary[1], 1_000_000)


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      (optax.adamw(0.1),), (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),),
      (optax.adamw(optax.linear_schedule(0, 0.1, 10), weight_decay=0.1),))
  def test_whole_table_decay(self, optimizer):
    with self.assertRaisesRegex(ConfigError, '^optimizer: expected no weight decay .* L2 of a '):
      take(make_task(), optimizer, [make_batch()])

  def test_decay_of_other_parameters_is_fine(self):
    mask = {'embed': {'table': False, 'bias': False}, 'w': True, 'table': True}
    state, _ = take(make_task(), optax.adamw(0.1, mask=mask), [make_batch()])
    self.assertEqual(int(state.skipped), 0)

  def test_state_of_another_shape(self):
    with self.assertRaisesRegex(ConfigError, 'keeps state of the shape of a table'):
      take(make_task(), optax.adafactor(0.1, min_dim_size_to_factor=2), [make_batch()])

  def test_a_name_that_is_no_parameter(self):
    task = dataclasses.replace(make_task(), rows=lambda batch: {'embed/tabel': batch['ids']})
    with self.assertRaisesRegex(ConfigError, "Task.rows: expected one of .*, got 'embed/tabel'"):
      take(task, optax.sgd(0.1), [make_batch()])

  def test_a_loss_on_the_whole_table(self):
    task = make_task()
    def loss(variables, batch, key):
      out = task.loss(variables, batch, key)
      return out._replace(values=out.values + jnp.sum(variables['params']['embed']['table']**2))
    with self.assertRaises(TypeError):
      take(dataclasses.replace(task, loss=loss), optax.sgd(0.1), [make_batch()])
    table = rows.TableRows((V, 3), jnp.arange(4), jnp.zeros((4, 3)))
    with self.assertRaisesRegex(TypeError, 'can only be looked up'):
      table[:]


class FitTest(absltest.TestCase):

  def test_resumes_to_the_bit_identical_end(self):
    config = {'batch_size': 8, 'steps': 6, 'steps_per_call': 2, 'seed': 0, 'save_every': 2,
              'log_every': 2, 'eval_splits': (), 'optimizer': {'name': 'adam', 'learning_rate': .1}}
    devices = jax.devices()[:2]
    whole = fit(make_task(), config, devices=devices)
    folder = self.enter_context(tempfile.TemporaryDirectory())

    def stop(state, number):
      if number == 4:
        raise KeyboardInterrupt
      return state

    with self.assertRaises(KeyboardInterrupt):
      fit(make_task(), config, workdir=folder, devices=devices,
          hooks=[Hook('stop', lambda params: (), stop, 2)])
    again = fit(make_task(), config, workdir=folder, devices=devices,
                hooks=[Hook('stop', lambda params: (), lambda state, number: state, 2)])
    toy.assert_trees_equal(again._replace(hooks={}), whole)


if __name__ == '__main__':
  absltest.main()
