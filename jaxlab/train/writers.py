"""Metric writers: metrics.jsonl, TensorBoard events without TensorFlow, progress."""
import json
import logging
import math
import os
import sys
import time

import jax
import tqdm

_log = logging.getLogger(__name__)


def read_metrics(path):
  """Rows of a metrics.jsonl; a line cut by a kill is left out, an absent file has none."""
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        _log.warning('%s: left out a line cut short after row %d', path, len(rows))
  return rows


SHOWN = ('loss', 'accuracy', 'examples_per_s', 'rounds_per_s', 'skipped', 'rejected', 'mb_up')


class MetricWriter:
  """Appends rows to metrics.jsonl and scalars to a TensorBoard event file. Only process 0 writes;
  all have the rows.

  Args:
    directory: the workdir, or None to write nothing (rows are kept in `rows` all the same).
    last_step: rows of a run before a resume that come after this step are dropped, so no step
      appears twice.
  """

  def __init__(self, directory, last_step):
    self.rows, self._file, self._events = [], None, None
    if directory is None:
      return
    path = directory / 'metrics.jsonl'
    self.rows = [row for row in read_metrics(path) if row['step'] <= last_step]
    if jax.process_index() != 0:
      return
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(json.dumps(row) + '\n' for row in self.rows))
    os.replace(temporary, path)
    self._file = open(path, 'a', encoding='utf-8')
    from tensorboard.compat.proto import event_pb2, summary_pb2  # pylint: disable=g-import-not-at-top
    from tensorboard.summary.writer import event_file_writer  # pylint: disable=g-import-not-at-top
    self._event_pb2, self._summary_pb2 = event_pb2, summary_pb2
    self._events = event_file_writer.EventFileWriter(str(directory))

  def write(self, step, values):
    """Writes one row {'step': step, **values}; values are floats, ints or strings."""
    row = {
        'step': int(step),
        **{k: v if isinstance(v, (int, str)) else float(v) for k, v in values.items()}
    }
    self.rows.append(row)
    if self._file is None:
      return
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()
    scalars = [self._summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in row.items()
               if k != 'step' and not isinstance(v, str)]
    self._events.add_event(self._event_pb2.Event(
        wall_time=time.time(), step=int(step), summary=self._summary_pb2.Summary(value=scalars)))

  def close(self):
    """Flushes and closes the files."""
    if self._file is not None:
      self._file.close()
      self._events.close()


class Progress:
  """A progress bar with loss, examples/s and time left on a terminal; plain log lines elsewhere.

  Log lines come at most every two seconds, and one for the end.

  Args:
    total: number of steps or rounds of the run.
    start: where this process begins.
    unit: 'step' or 'round'.
  """

  def __init__(self, total, start, unit):
    self._total, self._unit, self._shown = total, unit, -math.inf
    terminal = sys.stderr.isatty() and jax.process_index() == 0
    self._bar = tqdm.tqdm(total=total, initial=start, unit=unit,
                          dynamic_ncols=True) if terminal else None

  def update(self, step, values):
    """Shows the values of the metrics at `step`."""
    text = '  '.join(f'{k} {v:.4g}' for k, v in values.items() if k in SHOWN or '/' in k)
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._bar.n)
    elif jax.process_index() == 0 and (step == self._total or time.monotonic() > self._shown + 2):
      self._shown = time.monotonic()
      _log.info('%s %d/%d  %s', self._unit, step, self._total, text)

  def close(self):
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()
