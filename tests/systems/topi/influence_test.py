"""Influence, ranking, cumulative selection."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.models.dit import Score
from jaxlab.systems.topi import influence


class InfluenceTest(parameterized.TestCase):

  def test_sum_over_heads_and_layers(self):
    rng = np.random.default_rng(0)
    scores = {layer: Score(*rng.uniform(size=(2, 2, 3, 5))) for layer in range(3)}
    want = sum((scores[layer].received * scores[layer].value_norm).sum(1) for layer in (0, 2))
    np.testing.assert_allclose(influence.influence(scores, (0, 2)), want)
    order = rng.permutation(5)
    moved = {layer: Score(*(x[..., order] for x in score)) for layer, score in scores.items()}
    np.testing.assert_allclose(influence.influence(moved, (0, 2)), want[:, order])
    silent = {layer: score._replace(value_norm=score.value_norm * (np.arange(5) != 3))
              for layer, score in scores.items()}
    np.testing.assert_array_equal(influence.influence(silent, (0, 2))[:, 3], 0)

  def test_ties_by_position(self):
    np.testing.assert_array_equal(influence.ranking(jnp.array([[1., 3, 1, 3]])), [[1, 3, 0, 2]])
    np.testing.assert_array_equal(influence.ranks(jnp.array([[1., 3, 1, 3]])), [[2, 0, 3, 1]])

  @parameterized.parameters((.5, 1), (.51, 2), (.8, 2), (.81, 3), (.96, 5), (1.0, 5))
  def test_smallest_prefix(self, tau, count):
    values = jnp.array([[.5, .1, .05, .3, .05]])
    self.assertEqual(int(influence.count_for_share(values, tau - 1e-6 * (tau < 1))[0]), count)

  def test_nothing_to_tell_apart_keeps_all(self):
    self.assertEqual(int(influence.count_for_share(jnp.zeros((1, 4)), .5)[0]), 4)

  def test_indices_equal_the_mask(self):
    values = jax.random.uniform(jax.random.key(0), (3, 9))
    for count in (0, 4, 9):
      keep = influence.keep_indices(influence.ranking(values), count)
      mask = np.asarray(influence.keep_mask(values, count))
      self.assertEqual(keep.shape, (3, count))
      for row in range(3):
        np.testing.assert_array_equal(keep[row], np.flatnonzero(mask[row]))

  @parameterized.parameters((0, 0), (1, 8), (8, 8), (9, 16), (20, 20), (17, 20))
  def test_buckets(self, count, size):
    self.assertEqual(influence.bucketed(count, 8, 20), size)

  def test_best_of_each_image(self):
    values = jnp.array([[.1, .2, .3, .9, .8, .7]])
    first = influence.best_of_each(values, np.array([1, 1, 1, 2, 2, 2]), 1)
    np.testing.assert_array_equal(first, [[0, 0, 1, 1, 0, 0]])

  def test_shuffle_deals_each_row(self):
    values = jnp.tile(jnp.arange(40.), (2, 1))
    dealt = np.asarray(influence.shuffle(values, jax.random.key(0)))
    np.testing.assert_array_equal(np.sort(dealt), values)
    self.assertTrue((dealt[0] != dealt[1]).any())


if __name__ == '__main__':
  absltest.main()
