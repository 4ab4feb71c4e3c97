"""Kills, SIGTERM, damage and full disks: nothing can lose a run."""
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl.testing import absltest, parameterized

from tests import fault_run

ROOT = pathlib.Path(__file__).parents[2]
KILLS = 10


class Runner:
  """Starts the run of `tests.fault_run` in processes and follows its log."""

  def __init__(self, mode, folder, **options):
    self.mode, self.workdir = mode, pathlib.Path(folder) / mode
    self.options = [f'{key}={value}' for key, value in options.items()]
    self.log = pathlib.Path(f'{self.workdir}.log')

  def start(self, *options):
    """Starts the run, or goes on with it."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen([
        sys.executable, '-m', 'tests.fault_run', self.mode,
        str(self.workdir), *self.options, *options
    ], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

  def steps(self):
    """The steps executed so far by all processes, in order."""
    return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []

  def wait_for(self, process, condition, patience=120):
    """Waits until the condition holds or the process ends."""
    deadline = time.time() + patience
    while process.poll() is None and not condition():
      if time.time() > deadline:
        process.kill()
        raise TimeoutError(f'{self.mode} did not get there')
      time.sleep(0.002)

  def finish(self, *options):
    """Runs to the end: (exit status, output)."""
    process = self.start(*options)
    output = process.communicate(timeout=180)[0]
    return process.returncode, output

  def result(self):
    """The leaves of the final state."""
    with np.load(f'{self.workdir}.npz') as arrays:
      return [arrays[name] for name in arrays.files]

  def writing(self):
    """True while a checkpoint is being written."""
    folder = self.workdir / 'checkpoints'
    return folder.exists() and any('tmp' in path.name for path in folder.iterdir())


class KillTest(parameterized.TestCase):

  @parameterized.parameters('train', 'federate')
  def test_killed_ten_times_ends_bit_identical(self, mode):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
      whole = Runner(mode, one, pause=0)
      code, output = whole.finish()
      self.assertEqual(code, 0, output)
      killed = Runner(mode, two)
      rng = random.Random(0)
      resumed, inside_write = [], 0
      for kill in range(KILLS):
        process = killed.start()
        start = len(killed.steps())
        if kill % 3 == 2:  # at the next write, wherever that is
          goal = start + rng.randrange(1, 6)
          killed.wait_for(process, lambda: len(killed.steps()) >= goal and killed.writing())
        else:  # between writes: on a loaded machine all kills would fall into one, and cost more
          goal = start + rng.randrange(fault_run.SAVE_EVERY, 2 * fault_run.SAVE_EVERY)
          killed.wait_for(process, lambda: len(killed.steps()) >= goal and not killed.writing())
          time.sleep(rng.random() * 0.02)
        self.assertIsNone(process.poll(), 'the run ended before it was killed')
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        inside_write += killed.writing()
        resumed += [int(k) for k in re.findall(r'resumed from (?:step|round) (\d+)', output)]
      code, output = killed.finish('pause=0')
      self.assertEqual(code, 0, output)
      resumed += [int(k) for k in re.findall(r'resumed from (?:step|round) (\d+)', output)]
      print(f'{mode}: resumed from {resumed}, {inside_write} kills inside a write, '
            f'{len(killed.steps())} steps in all')
      self.assertGreaterEqual(sum(k > 0 for k in resumed), 8)
      self.assertGreaterEqual(inside_write, 2)
      self.assertLessEqual(len(killed.steps()), fault_run.STEPS + KILLS * fault_run.SAVE_EVERY)
      for ours, theirs in zip(killed.result(), whole.result(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

  @parameterized.parameters('train', 'federate')
  def test_sigterm_saves_and_exits_cleanly(self, mode):
    with tempfile.TemporaryDirectory() as folder:
      run = Runner(mode, folder)
      process = run.start()
      run.wait_for(process, lambda: len(run.steps()) >= 13)
      process.send_signal(signal.SIGTERM)
      output = process.communicate(timeout=60)[0]
      self.assertEqual(process.returncode, 0, output)
      saved = int(re.search(r'stopped by SIGTERM: saved (?:step|round) (\d+)', output).group(1))
      self.assertGreaterEqual(saved, 13)
      code, output = run.finish('pause=0')
      self.assertEqual(code, 0, output)
      self.assertIn(f'resumed from {"step" if mode == "train" else "round"} {saved}', output)
      self.assertLen(run.steps(), fault_run.STEPS)

  def test_full_disk_keeps_the_checkpoints_before(self):
    with tempfile.TemporaryDirectory() as folder:
      run = Runner('train', folder)
      code, output = run.finish('limit_at=13')
      self.assertNotEqual(code, 0)
      self.assertRegex(output, r'OSError: checkpoint .* could not be written')
      code, output = run.finish('pause=0')
      self.assertEqual(code, 0, output)
      self.assertIn('resumed from step 10', output)


if __name__ == '__main__':
  absltest.main()
