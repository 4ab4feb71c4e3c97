"""Ranking metrics against golden vectors, scikit-learn, and what they promise."""
import pathlib
import tempfile

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from jaxlab.metrics import ranking
from tests.golden_reader import Golden

GOLDEN = Golden('mind_dataset')


def stack(rows):
  return np.stack([rows[name] for name in ranking.METRICS], -1)


def impression(seed, length=8, clicks=3):
  """(labels, distinct scores, mask), all real."""
  rng = np.random.default_rng(seed)
  labels = np.zeros(length, int)
  labels[rng.choice(length, clicks, replace=False)] = 1
  return labels, rng.permutation(length) + rng.random(length) / 2, np.ones(length, bool)


class GoldenTest(parameterized.TestCase):

  def test_float64(self):
    labels, scores = GOLDEN['labels'], GOLDEN['scores']
    mask = labels >= 0
    rows = ranking.impression_metrics(labels, scores, mask)
    both = GOLDEN['two_class']
    np.testing.assert_array_equal(ranking.two_class(labels, mask), both)
    np.testing.assert_allclose(stack(rows), GOLDEN['auc_mrr_ndcg5_ndcg10_stable'], atol=1e-9)
    np.testing.assert_array_equal(ranking.ranks(scores, mask), GOLDEN['leaderboard_rank_stable'])
    means = ranking.mean_metrics([(labels[:9], scores[:9], mask[:9]),
                                  (labels[9:], scores[9:], mask[9:])])
    np.testing.assert_allclose([means[name] for name in ranking.METRICS],
                               GOLDEN['mean_over_two_class_stable'], atol=1e-9)

  @parameterized.parameters(False, True)
  def test_jax(self, jit):
    labels, scores = GOLDEN['labels'], jnp.asarray(GOLDEN['scores'], jnp.float32)
    mask = jnp.asarray(labels >= 0)
    function = jax.jit(ranking.impression_metrics) if jit else ranking.impression_metrics
    rows = function(jnp.asarray(labels), scores, mask)
    np.testing.assert_allclose(stack(rows), GOLDEN['auc_mrr_ndcg5_ndcg10_stable'], atol=1e-6)
    np.testing.assert_array_equal(jax.vmap(ranking.ranks)(scores, mask),
                                  GOLDEN['leaderboard_rank_stable'])

  def test_the_official_run_where_no_scores_tie(self):
    # Where scores tie the official sort is not stable, and its figures are the machine's.
    labels, scores = GOLDEN['labels'], GOLDEN['scores']
    mask = labels >= 0
    ours = stack(ranking.impression_metrics(labels, scores, mask))
    untied = [len(np.unique(s[m])) == m.sum() for s, m in zip(scores, mask)]
    official = GOLDEN['auc_mrr_ndcg5_ndcg10']
    np.testing.assert_allclose(ours[:, 0], official[:, 0], atol=1e-9)  # ties do not matter to AUC
    np.testing.assert_allclose(ours[untied], official[untied], atol=1e-9)
    np.testing.assert_array_equal(
        ranking.ranks(scores, mask)[untied], GOLDEN['leaderboard_rank'][untied])
    self.assertAlmostEqual(np.nanmean(ours[:, 0]), GOLDEN['mean_over_two_class'][0])
    self.assertBetween(sum(untied), 5, len(untied) - 2)


class MetricTest(parameterized.TestCase):

  @hypothesis.given(st.integers(0, 2**31), st.integers(2, 30), st.booleans())
  @hypothesis.settings(max_examples=50, deadline=None)
  def test_auc_is_that_of_scikit_learn(self, seed, length, ties):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(length) % 3 == 0).astype(int)
    hypothesis.assume(0 < labels.sum() < length)
    scores = rng.integers(0, 4, length) * 1.0 if ties else rng.normal(size=length)
    self.assertAlmostEqual(float(ranking.auc(labels, scores, np.ones(length, bool))),
                           sklearn_metrics.roc_auc_score(labels, scores))

  @parameterized.parameters(*range(5))
  def test_invariances(self, seed):
    labels, scores, mask = impression(seed)
    rows = stack(ranking.impression_metrics(labels, scores, mask))
    order = np.random.default_rng(seed + 1).permutation(len(labels))
    increasing = np.exp(scores / 3) - 7
    pad = lambda x, value: np.concatenate([x, np.full(4, value, x.dtype)])
    for changed in ((labels, increasing, mask), (labels[order], scores[order], mask),
                    (pad(labels, -1), pad(scores, 99), pad(mask, False))):
      np.testing.assert_allclose(stack(ranking.impression_metrics(*changed)), rows, atol=1e-12)

  def test_ties(self):
    labels, mask = np.array([1, 0, 0]), np.ones(3, bool)
    scores = np.array([0.0, -0.0, 0.0])
    self.assertEqual(ranking.ranks(scores, mask).tolist(), [3, 2, 1])
    rows = ranking.impression_metrics(labels, scores, mask)
    self.assertEqual((rows['auc'], rows['mrr']), (0.5, 1 / 3))

  def test_all_clicks_count_in_mrr(self):
    labels, scores = np.array([1, 0, 1, 0]), np.array([4., 3., 2., 1.])
    self.assertAlmostEqual(float(ranking.mrr(labels, scores, scores > 0)), (1 + 1 / 3) / 2)

  def test_one_class_is_left_out_of_all_four_means(self):
    labels, scores, mask = impression(0)
    one = (np.ones_like(labels), scores, mask)
    stacked = [np.stack(pair) for pair in zip((labels, scores, mask), one)]
    rows = ranking.impression_metrics(*stacked)
    self.assertTrue(all(np.isnan(values[1]) for values in rows.values()))
    self.assertEqual(ranking.mean_metrics([stacked]),
                     ranking.mean_metrics([(labels[None], scores[None], mask[None])]))
    with self.assertRaisesRegex(ValueError, 'expected impressions with clicks and items'):
      ranking.mean_metrics([[x[None] for x in one]])

  def test_clicks_first(self):
    labels = np.array([[0, 1, 0, 1, -1], [0, 1, -1, -1, -1]])
    scores = np.arange(10.).reshape(2, 5)
    ordered, moved = ranking.clicks_first(labels, scores)
    self.assertEqual(ordered.tolist(), [[1, 1, 0, 0, -1], [1, 0, -1, -1, -1]])
    self.assertEqual(moved.tolist(), [[1, 3, 0, 2, 4], [6, 5, 7, 8, 9]])

  def test_leaderboard(self):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'prediction.txt'
    scores = np.array([[.1, .3, .2], [.5, .4, 9.]])
    ranking.write_leaderboard(path, [12, 3], scores,
                              np.array([[True, True, True], [True, True, False]]))
    self.assertEqual(path.read_text(), '3 [1,2]\n12 [3,1,2]\n')


if __name__ == '__main__':
  absltest.main()
