"""Hybrid Encoder against the golden arrays: pools, codes, scores, both losses, gradients."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.losses.contrastive import cross_entropy, in_batch_logits
from jaxlab.systems.hybrid_encoder import model, task
from tests.golden_reader import Golden

GOLDEN = Golden('hybrid_encoder')
VALUES = {'rtol': 1e-4, 'atol': 1e-5}
GRADIENTS = {'rtol': 1e-3, 'atol': 1e-5}
POOLS = {f'{side}_pool_{name}': ('siamese', f'{side}_pool', 'attention', *path)
         for side in ('user', 'ad') for name, path in (
             ('W', ('hidden', 'kernel')), ('b', ('hidden', 'bias')), ('q', ('score', 'kernel')))}
RANKER = {'codes': ('ranker', 'ad', 'codes'), 'code_key': ('ranker', 'ad', 'key', 'kernel'),
          'code_val': ('ranker', 'ad', 'value', 'kernel'),
          'user_key': ('ranker', 'user', 'key', 'kernel'),
          'user_val': ('ranker', 'user', 'value', 'kernel'),
          'head_weight': ('ranker', 'head_weight')}


def f32(name):
  return GOLDEN[name].astype(np.float32)


def make_params():
  # The score of a pool has a bias here, which its softmax does not see.
  params = {'siamese': {f'{side}_pool': {'attention': {'score': {'bias': np.zeros(1, np.float32)}}}
                        for side in ('user', 'ad')}}
  for name, path in {**POOLS, **RANKER}.items():
    value, node = f32(f'param_{name}'), params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = value[:, None] if name.endswith('_q') else value
  return params


def leaf(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def apply(params, method, *arguments):
  net = model.HybridEncoder(model.Siamese(queries=len(params['siamese']['user_pool']['attention'][
      'hidden']['bias'])), model.HybridRanker(len(params['ranker']['ad']['codes'])))
  return net.apply({'params': params}, *arguments, method=method)


def vectors(params):
  return (apply(params, 'user_retrieval', f32('page_vec'), GOLDEN['page_mask']),
          apply(params, 'ad_retrieval', f32('ad_token'), GOLDEN['ad_token_mask']))


def rank_scores(params, index):
  return apply(params, 'rank', f32('page_vec'), GOLDEN['page_mask'], f32('ad_token')[index],
               GOLDEN['ad_token_mask'][index])


def retrieval_loss(params):
  logits, own = in_batch_logits(*vectors(params), temperature=f32('tau'))
  return cross_entropy(logits, own).mean()


def rank_loss(params):
  scores = rank_scores(params, GOLDEN['rank_index'])
  return task.list_loss(scores, jnp.ones(scores.shape, bool), f32('tau')).mean()


class GoldenTest(absltest.TestCase):

  def test_retrieval(self):
    users, ads = vectors(make_params())
    np.testing.assert_allclose(users, GOLDEN['retrieval_user'], **VALUES)
    np.testing.assert_allclose(ads, GOLDEN['retrieval_ad'], **VALUES)
    np.testing.assert_allclose(users @ ads.T, GOLDEN['retrieval_score'], **VALUES)

  def test_codes(self):
    params = make_params()
    codes, attention = apply(params, 'ad_codes', f32('ad_token'), GOLDEN['ad_token_mask'])
    np.testing.assert_allclose(attention, GOLDEN['ad_codes_attention'], **VALUES)
    np.testing.assert_allclose(codes, GOLDEN['ad_disentangled'], **VALUES)
    np.testing.assert_allclose(model.code_orthogonality(params['ranker']['ad']['codes']),
                               GOLDEN['code_orthogonality'], **VALUES)

  def test_ranking(self):
    params, index = make_params(), GOLDEN['rank_index']
    expected = np.concatenate([np.arange(len(index))[:, None], GOLDEN['neg_index']], axis=1)
    np.testing.assert_array_equal(index, expected)
    ads = GOLDEN['ad_disentangled'].astype(np.float32)[index]
    keys, values = apply(params, 'user_keys', f32('page_vec'))
    users, attention = model.AdRelatedUser().apply({}, ads, keys, values, GOLDEN['page_mask'],
                                                   method='attend')
    np.testing.assert_allclose(users, GOLDEN['rank_user'], **VALUES)
    np.testing.assert_allclose(attention, GOLDEN['rank_user_attention'], **VALUES)
    np.testing.assert_allclose(rank_scores(params, index), GOLDEN['rank_score'], **VALUES)
    pairs = np.broadcast_to(np.arange(len(index)), (len(index), len(index)))
    np.testing.assert_allclose(rank_scores(params, pairs), GOLDEN['rank_score_all_pairs'], **VALUES)

  def test_losses_and_gradients(self):
    for stage, loss, paths in (('retrieval', retrieval_loss, POOLS), ('rank', rank_loss, RANKER)):
      value, gradients = jax.jit(jax.value_and_grad(loss))(make_params())
      np.testing.assert_allclose(value, GOLDEN[f'{stage}_loss'], rtol=1e-5)
      for name, path in paths.items():
        expected = GOLDEN[f'{stage}_grad_{name}']
        np.testing.assert_allclose(leaf(gradients, path).reshape(expected.shape), expected,
                                   **GRADIENTS, err_msg=name)

  def test_z_every_array_was_looked_at(self):
    self.assertEmpty(GOLDEN.unread())


if __name__ == '__main__':
  absltest.main()
