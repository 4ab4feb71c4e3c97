"""The optional parts of a Task that reshape a phase: `arms` in a cycle, data by `refresh`."""
import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim, train
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.task import Arm, Loss
from jaxlab.train import writers
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
SGD = {'name': 'sgd', 'learning_rate': 0.1}
HALVING = {'name': 'sgd', 'learning_rate': {
    'name': 'exponential_decay', 'init_value': 1.0, 'transition_steps': 1, 'decay_rate': 0.5}}
BASE = {'seed': 1, 'batch_size': 8, 'log_every': 1, 'optimizer': SGD, 'eval_splits': ()}
ONE = jax.devices()[:1]


class Interrupt(Exception):
  pass


def stop_at(step):
  def apply(state, position):
    if position == step:
      raise Interrupt
    return state
  return train.Hook('stop', lambda params: {}, apply)


NEVER = train.Hook('stop', lambda params: {}, lambda state, _: state)


def pull(name, rows=16, noise=0.0):
  """An arm that pulls one parameter up at rate 1, on data of its own width."""
  def loss(variables, batch, key):
    x = batch['x'].mean(1) + noise * jax.random.normal(key, (len(batch['x']),))
    return Loss(-x * variables['params'][name], batch['weight'], {'x': (x, batch['weight'])})
  width = {'a': 2, 'b': 3}[name]
  return Arm(loss, lambda: pipeline.from_arrays({'x': np.ones((rows, width), np.float32)}))


def two_armed(noise=0.0):
  params = {'a': jnp.zeros(()), 'b': jnp.zeros(())}
  return dataclasses.replace(toy.softmax_task(), init=lambda key: {'params': params},
                             arms={name: pull(name, noise=noise) for name in 'ab'})


def fit(task, workdir=None, hooks=(), devices=ONE, **config):
  return train.fit(task, {**BASE, **config}, workdir=workdir, hooks=hooks, devices=devices)


def rows_of(workdir):
  return writers.read_metrics(pathlib.Path(workdir) / 'metrics.jsonl')


