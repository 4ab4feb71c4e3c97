"""Adressa: days, negatives, the split of the last day, malformed lines."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import adressa, builders, mind


def event(user, news, time, **more):
  return {'userId': user, 'id': news, 'title': f'title of\t{news}', 'time': time, **more}


class AdressaTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.folder / 'adressa').mkdir()

  def write(self, days):
    for day in range(1, 8):
      lines = [line if isinstance(line, str) else json.dumps(line) for line in days.get(day, [])]
      (self.folder / 'adressa' / f'2017010{day}').write_text(''.join(f'{x}\n' for x in lines))

  def convert(self):
    adressa.convert(self.folder / 'adressa', self.folder / 'out')
    return {split: list(mind.read_behaviors(self.folder / 'out' / split / 'behaviors.tsv'))
            for split in ('train', 'dev', 'test')}

  def test_days_become_history_train_and_test(self):
    front_page = {'userId': 'a', 'time': 1}
    others = [event('b', f'n{i}', 10 + i) for i in range(30)]
    self.write({1: [event('a', 'x', 5), front_page, event('a', 'y', 3), *others],
                5: [event('a', 'y', 50)],
                6: [event('a', 'z', 70), event('a', 'y', 60)], 7: [
                    event('a', 'x', 90), event('c', 'n1', 80)]})
    splits = self.convert()
    titles = [row.title for row in mind.read_news(self.folder / 'out' / 'train' / 'news.tsv')]
    self.assertEqual(titles[:2], ['title of x', 'title of y'])
    train = splits['train']
    self.assertEqual([row.history for row in train], [('2', '1', '2')] * 2)  # by time, repeats stay
    self.assertEqual([row.candidates[0] for row in train], ['2', '33'])
    held_out = sorted(splits['dev'] + splits['test'], key=lambda row: row.user)
    self.assertEqual(held_out[0].history, ('2', '1', '2', '2', '33'))
    self.assertEqual(held_out[1].history, ())
    for row in train + held_out:
      self.assertEqual((row.impression, row.time), (-1, -1))
      self.assertEqual(row.labels, (1, *[0] * 20))
      self.assertLen(set(row.candidates), 21)
    clicked = {'1', '2', '33'}
    self.assertEmpty(clicked & {c for row in train for c in row.candidates[1:]})

  def test_four_fifths_of_the_last_day_test(self):
    self.write({1: [event('a', f'n{i}', i) for i in range(30)],
                7: [event(f'u{i}', 'n1', 100 + i) for i in range(20)]})
    splits = self.convert()
    self.assertEqual((len(splits['dev']), len(splits['test'])), (4, 16))
    self.assertLen({row.user for row in splits['dev'] + splits['test']}, 20)

  @parameterized.parameters((30, 5), (30, 21), (30, 30), (1000, 100))
  def test_negatives(self, num_news, clicks):
    rng = np.random.default_rng(0)
    clicked = set(range(1, clicks + 1))
    drawn = adressa.draw_negatives(rng, num_news, clicked)
    self.assertLen(set(drawn), min(20, num_news - clicks))
    self.assertLen(drawn, len(set(drawn)))
    self.assertTrue(all(clicks < one <= num_news for one in drawn))

  @parameterized.parameters(
      ('{"id": "x"', 'expected a JSON object'),
      ('[1]', 'expected a JSON object, got list'),
      (event('a', 'x', '12'), "time: expected int, got '12'"),
      ({'id': 'x', 'title': 't', 'time': 1}, 'userId: expected str, got None'),
      ({**event('b', 'x', 4), 'title': 'other'}, "title: expected that of news x before"),
  )
  def test_malformed_lines(self, line, message):
    self.write({1: [event('a', 'x', 5), line]})
    with self.assertRaisesRegex(ValueError, f'20170101: line 2: {message}'):
      adressa.read_week(self.folder / 'adressa')
    with self.assertLogs(level='WARNING') as logs:
      days = adressa.read_week(self.folder / 'adressa', on_bad_row='skip')
    self.assertLen(days[1], 1)
    self.assertRegex(logs.output[0], 'skipped 1 of 2 rows')

  def test_a_day_is_missing(self):
    self.write({})
    (self.folder / 'adressa' / '20170103').unlink()
    with self.assertRaisesRegex(ConfigError, 'expected seven files'):
      adressa.read_week(self.folder / 'adressa')

  def test_the_builder(self):
    self.write({1: [event('a', f'n{i}', i) for i in range(30)], 6: [event('a', 'n1', 60)],
                7: [event(f'u{i}', 'n1', 100 + i) for i in range(5)]})
    load = lambda name: builders.load(name, config='week', data_dir=self.folder / 'data',
                                      manual_dir=self.folder)
    train, = load('adressa').as_data_source('train')
    self.assertEqual(list(train['history']), list(range(1, 31)))
    self.assertEqual(list(train['candidates']), [2])  # every news was clicked: none is left
    self.assertLen(load('adressa_news').as_data_source('news'), 30)


if __name__ == '__main__':
  absltest.main()
