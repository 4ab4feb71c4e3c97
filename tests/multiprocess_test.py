"""Two processes of two devices: the numbers of one, disjoint rows, checkpoints, one writer."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import portpicker
from absl.testing import absltest

from jaxlab import federated, parallel, train
from jaxlab.data import pipeline
from tests import toy, two_processes

ROOT = pathlib.Path(__file__).parents[1]


def start(process, port, folder):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT),
                 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  return subprocess.Popen(
      [sys.executable, '-m', 'tests.two_processes',
       str(process), str(port), folder], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True)


class MultiprocessTest(absltest.TestCase):

  def test_two_processes_equal_one(self):
    with tempfile.TemporaryDirectory() as folder:
      port = portpicker.pick_unused_port()
      processes = [start(i, port, folder) for i in range(2)]
      outputs = [process.communicate(timeout=180)[0] for process in processes]
      self.assertEqual([process.returncode for process in processes], [0, 0], '\n'.join(outputs))
      folder = pathlib.Path(folder)
      arrays = []
      for i in range(2):
        with np.load(folder / f'process{i}.npz') as file:
          arrays.append([file[name] for name in file.files])
      for one, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(one, other)
      ids = [json.loads((folder / f'process{i}.json').read_text()) for i in range(2)]
      rows = (folder / 'train' / 'metrics.jsonl').read_text().splitlines()
    self.assertLen(rows, 2)  # process 0 alone writes
    self.assertEqual(json.loads(rows[-1])['test/seen'], 24)

    task = toy.softmax_task()
    trained = train.fit(task, two_processes.TRAIN, devices=jax.devices()[:1])
    federation = federated.simulate(task, two_processes.FEDERATE, devices=jax.devices()[:1])
    expected = jax.tree.leaves(parallel.to_host((trained.params, federation.server)))
    for ours, theirs in zip(arrays[0], expected, strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-5)

    batches = iter(
        pipeline.train_batches(
            task.dataset('train'), batch_size=8, seed=two_processes.TRAIN['seed']))
    for first, second in zip(*ids, strict=True):
      self.assertEmpty(set(first) & set(second))
      np.testing.assert_array_equal(first + second, next(batches)['id'])


if __name__ == '__main__':
  absltest.main()
