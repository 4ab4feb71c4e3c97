"""`fit`: learning, phases, hooks, accumulation, devices, resumption, damage, bad gradients."""
import dataclasses
import functools
import json
import logging
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import optim, parallel, train
from jaxlab.config import ConfigError, choose
from jaxlab.data import pipeline
from jaxlab.train import checkpoints
from tests import toy

SGD = {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}
ADASAM = {'name': 'adasam', 'learning_rate': 0.01, 'rho': 0.1}
BASE = {'seed': 1, 'batch_size': 8, 'steps': 12, 'log_every': 4, 'optimizer': ADASAM}


def devices(count):
  return jax.devices()[:count]


class FitTest(parameterized.TestCase):

  def test_learns(self):
    task = toy.softmax_task()
    with tempfile.TemporaryDirectory() as folder:
      train.fit(task, {**BASE, 'steps': 100, 'eval_every': 50}, workdir=folder, devices=devices(1))
      rows = [
          json.loads(line)
          for line in (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
      ]
      self.assertEqual([row['step'] for row in rows if 'test/accuracy' in row], [50, 100])
      self.assertLess(rows[-1]['loss'], 0.5 * rows[0]['loss'])
      self.assertGreater(rows[-1]['test/rows'], 23)
      self.assertTrue((pathlib.Path(folder) / 'figures' / 'curves.png').stat().st_size > 1000)
      self.assertNotEmpty(list(pathlib.Path(folder).glob('events.out.tfevents.*')))

  @parameterized.product(optimizer=[SGD, ADASAM], accumulate=[1, 2])
  def test_devices_and_accumulation_change_nothing(self, optimizer, accumulate):
    config = {**BASE, 'optimizer': optimizer}
    task = toy.softmax_task()
    one = train.fit(task, config, devices=devices(1))
    for count in (2, 4):
      many = train.fit(task, {**config, 'accumulate': accumulate}, devices=devices(count))
      parallel.assert_replicated(many)
      chex.assert_trees_all_close(
          parallel.to_host(one.params), parallel.to_host(many.params), atol=1e-5)

  def test_steps_per_call_changes_nothing(self):
    task = toy.softmax_task(noise=0.1)
    one = train.fit(task, BASE, devices=devices(2))
    four = train.fit(task, {**BASE, 'steps_per_call': 4}, devices=devices(2))
    chex.assert_trees_all_close(parallel.to_host(one), parallel.to_host(four), atol=1e-6)

  def test_same_seed_same_bits_and_other_seed_other_bits(self):
    task = toy.softmax_task(noise=0.1)
    first, second = (train.fit(task, BASE, devices=devices(2)) for _ in range(2))
    toy.assert_trees_equal(first, second)
    other = train.fit(task, {**BASE, 'seed': 2}, devices=devices(2))
    self.assertFalse(np.array_equal(first.params['w'], other.params['w']))

  def test_trainable_leaves_the_rest_alone(self):
    task = toy.softmax_task()
    start = train.fit(task,
                      {**BASE, 'steps': 1, 'optimizer': {'name': 'sgd', 'learning_rate': 0.0}})
    end = train.fit(task, {**BASE, 'trainable': 'w'}, devices=devices(2))
    np.testing.assert_array_equal(start.params['b'], end.params['b'])
    self.assertFalse(np.array_equal(start.params['w'], end.params['w']))
    self.assertLen([x for x in jax.tree.leaves(end.opt_state) if x.shape == (4, 3)], 3)
    self.assertEmpty([x for x in jax.tree.leaves(end.opt_state) if x.shape == (3,)])

  def test_trainable_that_matches_nothing(self):
    with self.assertRaisesRegex(ConfigError, r"trainable: 'v' matches none of \['b', 'w'\]"):
      train.fit(toy.softmax_task(), {**BASE, 'trainable': 'v'})

  def test_phases_resume_exactly(self):
    config = {
        **BASE, 'save_every': 4, 'phases': ({'steps': 8, 'optimizer': SGD}, {
            'steps': 8, 'trainable': 'w', 'surgery': 'tests.train.loop_test:add_class'
        })
    }
    task = toy.softmax_task()
    whole = train.fit(task, config, devices=devices(1))
    self.assertEqual(whole.params['w'].shape, (4, 4))
    self.assertEqual(int(whole.step), 16)
    for stop in (4, 8, 12):
      with tempfile.TemporaryDirectory() as folder:
        with self.assertRaises(Interrupt):
          train.fit(task, config, workdir=folder, hooks=[stop_at(stop)], devices=devices(1))
        again = train.fit(task, config, workdir=folder,
                          hooks=[train.Hook('stop', lambda p: {},
                                            lambda s, _: s)], devices=devices(1))
        toy.assert_trees_equal(whole._replace(hooks={}), again._replace(hooks={}))

  def test_a_split_that_is_not_there_stops_the_run_before_it_begins(self):
    datasets = {'train': toy.softmax_task().dataset('train')}
    task = dataclasses.replace(toy.softmax_task(), dataset=lambda split: choose(
        split, datasets, 'split'))
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaisesRegex(ConfigError, "^eval_splits: split: unknown name 'test'.*train"):
        train.fit(task, BASE, workdir=f'{folder}/run')
      self.assertFalse(pathlib.Path(folder, 'run').exists())
    train.fit(task, {**BASE, 'steps': 1, 'eval_splits': ()}, devices=devices(1))

  def test_init_from_takes_the_weights_of_another_run(self):
    task = toy.softmax_task()
    with tempfile.TemporaryDirectory() as folder:
      first = train.fit(task, BASE, workdir=folder)
      frozen = {'name': 'sgd', 'learning_rate': 0.0}
      second = train.fit(task,
                         {**BASE, 'seed': 5, 'steps': 1, 'optimizer': frozen, 'init_from': folder})
    toy.assert_trees_equal(first.params, second.params)

  def test_init_from_nowhere(self):
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaisesRegex(ConfigError, 'no checkpoint there'):
        train.fit(toy.softmax_task(), {**BASE, 'init_from': folder})

  def test_hook_changes_parameters_and_keeps_its_state(self):
    def halve(state, step):
      self.assertEqual(step % 3, 0)
      params = jax.tree.map(lambda p: p / 2, state.params)
      return state.with_params(params)._replace(hooks={'halve': state.hooks['halve'] + 1})
    hook = train.Hook('halve', lambda params: jnp.zeros((), jnp.int32), halve, every=3)
    still = {**BASE, 'optimizer': {'name': 'sgd', 'learning_rate': 0.0}}
    start = train.fit(toy.softmax_task(), still)
    state = train.fit(toy.softmax_task(), still, hooks=[hook])
    self.assertEqual(int(state.hooks['halve']), 4)
    np.testing.assert_allclose(state.params['w'], start.params['w'] / 16, rtol=1e-6)

  def test_profile(self):
    with tempfile.TemporaryDirectory() as folder:
      train.fit(toy.softmax_task(), BASE, workdir=folder, profile_steps=(4, 6))
      self.assertNotEmpty(list((pathlib.Path(folder) / 'profile').rglob('*.xplane.pb')))
    with self.assertRaisesRegex(ConfigError, 'profile_steps: expected a workdir'):
      train.fit(toy.softmax_task(), BASE, profile_steps=(4, 6))

  def test_one_compilation(self):
    count = 0
    def counted(event, *_, **__):
      nonlocal count
      count += event == '/jax/core/compile/backend_compile_duration'
    train.fit(toy.softmax_task(), {**BASE, 'steps': 2}, devices=devices(2))  # helpers compile here
    jax.monitoring.register_event_duration_secs_listener(counted)
    try:
      train.fit(toy.softmax_task(), {**BASE, 'steps': 4}, devices=devices(2))
      few, count = count, 0
      train.fit(toy.softmax_task(), {**BASE, 'steps': 40}, devices=devices(2))
    finally:
      jax.monitoring.unregister_event_duration_listener(counted)
    self.assertGreater(few, 0)
    self.assertEqual(count, few)

  @parameterized.parameters(
      ({'batch_size': 9
       }, 'config.batch_size: expected a multiple of 4 devices x accumulate=1, got 9'),
      ({'optimizer': {**ADASAM, 'rho': -1.0}
       }, r'optimizer.rho: expected a finite number >= 0, got -1.0'),
      ({'steps': 0}, 'steps: expected at least 1, got 0'),
      ({'steps': '7'}, r"config.steps: expected int, got '7' \(str\)"),
      ({'steps_per_call': 5}, 'a multiple of steps_per_call=5, got 12'),
      ({'phases': ({'stesp': 3},)}, r"phases\[0\]: unknown key 'stesp'; did you mean 'steps'"),
      ({'phases': ({'steps': 3, 'surgery': 'tests.train:nothing'},)
       }, 'surgery: expected package.module:function'),
      ({'trainable': '('}, 'trainable: .* is no regular expression'),
  )
  def test_impossible_settings(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      train.fit(toy.softmax_task(), {**BASE, **change})

  def test_a_model_that_no_device_holds(self):
    huge = toy.softmax_task()
    init = lambda key: {'params': {'w': jnp.zeros((1 << 20, 1 << 20))}}
    huge = dataclasses.replace(huge, init=init)
    with self.assertRaisesRegex(ConfigError, r'config.model: one replica needs about \d+\.\d GiB'):
      train.fit(huge, BASE)

  def test_another_config_in_the_workdir(self):
    with tempfile.TemporaryDirectory() as folder:
      train.fit(toy.softmax_task(), BASE, workdir=folder)
      with self.assertRaisesRegex(
          ConfigError, 'holds a run of another config; first difference at config.optimizer.rho'):
        train.fit(toy.softmax_task(), {**BASE, 'optimizer': {**ADASAM, 'rho': 0.2}}, workdir=folder)

  def test_a_finished_run_is_not_repeated(self):
    with tempfile.TemporaryDirectory() as folder:
      first = train.fit(toy.softmax_task(), BASE, workdir=folder)
      second = train.fit(toy.softmax_task(), BASE, workdir=folder)
      toy.assert_trees_equal(first, second)
      rows = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
      self.assertLen(rows, 3)


class Interrupt(Exception):
  """Ends a run in the middle."""


def stop_at(step):
  """A hook that ends the run right after the checkpoint of `step` was started."""
  def apply(state, now):
    if now == step + 1:
      raise Interrupt
    return state
  return train.Hook('stop', lambda params: {}, apply)


def add_class(params):
  """Surgery: one more class."""
  return {'w': jnp.pad(params['w'], ((0, 0), (0, 1))), 'b': jnp.pad(params['b'], (0, 1))}


class DamageTest(parameterized.TestCase):

  @parameterized.parameters('truncated', 'flipped', 'missing')
  def test_damaged_newest_checkpoint(self, how):
    task = toy.softmax_task(noise=0.1)
    config = {**BASE, 'save_every': 4}
    whole = train.fit(task, config)
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaises(Interrupt):
        train.fit(task, config, workdir=folder, hooks=[stop_at(8)])
      newest = pathlib.Path(folder) / 'checkpoints' / '8'
      files = sorted((f for f in (newest / 'state').rglob('*') if f.is_file()),
                     key=lambda f: f.stat().st_size)
      target = files[-1]
      content = bytearray(target.read_bytes())
      if how == 'missing':
        (newest / 'meta' / 'metadata').unlink()
      elif how == 'truncated':
        target.write_bytes(content[:len(content) // 2])
      else:
        for i in range(len(content) // 4, len(content) // 2):
          content[i] ^= 0xFF
        target.write_bytes(content)
      with self.assertLogs('jaxlab', logging.WARNING) as logs:
        again = train.fit(task, config, workdir=folder,
                          hooks=[train.Hook('stop', lambda p: {}, lambda s, _: s)])
      self.assertRegex(logs.output[0], 'checkpoint 8 is damaged .* going on from the one before')
      self.assertTrue((pathlib.Path(folder) / 'checkpoints.damaged' / '8').exists())
      toy.assert_trees_equal(whole._replace(hooks={}), again._replace(hooks={}))

  def test_a_checkpoint_of_another_structure_is_refused_and_kept(self):
    with tempfile.TemporaryDirectory() as folder:
      train.fit(toy.softmax_task(), BASE, workdir=folder)
      hook = train.Hook('more', lambda p: jnp.zeros(3), lambda s, _: s)
      with self.assertRaisesRegex(ConfigError,
                                  r"checkpoint 12 has another structure: missing .*hooks"):
        train.fit(toy.softmax_task(), BASE, workdir=folder, hooks=[hook])
      self.assertTrue((pathlib.Path(folder) / 'checkpoints' / '12').exists())

  def test_checksums_notice_one_bit(self):
    tree = {'a': jnp.arange(6.0), 'key': jax.random.key(0)}
    leaves = checkpoints.flatten(tree)
    before = checkpoints.checksums(leaves)
    leaves["['a']"].view(np.uint8)[3] ^= 1
    after = checkpoints.checksums(leaves)
    self.assertEqual({k for k in before if before[k] != after[k]}, {"['a']"})


class BadGradientTest(parameterized.TestCase):

  def poisoned(self, ids):
    """The toy Task whose loss is NaN on rows with these ids."""
    task = toy.softmax_task()
    bad = jnp.array(ids)

    def loss(variables, batch, key):
      out = task.loss(variables, batch, key)
      poison = jnp.where(jnp.isin(batch['id'], bad), jnp.nan, 1.0)
      return out._replace(values=out.values * poison)

    return dataclasses.replace(task, loss=loss)

  @parameterized.parameters(SGD, ADASAM)
  def test_the_update_is_skipped_and_counted(self, **optimizer):
    with tempfile.TemporaryDirectory() as folder:
      state = train.fit(
          self.poisoned([7]), {**BASE, 'optimizer': optimizer, 'log_every': 1}, workdir=folder)
      rows = [
          json.loads(line)
          for line in (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
      ]
    # 12 batches of 8 are 4 epochs of 24 rows: row 7 comes once an epoch.
    self.assertEqual(int(state.skipped), 4)
    self.assertEqual([row['skipped'] for row in rows][-1], 4)
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)))
    moments = jax.tree.leaves(state.opt_state)
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in moments))

  def test_a_bad_step_changes_nothing_but_the_counters(self):
    task = self.poisoned(range(24))
    still = train.fit(task, {**BASE, 'steps': 3})
    start = train.fit(task, {**BASE, 'steps': 1})
    toy.assert_trees_equal((start.params, start.opt_state), (still.params, still.opt_state))
    self.assertEqual(int(still.bad_steps), 3)

  def test_too_many_in_a_row_end_the_run(self):
    with self.assertRaisesRegex(FloatingPointError,
                                'step 5: the last 5 updates in a row were not finite'):
      train.fit(self.poisoned(range(24)), {**BASE, 'max_bad_steps': 5})


class StepTest(parameterized.TestCase):

  def test_the_program_reduces_over_devices(self):
    task = toy.softmax_task()
    optimizer = optim.make_optimizer(SGD)
    variables = task.init(jax.random.key(0))
    zero = jnp.zeros((), jnp.int32)
    state = train.TrainState(zero, variables['params'], {}, optimizer.init(variables['params']),
                             jax.random.key(1), zero, zero, {})
    step = functools.partial(train.train_step, task=task, optimizer=optimizer,
                             trainable=jax.tree.map(lambda _: True, variables['params']))
    batch = next(iter(pipeline.train_batches(task.dataset('train'), batch_size=8, seed=0)))
    program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=None,
                       devices=devices(2))
    compiled = program.lower(state, {}, parallel.split(batch, devices(2))).compile()
    self.assertIn('all-reduce', compiled.as_text())
    # The same function runs off the axis, and padding of weight 0 changes nothing.
    alone, metrics = jax.jit(step)(state, {}, batch)
    padded = {k: np.concatenate([v, 9 * np.ones_like(v[:5])]) for k, v in batch.items()}
    padded['weight'][8:] = 0
    padded['label'][8:] = 0
    same, same_metrics = jax.jit(step)(state, {}, padded)
    chex.assert_trees_all_close(alone.params, same.params, atol=1e-7)
    chex.assert_trees_all_close(metrics, same_metrics, atol=1e-6)

  def test_all_padding_is_no_step_for_the_parameters(self):
    gradient = train.task_gradient(toy.softmax_task())
    params = toy.softmax_task().init(jax.random.key(0))['params']
    batch = {**toy.columns(4), 'weight': np.zeros(4, np.float32)}
    grads, sums = gradient(params, batch, jax.random.key(0))
    self.assertTrue(all((leaf == 0).all() for leaf in jax.tree.leaves(grads)))
    self.assertEqual(float(sums['loss'][1]), 0)


if __name__ == '__main__':
  absltest.main()
