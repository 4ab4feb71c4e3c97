"""The knowledge graph: three sources, neighbours, errors that name the line."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.kred import graph

VECTORS = {'Q1': [1, 1], 'Q2': [2, 2], 'Q3': [3, 3], 'Q4': [4, 4]}
RELATIONS = {'P1': [.1, .1], 'P2': [.2, .2]}
TRIPLES = [('Q1', 'P2', 'Q3'), ('Q4', 'P1', 'Q1')]


def neighbours_of(made, name):
  """Set of (name of the neighbour, vector of the relation) of a head."""
  row = made.heads[name]
  return {(made.names[tail - 1], round(float(made.tables['relation'][relation][0]), 3))
          for tail, relation in zip(made.tables['tails'][row], made.tables['relations'][row])
          if tail}


class GraphTest(parameterized.TestCase):

  def test_heads_first_both_directions_isolated_and_unknown(self):
    knowledge = graph.from_vectors(VECTORS, RELATIONS, TRIPLES)
    made = graph.make_graph(knowledge, ['Q3', 'Q9', 'Q2', 'Q1'], 40, seed=0)
    self.assertEqual(made.heads, {'Q3': 1, 'Q2': 2, 'Q1': 3})
    self.assertEqual(made.names, ['Q3', 'Q2', 'Q1', 'Q4'])
    tables = made.tables
    np.testing.assert_array_equal(tables['entity'],
                                  [[0, 0], [3, 3], [2, 2], [1, 1], [4, 4]])
    np.testing.assert_allclose(tables['relation'], [[0, 0], [.1, .1], [.2, .2]])
    np.testing.assert_array_equal(tables['tails'][:3], [[0] * 40, [3] * 40, [0] * 40])
    self.assertEqual(neighbours_of(made, 'Q1'), {('Q3', .2), ('Q4', .1)})
    self.assertEqual(neighbours_of(made, 'Q2'), set())
    np.testing.assert_array_equal(tables['relations'] > 0, tables['tails'] > 0)
    again = graph.make_graph(knowledge, ['Q3', 'Q9', 'Q2', 'Q1'], 40, seed=0)
    np.testing.assert_array_equal(tables['tails'], again.tables['tails'])

  def test_without_triples_or_entities(self):
    knowledge = graph.from_vectors(VECTORS, RELATIONS, ())
    made = graph.make_graph(knowledge, ['Q1'], 3, seed=0)
    np.testing.assert_array_equal(made.tables['tails'], np.zeros((2, 3)))
    made = graph.make_graph(graph.from_vectors(VECTORS, RELATIONS, TRIPLES), [], 3, seed=0)
    self.assertEqual((made.heads, made.tables['tails'].shape, made.tables['entity'].shape),
                     ({}, (1, 3), (1, 2)))

  def test_triples_without_vectors_are_counted(self):
    with self.assertLogs(level='WARNING') as logs:
      made = graph.from_vectors(VECTORS, RELATIONS, [*TRIPLES, ('Q1', 'P7', 'Q2'),
                                                     ('Q8', 'P1', 'Q2')])
    self.assertIn('2 of 4 triples name an entity or relation without a vector', logs.output[0])
    self.assertLen(made.triples, 2)

  def test_transe_as_a_source(self):
    made = graph.from_transe(TRIPLES, dim=3, steps=2, batch_size=4)
    self.assertEqual(list(made.names), ['Q1', 'Q3', 'Q4'])
    self.assertEqual((made.entity.shape, made.relation.shape), ((3, 3), (2, 3)))
    np.testing.assert_allclose(np.linalg.norm(made.entity, axis=1), 1, rtol=1e-5)
    with self.assertRaisesRegex(ConfigError, 'expected triples to train TransE on'):
      graph.from_transe([])

  def write_official(self, **changes):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    floats = lambda vectors: ''.join('\t'.join(map(str, v)) + '\n' for v in vectors.values())
    files = {'entity2id.txt': '4\nQ1\t0\nQ2\t1\nQ3\t2\nQ4\t3\n',
             'triple2id.txt': '0\t2\t1\n3\t0\t0\n1\t3\t0\n', 'entity2vecd100.vec': floats(VECTORS),
             'relation2vecd100.vec': floats(RELATIONS), **changes}
    for name, text in files.items():
      (folder / name).write_text(text)
    return folder

  def test_the_official_bundle(self):
    knowledge = graph.read_official(self.write_official(), ['Q3', 'Q1', 'Q9'])
    self.assertNotIn('Q2', knowledge.names)  # it touches no wanted entity
    made = graph.make_graph(knowledge, ['Q3', 'Q1', 'Q9'], 40, seed=0)
    self.assertEqual(made.heads, {'Q3': 1, 'Q1': 2})
    self.assertEqual(neighbours_of(made, 'Q1'), {('Q3', .2), ('Q4', .1)})
    np.testing.assert_array_equal(made.tables['entity'], [[0, 0], [3, 3], [1, 1], [4, 4]])

  @parameterized.parameters(
      ('entity2id.txt', '4\nQ1\tx\n', r'entity2id.txt: line 2: expected a name and an id'),
      ('entity2id.txt', 'Q1\t0\n', r'entity2id.txt: line 1: expected the number of rows'),
      ('triple2id.txt', '0\t2\n', r'triple2id.txt: line 1: expected ids of head'),
      ('triple2id.txt', '0\t2\t7\n', r'relation 7: expected ids below 2'),
      ('entity2vecd100.vec', '1\t1\n', r'entity2vecd100.vec: expected a line of id 2'),
      ('relation2vecd100.vec', 'a\tb\n', r'relation2vecd100.vec: line 1: expected floats'))
  def test_malformed_files(self, name, text, message):
    folder = self.write_official(**{name: text})
    with self.assertRaisesRegex(ValueError, message):
      graph.read_official(folder, ['Q1', 'Q3'])

  def test_a_triple_of_names(self):
    self.assertEqual(graph.parse_triple('f:1', ['Q1', 'P1', 'Q2']), ('Q1', 'P1', 'Q2'))
    with self.assertRaisesRegex(ValueError, '^f:2: expected head, relation and tail'):
      graph.parse_triple('f:2', ['Q1', 'P1'])
    with self.assertRaisesRegex(ConfigError, 'nowhere.tsv: no such file'):
      next(graph.read_rows('nowhere.tsv'))


if __name__ == '__main__':
  absltest.main()
