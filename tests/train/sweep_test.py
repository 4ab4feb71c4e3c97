"""Sweeps: their cells, what they repeat, and what they say."""
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.train import sweep
from jaxlab.train.early_stop import EarlyStop

RATE, RHO = 'optimizer.learning_rate', 'optimizer.rho'
ARMS = {
    'SAM': {'set': ((RHO, 0.1),), 'grid': ((RATE, (0.1, 0.2)), (RHO, (0.3, 0.4)))},
    'SGD': {'set': (('optimizer', {'name': 'sgd', 'learning_rate': 1.0}),)},
}
CONFIG = {
    'seed': 9, 'steps': 4, 'optimizer': {'name': 'sam', 'learning_rate': 0.0},
    'sweep': {'arms': ARMS, 'metric': 'test/accuracy', 'seeds': (1, 2), 'target': 0.5, 'last': 2},
}


def settings_of(**changes):
  return sweep.sweep_config({**CONFIG, 'sweep': {**CONFIG['sweep'], **changes}})


def run_one(config, folder, seen=None):
  """A run whose accuracy ends at its rate + rho, less a thousandth of its seed."""
  optimizer = config['optimizer']
  end = optimizer['learning_rate'] + optimizer.get('rho', 0) - config['seed'] / 1000
  folder.mkdir(parents=True, exist_ok=True)
  rows = [{'step': 1, 'loss': 2.0}, {'step': 2, 'test/accuracy': end - 0.2},
          {'step': 3, 'test/accuracy': end - 0.1}, {'step': 4, 'test/accuracy': end}]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  if seen is not None:
    seen.append((folder.name, config))


class Killed(BaseException):
  """Nobody catches this."""


class CellsTest(parameterized.TestCase):

  def test_arms_times_grid(self):
    cells = sweep.cells(CONFIG, settings_of())
    self.assertEqual([(cell.arm, cell.setting) for cell in cells], [
        *(('SAM', {RATE: rate, RHO: rho}) for rate in (0.1, 0.2) for rho in (0.3, 0.4)),
        ('SGD', {})])
    self.assertEqual([cell.config['optimizer'] for cell in cells], [
        *({'name': 'sam', 'learning_rate': rate, 'rho': rho} for rate in (0.1, 0.2)
          for rho in (0.3, 0.4)), {'name': 'sgd', 'learning_rate': 1.0}])
    for cell in cells:
      self.assertEqual(sorted(cell.config), ['optimizer', 'seed', 'steps'])
    self.assertEqual(CONFIG['optimizer'], {'name': 'sam', 'learning_rate': 0.0})  # left alone
    self.assertIsNot(cells[-1].config['optimizer'], ARMS['SGD']['set'][0][1])

  def test_override(self):
    config = {'a': {'b': {'c': 1}}}
    sweep.override(config, 'a.b.c', 2)
    sweep.override(config, 'a.b.d', 3)
    sweep.override(config, 'e', 4)
    self.assertEqual(config, {'a': {'b': {'c': 2, 'd': 3}}, 'e': 4})

  @parameterized.parameters(
      ('oa.b', "config: unknown name 'oa'; did you mean 'a'"),
      ('a.bb.c', "a: unknown name 'bb'; did you mean 'b'"),
      ('a.b.c.d', 'a.b.c: expected a mapping, got 1'))
  def test_override_of_what_is_not_there(self, key, message):
    with self.assertRaisesRegex(ConfigError, message):
      sweep.override({'a': {'b': {'c': 1}}}, key, 2)

  @parameterized.parameters(
      ({'arms': {}}, 'sweep: expected at least one arm and one seed'),
      ({'seeds': ()}, 'sweep: expected at least one arm and one seed'),
      ({'arms': {'A': {'gird': ()}}}, "sweep.arms.A: unknown key 'gird'; did you mean 'grid'"),
      ({'arms': {'A': {'set': (('optimzer.rho', 1),)}}}, "unknown name 'optimzer'; did you mean"),
      ({'metric': 3}, 'sweep.metric: expected str'), ({'seeds': ('1',)}, 'sweep.seeds: expected'),
      ({'targt': 1}, "sweep: unknown key 'targt'; did you mean 'target'"))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      settings_of(**change)

  def test_a_config_without_a_sweep(self):
    with self.assertRaisesRegex(ConfigError, '^config.sweep: missing$'):
      sweep.sweep_config({'seed': 0})


