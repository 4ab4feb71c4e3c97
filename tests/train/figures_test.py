"""Figures: what is drawn, and that it is a picture."""
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from matplotlib import figure, image, pyplot

from jaxlab.train import figures

ROWS = [{'step': 1, 'loss': 3.0, 'steps_per_s': 5.0, 'skipped': 0},
        {'step': 2, 'loss': 2.0, 'test/accuracy': 0.5, 'skipped': 0},
        {'step': 4, 'loss': 1.0, 'test/accuracy': 0.75, 'skipped': 1}]


class FiguresTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'a' / 'x.png'

  def drawn(self, draw):
    """Calls `draw` and returns the visible panels of the figure that it saves."""
    seen = []

    def savefig(self, path, **options):
      seen.append([axis for axis in self.axes if axis.get_visible()])
      save(self, path, **options)

    save = figure.Figure.savefig
    with mock.patch.object(figure.Figure, 'savefig', savefig):
      draw()
    self.assertLen(seen, 1)
    pixels = image.imread(self.path)
    self.assertGreater(pixels.std(), 0.01)  # a picture, and not an empty one
    self.assertEmpty(pyplot.get_fignums())  # nothing stays open
    return seen[0]

  def lines(self, axis):
    """{label: (x, y)}."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
            for line in axis.get_lines()}

  def test_series(self):
    for name, steps, values in (('loss', [1, 2, 4], [3.0, 2.0, 1.0]),
                                ('test/accuracy', [2, 4], [0.5, 0.75]), ('nothing', [], [])):
      x, y = figures.series(ROWS, name)
      self.assertEqual((x.tolist(), y.tolist()), (steps, values))

  def test_curves_have_a_panel_a_metric(self):
    panels = self.drawn(lambda: figures.curves(ROWS, self.path, 'round'))
    self.assertEqual([axis.get_title() for axis in panels], ['loss', 'test/accuracy'])
    self.assertEqual({axis.get_xlabel() for axis in panels}, {'round'})
    self.assertEqual(list(self.lines(panels[0]).values()), [([1, 2, 4], [3.0, 2.0, 1.0])])
    self.assertEqual(list(self.lines(panels[1]).values()), [([2, 4], [0.5, 0.75])])

  @parameterized.parameters(1, 3, 4)
  def test_any_number_of_panels(self, count):
    rows = [{'step': s, **{f'm{i}': float(s * i) for i in range(count)}} for s in range(3)]
    panels = self.drawn(lambda: figures.curves(rows, self.path, 'step'))
    self.assertEqual([axis.get_title() for axis in panels], [f'm{i}' for i in range(count)])

  @parameterized.parameters(([],), ([{'step': 1, 'skipped': 0}],))
  def test_no_curves_no_file(self, rows):
    figures.curves(rows, self.path, 'step')
    self.assertFalse(self.path.exists())

  def test_compare(self):
    lines = {'one': ([1, 2], [[0.1, 0.4], [0.3, 0.8]]), 'two': ([1, 3], [[0.5, 0.6]])}
    axis, = self.drawn(lambda: figures.compare(
        lines, self.path, xlabel='round', ylabel='accuracy', title='T', target=0.9))
    drawn = self.lines(axis)
    for label, (x, values) in lines.items():
      np.testing.assert_allclose(drawn[label], (x, np.mean(values, 0)))
    band, = axis.collections  # of 'one' alone: a single run has no spread
    outline = {tuple(np.round(point, 6)) for point in band.get_paths()[0].vertices}
    self.assertContainsSubset([(1, 0.1), (1, 0.3), (2, 0.4), (2, 0.8)], outline)
    target, = [y for label, (_, y) in drawn.items() if label.startswith('_')]
    self.assertEqual(target, [0.9, 0.9])
    self.assertEqual((axis.get_xlabel(), axis.get_ylabel(), axis.get_title()),
                     ('round', 'accuracy', 'T'))
    self.assertEqual([text.get_text() for text in axis.get_legend().get_texts()], ['one', 'two'])

  def test_compare_without_a_target(self):
    axis, = self.drawn(lambda: figures.compare(
        {'one': ([1, 2], [[0.1, 0.4]])}, self.path, xlabel='x', ylabel='y'))
    self.assertLen(axis.get_lines(), 1)


if __name__ == '__main__':
  absltest.main()
