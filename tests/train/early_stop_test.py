"""Early stopping: what is best, where training ends, what it leaves, what a resumed run does."""
import dataclasses
import logging
import math
import pathlib
import shutil
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import federated, train
from jaxlab.config import ConfigError
from jaxlab.train import checkpoints, early_stop, evaluation
from jaxlab.train.writers import read_metrics
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
STOP = {'metric': 'test/likeness', 'patience': 2}
SGD = {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}
CENTRAL = {'seed': 1, 'batch_size': 8, 'steps': 60, 'log_every': 4, 'eval_every': 4,
           'save_every': 4, 'optimizer': SGD}
ROUNDS = {'num_clients': 6, 'cohort_size': 4, 'rounds': 12, 'batch_size': 4,
          'partition': {'name': 'iid'}, 'algorithm': {'name': 'fedavg'}, 'client_optimizer': SGD,
          'save_every': 1}
ONE = jax.devices()[:1]


class Interrupt(Exception):
  """Ends a run in the middle."""


def stop_at(step):
  """A hook that ends the run right after the checkpoint of `step` was started; None for never."""
  def apply(state, now):
    if step is not None and now == step + 1:
      raise Interrupt
    return state
  return train.Hook('stop', lambda params: {}, apply)


def task_that_is_best_at(size):
  """Whose logits grow from step to step, and which likes them of one mean size."""
  def evaluate(pairs):
    found = float(np.abs(np.concatenate([outputs for outputs, _ in pairs])).mean())
    return {'size': found, 'likeness': -abs(found - size), 'distance': abs(found - size)}

  return dataclasses.replace(toy.softmax_task(noise=0.1), evaluate=evaluate)


def curve(folder, name):
  """{step: value} of the evaluations of a run."""
  rows = read_metrics(pathlib.Path(folder) / 'metrics.jsonl')
  return {row['step']: row[name] for row in rows if name in row}


def size_at(step, run):
  """The size of the logits after `step` steps or rounds of `run(task, workdir)`."""
  with tempfile.TemporaryDirectory() as folder:
    run(task_that_is_best_at(0.0), folder)
    return curve(folder, 'test/size')[step]


def central(task, folder, stop=None, **changes):
  return train.fit(task, {**CENTRAL, **changes}, workdir=folder, hooks=[stop_at(stop)], devices=ONE)


def rounds(task, folder, stop=None, **changes):
  return federated.simulate(task, {'seed': 1, 'federated': {**ROUNDS, **changes}}, workdir=folder,
                            hooks=[stop_at(stop)], devices=ONE)


class StandingTest(parameterized.TestCase):

  @parameterized.parameters(
      ('max', 0, [1.0, 3.0, 2.0, 3.0], (20, 2)),  # an equal value is not better
      ('min', 0, [3.0, 1.0, 2.0], (20, 1)),
      ('max', 20, [1.0, 3.0, 2.0, 1.0], (30, 1)),
      ('max', 0, [math.nan, math.nan], (None, 2)),
      ('min', 0, [math.nan, 2.0, math.nan], (20, 1)),
      ('max', 0, [], (None, 0)))
  def test_rows(self, mode, since, values, expected):
    rows = [{'step': 10 * i + 10, 'dev/auc': value} for i, value in enumerate(values)]
    rows.insert(1, {'step': 15, 'loss': 9.0})
    self.assertEqual(
        early_stop.standing(rows, early_stop.EarlyStop('dev/auc', 2, mode), since), expected)

  @parameterized.parameters(
      ({'metric': 'dev/auc', 'patience': 0}, 1, r'^x.patience: expected at least 1, got 0'),
      ({'metric': 'dev/auc'}, 1, r'^x.patience: missing'),
      ({'metric': 'test/auc', 'patience': 1}, 1,
       '^x.metric: expected SPLIT/METRIC of one of the eval_splits dev, got'),
      ({'metric': 'dev/auc', 'patience': 1}, 0, r'^x: expected eval_every of at least 1'),
      ({'metric': 'dev/auc', 'patience': 1, 'mode': 'up'}, 1, '^x.mode: expected'))
  def test_mistakes(self, config, every, message):
    with self.assertRaisesRegex(ConfigError, message):
      early_stop.read(config, 'x', eval_every=every, eval_splits=('dev',))

  def test_where_it_stands_in_a_config(self):
    for config, message in (({'early_stop': {'metric': 'dev/auc', 'patience': 1}},
                             '^early_stop.metric: expected'),
                            ({'phases': ({'steps': 4, 'early_stop': {'patience': 1}},)},
                             r'^phases\[0\].early_stop.metric: missing')):
      with self.assertRaisesRegex(ConfigError, message):
        train.fit(toy.softmax_task(), {**CENTRAL, **config})
    with self.assertRaisesRegex(ConfigError, '^federated.early_stop.metric: missing'):
      rounds(toy.softmax_task(), None, early_stop={'patience': 1})


