"""launch.generate as users call it: latents from a file, one line for bad input."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from tests.launch import launch_test

CONFIG = '--config=configs/topi/flux.py:small'


class GenerateTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    np.savez(self.folder / 'in.npz', txt=normal(2, 3, 32), pooled=normal(2, 16),
             reference_0=normal(2, 4, 8, 8), target_shape=np.array([4, 4]))

  def test_a_file_of_latents(self):
    result = launch_test.launcher()(
        'launch.generate', CONFIG, f'--inputs={self.folder}/in.npz', f'--output={self.folder}/out',
        '--prune', '--pruned=0.5', '--config.prune.interval=3')
    self.assertEqual(result.status, 0, result.err)
    summary = json.loads(result.out.splitlines()[0])
    self.assertAlmostEqual(summary['kept_share'], (2 * 16 + 4 * 8) / 6 / 16)
    self.assertBetween(summary['relative_l2'], 1e-7, 1)
    with np.load(self.folder / 'out' / 'samples.npz') as file:
      self.assertEqual(file['samples'].shape, (2, 4, 4, 4))
    self.assertTrue((self.folder / 'out' / 'pictures.png').exists())

  @parameterized.parameters(
      ([CONFIG, '--inputs=IN', '--output=IN'], 'in.npz: cannot be made (File exists)'),
      ([CONFIG], '--workdir, --inputs: expected one of them'),
      ([CONFIG, '--inputs=nowhere.npz'], '--inputs=nowhere.npz: cannot be read'),
      ([CONFIG, '--inputs=IN', '--weights=nowhere'], r'--weights=nowhere: expected a folder with'),
      ([CONFIG, '--inputs=IN', '--prune', '--tau=2'], 'tau: expected a share in (0, 1], got 2'),
      ([CONFIG, '--inputs=IN', '--prune', '--config.prune.bucket=0'],
       'bucket: expected at least 1'))
  def test_one_line_and_status_2(self, arguments, message):
    arguments = [a.replace('=IN', f'={self.folder}/in.npz') for a in arguments]
    result = launch_test.launcher()('launch.generate', f'--output={self.folder}', *arguments)
    self.assertEqual(result.status, 2, result.err)
    self.assertIn(message, result.err.strip().splitlines()[-1])
    self.assertNotIn('Traceback', result.err)


if __name__ == '__main__':
  absltest.main()
