"""The made-up world: what was planted is there, and the files say the same as the arrays."""
import functools
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab.data import mind
from jaxlab.systems.kred import data, demo, graph


@functools.cache
def world():
  return demo.make(3, dim=100)


class WorldTest(absltest.TestCase):

  def test_the_test_news_have_entities_of_their_own(self):
    entities, train = world().slots['entities'], world().train
    seen, unseen = (set(part[part > 0]) for part in (entities[1:train + 1], entities[train + 1:]))
    self.assertEmpty(seen & unseen)
    self.assertGreater(len(seen), 280)
    self.assertGreater(len(unseen), 100)

  def test_an_entity_alone_says_nothing_of_its_topic_but_its_neighbours_do(self):
    w = world()
    first = w.slots['entities'][1:, 0]
    own = (w.entity[first] @ w.centres.T).argmax(1)
    around = w.entity[w.tails[first][:, :demo.TOPIC_NEIGHBOURS]].mean(1)
    by_neighbours = (around @ w.centres.T).argmax(1)
    self.assertLess((own == w.category[1:]).mean(), 0.25)
    self.assertGreater((by_neighbours == w.category[1:]).mean(), 0.7)

  def test_labels(self):
    w = world()
    np.testing.assert_allclose(np.bincount(w.popularity[1:]) / demo.NEWS, 0.25, atol=0.01)
    self.assertBetween(w.local[1:].mean(), 0.15, 0.5)
    self.assertEqual({w.category[0], w.popularity[0], w.local[0]}, {-1})

  def test_clicks_and_pairs_go_by_topic(self):
    w = demo.make(4)
    interest = demo.interests(w, 300)
    shown, clicked, histories = demo.show(w, interest, candidates=5, train=False)
    self.assertGreater(shown.min(), w.train)
    liked = np.take_along_axis(interest, w.category[shown], 1)
    self.assertGreater(liked[np.arange(300), clicked].mean(), 2 * liked.mean())
    self.assertLessEqual(max(one.max() for one in histories), w.train)
    pairs = demo.pairs(w, 200, train=True)
    np.testing.assert_array_equal(*w.category[pairs].T)
    self.assertTrue((pairs[:, 0] != pairs[:, 1]).all())


class FilesTest(absltest.TestCase):

  def test_the_files_hold_the_world(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    w = demo.make(3, dim=100)
    demo.write(folder, w, users=20, tests=10)
    rows = mind.all_news(folder)
    names = {demo.name_of(i)[0]: i for i in range(1, len(w.entity))}
    columns, skipped = data.slots([(row.title_entities, row.abstract_entities) for row in rows],
                                  names, demo.SLOTS)
    self.assertEqual(skipped, 0)
    for name in ('entities', 'frequency', 'position'):
      np.testing.assert_array_equal(columns[name], w.slots[name])
    for row in rows[:50]:  # offsets point at the surface form
      for one in row.title_entities:
        for offset in one['OccurrenceOffsets']:
          self.assertTrue(row.title[offset:].startswith(one['SurfaceForms'][0]))
    triples = [graph.parse_triple(*row) for row in graph.read_rows(folder / 'triples.tsv')]
    vectors = [dict(mind.read_vectors(folder / 'train' / f'{side}_embedding.vec'))
               for side in ('entity', 'relation')]
    knowledge = graph.from_vectors(*vectors, triples)
    np.testing.assert_allclose(knowledge.entity, w.entity[1:], atol=1e-6)
    self.assertLen(triples, 8 * demo.HEADS)
    local = data.read_labels(graph.read_rows(folder / 'local.tsv'), 'local',
                             [row.news for row in rows])
    np.testing.assert_array_equal(local, w.local)
    users = {}
    for row in mind.read_behaviors(folder / 'train/behaviors.tsv'):
      self.assertEqual(users.setdefault(row.user, row.history), row.history)
      self.assertEqual(sum(row.labels), 1)


if __name__ == '__main__':
  absltest.main()
