"""launch.rollout on an untrained run: counts, animations, one-line errors."""
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest

from jaxlab.systems.vla_jepa import evaluate
from jaxlab.train import export
from tests.systems.vla_jepa import task_test

ROOT = pathlib.Path(__file__).parents[2]


def run(*flags):
  return subprocess.run([sys.executable, '-m', 'launch.rollout', *flags], cwd=ROOT,
                        capture_output=True, text=True, check=False)


class RolloutTest(absltest.TestCase):

  def test_runs_a_checkpoint(self):
    config, folder = task_test.small(), pathlib.Path(self.enter_context(
        tempfile.TemporaryDirectory())) / 'run'
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), evaluate.template(config))
    export.save_params(zeros, folder)
    (folder / 'config.json').write_text(json.dumps(config))
    done = run(f'--workdir={folder}', '--conditions=plain,noise', '--episodes=2', '--movies=1')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertRegex(done.stdout, r'noise +[0-2]/2')
    self.assertLen(list((folder / 'rollouts').glob('*.gif')), 2)
    wrong = run(f'--workdir={folder}', '--conditions=nois')
    self.assertEqual(wrong.returncode, 2)
    self.assertIn("did you mean 'noise'", wrong.stderr)


if __name__ == '__main__':
  absltest.main()
