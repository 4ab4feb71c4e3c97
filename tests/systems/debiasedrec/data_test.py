"""The extended MIND format: slots, plain files, malformed rows, samples, the simulator's files."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.debiasedrec import data, simulator

TIME = '3/1/2021 12:00:00 AM'
ROW = f'1\tU1\t{TIME}\tN1@3:2 N2@:1 N3\tN4-1@1:3 N5-0@2 N6-0'


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'behaviors.tsv'

  def write(self, *lines):
    self.path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    return self.path

  def test_slots_and_their_missing_parts(self):
    row, = data.read_rows(self.write(ROW))
    self.assertEqual(row.behavior.history, ('N1', 'N2', 'N3'))
    self.assertEqual((row.behavior.candidates, row.behavior.labels), (('N4', 'N5', 'N6'),
                                                                      (1, 0, 0)))
    np.testing.assert_array_equal(row.history_slots, [[3, 2], [0, 1], [0, 0]])
    np.testing.assert_array_equal(row.slots, [[1, 3], [2, 0], [0, 0]])

  def test_plain_files_of_mind_are_legal(self):
    row, = data.read_rows(self.write(f'1\tU1\t{TIME}\t\tN1-0 N2-1\r'))
    self.assertEqual(row.behavior.history, ())
    self.assertFalse(row.slots.any())
    row, = data.read_rows(self.write(f'1\tU1\t{TIME}\tN1\tN1@2:1 N2'), labelled=False)
    self.assertEqual(row.behavior.labels, (-1, -1))
    np.testing.assert_array_equal(row.slots, [[2, 1], [0, 0]])

  @parameterized.parameters(
      ('N1@x:1', 'history: expected id@position:size .*, got .N1@x:1.'), ('N1@0:1', 'history'),
      ('N1@', 'history'), ('@1:2', 'history'), ('N1@1:-2', 'history'), ('N1@1.5:1', 'history'),
      ('N1@1:nan', 'history'), ('N1@1:2:3', 'history'))
  def test_malformed_slots(self, item, message):
    path = self.write(ROW, f'1\tU1\t{TIME}\t{item}\tN1-0 N2-1', ROW)
    with self.assertRaisesRegex(ValueError, f'behaviors.tsv: line 2: {message}'):
      list(data.read_rows(path))
    with self.assertLogs(level='WARNING') as logs:
      self.assertLen(list(data.read_rows(path, on_bad_row='skip')), 2)
    self.assertRegex(logs.output[0], 'skipped 1 of 3 rows.*behaviors.tsv: line 2')

  @parameterized.parameters(
      (f'1\tU1\t{TIME}\tN1', 'expected 5 tab-separated columns'),
      (f'1\tU1\t{TIME}\t\tN1-1@0:1', "impressions: expected id@position:size .*got 'N1-1@0:1'"),
      (f'1\tU1\t{TIME}\t\tN1@1:1', "impressions: expected id-0 or id-1, got 'N1'"))
  def test_other_malformed_rows(self, line, message):
    with self.assertRaisesRegex(ValueError, f'behaviors.tsv: line 1: {message}'):
      list(data.read_rows(self.write(line)))

  def test_no_file(self):
    with self.assertRaisesRegex(ConfigError, 'behaviors.tsv: no such file'):
      list(data.read_rows(self.path))

  def test_the_simulator_in_files_is_what_was_shown(self):
    sizes = {'users': 5, 'news': 14, 'topics': 3}
    world, splits = simulator.write(self.folder / 'log', 3, impressions=4, **sizes)
    news, read = data.read_folder(self.folder / 'log')
    self.assertEqual(list(read), ['train', 'dev', 'test', 'random', 'randomised'])
    self.assertEqual(news['title'], world.titles)
    for name, shown in splits.items():
      impressions = read[name].impressions
      np.testing.assert_array_equal(impressions.candidates.values, shown.news.ravel() + 1)
      labels = shown.likes > 0.5 if name == 'random' else shown.clicks
      np.testing.assert_array_equal(impressions.labels.values, labels.ravel())
      np.testing.assert_array_equal(read[name].slots[:, 0], np.tile(np.arange(1, 11), len(labels)))
      np.testing.assert_array_equal(read[name].slots[:, 1], shown.size.ravel())
    self.assertLessEqual(read['train'].impressions.history.sizes.max(), simulator.HISTORY)
    again = self.folder / 'again'
    simulator.write(again, 3, impressions=4, **sizes)
    for path in sorted(again.rglob('*.tsv')):
      other = self.folder / 'log' / path.relative_to(again)
      self.assertEqual(path.read_bytes(), other.read_bytes())


class ColumnsTest(parameterized.TestCase):

  def split(self):
    """Two impressions; the slot of a news is a function of its number."""
    rows = [{'impression': i, 'user': i, 'time': 0, 'history': np.array(history),
             'candidates': np.array(shown), 'labels': np.array(labels),
             'history_slots': self.slots(history), 'slots': self.slots(shown)}
            for i, (history, shown, labels) in enumerate([
                ([1, 2, 3], [4, 5, 6], [0, 1, 0]), ([], [7, 8], [1, 1]), ([9], [3, 2], [1, 0])])]
    return data.collect(rows)

  def slots(self, news):
    return np.array([(n, 1 + n % 3) for n in news], np.float32).reshape(-1, 2)

  def test_samples_keep_each_slot_beside_its_news(self):
    index = data.SlotIndex(('position', 'size'), 20, 3)
    with self.assertLogs(level='WARNING') as logs:
      columns = data.click_columns(self.split(), index, 2, 3)
    self.assertIn('2 of 4 clicks have no news', logs.output[0])
    np.testing.assert_array_equal(columns['click'], [5, 3])
    np.testing.assert_array_equal(columns['history'], [[2, 3], [9, 0]])  # the last clicks
    for news, slots in (('click', 'click_slot'), ('pool', 'pool_slots'),
                        ('history', 'history_slots')):
      real = columns[news] > 0
      np.testing.assert_array_equal(columns[slots][..., 0], columns[news])
      np.testing.assert_array_equal(columns[slots][..., 1], (1 + columns[news] % 3) * real)
    rows = data.impression_columns(self.split(), index, 2)
    np.testing.assert_array_equal(rows['slots'][..., 0], rows['candidates'])

  def test_indices(self):
    slots = np.array([[70, 2], [0, 0], [3, 1]], np.float32)
    np.testing.assert_array_equal(data.SlotIndex(('position', 'size'), 64, 3)(slots),
                                  [[64, 2], [0, 0], [3, 1]])
    one = data.SlotIndex(('size',), 64, 3)
    np.testing.assert_array_equal(one(slots), [[2], [0], [1]])
    self.assertEqual(one.rows, (4,))
    with self.assertRaisesRegex(ValueError, 'size: expected whole numbers up to data.sizes=1, got'):
      data.SlotIndex(('size',), 64, 1)(slots)
    measured = data.SlotIndex(('size',), 64, 3, np.array([100., 200.]))
    sizes = np.array([[1, 0], [1, 50], [1, 150.5], [1, 900]])
    np.testing.assert_array_equal(measured(sizes)[:, 0], [0, 1, 2, 3])

  def test_measured_sizes_become_quantiles(self):
    split = self.split()
    split = split._replace(slots=split.slots * np.array([1, 100.5], np.float32),
                           history_slots=0 * split.history_slots)
    news = {name: ['a'] * 9 for name in ('title', 'abstract', 'category', 'subcategory')}
    made = data.prepare(news, {'train': split}, history_length=2, sizes=2, measured_sizes=True)
    counts = np.bincount(made.index(split.slots)[:, 1])
    self.assertEqual(counts[0], 0)
    self.assertLessEqual(abs(counts[1] - counts[2]), 3)
    with self.assertRaisesRegex(ConfigError, 'data.measured_sizes: expected sizes'):
      data.prepare(news, {'train': split._replace(slots=0 * split.slots)}, measured_sizes=True)

  def test_propensities_are_rates_of_the_best(self):
    indices = np.repeat([[1], [2]], 1000, axis=0)
    labels = np.concatenate([np.arange(1000) < 400, np.arange(1000) < 100]).astype(int)
    table = data.propensities(indices, labels, (3,))
    self.assertEqual(table[1], 1)
    np.testing.assert_allclose(table[2], 0.25, atol=0.01)
    self.assertGreater(table[0], 0)

  @parameterized.parameters({'kinds': ()}, {'kinds': ('colour',)}, {'positions': 0},
                            {'negatives': 0})
  def test_impossible_arguments(self, **change):
    with self.assertRaisesRegex(ConfigError, f'data.{list(change)[0]}: expected'):
      data.prepare({}, {}, **change)


class SimulatorTest(absltest.TestCase):

  def test_what_is_seen(self):
    size = np.tile([[3] * 3 + [2] * 7, [2] * 3 + [1] * 7], 1)
    seen = simulator.examination(size, 1.0)
    self.assertEqual(seen[0, 0], 1.0)
    np.testing.assert_allclose(seen[1, [0, 4]], [0.8 * 0.85, 0.5 * 0.85 / 5])
    self.assertTrue((np.diff(seen, axis=1) < 0).all())
    flat = simulator.examination(np.full((1, 10), 2), 0.0)
    np.testing.assert_allclose(flat, 0.8 * 0.85)

  def test_the_logging_policy(self):
    world = simulator.make_world(0, users=40, news=60)
    users = np.repeat(np.arange(40), 10)
    first = lambda **policy: world.popularity[simulator.show(
        world, users, np.random.default_rng(0), **policy).news].mean(0)
    popular, random = first(rho=2.0), first(rho=None)
    self.assertGreater(popular[0] - popular[-1], 0.5)
    self.assertLess(abs(random[0] - random[-1]), 0.1)


if __name__ == '__main__':
  absltest.main()
