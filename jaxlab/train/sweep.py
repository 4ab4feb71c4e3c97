"""A sweep: arms x grid x seeds, each a run in a folder of its own; one table and one figure.

Finished runs are not repeated: a sweep that was killed goes on with the run that was cut.
"""
import copy
import dataclasses
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab import config as config_lib
from jaxlab.train import figures
from jaxlab.train.early_stop import EarlyStop, standing
from jaxlab.train.workdir import open_workdir, write_atomically
from jaxlab.train.writers import read_metrics

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """The mapping `config.sweep`.

  Attributes:
    arms: label -> {'set': ((dotted key, value), ...), 'grid': ((dotted key, (values, ...)), ...)};
      both may be left out.
    seeds: values of `config.seed`; every cell runs with each.
    metric: metric row that judges a run; larger is better.
    target: value of the metric whose first crossing is reported, or None.
    last: evaluations whose mean is a run's final value; that of a run with `early_stop` and without
      phases is its value at the best evaluation.
  """
  arms: Mapping
  metric: str
  seeds: Sequence[int] = (0,)
  target: float | None = None
  last: int = 5

  def __post_init__(self):
    for label, arm in self.arms.items():
      config_lib.check_keys(arm, ('set', 'grid'), f'sweep.arms.{label}')
    config_lib.require(self.last >= 1, 'sweep.last', 'at least 1', self.last)
    config_lib.require(
        len(self.arms) and len(self.seeds), 'sweep', 'at least one arm and one seed', dict(
            self.arms))


class Cell(NamedTuple):
  """One setting of one arm: its label, the values of its grid keys, the whole config."""
  arm: str
  setting: dict[str, Any]
  config: dict[str, Any]


def sweep_config(config):
  """Reads and checks `config.sweep`, and that its dotted keys exist in the config."""
  if 'sweep' not in config:
    raise config_lib.ConfigError('config.sweep: missing')
  settings = config_lib.call(SweepConfig, config['sweep'], 'sweep', drop=())
  cells(config, settings)
  return settings


def override(config, key, value):
  """Sets a dotted key of a nested dict; every part but the last must be there."""
  *parents, last = key.split('.')
  for depth, name in enumerate(parents):
    where = '.'.join(parents[:depth]) or 'config'
    config = config_lib.choose(name, config, where)
    config_lib.require(hasattr(config, 'items'), f'{where}.{name}', 'a mapping', config)
  config[last] = copy.deepcopy(value)


def cells(config, settings):
  """The cells of the sweep, arm by arm, without the seeds."""
  plain = {key: value for key, value in config.items() if key != 'sweep'}
  found = []
  for label, arm in settings.arms.items():
    keys = [key for key, _ in arm.get('grid', ())]
    for values in itertools.product(*(values for _, values in arm.get('grid', ()))):
      cell = copy.deepcopy(plain)
      setting = dict(zip(keys, values))
      for key, value in (*arm.get('set', ()), *setting.items()):
        override(cell, key, value)
      found.append(Cell(label, setting, cell))
  return found


def summarise(rows, settings, stop=None):
  """What the table says of one run, from its metric rows.

  Args:
    rows: the metric rows.
    settings: SweepConfig.
    stop: EarlyStop of the run, or None.

  Returns:
    {'x': steps of the evaluations, 'curve': metric there, 'final': see `SweepConfig.last`,
    'to_target': first step at the target or None, 'mb': megabytes sent both ways by the clients up
    to the end, 0 where none are counted}.
  """
  x, curve = figures.series(rows, settings.metric)
  if not len(x):
    raise config_lib.ConfigError(f'sweep.metric: no row has {settings.metric!r}')
  final_value = curve[-settings.last:].mean()
  if stop is not None:
    best, _ = standing(rows, stop)
    final_value = curve[x == best][0] if best in x else final_value
  reached = x[curve >= settings.target] if settings.target is not None else []
  traffic = [row['mb_down'] + row['mb_up'] for row in rows if 'mb_up' in row]
  to_target = int(reached[0]) if len(reached) else None
  at_target = [
      row['mb_down'] + row['mb_up'] for row in rows if 'mb_up' in row and row['step'] == to_target
  ]
  return {'x': x.tolist(), 'curve': curve.tolist(),
          'final': float(final_value), 'to_target': to_target,
          'mb': traffic[-1] if traffic else 0.0,
          'mb_to_target': at_target[0] if at_target else None}


