"""Parity with the official code: encoders, loss, gradients, weight names, metrics."""
import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.losses import contrastive
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.graphformers import metrics, weights
from jaxlab.systems.graphformers.model import Cascade, GraphFormer
from tests.golden_reader import Golden

GOLDEN = Golden('graphformers')
KEYS = GOLDEN.unread()  # all of them, before anything is read


def bert_config(case):
  v, d, layers, heads, inner, positions, types, bins, distance = (
      int(x) for x in GOLDEN[f'{case}.cfg_V_D_L_H_I_P_T_relbins_maxrel'])
  return BertConfig(v, d, layers, heads, inner, positions, types,
                    layer_norm_eps=float(GOLDEN[f'{case}.cfg_eps']), hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0, rel_pos_bins=bins, max_rel_pos=distance,
                    add_pooler=False)


def state_dict(prefix):
  return {key.removeprefix(prefix): GOLDEN[key] for key in KEYS
          if key.startswith(prefix)}


def inputs(case, side):
  return tuple(GOLDEN[f'{case}.{name}_{side}'] for name in ('input_ids', 'attention_mask',
                                                            'node_mask'))


def scores_and_loss(model, params, query, key):
  q, k = (model.apply({'params': params}, *side) for side in (query, key))
  logits, own = contrastive.in_batch_logits(q, k)
  return contrastive.cross_entropy(logits, own).mean(), (q, k, logits)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, query, key):
  return jax.value_and_grad(functools.partial(scores_and_loss, model), has_aux=True)(
      params, query, key)


class GoldenTest(parameterized.TestCase):

  @parameterized.parameters('A', 'B')
  def test_graphformer(self, case):
    model = GraphFormer(bert_config(case))
    params = weights.params_from_torch(state_dict(f'{case}.gf.'), model)
    query, key = inputs(case, 'query'), inputs(case, 'key')
    (loss, (q, k, scores)), gradient = run(model, params, query, key)
    np.testing.assert_allclose(q, GOLDEN[f'{case}.out_query_emb'], atol=2e-5)
    np.testing.assert_allclose(k, GOLDEN[f'{case}.out_key_emb'], atol=2e-5)
    np.testing.assert_allclose(scores, GOLDEN[f'{case}.out_scores'], atol=1e-4)
    np.testing.assert_allclose(loss, GOLDEN[f'{case}.out_loss'], atol=2e-5)
    names = weights.params_to_torch(jax.tree.map(np.asarray, gradient), model)
    for name, expected in state_dict(f'{case}.grad.gf.').items():
      np.testing.assert_allclose(names[name], expected, atol=1e-4, err_msg=name)
    states = jax.jit(functools.partial(model.apply, method='hidden_states'))(
        {'params': params}, *query)
    np.testing.assert_allclose(states[:, 0, 1], q, atol=1e-5)
    visible = query[1].astype(bool)
    expected = GOLDEN[f'{case}.out_query_hidden_last']
    np.testing.assert_allclose(states[:, :, 1:][visible], expected[:, :, 1:][visible], atol=2e-5)
    np.testing.assert_allclose(states[:, 0, 0], expected[:, 0, 0], atol=2e-5)  # the station
    acc, auc, mrr, ndcg = GOLDEN[f'{case}.out_metrics_acc_auc_mrr_ndcg']
    found = metrics.official(GOLDEN[f'{case}.out_scores'])
    for name, value in (('p@1', acc), ('auc', auc), ('mrr', mrr), ('ndcg', ndcg)):
      self.assertAlmostEqual(found[name], value, places=7, msg=name)  # they are float32

  @parameterized.parameters('A', 'B')
  def test_weights_go_back(self, case):
    model = GraphFormer(bert_config(case))
    official = state_dict(f'{case}.gf.')
    back = weights.params_to_torch(weights.params_from_torch(official, model), model)
    self.assertEqual(set(back), set(official))
    for name, value in official.items():
      np.testing.assert_array_equal(back[name], value, err_msg=name)

  def test_graph_sage_max(self):
    model = Cascade(bert_config('A'), 'max')
    official = state_dict('A.sage.')
    params = weights.params_from_torch(official, model)
    (loss, (q, k, _)), _ = run(model, params, inputs('A', 'query'), inputs('A', 'key'))
    np.testing.assert_allclose(q, GOLDEN['A.out_sage_query_emb'], atol=2e-5)
    np.testing.assert_allclose(k, GOLDEN['A.out_sage_key_emb'], atol=2e-5)
    np.testing.assert_allclose(loss, GOLDEN['A.out_sage_loss'], atol=2e-5)
    back = weights.params_to_torch(params, model)
    self.assertEqual({name for name in official if 'pooler' not in name}, set(back))

  def test_metrics(self):
    found = metrics.official(GOLDEN['metric_scores'])
    for name in ('p@1', 'mrr', 'ndcg'):
      expected = float(GOLDEN[f'metric_{name.replace("@", "")}'])
      self.assertAlmostEqual(found[name], expected, delta=1e-9, msg=name)

  @parameterized.parameters('bert.encoder.graph_attention.key.bias', 'bert.rel_pos_bias.weight',
                            'bert.encoder.layer.0.output.dense.weight')
  def test_missing_and_left_over_names_are_listed(self, name):
    model = GraphFormer(bert_config('A'))
    official = state_dict('A.gf.')
    tensor = official.pop(name)
    with self.assertRaisesRegex(ValueError, f'{name.removeprefix("bert.")} is missing'):
      weights.params_from_torch(official, model)
    with self.assertRaisesRegex(ValueError, 'surplus is left over'):
      weights.params_from_torch({**official, name: tensor, 'surplus': tensor}, model)


def tearDownModule():
  unread = GOLDEN.unread()
  assert not unread, unread


if __name__ == '__main__':
  absltest.main()
