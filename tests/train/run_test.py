"""Run: the workdir, metrics, checkpoints and signals around any loop."""
import json
import logging
import os
import pathlib
import signal
import tempfile
import threading
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.train import run as run_lib

CONFIG = {'seed': 1}


def state(step):
  return {'w': np.full(3, float(step))}


class RunTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def run_of(self, config=None, workdir='run', unit='step'):
    folder = workdir and self.folder / workdir
    return run_lib.Run(config or CONFIG, folder, unit=unit, total=30, keep=2)

  def rows(self):
    return [json.loads(line) for line in
            (self.folder / 'run' / 'metrics.jsonl').read_text().splitlines()]

  def test_goes_on_where_the_newest_checkpoint_ends(self):
    with self.run_of() as run:
      self.assertIsNone(run.resume(lambda meta: state(0)))
      for step in (10, 20):
        run.log(step, {'loss': 1.0 / step})
        run.save(10, state(10), None, {'phase': 1})
    with self.assertLogs('jaxlab', logging.INFO) as logs, self.run_of() as run:
      step, restored, iterator, meta = run.resume(lambda meta: state(meta['phase']))
      self.assertEqual((step, iterator, meta['phase']), (10, None, 1))
      np.testing.assert_array_equal(restored['w'], 10)
      self.assertEqual([row['step'] for row in run.rows], [10])  # step 20 will come again
      run.log(20, {'loss': 0.25})
      self.assertEqual(run.rows[-1], {'step': 20, 'loss': 0.25})
    self.assertEqual([row['loss'] for row in self.rows()], [0.1, 0.25])
    self.assertRegex('\n'.join(logs.output), r'resumed from step 10\n.*step 20/30  loss 0.25')

  def test_without_a_workdir_nothing_is_written(self):
    before = set(pathlib.Path.cwd().iterdir())
    with self.run_of(workdir=None) as run:
      self.assertIsNone(run.resume(lambda meta: state(0)))
      run.log(1, {'loss': 0.5})
      run.save(1, state(1), None, {})
      run.draw()
      self.assertEqual(run.rows, [{'step': 1, 'loss': 0.5}])
    self.assertEqual(set(pathlib.Path.cwd().iterdir()), before)
    self.assertEmpty(list(self.folder.iterdir()))

  def test_the_workdir_of_another_config(self):
    self.run_of()
    with self.assertRaisesRegex(ConfigError, 'first difference at config.seed'):
      self.run_of({'seed': 2})

  def test_draws(self):
    with self.run_of(unit='round') as run:
      run.resume(lambda meta: state(0))
      run.log(1, {'loss': 0.5})
      run.draw()
    self.assertGreater((self.folder / 'run' / 'figures' / 'curves.png').stat().st_size, 1000)

  def test_rate(self):
    with self.run_of(workdir=None) as run:
      with mock.patch.object(time, 'perf_counter', side_effect=[100.0, 102.0, 102.5, 102.5]):
        run.resume(lambda meta: state(0))
        self.assertEqual(run.rate(10), 5.0)
        self.assertEqual(run.rate(20), 20.0)
        self.assertTrue(np.isfinite(run.rate(30)))

  def test_a_checkpoint_in_flight_is_finished_after_an_error(self):
    with self.assertRaisesRegex(ZeroDivisionError, 'x'):
      with self.run_of() as run:
        run.resume(lambda meta: state(0))
        run.save(10, state(10), None, {})
        raise ZeroDivisionError('x')
    with self.run_of() as run:
      self.assertEqual(run.resume(lambda meta: state(0))[0], 10)

  def test_a_failed_write_does_not_hide_the_error(self):
    failure = OSError('disk full')
    with self.assertLogs('jaxlab', logging.WARNING) as logs:
      with self.assertRaises(ZeroDivisionError):
        with self.run_of() as run:
          run.resume(lambda meta: state(0))
          self.enter_context(mock.patch.object(run._checkpointer, 'close', side_effect=failure))
          raise ZeroDivisionError
    self.assertIn('disk full', logs.output[-1])
    with self.assertRaisesRegex(OSError, 'disk full'):
      with self.run_of() as run:
        run.resume(lambda meta: state(0))
        self.enter_context(mock.patch.object(run._checkpointer, 'close', side_effect=failure))

  def test_sigterm_saves_and_ends_with_status_0(self):
    before = signal.getsignal(signal.SIGTERM)
    with self.assertLogs('jaxlab', logging.INFO) as logs:
      with self.assertRaises(run_lib.Preempted) as raised:
        with self.run_of(unit='round') as run:
          run.resume(lambda meta: state(0))
          self.assertFalse(run.stop_requested(10))
          os.kill(os.getpid(), signal.SIGTERM)
          self.assertTrue(run.stop_requested(11))
          try:
            run.leave(11, state(11), None, {})
          finally:  # what it said is true by then
            self.assertTrue((self.folder / 'run' / 'checkpoints' / '11').exists())
    self.assertEqual(raised.exception.code, 0)
    self.assertIs(signal.getsignal(signal.SIGTERM), before)
    self.assertIn('stopped by SIGTERM: saved round 11', logs.output[-1])
    with self.run_of(unit='round') as run:
      self.assertFalse(run.stop_requested(11))
      self.assertEqual(run.resume(lambda meta: state(0))[0], 11)

  def test_a_thread_leaves_signals_alone(self):
    handlers = []

    def work():
      with self.run_of(workdir=None) as run:
        run.resume(lambda meta: state(0))
        handlers.append(signal.getsignal(signal.SIGTERM))
        self.assertFalse(run.stop_requested(1))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    self.assertEqual(handlers, [before])


class ChecksTest(parameterized.TestCase):

  @parameterized.parameters((0, 5, True), (4, 5, True), (5, 5, False), (9, 5, False), (1, 1, False))
  def test_bad_steps(self, bad, limit, fine):
    if fine:
      run_lib.check_bad_steps(bad, limit, 70)
    else:
      with self.assertRaisesRegex(FloatingPointError, f'^step 70: the last {bad} updates in a row'):
        run_lib.check_bad_steps(bad, limit, 70)
      with self.assertRaisesRegex(FloatingPointError, '^round 7: '):
        run_lib.check_bad_steps(bad, limit, 7, 'round')

  def test_resolve_function(self):
    self.assertIs(run_lib.resolve_function('json:dumps', 'surgery'), json.dumps)

  @parameterized.parameters('json.dumps', 'json:dupms', 'jsn:dumps', ':dumps', 'json:', '')
  def test_no_such_function(self, path):
    with self.assertRaisesRegex(
        ConfigError, f"^phases.surgery: expected package.module:function, got '{path}'"):
      run_lib.resolve_function(path, 'phases.surgery')


if __name__ == '__main__':
  absltest.main()
