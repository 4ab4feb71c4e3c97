"""Prediction over a whole split: any devices, any batch size, every row once."""
import dataclasses
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import federated, optim, parallel, train
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.task import split_variables
from jaxlab.train import evaluation
from jaxlab.train.step import select
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
ROWS = 23
TASK = toy.softmax_task(rows=ROWS)
FIT = {'seed': 1, 'batch_size': 8, 'steps': 6, 'optimizer': {'name': 'sgd', 'learning_rate': 0.1}}
FEDERATED = {
    'num_clients': 3, 'cohort_size': 3, 'rounds': 2, 'batch_size': 4, 'partition': {'name': 'iid'},
    'algorithm': {'name': 'fedlalr'},
    'client_optimizer': {'name': 'fedlalr', 'learning_rate': 0.01},
}


def snapshot(task, devices, running=None):
  """A placed state, and its constants."""
  params, own, constants = split_variables(task.init(jax.random.key(0)))
  state = evaluation.Snapshot(params, own if running is None else running, jax.random.key(1), 0)
  return parallel.place(state, devices=devices), parallel.place(constants, devices=devices)


def shifted_task():
  """The toy Task with running statistics and constants, both seen by `predict` alone."""
  def init(key):
    return {**TASK.init(key), 'stats': {'shift': jnp.zeros(3)},
            'constants': {'scale': jnp.full(3, 2.0)}}

  def predict(variables, batch, key):
    scale, shift = variables['constants']['scale'], variables['stats']['shift']
    return TASK.predict(variables, batch, key) * scale + shift

  def loss(variables, batch, key):
    out = TASK.loss(variables, batch, key)
    return out._replace(state={'stats': {'shift': variables['stats']['shift'] + 1}})

  return dataclasses.replace(TASK, init=init, predict=predict, loss=loss)


