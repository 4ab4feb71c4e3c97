"""DeepQSE, its coarse and its fine model against the arrays of the official code."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.deepqse import metrics, weights
from jaxlab.systems.deepqse.model import (
    PADDING,
    CrossDeepQSE,
    DeepQSE,
    Row,
    candidate_positions,
    listwise_loss,
)
from tests.golden_reader import Golden

GOLDEN = Golden('deepqse')
NAMES = GOLDEN.unread()  # all, before any is read


def get(name):
  return GOLDEN[f'A.{name}']


def state_dict(prefix):
  return {name.removeprefix(prefix): GOLDEN[name] for name in NAMES if name.startswith(prefix)}


def model(kind):
  v, d, layers, heads, inner, p = map(int, get('cfg_V_D_L_H_I_P'))
  config = lambda vocabulary: BertConfig(
      vocabulary, d, layers, heads, inner, max_position_embeddings=p, add_pooler=False,
      layer_norm_eps=float(get('cfg_eps')), hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0, scan_layers=False)
  return kind(config(v), config(0))


def row(name, length=0):
  pad = lambda x: jnp.pad(x, ((0, 0), (0, max(0, length - x.shape[1]))))
  ids = pad(get(f'{name}_ids'))
  return Row(ids, pad(get(f'{name}_mask')), jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))


def pages():
  return get('body_index'), jnp.asarray(get('doc_mask')), jnp.asarray(get('label'))


def close(found, name, atol, mask=None):
  found, expected = np.asarray(found), get(name)
  if mask is not None:
    found, expected = found * mask, expected * mask
  np.testing.assert_allclose(found, expected, atol=atol, rtol=0, err_msg=name)


class GoldenTest(absltest.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  def check_gradients(self, gradient):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      # Softmax ignores a bias of the keys, and the listwise loss one of all scores.
      if "'key']['bias']" not in name and "'scorer_out']['bias']" not in name:
        self.assertTrue(np.any(leaf), name)

  def test_one_encoder(self):
    net = model(DeepQSE)
    torch = state_dict('A.topTF.')
    params = weights.params_from_torch(torch, net)
    index, mask, label = pages()
    queries = Row(*(x[1:] for x in row('query')))

    def run(params, sentences):
      vectors = net.apply({'params': params}, sentences, method='encode')
      query = net.apply({'params': params}, queries, method='encode')
      scores = net.apply({'params': params}, query, vectors[index], mask, method='rank')
      return listwise_loss(scores, label).mean(), (vectors, query, scores)

    program = jax.jit(jax.value_and_grad(run, has_aux=True))
    for name, sentences in (('deepqse', 'joint'), ('coarse', 'sent')):
      rows = row(sentences, length=get('joint_ids').shape[1])  # one compilation for both
      (loss, (vectors, query, scores)), gradient = program(params, rows)
      close(vectors, f'out_{name}_sent_vec', 2e-5)
      close(query, f'out_{name}_query_vec', 2e-5)
      close(scores, f'out_{name}_scores', 5e-5, mask)
      self.assertTrue((np.asarray(scores)[np.asarray(mask) == 0] < PADDING / 2).all())
      close(loss, f'out_{name}_loss', 5e-5)
      close(gradient['encoder']['embeddings']['word']['embedding'],
            f'grad_{name}.sents_encoder.word_embeddings', 1e-4)
      close(gradient['ranker']['document']['embeddings']['position']['embedding'],
            f'grad_{name}.sents_agg.position_embeddings', 1e-4)
      self.check_gradients(gradient)
    back = weights.params_to_torch(params, net)
    self.assertEqual({n for n in torch if n not in back},
                     {n for n in torch if n.startswith(('sents_agg.unicoder.pooler.',
                                                        'sents_encoder.unicoder.pooler.',
                                                        'sents_agg.unicoder.embeddings.word_'))})
    for name, tensor in back.items():
      np.testing.assert_array_equal(tensor, torch[name], err_msg=name)

  def test_cross_encoder(self):
    net = model(CrossDeepQSE)
    torch = state_dict('A.fine.')
    params = weights.params_from_torch(torch, net)
    index, mask, label = pages()
    owner = get('sent_to_query')
    flat = Row(*(x[:, None] for x in row('sent')))

    def run(params, positions):
      query, kv = net.apply({'params': params}, row('query'), method='encode_query')
      kv = jax.tree.map(lambda x: x[owner], kv)
      vectors = net.apply({'params': params}, flat, kv, method='encode_sentences')[:, 0]
      scores = net.apply({'params': params}, query[1:], vectors[index], mask, positions,
                         method='rank')
      return listwise_loss(scores, label).mean(), (vectors, query, scores)

    program = jax.jit(jax.value_and_grad(run, has_aux=True))
    in_order = jnp.broadcast_to(1 + jnp.arange(mask.shape[1]), mask.shape)
    (loss, (vectors, query, scores)), gradient = program(params, in_order)
    close(vectors, 'out_fine_sent_vec', 2e-5)
    close(query, 'out_fine_query_vec', 2e-5)
    close(scores, 'out_fine_scores', 5e-5, mask)
    close(loss, 'out_fine_loss', 5e-5)
    for tower in ('query', 'sentence'):
      close(gradient[f'{tower}_encoder']['embeddings']['word']['embedding'],
            f'grad_fine.{tower[:4] if tower == "sentence" else tower}_word_embeddings', 1e-4)
    self.check_gradients(gradient)
    ranks = metrics.ranks_of(scores, label, mask)
    for i, k in enumerate((1, 2, 3)):
      np.testing.assert_array_equal(ranks <= k, get('out_fine_prec_at_1_2_3')[:, i])

    positions = jnp.asarray(get('topk_pos_ids'))
    (loss, (_, _, scores)), _ = program(params, positions)
    close(scores, 'out_topk_scores', 5e-5, mask)
    close(loss, 'out_topk_loss', 5e-5)
    last = net.document.max_position_embeddings - 1
    made = candidate_positions(positions - 1, positions < last, last)
    np.testing.assert_array_equal(made, positions)
    back = weights.params_to_torch(params, net)
    for name, tensor in back.items():
      np.testing.assert_array_equal(tensor, torch[name], err_msg=name)

  def test_left_over_names_are_listed(self):
    torch = {**state_dict('A.fine.'), 'sents_ag.weight': np.zeros(1)}
    with self.assertRaisesRegex(ValueError, 'sents_ag.weight is left over'):
      weights.params_from_torch(torch, model(CrossDeepQSE))
    del torch['sents_ag.weight'], torch['pred_linear.0.bias']
    with self.assertRaisesRegex(ValueError, 'bias is missing'):
      weights.params_from_torch(torch, model(CrossDeepQSE))


if __name__ == '__main__':
  absltest.main()