class SummaryTest(parameterized.TestCase):

  def test_of_a_central_run(self):
    rows = [{'step': 5, 'loss': 1.0}, *({'step': 10 * i, 'test/accuracy': value}
                                        for i, value in enumerate((0.25, 0.5, 0.25, 1.0), 1))]
    self.assertEqual(sweep.summarise(rows, settings_of()), {
        'x': [10, 20, 30, 40], 'curve': [0.25, 0.5, 0.25, 1.0], 'final': 0.625,
        'to_target': 20, 'mb': 0.0, 'mb_to_target': None})

  @parameterized.parameters(('test/accuracy', 'max', 0.5), ('test/loss', 'min', 0.25),
                            ('test/nothing', 'max', 0.4375))
  def test_the_final_value_of_a_run_that_stops_early(self, metric, mode, final):
    rows = [{'step': 10 * i, 'test/accuracy': value, 'test/loss': loss}
            for i, (value, loss) in enumerate(((0.25, 1.0), (0.5, 2.0), (0.375, 3.0)), 1)]
    self.assertEqual(
        sweep.summarise(rows, settings_of(), EarlyStop(metric, 1, mode))['final'], final)

  @parameterized.parameters((0.5, 20, 6.0), (0.6, 20, 6.0), (0.61, None, None), (None, None, None))
  def test_of_a_federated_run(self, target, reached, megabytes):
    rows = [{'step': 10 * i, 'test/accuracy': value, 'mb_down': 2.0 * i, 'mb_up': 1.0 * i}
            for i, value in enumerate((0.1, 0.6, 0.4), 1)]
    summary = sweep.summarise(rows, settings_of(target=target))
    self.assertEqual((summary['to_target'], summary['mb_to_target'], summary['mb']),
                     (reached, megabytes, 9.0))

  def test_a_metric_that_no_row_has(self):
    with self.assertRaisesRegex(ConfigError, "^sweep.metric: no row has 'test/accuracy'$"):
      sweep.summarise([{'step': 1, 'loss': 1.0}], settings_of())


class RunTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_every_cell_runs_with_every_seed(self):
    seen = []
    results = sweep.run_sweep(CONFIG, lambda *args: run_one(*args, seen), self.folder)
    self.assertEqual([name for name, _ in seen], [
        f'{number:03d}-{arm}-seed{seed}' for number, arm in enumerate(['SAM'] * 4 + ['SGD'])
        for seed in (1, 2)])
    self.assertEqual([config['seed'] for _, config in seen], [1, 2] * 5)
    self.assertEqual([(cell['arm'], cell['setting']) for cell in results],
                     [(cell.arm, cell.setting) for cell in sweep.cells(CONFIG, settings_of())])
    self.assertAlmostEqual(results[1]['runs'][1]['curve'][-1], 0.1 + 0.4 - 0.002)
    self.assertAlmostEqual(results[1]['runs'][1]['final'], 0.1 + 0.4 - 0.002 - 0.05)
    self.assertEqual(json.loads((self.folder / 'results.json').read_text()), results)
    self.assertGreater((self.folder / 'figures' / 'sweep.png').stat().st_size, 1000)

  def test_runs_that_stop_early(self):
    def shorter(config, folder):
      run_one(config, folder)
      if config['seed'] == 2:  # its second evaluation is the last
        rows = (folder / 'metrics.jsonl').read_text().splitlines()[:-1]
        (folder / 'metrics.jsonl').write_text('\n'.join(rows) + '\n')

    stop = {'metric': 'test/accuracy', 'patience': 1, 'mode': 'min'}
    results = sweep.run_sweep({**CONFIG, 'early_stop': stop}, shorter, self.folder)
    self.assertEqual([run['x'] for run in results[0]['runs']], [[2, 3, 4], [2, 3]])
    for run in results[0]['runs']:
      self.assertEqual(run['final'], run['curve'][0])  # the smallest
    self.assertGreater((self.folder / 'figures' / 'sweep.png').stat().st_size, 1000)

  def test_a_finished_sweep_repeats_nothing(self):
    first = sweep.run_sweep(CONFIG, run_one, self.folder)
    self.assertEqual(first, sweep.run_sweep(CONFIG, self.fail, self.folder))

  @parameterized.parameters(0, 3, 9)
  def test_a_killed_sweep_repeats_no_finished_run(self, finished):
    whole = sweep.run_sweep(CONFIG, run_one, self.folder / 'whole')
    seen, calls = [], []

    def killed(config, folder):
      calls.append(folder)
      if len(calls) == finished + 1:
        run_one(config, folder)  # all rows are there, but nobody said that it is finished
        raise Killed
      run_one(config, folder, seen)

    with self.assertRaises(Killed):
      sweep.run_sweep(CONFIG, killed, self.folder / 'killed')
    self.assertFalse((self.folder / 'killed' / 'results.json').exists())
    before = [name for name, _ in seen]
    self.assertLen(before, finished)
    again = sweep.run_sweep(CONFIG, lambda *args: run_one(*args, seen), self.folder / 'killed')
    self.assertEqual(again, whole)
    self.assertEqual([name for name, _ in seen], sorted(set(name for name, _ in seen)))
    self.assertLen(seen, 10)
    self.assertEqual(seen[finished][0], calls[-1].name)  # the run that was cut goes on

  def test_the_folder_of_another_sweep(self):
    sweep.run_sweep(CONFIG, run_one, self.folder)
    with self.assertRaisesRegex(ConfigError, 'another config; first difference at config.steps'):
      sweep.run_sweep({**CONFIG, 'steps': 5}, self.fail, self.folder)

  def test_impossible_sweeps_run_nothing(self):
    (self.folder / 'file').write_text('')
    with self.assertRaisesRegex(ConfigError, 'cannot be written to'):
      sweep.run_sweep(CONFIG, self.fail, self.folder / 'file' / 'below')
    with self.assertRaisesRegex(ConfigError, 'config.sweep: missing'):
      sweep.run_sweep({'seed': 0}, self.fail, self.folder / 'new')
    self.assertFalse((self.folder / 'new').exists())