class RunTest(parameterized.TestCase):

  @parameterized.parameters((central, 12, 20, 4), (rounds, 3, 5, 1))
  def test_ends_and_resumes(self, run, best, last, every):
    task = task_that_is_best_at(size_at(best, run))
    with tempfile.TemporaryDirectory() as folder:
      whole = run(task, folder, early_stop=STOP)
      self.assertEqual(int(whole.step), last)
      found = curve(folder, 'test/likeness')
      self.assertEqual(list(found), list(range(every, last + 1, every)))
      self.assertEqual(max(found, key=found.get), best)
      again = run(task, folder, early_stop=STOP)  # which is over
      toy.assert_trees_equal(whole, again)
      value = evaluation.evaluate_workdir(task, {'seed': 1}, folder, 'test')['test/likeness']
      self.assertAlmostEqual(value, found[best], places=6)
      self.assertAlmostEqual(value, 0, places=5)
    memory = run(task, None, early_stop=STOP)
    toy.assert_trees_equal(whole, memory)
    with tempfile.TemporaryDirectory() as folder:  # the end is saved whatever save_every is
      toy.assert_trees_equal(whole, run(task, folder, early_stop=STOP, save_every=0))
      self.assertEqual(checkpoints.saved_steps(folder)[1], [last])
    for stop in (best, best + every):
      with tempfile.TemporaryDirectory() as folder:
        with self.assertRaises(Interrupt):
          run(task, folder, stop, early_stop=STOP)
        toy.assert_trees_equal(whole, run(task, folder, early_stop=STOP))

  def test_smaller_may_be_better_and_patience_may_last(self):
    size = size_at(12, central)
    stop = {'metric': 'test/distance', 'patience': 2, 'mode': 'min'}
    first = central(task_that_is_best_at(size), None, early_stop=STOP)
    toy.assert_trees_equal(first, central(task_that_is_best_at(size), None, early_stop=stop))
    patient = central(task_that_is_best_at(size), None, early_stop={**stop, 'patience': 99})
    self.assertEqual(int(patient.step), 60)
    toy.assert_trees_equal(first.params, patient.params)

  def test_a_phase_ends_and_the_next_starts_from_its_best(self):
    still = {'steps': 8, 'optimizer': {'name': 'sgd', 'learning_rate': 0.0}, 'early_stop': {}}
    task = task_that_is_best_at(size_at(12, central))
    changes = {'phases': ({'steps': 60}, still), 'early_stop': STOP}
    with tempfile.TemporaryDirectory() as folder:
      whole = central(task, folder, **changes)
      self.assertEqual(int(whole.step), 28)
      found = curve(folder, 'test/likeness')
      self.assertEqual(list(found), list(range(4, 29, 4)))
      self.assertAlmostEqual(found[28], found[12], places=6)
      self.assertFalse((pathlib.Path(folder) / 'best').exists())  # the last phase has none
    for stop in (16, 20, 24):
      with tempfile.TemporaryDirectory() as folder:
        with self.assertRaises(Interrupt):
          central(task, folder, stop, **changes)
        toy.assert_trees_equal(whole, central(task, folder, **changes))

  def test_a_best_state_that_is_lost_is_reported(self):
    task = task_that_is_best_at(size_at(12, central))
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaises(Interrupt):
        central(task, folder, 16, early_stop=STOP)
      shutil.rmtree(pathlib.Path(folder) / 'best' / '12')
      with self.assertLogs(early_stop.__name__, logging.WARNING) as logs:
        state = central(task, folder, early_stop=STOP)
      self.assertIn('no whole checkpoint of the best step 12', logs.output[0])
      self.assertEqual(int(state.step), 20)

  def test_a_metric_that_is_not_there(self):
    with self.assertRaisesRegex(
        ConfigError, '^early_stop.metric: expected one of test/distance, test/likeness, test/size'):
      central(task_that_is_best_at(1.0), None, early_stop={'metric': 'test/auc', 'patience': 2})


if __name__ == '__main__':
  absltest.main()
