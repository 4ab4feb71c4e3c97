"""Losses, clusters, positives and metrics against the golden vectors."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.losses import contrastive
from jaxlab.metrics import glue, retrieval, sts
from jaxlab.systems.infocse import annotation
from tests.golden_reader import Golden

GOLDEN = Golden('infocse')
single = lambda name: jnp.asarray(GOLDEN[name], jnp.float32)


class GoldenTest(absltest.TestCase):

  def test_losses(self):
    anchors, positives, hard = map(single, ('anchor', 'positive', 'hard_negative'))
    groups, tau = jnp.asarray(GOLDEN['doc_id']), float(GOLDEN['tau'])
    close = lambda found, name: np.testing.assert_allclose(found, GOLDEN[name], atol=1e-5)
    # The mask of the golden is that of the groups.
    own = jnp.eye(len(groups), dtype=bool)
    np.testing.assert_array_equal((groups[:, None] != groups) | own, GOLDEN['docmask_allowed'])

    @jax.jit
    def losses(anchors, positives):
      loss = lambda **options: contrastive.info_nce(anchors, positives, temperature=tau,
                                                    **options).mean()
      return {'': loss(), '_symmetric': loss(symmetric=True), '_docmask': loss(groups=groups),
              '_hardneg_w0': loss(hard=hard), '_hardneg_w1': loss(hard=hard, hard_weight=1.0)}

    for name, found in losses(anchors, positives).items():
      close(found, f'out_infonce{name}')
    gradient = jax.jit(jax.grad(lambda a, p: losses(a, p)[''], (0, 1)))(anchors, positives)
    close(gradient[0], 'grad_infonce_anchor')
    close(gradient[1], 'grad_infonce_positive')
    close(contrastive.alignment(anchors, positives).mean(), 'out_alignment')
    close(contrastive.uniformity(anchors), 'out_uniformity')

  def test_clusters_and_positives(self):
    least, iterations = float(GOLDEN['annot_min_cos']), int(GOLDEN['kmeans_iters'])

    @jax.jit
    @jax.vmap
    def annotate(z, valid, start):
      cluster, centroids = annotation.spherical_kmeans(z, valid, start, iterations)
      allowed = annotation.eligible(z, cluster, least)
      return cluster, centroids, allowed, annotation.choose(z, allowed).index

    z, valid, start = single('doc_sent_emb'), GOLDEN['doc_sent_valid'], single('kmeans_init')
    cluster, centroids, allowed, index = annotate(z, valid, start)
    np.testing.assert_array_equal(cluster, GOLDEN['out_cluster'])
    np.testing.assert_allclose(centroids, GOLDEN['out_centroids'], atol=1e-5)
    np.testing.assert_array_equal(allowed, GOLDEN['out_positive_allowed'])
    np.testing.assert_array_equal(allowed, np.swapaxes(allowed, 1, 2))
    np.testing.assert_array_equal(index, GOLDEN['out_positive_index'])
    # Where a document has enough sentences, the golden starts from the first of them.
    enough = valid.sum(1) >= start.shape[1]
    first = jax.vmap(annotation.first_sentences, (0, 0, None))(z, valid, start.shape[1])
    np.testing.assert_array_equal(first[enough], start[enough])

  def test_metrics(self):
    scores, gold = GOLDEN['sts_pred'], GOLDEN['sts_gold']
    self.assertLess(len(set(scores)), len(scores))  # ties
    found = sts.spearman_subsets(scores, gold, GOLDEN['sts_subset_sizes'].tolist())
    for name, value in found.items():
      np.testing.assert_allclose(value, GOLDEN[f'out_spearman_{name}'], atol=1e-9)
    self.assertAlmostEqual(glue.pearson(scores, gold), float(GOLDEN['out_pearson_all']), places=9)
    ranks = retrieval.ranks(GOLDEN['ret_scores'], GOLDEN['ret_relevant'])
    recall = [retrieval.recall_at(ranks, k) for k in (1, 5, 10)]
    np.testing.assert_allclose(recall, GOLDEN['out_recall_at_1_5_10'], atol=1e-9)
    for found, name in ((retrieval.mrr(ranks, 10), 'out_mrr_at_10'),
                        (retrieval.mrr(ranks), 'out_mrr'),
                        (retrieval.ndcg_at(ranks, 10), 'out_ndcg_at_10')):
      self.assertAlmostEqual(found, float(GOLDEN[name]), places=9)


def tearDownModule():
  assert not GOLDEN.unread(), GOLDEN.unread()


if __name__ == '__main__':
  absltest.main()
