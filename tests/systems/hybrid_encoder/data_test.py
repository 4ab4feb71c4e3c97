"""Files of ads, pages and clicks: quirks, malformed rows, the leak, days, columns, the demo."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import mind_demo
from jaxlab.systems.hybrid_encoder import data, demo

ADS = 'A1\tred shoes\tgood ones\tX\nA2\tblue "hats\t\tY\nA1\tred shoes\tgood ones\tX\n'
PAGES = 'P1\tshoes of old\nP2\tRed Shoes\n'
CLICK = 'U1\tP1\x01P9\x01a page of no id\tA2\tA1 A2 A1\t86400'


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.write('ads', ADS)
    self.write('pages', PAGES)

  def write(self, name, text):
    (self.folder / f'{name}.tsv').write_text(text, encoding='utf-8', newline='')

  def test_a_log(self):
    self.write('clicks', f'{CLICK}\r\nU2\t\tA1\t\t5\n')
    with self.assertLogs(level='WARNING') as logs:
      log = data.read_folder(self.folder)
    self.assertIn('1 of 3 pages in histories are in no pages.tsv', logs.output[0])
    self.assertEqual(log.ads, {'A1': (1, 'red shoes', 'good ones'), 'A2': (2, 'blue "hats', '')})
    self.assertEqual(log.titles, ['shoes of old', 'Red Shoes', 'a page of no id'])
    self.assertEqual(log.clicks, [data.Click('U1', (1, 3), 2, (1,), 86400),
                                  data.Click('U2', (), 1, (), 5)])

  @parameterized.parameters(
      ('U1\tP1\tA2\tA1', 'expected 5 tab-separated columns .*, got 4'),
      ('\tP1\tA2\tA1\t5', 'user id: expected an id, got nothing'),
      ('U1\tP1\tA3\tA1\t5', "clicked ad id: expected an id of ads.tsv, got 'A3'"),
      ('U1\tP1\tA1\tA2 A9\t5', "shown ad ids: expected an id of ads.tsv, got 'A9'"),
      ('U1\tP1\tA1\tA2\tnoon', "time: expected whole seconds since 1970, got 'noon'"),
      ('U1\tP1\x01P2\tA1\tA2\t5', "history: expected no page of the title .*, got 'Red Shoes'"))
  def test_malformed_clicks(self, line, message):
    self.write('clicks', f'{CLICK}\n{line}\n')
    with self.assertRaisesRegex(ValueError, f'clicks.tsv: line 2: {message}'):
      data.read_folder(self.folder)
    with self.assertLogs(level='WARNING') as logs:
      self.assertLen(data.read_folder(self.folder, on_bad_row='skip').clicks, 1)
    self.assertRegex(logs.output[0], 'skipped 1 of 2 rows.*clicks.tsv: line 2')

  @parameterized.parameters(
      ('ads', 'A1\tother\tgood ones\tX\n', "ads.tsv: line 4: ad id: expected 'A1' once, or as bef"),
      ('pages', 'P2\tred hats\n', "pages.tsv: line 3: page id: expected 'P2' once.*'Red Shoes'"))
  def test_an_id_with_two_titles(self, name, row, message):
    self.write(name, {'ads': ADS, 'pages': PAGES}[name] + row)
    self.write('clicks', f'{CLICK}\n')
    with self.assertRaisesRegex(ValueError, message):
      data.read_folder(self.folder)
    with self.assertLogs(level='WARNING') as logs:
      log = data.read_folder(self.folder, on_bad_row='skip')
    self.assertRegex(logs.output[0], f'skipped 1 of . rows.*{name}.tsv')
    self.assertEqual((log.ads['A1'][1], log.titles[1]), ('red shoes', 'Red Shoes'))

  def test_bytes(self):
    self.write('clicks', f'{CLICK}\n')
    self.write('ads', f'\ufeff{ADS}')  # the mark at the beginning of a file is no part of the id
    self.assertIn('A1', data.read_folder(self.folder).ads)
    (self.folder / 'pages.tsv').write_bytes(b'P1\told\nP2\tcaf\xe9\n')
    with self.assertRaisesRegex(ValueError, 'pages.tsv: line 2, column 7: expected UTF-8.*0xe9'):
      data.read_folder(self.folder, on_bad_row='skip')

  @parameterized.parameters('ads', 'pages', 'clicks')
  def test_a_missing_file(self, name):
    self.write('clicks', f'{CLICK}\n')
    (self.folder / f'{name}.tsv').unlink()
    with self.assertRaisesRegex(ConfigError, f'{name}.tsv: no such file'):
      data.read_folder(self.folder)

  def test_mind_in_the_place_of_ads(self):
    mind_demo.write_mind(self.folder / 'mind', tests=10, users=12, news=30)
    data.convert_mind(self.folder / 'mind', self.folder / 'log')
    with self.assertLogs(level='WARNING'):
      log = data.read_folder(self.folder / 'log', on_bad_row='skip')
    self.assertLen(log.ads, 30)
    self.assertTrue(all(click.ad not in click.shown and click.shown for click in log.clicks))
    self.assertLen({click.time // data.DAY for click in log.clicks}, 2)  # of train and of dev


class ColumnsTest(absltest.TestCase):

  def test_days(self):
    click = lambda day: data.Click('U', (), 1, (), day * data.DAY + 3)
    parts = data.by_day([click(5), click(2), click(9), click(1), click(9)])
    self.assertEqual({name: [c.time // data.DAY for c in part] for name, part in parts.items()},
                     {'train': [2, 1], 'validation': [5], 'test': [9, 9]})
    with self.assertRaisesRegex(ValueError, 'clicks of at least three days, got 2'):
      data.by_day([click(1), click(2)])

  def test_columns(self):
    rows = [{'user': 4, 'history': [1, 2, 3], 'ad': 7, 'shown': [8, 9]},
            {'user': 2, 'history': [], 'ad': 5, 'shown': []},
            {'user': 4, 'history': [1], 'ad': 6, 'shown': [5]}]
    split = data.collect(rows)
    train = data.train_columns(split, 2)
    np.testing.assert_array_equal(train['history'], [[2, 3], [0, 0], [1, 0]])
    np.testing.assert_array_equal(train['clicked'], [[6, 7], [5, 0], [6, 7]])
    test = data.test_columns(split, 2)
    np.testing.assert_array_equal(test['candidates'], [[7, 8, 9], [5, 0, 0], [6, 5, 0]])
    np.testing.assert_array_equal(test['labels'], [[1, 0, 0], [1, -1, -1], [1, 0, -1]])
    np.testing.assert_array_equal(test['count'], [3, 1, 2])

  def test_the_demo(self):
    with tempfile.TemporaryDirectory() as folder:
      world = demo.write(f'{folder}/log', 2, users=30, test_users=(5, 6), ads=20)
      log = data.read_folder(f'{folder}/log')
    self.assertEqual(world.match.sum(), len(log.clicks))
    for click in log.clicks:
      match = world.match[int(click.user[1:]) - 1]
      self.assertTrue(match[click.ad - 1])
      self.assertFalse(match[np.array(click.shown) - 1].any())
      self.assertLen(click.shown, 9)
      self.assertLen(click.history, 8)
    parts = data.by_day(log.clicks)
    self.assertTrue(all(int(click.user[1:]) > 35 for click in parts['test']))
    np.testing.assert_array_equal(world.ad_words // demo.WORDS, np.tile(world.both, 3))
    seen = world.page_words.reshape(41, -1) // demo.WORDS
    for interest, words in zip(world.interest, seen):
      self.assertEqual(set(words), set(np.flatnonzero(interest)))
    self.assertTrue((world.interest.sum(1) == 3).all())


if __name__ == '__main__':
  absltest.main()
