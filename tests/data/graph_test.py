"""Graphs of texts: files there and back, splits without leakage, the builders, bad lines."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import builders, graph

PAIRS = [{'query': ['a text', 'b', ''], 'key': ['c', 'd d']}, {'query': [''], 'key': ['e']},
         {'query': ['f', '', 'g'], 'key': ["h | '| i"]}]


def ring(nodes=40):
  """A ring with chords, the first node without a text."""
  edges = {(i, (i + step) % nodes) for i in range(nodes) for step in (1, 2, 7)}
  edges = np.array(sorted({tuple(sorted(edge)) for edge in edges}))
  return graph.TextGraph([f'n{i}' for i in range(nodes)],
                         [''] + [f'text {i}' for i in range(1, nodes)], edges)


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def write(self, name, content):
    path = self.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

  def test_pairs_there_and_back(self):
    path = self.folder / 'x.tsv'
    graph.write_pairs(path, PAIRS)
    self.assertEqual(path.read_text().splitlines()[0], "a text|'|b|'|\tc|'|d d")
    self.assertEqual(list(graph.read_pairs(path)), PAIRS)

  @parameterized.parameters(('a\tb', 'tab'), ('a\nb', 'line break'), ("a|'|b", 'separator'))
  def test_texts_that_would_be_read_otherwise(self, text, what):
    with self.assertRaisesRegex(ValueError, f'x.tsv: line 2: expected texts without a {what}'):
      graph.write_pairs(self.folder / 'x.tsv', [PAIRS[0], {'query': ['q'], 'key': ['k', text]}])

  def test_bad_lines_of_pairs(self):
    path = self.write('x.tsv', "a\tb\nq with\ta tab\tk\nc\td\n")
    with self.assertRaisesRegex(ValueError, 'x.tsv: line 2: expected 2 columns, .*, got 3'):
      list(graph.read_pairs(path))
    self.assertLen(list(graph.read_pairs(path, on_bad_row='skip')), 2)
    with self.assertRaisesRegex(ValueError, 'line 2, column 3: expected UTF-8, got byte 0xff'):
      list(graph.read_pairs(self.write('y.tsv', b'a\tb\na\t\xff\n')))
    with self.assertRaisesRegex(ConfigError, 'no such file'):
      list(graph.read_pairs(self.folder / 'nothing.tsv'))

  def test_graph_there_and_back(self):
    made = ring()
    graph.write_graph(self.folder, made)
    found = graph.read_graph(self.folder)
    self.assertEqual((found.ids, found.texts), (made.ids, made.texts))
    np.testing.assert_array_equal(found.edges, made.edges)

  def test_repeated_edges_and_loops_are_one_or_none(self):
    self.write('nodes.tsv', 'a\tname\ttext a\nb\tname\t\nc\tname\ttext c\n')
    self.write('edges.tsv', 'a\tb\nb\ta\nc\tc\n')
    with self.assertLogs('jaxlab.data.graph', 'INFO') as log:
      found = graph.read_graph(self.folder)
    self.assertIn('2 of 3 edges are repeated or loops', log.output[0])
    np.testing.assert_array_equal(found.edges, [[0, 1]])
    self.assertEqual(found.texts, ['text a', '', 'text c'])

  @parameterized.parameters(
      ('a\tx\nb\n', '', r'nodes.tsv: line 2: expected at least 2 columns, id TAB text, got 1'),
      ('a\tx\na\ty\n', '', r"nodes.tsv: line 2: column 1: expected each id once, got 'a' again"),
      ("a\tx|'|y\n", '', r'nodes.tsv: line 1: column 2: expected a text without'),
      ('', '', 'nodes.tsv: expected nodes, found none'),
      ('a\tx\nb\ty\n', 'a\tb\nb\tz\n', "edges.tsv: line 2: column 2: expected the id .* got 'z'"),
      ('a\tx\nb\ty\n', 'a b\n', 'edges.tsv: line 1: expected 2 columns, id TAB id, got 1'))
  def test_bad_graphs(self, nodes, edges, message):
    self.write('nodes.tsv', nodes)
    self.write('edges.tsv', edges)
    with self.assertRaisesRegex(ValueError, message):
      graph.read_graph(self.folder)

  def test_the_builder_of_a_graph(self):
    graph.write_graph(self.folder / 'manual/text_graph', ring())
    builder = builders.load('text_pairs', config='graph', data_dir=str(self.folder / 'data'),
                            manual_dir=str(self.folder / 'manual'))
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    self.assertEqual(sizes, {'train': 102, 'validation': 6, 'test': 12})
    row = builder.as_data_source('test')[0]
    self.assertEqual(set(row), {'query', 'key'})
    self.assertTrue(all(isinstance(text, bytes) for text in row['query']))

  def test_the_builder_of_pairs(self):
    (self.folder / 'manual/text_pairs').mkdir(parents=True)
    for file in graph.FILES.values():
      graph.write_pairs(self.folder / 'manual/text_pairs' / file, PAIRS)
    builder = builders.load('text_pairs', config='pairs', data_dir=str(self.folder / 'data'),
                            manual_dir=str(self.folder / 'manual'))
    rows = builder.as_data_source('validation')
    self.assertEqual([{side: [text.decode() for text in row[side]] for side in row}
                      for row in rows], PAIRS)


class SplitTest(absltest.TestCase):

  def test_no_list_holds_an_answer(self):
    made = ring()
    pairs = graph.split_pairs(made, neighbors=3, validation=0.1, test=12, seed=3)
    self.assertEqual({name: len(rows) for name, rows in pairs.items()},
                     {'train': 96, 'validation': 12, 'test': 12})
    edges = [frozenset((u, v)) for rows in pairs.values() for (u, _), (v, _) in rows]
    self.assertCountEqual(edges, map(frozenset, made.edges.tolist()))  # each in one split
    train = {frozenset((u, v)) for (u, _), (v, _) in pairs['train']}
    sizes = set()
    for rows in pairs.values():
      for (u, around_u), (v, around_v) in rows:
        self.assertNotIn(v, around_u)
        self.assertNotIn(u, around_v)
        for node, around in ((u, around_u), (v, around_v)):
          self.assertLen(set(around), len(around))
          self.assertTrue(all(frozenset((node, n)) in train for n in around))
          sizes.add(len(around))
    self.assertEqual(max(sizes), 3)
    directions = [u < v for (u, _), (v, _) in pairs['train']]
    self.assertBetween(np.mean(directions), 0.3, 0.7)
    self.assertEqual(pairs, graph.split_pairs(made, neighbors=3, validation=0.1, test=12, seed=3))

  def test_too_few_edges(self):
    for validation, test in ((60, 60), (0.001, 5)):
      with self.assertRaisesRegex(ConfigError, 'at least 1 each and together fewer than the 120'):
        graph.split_pairs(ring(), validation=validation, test=test)

  def test_neighbours(self):
    around = graph.adjacency(5, np.array([[0, 1], [0, 2], [0, 4]]))
    self.assertEqual([x.tolist() for x in around], [[1, 2, 4], [0], [0], [], [0]])
    table = graph.sample_neighbors(around, 2)
    self.assertEqual(table[3].tolist(), [-1, -1])
    self.assertEqual(table[1].tolist(), [0, -1])
    self.assertContainsSubset(table[0].tolist(), [1, 2, 4])
    self.assertEmpty(graph.adjacency(1, np.zeros((0, 2), int))[0])


class SeeAlsoTest(absltest.TestCase):

  def test_the_graph_of_installed_packages(self):
    found = graph.see_also_graph()
    index = {name: i for i, name in enumerate(found.ids)}
    edges = {tuple(edge) for edge in found.edges.tolist()}
    self.assertIn(tuple(sorted((index['numpy.argmax'], index['numpy.argmin']))), edges)
    self.assertGreater(len(edges), 2000)
    self.assertTrue(all(i < j for i, j in edges))
    self.assertTrue(all(text and '\t' not in text for text in found.texts))


if __name__ == '__main__':
  absltest.main()
