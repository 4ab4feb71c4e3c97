"""MIND's files: round trip through the builders, every quirk, malformed rows."""
import datetime
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import builders, mind, mind_demo, news

NEWS = 'N1\tsports\tgolf\tA "title\tabstract\thttps://x\t[]\t'
BEHAVIOR = '1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN1-0 N2-1'
ENTITY = ('[{"Label": "A", "Type": "P", "WikidataId": "Q1", "Confidence": 1.0, "OccurrenceOffsets":'
          ' [0], "SurfaceForms": ["A"]}]')


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'file.tsv'

  def write(self, *lines):
    self.path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8', newline='')
    return self.path

  def test_a_behavior(self):
    row, = mind.read_behaviors(self.write(BEHAVIOR))
    time = datetime.datetime(2019, 11, 11, 9, 5, 58, tzinfo=datetime.UTC).timestamp()
    self.assertEqual(row, (1, 'U1', time, ('N1', 'N2'), ('N1', 'N2'), (0, 1)))

  def test_quirks_of_behaviors(self):
    rows = list(mind.read_behaviors(self.write(
        '2\tU1\t1/2/2019 12:00:00 PM\t\tN1-1 N2-1 N3-0\r', BEHAVIOR,
        'null\tU2\tnull\tN1\tN-2-1 N2-0')))
    self.assertEqual([row.history for row in rows], [(), ('N1', 'N2'), ('N1',)])
    self.assertEqual(rows[0].labels, (1, 1, 0))
    self.assertGreater(rows[1].time, rows[0].time)  # times need no order
    self.assertEqual((rows[2].impression, rows[2].time, rows[2].candidates[0]), (-1, -1, 'N-2'))

  def test_quirks_of_news(self):
    rows = list(mind.read_news(self.write(NEWS, f'N2\t\t\t"\t\t\t\t{ENTITY}\r')))
    self.assertEqual(rows[0].title, 'A "title')
    self.assertEqual((rows[0].title_entities, rows[0].abstract_entities), ([], []))
    self.assertEqual((rows[1].abstract, rows[1].abstract_entities[0]['WikidataId']), ('', 'Q1'))

  def test_vectors_with_and_without_a_trailing_tab(self):
    rows = dict(mind.read_vectors(self.write('Q1\t1\t2\t', 'Q2\t-3e-2\t4')))
    np.testing.assert_allclose([rows['Q1'], rows['Q2']], [[1, 2], [-0.03, 4]])

  def test_labels_are_legal_where_the_config_says_so(self):
    path = self.write('1\tU1\t11/11/2019 9:05:58 AM\t\tN1 N2')
    self.assertEqual(next(mind.read_behaviors(path, labelled=False)).labels, (-1, -1))
    with self.assertRaisesRegex(ValueError, 'file.tsv: line 1: impressions: expected id-0 or'):
      list(mind.read_behaviors(path))
    with self.assertRaisesRegex(ValueError, 'expected ids without labels'):
      list(mind.read_behaviors(self.write(BEHAVIOR), labelled=False))

  @parameterized.parameters(
      ('1\tU1\t11/11/2019 9:05:58 AM\tN1', 'expected 5 tab-separated columns .*, got 4'),
      ('x\tU1\t11/11/2019 9:05:58 AM\t\tN1-0', "impression id: .* or null, got 'x'"),
      ('3000000000\tU1\tnull\t\tN1-0', 'impression id: expected a number below .*3000000000'),
      ('1\t\t11/11/2019 9:05:58 AM\t\tN1-0', 'user id: expected an id'),
      ('1\tU1\t2019-11-11\t\tN1-0', 'time: expected M/D/YYYY h:mm:ss AM|PM or null'),
      ('1\tU1\t11/11/2019 9:05:58 AM\t\tN1-2', "impressions: expected id-0 or id-1, got 'N1-2'"),
      ('1\tU1\t11/11/2019 9:05:58 AM\t\t', 'impressions: expected at least one'),
  )
  def test_malformed_behaviors(self, line, message):
    path = self.write(BEHAVIOR, line, BEHAVIOR)
    with self.assertRaisesRegex(ValueError, f'file.tsv: line 2: {message}'):
      list(mind.read_behaviors(path))
    with self.assertLogs(level='WARNING') as logs:
      self.assertLen(list(mind.read_behaviors(path, on_bad_row='skip')), 2)
    self.assertRegex(logs.output[0], 'skipped 1 of 3 rows.*file.tsv: line 2')

  @parameterized.parameters(
      ('N1\tsports\tgolf\ttitle', 'expected 8 tab-separated columns .*, got 4'),
      ('\tsports\tgolf\ttitle\t\t\t\t', 'news id: expected an id'),
      ('N1\ta\tb\tc\td\te\t[{]\t', 'title entities: expected a JSON list'),
      ('N1\ta\tb\tc\td\te\t\t[{"Label": "x"}]', 'abstract entities: expected .* a WikidataId'),
      ('N1\ta\tb\tc\td\te\t[{"WikidataId": "Q1", "OccurrenceOffsets": null}]\t',
       'title entities: expected .* a list of OccurrenceOffsets'),
  )
  def test_malformed_news(self, line, message):
    path = self.write(NEWS, line)
    with self.assertRaisesRegex(ValueError, f'file.tsv: line 2: {message}'):
      list(mind.read_news(path))
    with self.assertLogs(level='WARNING'):
      self.assertLen(list(mind.read_news(path, on_bad_row='skip')), 1)

  @parameterized.parameters('Q1\t1\tx', 'Q1', '\t1', 'Q1\t1\tnan')
  def test_malformed_vectors(self, line):
    with self.assertRaisesRegex(ValueError, 'file.tsv: line 1: expected a key and .*floats'):
      list(mind.read_vectors(self.write(line)))

  def test_vectors_of_another_width(self):
    path = self.write('Q1\t1\t2', 'Q2\t1', 'Q3\t3\t4')
    with self.assertRaisesRegex(ValueError, 'file.tsv: line 2: expected 2 floats, got 1'):
      list(mind.read_vectors(path))
    with self.assertRaisesRegex(ValueError, 'file.tsv: line 1: expected 100 floats, got 2'):
      list(mind.read_vectors(path, width=100))
    with self.assertLogs(level='WARNING'):
      self.assertEqual(list(dict(mind.read_vectors(path, on_bad_row='skip'))), ['Q1', 'Q3'])

  def test_bytes_that_are_no_text(self):
    path = self.write(BEHAVIOR)
    path.write_bytes(path.read_bytes() + b'2\tU\xe9\n')
    with self.assertRaisesRegex(ValueError, 'file.tsv: line 2, column 4: expected UTF-8'):
      list(mind.read_behaviors(path))

  def test_missing_files(self):
    with self.assertRaisesRegex(ConfigError, 'nothing.tsv: no such file'):
      list(mind.read_news(self.folder / 'nothing.tsv'))
    with self.assertRaisesRegex(ConfigError, 'expected the folders train, dev'):
      mind.present(self.folder)


class BuilderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def load(self, name, splits):
    builder = builders.load(name, config='small', data_dir=self.folder / 'data',
                            manual_dir=self.folder)
    return builder, {split: list(builder.as_data_source(split)) for split in splits}

  def test_round_trip(self):
    world, shown = mind_demo.write_mind(self.folder / 'MINDsmall', 5, users=30, news=40, tests=20)
    builder, splits = self.load('mind', ('train', 'dev', 'test'))
    users = builder.info.metadata['users']
    for split, impressions in shown.items():
      self.assertLen(splits[split], len(impressions))
      for row, one in zip(splits[split], impressions):
        self.assertEqual(users[row['user']], f'U{one.user + 1}')
        np.testing.assert_array_equal(row['candidates'], one.candidates + 1)  # N1 is news 1
        labels = one.labels if split != 'test' else np.full(10, -1)
        np.testing.assert_array_equal(row['labels'], labels)
        history = world.history[one.user] + 1
        found = np.array(row['history'], int)
        self.assertLen(found, len(history))
        np.testing.assert_array_equal(found[found > 0], history[found > 0])
    _, tables = self.load('mind_news', ('news',))
    titles = [row['title'].decode().replace(' "', '') for row in tables['news']]
    self.assertEqual(titles, [' '.join(words) for words in world.titles])
    _, vectors = self.load('mind_entities', ('entity', 'relation'))
    self.assertLen(vectors['relation'], mind_demo.RELATIONS)
    self.assertEqual(vectors['entity'][0]['vector'].shape, (100,))

  def write(self, split, behaviors, rows):
    path = self.folder / 'MINDsmall' / split
    path.mkdir(parents=True)
    (path / 'behaviors.tsv').write_text('\n'.join(behaviors) + '\n')
    (path / 'news.tsv').write_text('\n'.join(rows) + '\n')

  def test_news_of_other_splits_and_unknown_news(self):
    row = lambda news, title: f'{news}\ta\tb\t{title}\t\t\t\t'
    behavior = '1\tU9\t11/11/2019 9:05:58 AM\tN2 N7 N1\tN3-1 N1-0'
    self.write('train', ['1\tU1\tnull\t\tN2-1 N1-0'], [row('N1', 'one'), row('N2', 'two')])
    self.write('dev', [behavior], [row('N1', 'another'), row('N3', 'three')])
    with self.assertLogs(level='WARNING') as logs:
      builder, splits = self.load('mind', ('train', 'dev'))
    self.assertRegex('\n'.join(logs.output), '1 of 5 clicked or shown news are in no news.tsv')
    dev, = splits['dev']
    self.assertEqual(list(dev['history']), [2, 0, 1])
    self.assertEqual(list(dev['candidates']), [3, 1])
    self.assertEqual(builder.info.metadata['users'], ['U1', 'U9'])
    _, tables = self.load('mind_news', ('news',))
    self.assertEqual([row['title'] for row in tables['news']], [b'one', b'two', b'three'])
    self.assertEqual([row['split'] for row in tables['news']], [b'train', b'train', b'dev'])
    split = news.collect(splits['train'] + splits['dev'])
    self.assertEqual(split.history.sizes.tolist(), [0, 3])

  def test_a_folder_called_valid_is_not_left_out(self):
    folder = self.folder / 'valid_is_dev'
    for split in ('train', 'valid'):
      (folder / split).mkdir(parents=True)
      (folder / split / 'behaviors.tsv').write_text('')
    with self.assertRaisesRegex(ConfigError, 'valid_is_dev: expected the folder valid to be'):
      mind.present(folder)

  def test_a_malformed_row_stops_the_builder(self):
    self.write('train', [BEHAVIOR, 'oops'], [NEWS])
    with self.assertRaisesRegex(ValueError, 'train/behaviors.tsv: line 2: expected 5 tab'):
      self.load('mind', ('train',))


if __name__ == '__main__':
  absltest.main()
