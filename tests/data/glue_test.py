"""GLUE's files: each task's form, quotes that are letters, bad rows, the demo's text."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import glue

HEADERS = {'mrpc': ['Quality', '#1 ID', '#2 ID', '#1 String', '#2 String'],
           'rte': ['index', 'sentence1', 'sentence2', 'label'],
           'stsb': ['index', 'sentence1', 'sentence2', 'score']}


class RowsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('cola', ['gj04', '0', '*', 'Bill "floated'], ('Bill "floated', '', 0)),
      ('mrpc', ['1', '7', '8', 'One.', 'Two.'], ('One.', 'Two.', 1)),
      ('rte', ['0', 'One.', 'Two.', 'not_entailment'], ('One.', 'Two.', 1)),
      ('stsb', ['0', 'One.', 'Two.', '3.250'], ('One.', 'Two.', 3.25)),
      ('sms', ['5', 'spam', 'WIN'], ('WIN', '', 1)))
  def test_forms(self, task, cells, expected):
    row = glue.parse_row(glue.CONFIGS[task], HEADERS.get(task), 'f: line 2', cells)
    self.assertEqual((row['sentence1'], row['sentence2'], row['label']), expected)

  @parameterized.parameters(
      ('rte', ['0', 'One.', 'Two.', 'yes'], "f: line 2: column 'label': expected one of entail"),
      ('rte', ['0', 'One.'], "f: line 2: column 'label': expected at least 4 cells, got 2"),
      ('stsb', ['0', 'One.', 'Two.', '5.1'], "column 'score': expected a number 0 to 5, got '5.1'"),
      ('stsb', ['0', 'One.', 'Two.', 'x'], "column 'score': expected a number 0 to 5, got 'x'"))
  def test_bad_rows(self, task, cells, message):
    with self.assertRaisesRegex(ValueError, message):
      glue.parse_row(glue.CONFIGS[task], HEADERS[task], 'f: line 2', cells)

  def test_files(self):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()), 'train.tsv')
    path.write_bytes('\ufeffa\t"b\r\nc\td\n'.encode())
    self.assertEqual([cells for _, cells in glue.read_tsv(path)], [['a', '"b'], ['c', 'd']])
    path.write_bytes(b'a\tb\nc\xff\n')
    with self.assertRaisesRegex(ValueError, 'line 2, column 2: expected UTF-8, got byte 0xff'):
      list(glue.read_tsv(path))
    with self.assertRaisesRegex(ConfigError, 'no such file'):
      list(glue.read_tsv(path.with_name('absent.tsv')))


class MetricsTest(absltest.TestCase):

  def test_the_task_of_scores(self):
    from jaxlab.tasks import text_classification as tc
    found = tc.scores(tc.TextSpec('mrpc', 2), np.eye(2)[[1, 1, 0, 0]], np.array([1, 0, 1, 0.]))
    self.assertAlmostEqual(found['score'], 50)
    found = tc.scores(tc.TextSpec('stsb', 1), np.array([[1.], [2], [9]]), np.array([1., 2, 3]))
    self.assertAlmostEqual(found['spearman'], 1)
    self.assertAlmostEqual(found['loss'], 12)
    self.assertAlmostEqual(
        tc.scores(tc.TextSpec('stsb', 1), np.ones((3, 1)), np.array([1., 2, 3]))['pearson'], 0)


if __name__ == '__main__':
  absltest.main()
