import logging

from absl.testing import absltest

from jaxlab.config import ConfigError
from jaxlab.data.rows import parse_rows


def parse(where, value):
  if value < 0:
    raise ValueError(f'{where}: expected no negative number, got {value}')
  return 10 * value


ROWS = [('row 0', 1), ('row 1', -2), ('row 2', 3), ('row 3', -4)]


class RowsTest(absltest.TestCase):

  def test_raises_the_first_error(self):
    rows = parse_rows(ROWS, parse, on_bad_row='raise', where='file')
    self.assertEqual(next(rows), 10)
    with self.assertRaisesRegex(ValueError, 'row 1: expected no negative number, got -2'):
      next(rows)

  def test_skips_counts_and_reports(self):
    with self.assertLogs(level=logging.WARNING) as logs:
      self.assertEqual(list(parse_rows(ROWS, parse, on_bad_row='skip', where='file')), [10, 30])
    self.assertEqual([record.getMessage() for record in logs.records], [
        'file: skipped 2 of 4 rows; the first: row 1: expected no negative number, got -2'])

  def test_says_nothing_of_good_rows(self):
    with self.assertNoLogs(level=logging.WARNING):
      self.assertEqual(list(parse_rows(ROWS[:1], parse, on_bad_row='skip', where='file')), [10])

  def test_other_words(self):
    with self.assertRaisesRegex(ConfigError, "on_bad_row: expected 'raise' or 'skip', got 'drop'"):
      next(parse_rows(ROWS, parse, on_bad_row='drop', where='file'))


if __name__ == '__main__':
  absltest.main()
