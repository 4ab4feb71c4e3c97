"""STS files: STS-B's tab-separated form and SentEval's folders; bad rows are named."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import sts

ROW = 'main-captions\timages\t2012\t1\t{}\tA "man.\tA\' man.\tlicence\n'


class StsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_stsb(self):
    path = self.folder / 'sts-dev.csv'
    path.write_text(ROW.format('2.500') + ROW.format(5))
    found = sts.read(path)
    self.assertEqual((found.first, found.second), (['A "man.'] * 2, ["A' man."] * 2))
    np.testing.assert_array_equal(found.score, [2.5, 5])
    np.testing.assert_array_equal(found.subset, [0, 0])

  def test_senteval(self):
    for name, lines, scores in (('b', 'x\ty\n', '1\n'), ('a', 'p\tq\nr\ts\nt\tu\n', '4.5\n\n0\n')):
      (self.folder / f'STS.input.{name}.txt').write_text(lines)
      (self.folder / f'STS.gs.{name}.txt').write_text(scores)
    found = sts.read(self.folder)
    self.assertEqual(found.first, ['p', 't', 'x'])  # a pair without a score is left out
    np.testing.assert_array_equal(found.score, [4.5, 0, 1])
    np.testing.assert_array_equal(found.subset, [0, 0, 1])
    (self.folder / 'STS.gs.a.txt').write_text('4.5\n')
    with self.assertRaisesRegex(ValueError, 'STS.input.a.txt has 3 lines and STS.gs.a.txt 1'):
      sts.read(self.folder)

  @parameterized.parameters(
      (ROW.format(3) + ROW.format('six'), "line 2, column 5: expected a number 0 to 5, got 'six'"),
      (ROW.format(5.5), "line 1, column 5: expected a number 0 to 5, got '5.5'"),
      ('a\tb\tc\n', 'line 1: expected at least 7 columns between tabs, got 3'),
      ('', 'expected at least one pair'))
  def test_bad_rows(self, text, message):
    path = self.folder / 'sts-dev.csv'
    path.write_text(text)
    with self.assertRaisesRegex(ValueError, message):
      sts.read(path)

  def test_no_files(self):
    with self.assertRaisesRegex(ConfigError, 'sts: expected a folder with STS.input'):
      sts.read(self.folder)
    with self.assertRaisesRegex(ConfigError, 'no such file'):
      sts.read(self.folder / 'nothing.csv')


if __name__ == '__main__':
  absltest.main()