class EvaluatorTest(parameterized.TestCase):

  @parameterized.product(count=[1, 2, 4], batch_size=[1, 5, 23, 256])
  def test_devices_and_batches_change_nothing(self, count, batch_size):
    devices = jax.devices()[:count]
    self.assertLen(devices, count)
    state, constants = snapshot(TASK, devices)
    evaluator = evaluation.Evaluator(TASK, batch_size=batch_size, devices=devices)
    pairs = list(evaluator.predict(state, constants, 'test'))
    self.assertLen(pairs, -(-ROWS // (batch_size * count)))
    logits = np.concatenate([outputs for outputs, _ in pairs])
    batch = {name: np.concatenate([b[name] for _, b in pairs]) for name in pairs[0][1]}
    data = pipeline.columns(TASK.dataset('test'))
    for name in data:  # the padding of the last batch is gone, and the order is kept
      np.testing.assert_array_equal(batch[name], data[name])
    np.testing.assert_array_equal(batch['weight'], 1)
    expected = TASK.predict({'params': state.params}, data, None)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    self.assertIsInstance(pairs[0][0], np.ndarray)
    metrics = evaluator(state, constants, 'test')
    self.assertEqual(metrics, {f'test/{k}': v for k, v in TASK.evaluate(pairs).items()})
    self.assertEqual((metrics['test/rows'], metrics['test/seen']), (ROWS, ROWS))

  def test_one_parameter_and_three_columns(self):
    # Five leaves for what once were five arguments, of whose axes jax 0.10.2 then made the leaves'.
    rows = {'x': np.arange(6, dtype=np.float32).reshape(3, 2), 'y': np.ones(3, np.float32)}
    task = dataclasses.replace(
        TASK, init=lambda key: {'params': {'w': jnp.full((), 2.0)}},
        predict=lambda variables, batch, key: batch['x'] * variables['params']['w'])
    state, constants = snapshot(task, jax.devices()[:2])
    found = evaluation.Evaluator(task, devices=jax.devices()[:2]).predict(
        state, constants, pipeline.from_arrays(rows))
    np.testing.assert_array_equal(np.concatenate([out for out, _ in found]), 2 * rows['x'])

  def test_prefix(self):
    state, constants = snapshot(TASK, None)
    evaluator = evaluation.Evaluator(TASK, batch_size=2)
    self.assertEqual(list(evaluator(state, constants, 'train', prefix='clean')),
                     ['clean/accuracy', 'clean/rows', 'clean/seen'])

  def test_one_compilation_for_all_batches(self):
    traces = []

    def predict(variables, batch, key):
      traces.append(batch['x'].shape)
      return TASK.predict(variables, batch, key)

    evaluator = evaluation.Evaluator(dataclasses.replace(TASK, predict=predict), batch_size=2)
    state, constants = snapshot(TASK, None)
    evaluator(state, constants, 'test')
    evaluator(state, constants, 'train')
    self.assertEqual(traces, [(2, 4)])

  def test_rows_that_weigh_nothing_are_left_out(self):
    data = {**toy.columns(6), 'weight': np.array([1, 0, 1, 1, 0, 2], np.float32)}
    task = dataclasses.replace(TASK, dataset=lambda split: pipeline.from_arrays(data))
    state, constants = snapshot(task, None)
    pairs = list(evaluation.Evaluator(task, batch_size=1).predict(state, constants, 'test'))
    self.assertEqual(np.concatenate([batch['id'] for _, batch in pairs]).tolist(), [0, 2, 3, 5])

  def test_running_collections_and_constants_are_seen(self):
    task = shifted_task()
    plain = snapshot(TASK, None)
    special = snapshot(task, None, running={'stats': {'shift': jnp.array([1.0, 2.0, 3.0])}})
    plain, shifted = (
        np.concatenate([outputs for outputs, _ in evaluation.Evaluator(
            task, batch_size=3).predict(*arguments, 'test')])
        for task, arguments in ((TASK, plain), (task, special)))
    np.testing.assert_allclose(shifted, 2 * plain + [1, 2, 3], rtol=1e-5)

  def test_predictions_draw_by_device_batch_and_step(self):
    noisy = dataclasses.replace(TASK, predict=lambda variables, batch, key: jax.random.normal(
        key, batch['label'].shape))
    state, constants = snapshot(noisy, None)
    evaluator = evaluation.Evaluator(noisy, batch_size=2)

    def draws(state):
      return np.concatenate([outputs for outputs, _ in evaluator.predict(state, constants, 'test')])

    first, again, later = draws(state), draws(state), draws(state._replace(step=state.step + 1))
    np.testing.assert_array_equal(first, again)
    self.assertLen(set(first.tolist()), ROWS)
    self.assertEmpty(set(first.tolist()) & set(later.tolist()))


class WorkdirTest(parameterized.TestCase):

  @parameterized.parameters('train', 'federate')
  def test_the_newest_checkpoint_of_a_run(self, mode):
    config = {'seed': 1, 'federated': FEDERATED} if mode == 'federate' else FIT
    loop = federated.simulate if mode == 'federate' else train.fit
    with tempfile.TemporaryDirectory() as folder:
      state = loop(TASK, config, workdir=folder)
      metrics = evaluation.evaluate_workdir(TASK, config, folder, 'test')
    data = pipeline.columns(TASK.dataset('test'))
    logits = np.asarray(TASK.predict({'params': state.params}, data, None))
    self.assertEqual(metrics, {'test/accuracy': (logits.argmax(-1) == data['label']).mean(),
                               'test/rows': ROWS, 'test/seen': ROWS})

  def test_running_collections_come_from_the_checkpoint(self):
    shifts = []
    task = shifted_task()

    def evaluate(pairs):
      outputs, batches = zip(*pairs, strict=True)
      shifts.append(np.concatenate(outputs) - 2 * np.concatenate(
          [TASK.predict({'params': state.params}, batch, None) for batch in batches]))
      return {}

    with tempfile.TemporaryDirectory() as folder:
      state = train.fit(task, FIT, workdir=folder)
      evaluation.evaluate_workdir(dataclasses.replace(task, evaluate=evaluate), FIT, folder, 'test')
    np.testing.assert_allclose(shifts[0], 6, atol=1e-5)  # one a step

  def test_the_average_of_the_parameters(self):
    config = {**FIT, 'optimizer': {'name': 'sgd', 'learning_rate': 1.0, 'ema_decay': 0.9},
              'trainable': 'w'}
    with tempfile.TemporaryDirectory() as folder:
      state = train.fit(TASK, config, workdir=folder)
      plain, smooth = (evaluation.restored(TASK, config, folder, average)[0].params
                       for average in (False, True))
      with self.assertRaisesRegex(ConfigError, 'has another structure|has shape'):
        evaluation.restored(toy.softmax_task(features=5), config, folder, True)
    toy.assert_trees_equal(plain, state.params)
    average = optim.averaged(state.opt_state, select(state.params, {'w': True, 'b': False}))
    toy.assert_trees_equal(smooth, {'w': average['w'], 'b': state.params['b']})
    self.assertGreater(np.abs(smooth['w'] - plain['w']).max(), 1e-3)

  def test_no_average(self):
    with tempfile.TemporaryDirectory() as folder:
      train.fit(TASK, FIT, workdir=folder)
      with self.assertRaisesRegex(ConfigError, r'a run that averages .*optimizer.ema_decay.*found'):
        evaluation.evaluate_workdir(TASK, FIT, folder, 'test', average=True)

  def test_no_checkpoint(self):
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaisesRegex(ConfigError, 'no checkpoint there'):
        evaluation.evaluate_workdir(TASK, FIT, folder, 'test')

  def test_another_model(self):
    with tempfile.TemporaryDirectory() as folder:
      train.fit(TASK, FIT, workdir=folder)
      with self.assertRaisesRegex(ConfigError, r'has shape \(3,\), expected \(4,\)'):
        evaluation.evaluate_workdir(toy.softmax_task(classes=4), FIT, folder, 'test')


if __name__ == '__main__':
  absltest.main()