class TableTest(parameterized.TestCase):

  def results(self):
    run = lambda final, to_target, mb, at: {
        'x': [1], 'curve': [final], 'final': final, 'to_target': to_target, 'mb': mb,
        'mb_to_target': at}
    return [
        {'arm': 'A', 'setting': {RATE: 0.1},
         'runs': [run(0.5, 3, 1.0, 0.5), run(0.7, 4, 1.0, 0.6)]},
        {'arm': 'A', 'setting': {RATE: 0.2},
         'runs': [run(0.9, 2, 2.0, 0.4), run(0.35, None, 4.0, None)]},
        {'arm': 'Bee', 'setting': {},
         'runs': [run(0.2, None, 0.0, None), run(0.2, None, 0.0, None)]},
    ]

  def test_the_best_of_each_grid_by_its_mean(self):
    results = self.results()
    self.assertAlmostEqual(sweep.final(results[1]), 0.625)
    self.assertEqual(sweep.best_cells(results), [results[1], results[2]])
    self.assertEqual(sweep.best_cells(results[::-1]), [results[2], results[1]])

  def test_labels(self):
    self.assertEqual([sweep.label(cell) for cell in self.results()],
                     ['A (learning_rate=0.1)', 'A (learning_rate=0.2)', 'Bee'])

  def test_the_table(self):
    self.assertEqual(sweep.table(self.results(), settings_of()).split('\n'), [
        'arm (best of its grid)  to 0.5        final test/accuracy  MB sent  MB to target',
        '----------------------  ------------  -------------------  -------  ------------',
        'A (learning_rate=0.2)   2, never      0.6250               3.0      0.4, never',
        'Bee                     never, never  0.2000               0.0      never, never'])


class GridTest(parameterized.TestCase):

  def results(self):
    attacks = ({}, {'name': 'lie', 'z': 1.5, 'quantity': {'name': 'max'}})
    return [{'arm': 'G', 'setting': {'a.attack': attack, 'a.rule': rule}, 'runs': [
        {'x': [1], 'curve': [final], 'final': final, 'to_target': None, 'mb': 0.0,
         'mb_to_target': None}]}
            for final, attack, rule in ((0.5, attacks[0], 'mean'), (0.75, attacks[0], 'krum'),
                                        (0.25, attacks[1], 'mean'), (0.7, attacks[1], 'krum'))]

  def test_two_keys_make_a_table(self):
    self.assertEqual(sweep.spell({}), 'none')
    (arm, (rows, columns, values)), = sweep.grids(self.results()).items()
    self.assertEqual((arm, rows, columns),
                     ('G', ['none', 'lie(z=1.5, quantity=max)'], ['mean', 'krum']))
    self.assertEqual(values.tolist(), [[0.5, 0.75], [0.25, 0.7]])
    self.assertEqual(sweep.table(self.results(), settings_of()).split('\n')[-4:], [
        'G                         mean    krum',
        '------------------------  ------  ------',
        'none                      0.5000  0.7500',
        'lie(z=1.5, quantity=max)  0.2500  0.7000'])

  def test_a_sweep_of_two_keys_draws_a_heat_map(self):
    arms = {'SAM': ARMS['SAM']}
    with tempfile.TemporaryDirectory() as folder:
      sweep.run_sweep({**CONFIG, 'sweep': {**CONFIG['sweep'], 'arms': arms}}, run_one, folder)
      self.assertTrue((pathlib.Path(folder) / 'figures' / 'SAM.png').exists())


if __name__ == '__main__':
  absltest.main()
