"""TransE: corruption, zero rows, hits on a toy graph, a learnable graph."""
import jax
import numpy as np
from absl.testing import absltest

from jaxlab.systems.kred import transe


def toy_graph():
  """60 entities on a grid of 10 x 6; relations are four translations, two of them composed."""
  number = lambda x, y: 1 + 6 * x + y
  moves = {1: (1, 0), 2: (0, 1), 3: (1, 1), 4: (2, 1)}
  return np.array([(number(x, y), relation, number(x + dx, y + dy))
                   for relation, (dx, dy) in moves.items() for x in range(10) for y in range(6)
                   if x + dx < 10 and y + dy < 6])


class TransETest(absltest.TestCase):

  def test_corruption_changes_one_end(self):
    triples = np.tile([[7, 2, 9]], (500, 1))
    out = np.asarray(transe.corrupt(jax.random.key(0), triples, 10))
    np.testing.assert_array_equal(out[:, 1], 2)
    self.assertTrue(((out[:, 0] == 7) | (out[:, 2] == 9)).all())
    self.assertEqual(set(out[:, 0]) | set(out[:, 2]), set(range(1, 11)))
    self.assertBetween((out[:, 0] != 7).mean(), 0.3, 0.6)

  def test_hits_do_not_count_other_true_answers(self):
    entity = np.array([[0], [0], [1], [1.1], [5]], np.float32)
    relation = np.array([[0], [1]], np.float32)
    known = np.array([[1, 1, 2], [1, 1, 3]])
    hits = lambda known: transe.filtered_hits(entity, relation, np.array([[1, 1, 3]]), known, 1)
    self.assertEqual(hits(known), 1.0)
    self.assertEqual(hits(known[1:]), 0.5)  # entity 2 is nearer than 3

  def test_learns_a_graph_of_translations(self):
    triples = np.random.default_rng(0).permutation(toy_graph())
    train, held = triples[20:], triples[:20]
    entity, relation, losses = transe.train(train, dim=32, steps=1500, batch_size=256)
    self.assertEqual((entity.shape, relation.shape), ((61, 32), (5, 32)))
    np.testing.assert_array_equal(entity[0], 0)
    np.testing.assert_array_equal(relation[0], 0)
    np.testing.assert_allclose(np.linalg.norm(entity[1:], axis=1), 1, rtol=1e-5)
    self.assertLess(losses[-100:].mean(), losses[:100].mean() / 2)
    self.assertGreater(transe.filtered_hits(entity, relation, held, triples), 0.9)
    again, *_ = transe.train(train, dim=32, steps=1500, batch_size=256)
    np.testing.assert_array_equal(entity, again)

  def test_mistakes(self):
    for bad in (np.zeros((0, 3)), np.ones((2, 2)), np.zeros((2, 3))):
      with self.assertRaisesRegex(ValueError, r'^triples: expected \[T, 3\] numbers from 1'):
        transe.train(bad)


if __name__ == '__main__':
  absltest.main()
