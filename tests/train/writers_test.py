"""Metric rows, TensorBoard events and progress."""
import io
import json
import logging
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from tensorboard.backend.event_processing import event_accumulator

from jaxlab.train import writers


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'metrics.jsonl'


class ReadTest(FolderTest):

  def test_absent(self):
    self.assertEqual(writers.read_metrics(self.path), [])

  @parameterized.parameters('', '{', '{"step": 3, "loss": 0.', '{"step": 3, "loss": NaN, "x": "é')
  def test_a_last_line_cut_short_is_left_out(self, rest):
    rows = [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': 0.25}]
    self.path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + rest)
    if rest:
      with self.assertLogs('jaxlab', logging.WARNING) as logs:
        self.assertEqual(writers.read_metrics(self.path), rows)
      self.assertRegex(logs.output[0], 'left out a line cut short after row 2')
    else:
      with self.assertNoLogs('jaxlab', logging.WARNING):
        self.assertEqual(writers.read_metrics(self.path), rows)


class WriterTest(FolderTest):

  def writer(self, last_step=0):
    made = writers.MetricWriter(self.folder, last_step)
    self.addCleanup(made.close)
    return made

  def scalars(self):
    """{tag: [(step, value)]} as TensorBoard reads them."""
    events = event_accumulator.EventAccumulator(str(self.folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()['scalars']}

  def test_rows_can_be_read_while_the_run_goes_on(self):
    writer = self.writer()
    writer.write(10, {'loss': np.float32(0.5), 'count': 3, 'note': 'warm', 'test/accuracy': 1})
    writer.write(np.int64(20), {'loss': jax.numpy.asarray(0.25)})
    rows = [{'step': 10, 'loss': 0.5, 'count': 3, 'note': 'warm', 'test/accuracy': 1},
            {'step': 20, 'loss': 0.25}]
    self.assertEqual(writers.read_metrics(self.path), rows)
    self.assertEqual(writer.rows, rows)
    self.assertEqual([type(v) for v in rows[0].values()],
                     [type(v) for v in writers.read_metrics(self.path)[0].values()])

  def test_tensorboard_reads_the_scalars(self):
    writer = self.writer()
    writer.write(10, {'loss': 0.5, 'count': 3, 'note': 'warm'})
    writer.write(20, {'loss': 0.25})
    writer.close()
    self.assertEqual(self.scalars(), {'loss': [(10, 0.5), (20, 0.25)], 'count': [(10, 3.0)]})

  @parameterized.parameters((0, []), (10, [10]), (15, [10]), (20, [10, 20]), (99, [10, 20, 30]))
  def test_rows_after_the_resumed_step_are_dropped(self, last, kept):
    writer = self.writer()
    for step in (10, 20, 30):
      writer.write(step, {'loss': 1.0})
    writer.close()
    resumed = self.writer(last)
    self.assertEqual([row['step'] for row in resumed.rows], kept)
    self.assertEqual([row['step'] for row in writers.read_metrics(self.path)], kept)
    resumed.write(100, {'loss': 0.5})
    self.assertEqual([row['step'] for row in writers.read_metrics(self.path)], [*kept, 100])
    self.assertEqual(resumed.rows, writers.read_metrics(self.path))

  def test_a_line_cut_by_a_kill_does_not_spoil_the_next_one(self):
    self.path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "lo')
    with self.assertLogs('jaxlab', logging.WARNING):
      writer = self.writer(20)
    writer.write(20, {'loss': 0.5})
    self.assertEqual(self.path.read_text(),
                     '{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 0.5}\n')

  def test_a_value_that_is_not_finite_comes_back(self):
    self.writer().write(1, {'loss': float('nan'), 'norm': float('inf')})
    row = writers.read_metrics(self.path)[0]
    self.assertTrue(np.isnan(row['loss']) and row['norm'] == float('inf'))

  def test_without_a_folder_rows_are_kept(self):
    writer = writers.MetricWriter(None, 0)
    writer.write(1, {'loss': 0.5})
    writer.close()
    self.assertEqual(writer.rows, [{'step': 1, 'loss': 0.5}])
    self.assertEmpty(list(self.folder.iterdir()))

  def test_only_process_0_writes(self):
    with mock.patch.object(jax, 'process_index', return_value=1):
      writer = writers.MetricWriter(self.folder, 0)
      writer.write(1, {'loss': 0.5})
      writer.close()
    self.assertEmpty(list(self.folder.iterdir()))


class ProgressTest(parameterized.TestCase):

  def test_lines_where_there_is_no_terminal(self):
    progress = writers.Progress(30, 10, 'round')
    with self.assertLogs('jaxlab', logging.INFO) as logs:
      progress.update(20, {'loss': 0.12345678, 'grad_norm': 3.0, 'test/auc': 0.5})
    progress.close()
    self.assertRegex(logs.output[0], r':round 20/30  loss 0\.1235  test/auc 0\.5$')

  def test_a_bar_on_a_terminal(self):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with mock.patch('sys.stderr', terminal), self.assertNoLogs('jaxlab', logging.INFO):
      progress = writers.Progress(30, 10, 'step')
      self.assertIn(' 10/30 ', terminal.getvalue())
      progress.update(30, {'loss': 0.5, 'examples_per_s': 1234.0})
      progress.close()
    last = terminal.getvalue().split('\r')[-1]
    self.assertRegex(last, '100%.* 30/30 .*loss 0.5  examples_per_s 1234')

  def test_other_processes_are_quiet(self):
    with mock.patch.object(jax, 'process_index', return_value=1):
      progress = writers.Progress(30, 0, 'step')
      with self.assertNoLogs('jaxlab', logging.INFO):
        progress.update(10, {'loss': 0.5})


if __name__ == '__main__':
  absltest.main()
