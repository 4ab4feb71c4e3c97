"""From MIND's files to the rows of the five tasks: a written-out toy, labels, pairs, errors."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import mind
from jaxlab.data import news as news_data
from jaxlab.systems.kred import data, graph

DEMO = {'name': 'kred_demo', 'graph': {'source': 'mind'}, 'documents': {'name': 'lsa'}}


def entity(key, kind, *offsets):
  return {'Label': key, 'Type': kind, 'WikidataId': key, 'Confidence': 1.0,
          'OccurrenceOffsets': list(offsets), 'SurfaceForms': [key]}


MANY = [entity(f'Q{i}', 'P', 0) for i in range(100, 125)]
ROWS = [  # news, category, title's entities, abstract's entities
    ('N1', 'sports', [entity('Q1', 'P', 0)], []),
    ('N2', 'health', [], [entity('Q2', 'O', 3, 9)]),
    ('N3', 'sports', [entity('Q1', 'P', 0), entity('Q9', 'X', 2)],
     [entity('Q3', 'G', 1), entity('Q1', 'P', 5, 7)]),
    ('N4', '', MANY, []),
    ('N5', 'health', [entity('Q2', 'O', *range(30))], []),
]
BEHAVIORS = ['1\tU1\t11/9/2019 9:05:58 AM\tN1 N2 N3\tN4-1 N5-0',
             '2\tU2\t11/9/2019 9:05:58 AM\t\tN5-1 N1-0 N8-0']


class ToyTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    train = self.folder / 'train'
    train.mkdir()
    dumped = lambda entities: json.dumps(entities) if entities else ''
    (train / 'news.tsv').write_text(''.join(
        f'{key}\t{category}\tsub\tA "title {key}\t\turl\t{dumped(title)}\t{dumped(abstract)}\n'
        for key, category, title, abstract in ROWS))
    (train / 'behaviors.tsv').write_text('\n'.join(BEHAVIORS) + '\n')
    self.rows = mind.all_news(self.folder)
    self.entities = [(row.title_entities, row.abstract_entities) for row in self.rows]

  def test_slots(self):
    known = {'Q1': 1, 'Q2': 2, 'Q3': 3, **{f'Q{i}': i for i in range(100, 125)}}
    columns, skipped = data.slots(self.entities, known, 20)
    row = lambda news: [columns[name][news, :3].tolist()
                        for name in ('entities', 'frequency', 'position', 'type')]
    self.assertEqual(row(0), [[0, 0, 0]] * 4)
    self.assertEqual(row(1), [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])  # the title alone
    self.assertEqual(row(2), [[2, 0, 0], [2, 0, 0], [2, 0, 0], [2, 0, 0]])  # the abstract alone
    # Both: position 1, counts added. Q9 is unknown and leaves no gap, but has its type, 3.
    self.assertEqual(row(3), [[1, 3, 0], [3, 1, 0], [1, 2, 0], [1, 4, 0]])
    np.testing.assert_array_equal(columns['entities'][4], np.arange(100, 120))  # 25, cut to 20
    self.assertEqual(columns['frequency'][5, 0], data.MAX_FREQUENCY)
    self.assertEqual(skipped, 1)

  def test_assembled(self):
    news = {'news': [r.news for r in self.rows], 'category': [r.category for r in self.rows],
            'title': [r.title for r in self.rows], 'abstract': [r.abstract for r in self.rows]}
    users, numbers = {}, {row.news: i for i, row in enumerate(self.rows, 1)}
    with self.assertLogs(level='WARNING') as logs:
      train = news_data.collect(mind.numbered(
          mind.read_behaviors(self.folder / 'train/behaviors.tsv'), numbers, users))
    self.assertIn('1 of 8 clicked or shown news are in no news.tsv', logs.output[0])
    path = self.folder / 'documents.npz'
    vectors = np.arange(10.0).reshape(5, 2)
    np.savez(path, news=news['news'][::-1], vector=vectors[::-1])
    knowledge = graph.from_vectors({'Q1': [1.0], 'Q2': [2.0], 'Q3': [3.0]}, {'P1': [1.0]},
                                   [('Q1', 'P1', 'Q2')])
    made = graph.make_graph(knowledge, ['Q1', 'Q9', 'Q2', 'Q3'], 2, 0)
    settings = {'history_length': 2, 'negatives': 3, 'length': 4, 'seed': 0}
    build = lambda keep: data.assemble(
        news, {'train': train, 'dev': train}, self.entities, made,
        {'name': 'file', 'path': str(path)}, {}, history_keep=keep, **settings)
    with self.assertLogs(level='WARNING') as logs:
      last = build('last')
    self.assertIn('26 entities of the news are not in the knowledge graph', logs.output[0])
    np.testing.assert_array_equal(last.tables['news']['document'][1:], vectors)
    np.testing.assert_array_equal(last.tables['news']['document'][0], 0)
    samples = last.tasks['user2item']['train']
    np.testing.assert_array_equal(samples['click'], [4, 5])
    np.testing.assert_array_equal(samples['pool'], [[5, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(samples['history'], [[2, 3], [0, 0]])  # the second is empty
    np.testing.assert_array_equal(build('first').tasks['user2item']['train']['history'],
                                  [[1, 2], [0, 0]])
    self.assertEqual(last.categories, 2)
    self.assertNotIn('local', last.tasks)
    self.assertNotIn('item2item', last.tasks)
    self.assertNotIn('popularity', last.tasks)  # nothing was shown 20 times

  def test_a_file_of_impressions(self):
    path = self.folder / 'train/behaviors.tsv'
    with self.assertLogs(level='WARNING'):
      rows = data.read_impressions(path, [row.news for row in self.rows], history_length=2)
    np.testing.assert_array_equal(rows['candidates'], [[4, 5, 0], [5, 1, 0]])
    np.testing.assert_array_equal(rows['labels'], [[1, 0, -1], [1, 0, 0]])
    np.testing.assert_array_equal(rows['history'], [[2, 3], [0, 0]])
    plain = self.folder / 'plain.tsv'
    plain.write_text('7\tU1\tnull\tN1\tN4 N5\n')
    rows = data.read_impressions(plain, [row.news for row in self.rows], history_length=2)
    np.testing.assert_array_equal(rows['labels'], [[-1, -1]])
    plain.write_text('7\tU1\tnull\tN1\tN4 N5\n8\tU1\tnull\tN4\n')
    with self.assertRaisesRegex(ValueError, r'plain.tsv: line 2: expected 5 tab-separated columns'):
      data.read_impressions(plain, [], history_length=2)


class LabelsTest(absltest.TestCase):

  def make_split(self, users, histories, candidates, labels):
    return news_data.collect([{
        'impression': i, 'user': user, 'time': 0, 'history': np.array(history, int),
        'candidates': np.array(shown), 'labels': np.array(label)}
        for i, (user, history, shown, label) in enumerate(
            zip(users, histories, candidates, labels))])

  def test_quartiles_of_the_click_through_rate(self):
    shown = [1, 2, 3, 4, 5]
    labels = np.array([[i < n for n in (2, 20, 5, 10, 0)] for i in range(20)], int)
    split = self.make_split(range(20), [[]] * 20, [shown] * 20, labels)
    np.testing.assert_array_equal(data.quartiles(split, 6), [-1, 0, 3, 1, 2, 0, -1])
    np.testing.assert_array_equal(data.quartiles(
        split._replace(candidates=split.candidates._replace(
            values=np.where(np.arange(100) < 3, 6, split.candidates.values))), 6)[[1, 6]], -1)

  def test_pairs_of_the_same_users(self):
    # 12 users clicked 1 and 2 (one by a history that holds 1 twice), 12 others clicked 3.
    histories = [[1, 1] if user == 0 else [1] if user < 12 else [3] for user in range(24)]
    split = self.make_split(range(24), histories, [[2, 4]] * 24,
                            [[1, 0] if user < 12 else [0, 0] for user in range(24)])
    pairs, frequent = data.coclicked(split, 5)
    np.testing.assert_array_equal(pairs, [[1, 2]])
    np.testing.assert_array_equal(frequent, [1, 2, 3])

  def test_label_files(self):
    rows = [('f:1', ['N2', '1']), ('f:2', ['N7', '0']), ('f:3', ['N1', '0'])]
    np.testing.assert_array_equal(data.read_labels(rows, 'local', ['N1', 'N2', 'N3']),
                                  [-1, 0, 1, -1])
    with self.assertRaisesRegex(ValueError, r"^f:1: expected a news id and a class 0..1, .*'2'\]$"):
      data.read_labels([('f:1', ['N2', '2'])], 'local', ['N2'])


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'name': 'kred_dmo'}, "data.name: unknown name 'kred_dmo'; did you mean 'kred_demo'"),
      ({'slots': 0}, 'data.slots: expected at least 1, got 0'),
      ({'graph': {}}, 'data.graph.source: expected one of'),
      ({'graph': {'source': 'mnd'}}, "data.graph.source: unknown name 'mnd'; did you mean 'mind'"),
      ({'graph': {'source': 'official'}}, 'data.graph.folder: missing'),
      ({'graph': {'source': 'transe', 'norm': 3}}, 'data.graph.norm: expected 1 or 2, got 3'),
      ({'name': 'mind_small', 'graph': {'source': 'transe'}}, 'data.graph.triples: expected a f'),
      ({'documents': {'name': 'bert'}}, "data.documents.name: unknown name 'bert'"),
      ({'documents': {'name': 'file'}}, 'data.documents.path: missing'),
      ({'history_keep': 'middle'}, 'data.history_keep: expected Literal'),
      ({'local': 'labels.tsv'}, 'data.local: expected nothing, for the demo has labels'),
      ({'negative': 4}, "data: unknown key 'negative'; did you mean 'negatives'"))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      data.check({**DEMO, **change})

  def test_good_ones(self):
    data.check(DEMO)
    data.check({**DEMO, 'graph': {'source': 'transe', 'dim': 8, 'norm': 2}})
    data.check({'name': 'mind_large', 'graph': {'source': 'official', 'folder': 'kg'},
                'documents': {'name': 'glove', 'path': 'glove.txt'}, 'local': 'local.tsv'})


if __name__ == '__main__':
  absltest.main()
