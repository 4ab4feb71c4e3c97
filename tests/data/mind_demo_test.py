"""The planted world: same bytes for one seed, the strength of its signal, its quirks."""
import functools
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.data import mind, mind_demo
from jaxlab.metrics import ranking


@functools.cache
def written():
  """(folder kept for the process, World, {split: impressions}) of the standard world."""
  folder = tempfile.TemporaryDirectory()
  return folder, *mind_demo.write_mind(pathlib.Path(folder.name, 'mind'), 3)


def files(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*')
          if path.is_file()}


def auc(impressions, scores):
  labels = np.stack([one.labels for one in impressions])
  return ranking.mean_metrics([(labels, np.stack(scores), labels >= 0)])['auc']


class MindDemoTest(parameterized.TestCase):

  def test_a_seed_is_a_world_byte_for_byte(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
      mind_demo.write_mind(root / name, seed, users=12, news=40, tests=5)
      mind_demo.write_adressa(root / f'{name}-week', seed, users=6, news=40)
    for suffix in ('', '-week'):
      self.assertEqual(files(root / f'a{suffix}'), files(root / f'b{suffix}'))
      self.assertNotEqual(files(root / f'a{suffix}'), files(root / f'c{suffix}'))

  def test_the_signal_is_as_strong_as_planned(self):
    _, _, splits = written()
    dev = splits['dev']
    best = auc(dev, [one.logits for one in dev])
    print(f'Bayes AUC {best:.3f}')
    self.assertBetween(best, 0.83, 0.89)

  def test_shuffled_labels_are_chance(self):
    _, _, splits = written()
    rng = np.random.default_rng(0)
    shuffled = [one._replace(labels=rng.permutation(one.labels)) for one in splits['dev']]
    self.assertAlmostEqual(auc(shuffled, [one.logits for one in shuffled]), 0.5, delta=0.03)

  def test_topic_counting(self):
    _, world, splits = written()
    scores = []
    for one in splits['dev']:
      last = world.topic[world.history[one.user][-10:]]
      scores.append((last[:, None] == world.topic[one.candidates]).sum(0) * 1.0)
    self.assertBetween(auc(splits['dev'], scores), 0.72, 0.83)

  def test_clicks_and_sizes(self):
    _, world, splits = written()
    counts = np.zeros(len(world.clicks), int)
    for one in splits['train']:
      counts[one.user] += one.labels.sum()
    np.testing.assert_array_equal(counts, world.clicks)
    self.assertTrue(all(0 < one.labels.sum() < 10 for one in splits['dev']))
    self.assertBetween(np.mean([not len(h) for h in world.history]), 0.02, 0.09)

  def test_places_at_the_top_get_more_clicks_where_they_are_biased(self):
    world = mind_demo.make_world(0, users=200, news=60)
    share = {}
    for bias in (0.0, 3.0):
      shown = mind_demo.impressions(world, 0, tests=400, position_bias=bias)['dev']
      share[bias] = np.stack([one.labels for one in shown]).mean(0)[:3].mean()
    self.assertGreater(share[3.0], share[0.0] + 0.1)

  def test_the_quirks_are_there_and_entities_are_where_they_say(self):
    folder = pathlib.Path(written()[0].name, 'mind')
    text = (folder / 'train' / 'news.tsv').read_text()
    behaviors = (folder / 'train' / 'behaviors.tsv').read_text()
    self.assertIn(' "\t', text)
    self.assertIn('\t\thttps', text)  # an empty abstract
    self.assertTrue(any(line.endswith('\t') for line in text.splitlines()))  # no entities at all
    self.assertIn(mind_demo.UNKNOWN_NEWS, behaviors)
    self.assertTrue(all(line.endswith('\t') for line in (
        folder / 'train' / 'entity_embedding.vec').read_text().splitlines()))
    vectors, linked = dict(mind.read_vectors(folder / 'train' / 'entity_embedding.vec')), set()
    for row in mind.all_news(folder):
      for entity in row.title_entities:
        linked.add(entity['WikidataId'])
        for offset in entity['OccurrenceOffsets']:
          form, = entity['SurfaceForms']
          self.assertEqual(row.title[offset:offset + len(form)], form)
    self.assertBetween(len(linked - vectors.keys()), 1, 5)
    heads = [line.split('\t') for line in (folder / 'triples.tsv').read_text().splitlines()]
    relations = dict(mind.read_vectors(folder / 'train' / 'relation_embedding.vec'))
    self.assertLen(relations, mind_demo.RELATIONS)
    for head, relation, tail in heads:
      self.assertEqual((int(head[1:]) - 1000) // 12, (int(tail[1:]) - 1000) // 12)
      self.assertIn(relation, relations)


if __name__ == '__main__':
  absltest.main()