class ArmsTest(parameterized.TestCase):

  def test_a_step_is_a_cycle(self):
    phases = ({'steps': 3, 'arms': ('a', 'b', 'a')},)
    state = fit(two_armed(), phases=phases)
    self.assertEqual(int(state.step), 3)
    np.testing.assert_allclose(state.params['a'], 0.6, rtol=1e-6)
    np.testing.assert_allclose(state.params['b'], 0.3, rtol=1e-6)

  def test_schedules_tick_once_a_cycle(self):
    state = fit(two_armed(), phases=({'steps': 3, 'arms': ('a', 'b'), 'optimizer': HALVING},))
    for name in 'ab':
      np.testing.assert_allclose(state.params[name], 1.75, rtol=1e-6)

  def test_moments_count_updates(self):
    adam = optim.make_optimizer({'name': 'adam', 'learning_rate': 0.1}, tick=2)
    state = adam.init(jnp.zeros(()))
    for _ in range(4):
      _, state = adam.update(jnp.ones(()), state, jnp.zeros(()))
    self.assertEqual(int(optax.tree.get(state, 'count')), 4)

  def test_entries_and_steps_draw_their_own_noise(self):
    rates = {'steps': 4, 'arms': ('a', 'a', 'b'), 'optimizer': {'name': 'sgd', 'learning_rate': 1.}}
    with tempfile.TemporaryDirectory() as folder:
      fit(two_armed(noise=1.0), workdir=folder, phases=(rates,))
      rows = rows_of(folder)
    seen = [row[name] for row in rows for name in ('a/x', 'b/x')]
    self.assertLen(set(seen), 8)

  def test_devices_and_scanned_calls_change_nothing(self):
    phases = ({'steps': 4, 'arms': ('a', 'b')},)
    alone = fit(two_armed(), phases=phases)
    others = (fit(two_armed(), phases=phases, devices=jax.devices()[:2], accumulate=2),
              fit(two_armed(), phases=phases, steps_per_call=2, log_every=2))
    for other in others:
      np.testing.assert_allclose(jax.tree.leaves(other.params), jax.tree.leaves(alone.params),
                                 rtol=1e-6)

  def test_resumes_to_the_same_bits(self):
    phases = ({'steps': 4, 'arms': ('a', 'b')}, {'steps': 4, 'arms': ('b', 'a', 'a')})
    config = {'phases': phases, 'save_every': 3}
    whole = fit(two_armed(noise=1.0), **config)
    for stop in (3, 6):
      with tempfile.TemporaryDirectory() as folder:
        with self.assertRaises(Interrupt):
          fit(two_armed(noise=1.0), folder, [stop_at(stop + 1)], **config)
        again = fit(two_armed(noise=1.0), folder, [NEVER], **config)
      toy.assert_trees_equal(whole.params, again.params)
      self.assertEqual(int(again.step), 8)

  def test_a_bad_update_is_skipped_and_counted(self):
    task = two_armed()
    nan = lambda *args: Loss(jnp.nan * args[0]['params']['b'] * args[1]['weight'],
                             args[1]['weight'])
    task.arms['b'] = task.arms['b']._replace(loss=nan)
    state = fit(task, phases=({'steps': 3, 'arms': ('b', 'a')},), max_bad_steps=2)
    self.assertEqual(int(state.skipped), 3)
    np.testing.assert_allclose(state.params['a'], 0.3, rtol=1e-6)
    with self.assertRaisesRegex(FloatingPointError, 'not finite'):
      fit(task, phases=({'steps': 3, 'arms': ('b', 'b')},), max_bad_steps=2)

  @parameterized.parameters(
      ({'arms': ('a', 'c')}, r"phases\[0\].arms\[1\]: .*'c'"),
      ({'refresh_every': 2}, r'phases\[0\].refresh_every: .*refreshes nothing'),
      ({'refresh_every': -1}, r'phases\[0\].refresh_every: .*at least 0'))
  def test_what_the_task_has_not(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      fit(two_armed(), phases=({'steps': 2, **change},))


def annotated():
  """A Task that learns the label that it gave itself at the last refresh, and counts refreshes."""
  plain = toy.softmax_task(rows=16)
  columns = toy.columns(16)

  def dataset(split, aux=None):
    label = columns['label'] if aux is None else aux['label']
    return pipeline.from_arrays({**columns, 'label': label})

  def refresh(variables, key, number):
    logits = columns['x'] @ np.asarray(variables['params']['w'])
    noise = np.asarray(jax.random.normal(key, logits.shape))
    return {'label': (logits + noise).argmax(-1).astype(np.int32), 'number': np.int32(number)}

  calls = []
  def counted(*args):
    calls.append(args[-1])
    return refresh(*args)

  return dataclasses.replace(plain, dataset=dataset, refresh=counted), calls


class RefreshTest(parameterized.TestCase):
  CONFIG = {'phases': ({'steps': 2}, {'steps': 7, 'refresh_every': 3}), 'save_every': 2}

  def test_when_it_is_called(self):
    task, calls = annotated()
    fit(task, **self.CONFIG)
    self.assertEqual(calls, [0, 1, 2])

  def test_the_data_follow(self):
    task, _ = annotated()
    other = dataclasses.replace(task, refresh=lambda *_: {'label': np.zeros(16, np.int32)})
    with tempfile.TemporaryDirectory() as folder:
      fit(other, folder, **self.CONFIG)
      losses = [row['loss'] for row in rows_of(folder)]
    self.assertLess(losses[-1], losses[2])  # labels that are all the same are soon learnt

  @parameterized.parameters(4, 5, 6)
  def test_resumes_to_the_same_bits_and_refreshes_no_more_than_needed(self, stop):
    task, calls = annotated()
    whole = fit(task, **self.CONFIG)
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaises(Interrupt):
        fit(task, folder, [stop_at(stop + 1)], **self.CONFIG)
      calls.clear()
      again = fit(task, folder, [NEVER], **self.CONFIG)
    toy.assert_trees_equal(whole.params, again.params)
    saved = stop // 2 * 2
    self.assertEqual(calls, [number for number in range(3) if 2 + 3 * number >= saved])

  def test_a_run_that_did_not_refresh_has_no_aux_on_the_devices(self):
    task, _ = annotated()
    self.assertIsNone(fit(task, **self.CONFIG).aux)


if __name__ == '__main__':
  absltest.main()
