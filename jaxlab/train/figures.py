"""Figures of runs as PNG files."""
import numpy as np


def _pyplot():
  import matplotlib  # pylint: disable=g-import-not-at-top
  matplotlib.use('Agg')
  from matplotlib import pyplot  # pylint: disable=g-import-not-at-top
  return pyplot


def series(rows, name):
  """(steps, values) arrays of the rows that have metric `name`."""
  points = [(row['step'], row[name]) for row in rows if name in row]
  return (np.array([p[0] for p in points]), np.array([p[1] for p in points]))


def curves(rows, path, unit):
  """One panel a metric, its value by step.

  Args:
    rows: metric rows, dicts with 'step'.
    path: PNG file to write; its folder is made.
    unit: label of the x axis.
  """
  names = sorted({name for row in rows for name, value in row.items()
                  if isinstance(value, float) and not name.endswith('_per_s')})
  if not names:
    return
  pyplot = _pyplot()
  columns = min(3, len(names))
  grid = (-(-len(names) // columns), columns)
  figure, axes = pyplot.subplots(*grid, figsize=(4 * columns, 2.8 * grid[0]), squeeze=False)
  for axis in axes.flat[len(names):]:
    axis.set_visible(False)
  for axis, name in zip(axes.flat, names):
    axis.plot(*series(rows, name), lw=1.5)
    axis.set(title=name, xlabel=unit)
    axis.grid(alpha=.3)
  _write(pyplot, figure, path)


def compare(lines, path, *, xlabel, ylabel, title='', target=None):
  """One panel with a line a label, its band the spread over repeats.

  Args:
    lines: label -> (x [T], values [R, T]); the mean over R is drawn, and the range where R > 1.
    path: PNG file to write; its folder is made.
    xlabel: label of the x axis.
    ylabel: label of the y axis.
    title: title of the panel.
    target: value to mark by a horizontal line.
  """
  pyplot = _pyplot()
  figure, axis = pyplot.subplots(figsize=(7, 4.5))
  for label, (x, values) in lines.items():
    values = np.asarray(values)
    line, = axis.plot(x, values.mean(0), lw=1.8, label=label)
    if len(values) > 1:
      axis.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=.15, lw=0)
  if target is not None:
    axis.axhline(target, color='grey', lw=1, ls='--')
  axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
  axis.grid(alpha=.3)
  axis.legend()
  _write(pyplot, figure, path)


def heat_map(values, rows, columns, path, *, title=''):
  """A grid of numbers as colours, each with its number.

  Args:
    values: [R, C]; NaN cells stay empty.
    rows: R labels.
    columns: C labels.
    path: PNG file to write; its folder is made.
    title: title of the panel.
  """
  values = np.asarray(values, float)
  pyplot = _pyplot()
  figure, axis = pyplot.subplots(figsize=(2.5 + 0.75 * len(columns), 2 + 0.4 * len(rows)))
  image = axis.imshow(values, aspect='auto', cmap='viridis')
  middle = (np.nanmin(values) + np.nanmax(values)) / 2
  for (i, j), value in np.ndenumerate(values):
    if np.isfinite(value):
      axis.text(j, i, f'{value:.3f}', ha='center', va='center', fontsize=7,
                color='black' if value > middle else 'white')
  axis.set_xticks(range(len(columns)), columns, rotation=40, ha='right', fontsize=8)
  axis.set_yticks(range(len(rows)), rows, fontsize=8)
  axis.set_title(title)
  figure.colorbar(image)
  _write(pyplot, figure, path)


def _write(pyplot, figure, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
