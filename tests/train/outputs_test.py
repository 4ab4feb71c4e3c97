"""Files of predictions."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab.config import ConfigError
from jaxlab.train import outputs


class OutputsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.values = {'logit': np.array([.5, -1], np.float32), 'vector': np.arange(4).reshape(2, 2)}

  def test_tsv(self):
    outputs.write(self.folder / 'a.tsv', self.values)
    self.assertEqual((self.folder / 'a.tsv').read_text(),
                     'logit\tvector[0]\tvector[1]\n0.5\t0\t1\n-1.0\t2\t3\n')

  def test_jsonl(self):
    outputs.write(self.folder / 'a.jsonl', self.values)
    lines = [json.loads(line) for line in (self.folder / 'a.jsonl').read_text().splitlines()]
    self.assertEqual(lines, [{'logit': .5, 'vector': [0, 1]}, {'logit': -1, 'vector': [2, 3]}])

  def test_npz(self):
    outputs.write(self.folder / 'a.npz', self.values)
    with np.load(self.folder / 'a.npz') as file:
      for name, value in self.values.items():
        np.testing.assert_array_equal(file[name], value)

  def test_what_cannot_be_written(self):
    with self.assertRaisesRegex(ConfigError, '--output: expected a file ending in .npz, .tsv'):
      outputs.check_path('a.csv')
    with self.assertRaisesRegex(ConfigError, 'expected a file ending in .npz, got .a.tsv'):
      outputs.check_path('a.tsv', ('.npz',))
    with self.assertRaisesRegex(ConfigError, '--output: expected a file in a folder that is there'):
      outputs.check_path(self.folder / 'nowhere' / 'a.tsv')
    with self.assertRaisesRegex(ConfigError, '.npz or .jsonl for cube'):
      outputs.write(self.folder / 'a.tsv', {'cube': np.zeros((2, 2, 2))})


if __name__ == '__main__':
  absltest.main()
