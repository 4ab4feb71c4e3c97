"""What happens to the malformed rows of official files: an error, or a count that is reported."""
import logging

from jaxlab import config as config_lib


def parse_rows(rows, parse, *, on_bad_row, where):
  """Yields `parse(*row)` of every row.

  Args:
    rows: iterable of argument tuples.
    parse: raises ValueError, which names file, row, column and what was expected, for a bad row.
    on_bad_row: 'raise' lets the first error through, 'skip' leaves bad rows out and logs how many
      there were, with the first error.
    where: file or data set, for the log line.

  Raises:
    ConfigError: `on_bad_row` is neither.
  """
  config_lib.require(on_bad_row in ('raise', 'skip'), 'on_bad_row', "'raise' or 'skip'", on_bad_row)
  first, skipped, total = None, 0, 0
  for row in rows:
    total += 1
    try:
      parsed = parse(*row)
    except ValueError as error:
      if on_bad_row == 'raise':
        raise
      first, skipped = first or error, skipped + 1
    else:
      yield parsed
  if skipped:
    logging.warning('%s: skipped %d of %d rows; the first: %s', where, skipped, total, first)
