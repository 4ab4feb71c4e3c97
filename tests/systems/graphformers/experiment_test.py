"""The runs of reproduce: neighbours encoded once are those of the batch."""
import numpy as np
from absl.testing import absltest

from jaxlab.data import text
from jaxlab.systems.graphformers import data, experiment


class ExperimentTest(absltest.TestCase):

  def test_distinct_neighbours_stand_where_they_did(self):
    words = [f'{a}{b}' for a in 'abcdefgh' for b in 'xyz']
    rng = np.random.default_rng(0)
    draw = lambda: list(rng.choice(words, rng.integers(1, 7)))
    splits = {'train': [{'query': draw(), 'key': draw()} for _ in range(130)],
              'validation': [{'query': ['ax'], 'key': ['', 'bx']}]}
    texts = data.number_texts(splits, experiment.NEIGHBORS)
    pairs = experiment.prepare(text.train_wordpiece(words, 60), texts, 4, True)
    self.assertEqual(pairs.here['validation'].tolist(),
                     [[[True] + [False] * 5, [True, True] + [False] * 4]])
    batches, most = experiment.schedule_of(pairs, 0, 2)
    self.assertEqual(batches['nodes'].shape, (2, 2, experiment.BATCH, 2, 6))
    made = experiment.distinct(batches, most + 3)
    back = np.take_along_axis(made['unique'][..., None], made['where'].reshape(2, 2, -1, 1), 2)
    np.testing.assert_array_equal(back.reshape(made['where'].shape), batches['nodes'][..., 1:])
    np.testing.assert_array_equal(made['centers'], batches['nodes'][..., 0])
    self.assertFalse(np.array_equal(batches['nodes'][0], batches['nodes'][1]))
    alone = experiment.prepare(text.train_wordpiece(words, 60), texts, 4, False)
    self.assertFalse(alone.here['train'][..., 1:].any())
    self.assertTrue(alone.here['train'][..., 0].all())


if __name__ == '__main__':
  absltest.main()