def run_sweep(config, run_one, workdir):
  """Runs every cell with every seed and writes results.json and figures/sweep.png.

  Args:
    config: mapping with 'sweep'.
    run_one: (config, workdir) -> anything; trains one cell and leaves metrics.jsonl in its workdir.
    workdir: folder of the sweep.

  Returns:
    List of results, one a cell: {'arm', 'setting', 'runs': [summary of each seed]}.

  Raises:
    ConfigError: the sweep is impossible, or the folder holds another one.
  """
  settings = sweep_config(config)
  # Finished runs of another sweep must not be taken for ours.
  workdir = open_workdir(workdir, config)
  results = []
  todo = cells(config, settings)
  for number, cell in enumerate(todo):
    runs = []
    for seed in settings.seeds:
      folder = workdir / f'{number:03d}-{cell.arm}-seed{seed}'
      done = folder / 'finished.json'
      if not done.exists():
        _log.info('run %d of %d: %s, seed %d', len(results) * len(settings.seeds) + len(runs) + 1,
                  len(todo) * len(settings.seeds), label(cell._asdict()), seed)
        run_one({**cell.config, 'seed': seed}, folder)
        write_atomically(
            done,
            json.dumps(summarise(read_metrics(folder / 'metrics.jsonl'), settings,
                                 _stopping(cell.config))) + '\n')
      runs.append(json.loads(done.read_text()))
    results.append({'arm': cell.arm, 'setting': cell.setting, 'runs': runs})
  write_atomically(workdir / 'results.json', json.dumps(results, indent=1) + '\n')
  chosen = best_cells(results)
  lines = {label(cell): _line(cell['runs']) for cell in chosen}
  for arm, (rows, columns, values) in grids(results).items():
    figures.heat_map(values, rows, columns, workdir / 'figures' / f'{arm}.png',
                     title=f'{arm}: {settings.metric}')
  figures.compare(lines, workdir / 'figures' / 'sweep.png', xlabel='step or round',
                  ylabel=settings.metric, title='each arm at the best of its grid',
                  target=settings.target)
  return results


def _stopping(config):
  """The EarlyStop of a run without phases, or None."""
  own = config.get('federated', config).get('early_stop')
  return EarlyStop(**own) if own and not config.get('phases') else None


def _line(runs):
  """(steps, curves [seeds, steps]) as far as all of them come; some may have stopped early."""
  length = min(len(run['curve']) for run in runs)
  return runs[0]['x'][:length], [run['curve'][:length] for run in runs]


def final(cell):
  """Mean final value of a cell over its seeds."""
  return float(np.mean([run['final'] for run in cell['runs']]))


def best_cells(results):
  """The cell of the highest mean final value of each arm, in the order of the arms."""
  best = {}
  for cell in results:
    if cell['arm'] not in best or final(cell) > final(best[cell['arm']]):
      best[cell['arm']] = cell
  return list(best.values())


def label(cell):
  """'arm (key=value, ...)', keys by their last part."""
  setting = ', '.join(
      f'{key.split(".")[-1]}={spell(value)}' for key, value in cell['setting'].items())
  return f'{cell["arm"]} ({setting})' if setting else cell['arm']


def spell(value):
  """A value of a grid in few letters; a mapping by its name, with the rest in brackets.

  >>> spell({'name': 'lie', 'z': 1.5, 'quantity': {'name': 'scale', 'factor': 10}})
  'lie(z=1.5, quantity=scale(factor=10))'
  """
  if not isinstance(value, Mapping):
    return str(value)
  rest = ', '.join(f'{key}={spell(item)}' for key, item in value.items() if key != 'name')
  name = value.get('name', '')
  return f'{name}({rest})' if rest else name or 'none'


def grids(results):
  """The arms whose grid has two keys, as tables of mean final values.

  Returns:
    {arm: (labels of the values of the first key, of the second, [R, C])}.
  """
  found = {}
  for arm in dict.fromkeys(cell['arm'] for cell in results):
    mine = [cell for cell in results if cell['arm'] == arm]
    if len(mine[0]['setting']) == 2:
      places = [tuple(map(spell, cell['setting'].values())) for cell in mine]
      rows, columns = (list(dict.fromkeys(place[i] for place in places)) for i in (0, 1))
      values = np.full((len(rows), len(columns)), np.nan)
      for (row, column), cell in zip(places, mine):
        values[rows.index(row), columns.index(column)] = final(cell)
      found[arm] = rows, columns, values
  return found


def table(results, settings):
  """The sweep as text: each arm at the best of its grid, and whole grids of two keys."""
  show = lambda values, form: ', '.join('never' if v is None else format(v, form) for v in values)
  header = [
      'arm (best of its grid)',
      f'to {settings.target:g}' if settings.target is not None else 'to target',
      f'final {settings.metric}', 'MB sent', 'MB to target'
  ]
  lines = [[
      label(cell),
      show([run['to_target'] for run in cell['runs']], 'd'), f'{final(cell):.4f}',
      f'{np.mean([run["mb"] for run in cell["runs"]]):.1f}',
      show([run['mb_to_target'] for run in cell['runs']], '.1f')
  ] for cell in best_cells(results)]
  whole = [format_table([arm, *columns], [[row, *(f'{value:.4f}' for value in line)]
                                          for row, line in zip(rows, values)])
           for arm, (rows, columns, values) in grids(results).items()]
  return '\n\n'.join([format_table(header, lines), *whole])


def format_table(header, lines):
  """Left-aligned columns under a rule."""
  widths = [max(len(str(row[i])) for row in (header, *lines)) for i in range(len(header))]
  cells_of = lambda row: (str(value).ljust(width) for value, width in zip(row, widths))
  form = lambda row: '  '.join(cells_of(row)).rstrip()
  return '\n'.join([form(header), '  '.join('-' * width for width in widths), *map(form, lines)])
