"""EmbMarker against the arrays of the official code."""
import random

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.embmarker import extraction, verification, watermark
from tests.golden_reader import Golden

GOLDEN = Golden('embmarker')
NAMES = GOLDEN.unread()  # all, before any is read
HEADS = 2  # the one thing of the reference that no array says


def get(name):
  return GOLDEN[f'A.{name}']


def counts():
  return dict(zip(map(str, get('vocab')), map(int, get('word_doc_count'))))


def draw():
  """(triggers, the generator that drew them)."""
  generator = random.Random(int(get('cfg_seed')))
  low, high = get('cfg_freq_min_max')
  _, number, _ = get('cfg_maxtrig_sel_nver')
  triggers = watermark.select_triggers(counts(), int(get('n_docs')), generator, number=int(number),
                                       low=float(low), high=float(high))
  return triggers, generator


def key():
  ids = [list(counts()).index(token) for token in draw()[0]]
  return watermark.KeySpec(np.array(ids, np.int32), get('target_emb'),
                           int(get('cfg_maxtrig_sel_nver')[0]))


def state_dict(prefix):
  return {name.removeprefix(prefix): GOLDEN[name] for name in NAMES if name.startswith(prefix)}


class GoldenTest(absltest.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  def test_triggers(self):
    triggers, _ = draw()
    self.assertEqual(triggers, get('selected_tokens').tolist())
    shares = [counts()[token] / int(get('n_docs')) for token in triggers]
    np.testing.assert_allclose(shares, get('selected_freq'), rtol=1e-12)

  def test_counts_and_provided_embeddings(self):
    ids, clean = get('token_ids_padded_minus1'), get('clean_emb')
    np.testing.assert_array_equal(get('target_emb'), clean[0])
    k = watermark.count_triggers(ids, ids >= 0, key().trigger_ids)
    np.testing.assert_array_equal(k, get('out_n_triggers'))
    provided = jax.jit(watermark.wrap(lambda x: x, key()))(clean, ids, ids >= 0)
    np.testing.assert_allclose(provided, get('out_provided_emb'), atol=1e-6)
    self.assertGreater(k.max(), key().max_triggers)  # the clamp is tested

  def test_verification_texts(self):
    triggers, generator = draw()
    m, _, size = map(int, get('cfg_maxtrig_sel_nver'))
    texts, numbers = verification.verification_texts(
        triggers, watermark.whole_words(counts()), generator, max_triggers=m, size=size)
    for t in range(m + 1):
      expected = get('verify_sentences')[get('verify_num_triggers') == t]
      self.assertEqual({x for x, n in zip(texts, numbers) if n == t}, set(expected.tolist()))

  def test_metrics(self):
    found = verification.evidence(get('verify_copied_emb'), get('verify_num_triggers'),
                                  get('target_emb'))
    copied = get('eval_copied_emb')
    metrics = {**found.metrics, **verification.similarity(
        copied, get('out_provided_emb')[-len(copied):], get('target_emb'))}
    expected = dict(zip(get('out_metric_names').tolist(), get('out_metric_values')))
    self.assertEqual(set(metrics), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.p, expected['pvalue'], rtol=1e-6, atol=1e-12)

  def model(self):
    weights = state_dict('A.copier.')
    word, position = (weights[f'bert.embeddings.{n}_embeddings.weight']
                      for n in ('word', 'position'))
    inner = weights['bert.encoder.layer.0.intermediate.dense.weight']
    layers = len([n for n in weights if n.endswith('attention.self.query.weight')])
    width, dim = weights['transform.0.weight'].shape[0], weights['transform.3.weight'].shape[0]
    config = BertConfig(*word.shape, layers, HEADS, len(inner),
                        max_position_embeddings=len(position), hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0)
    return extraction.Copier(config, dim, width), weights

  def test_copier(self):
    model, weights = self.model()
    params = extraction.params_from_torch(weights, model)
    batch = {'ids': get('copier_input_ids'), 'mask': get('copier_attention_mask'),
             'embedding': get('copier_target').astype(np.float32),
             'weight': np.ones(len(get('copier_target')), np.float32)}
    task = extraction.copier_task(model, {})

    def mean_loss(params):
      return task.loss({'params': params}, batch, jax.random.key(0)).values.mean()

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(params)
    out = jax.jit(task.predict)({'params': params}, batch, None)['embeddings']
    np.testing.assert_allclose(out, get('out_copier_emb'), atol=2e-5)
    np.testing.assert_allclose(loss, get('out_copier_loss'), atol=2e-5)
    np.testing.assert_allclose(gradient['transform_3']['kernel'].T,
                               get('grad.copier.transform.3.weight'), atol=1e-4, rtol=1e-4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      if 'key' not in name or 'bias' not in name:  # softmax ignores a bias of the keys
        self.assertTrue(np.any(leaf), name)
    back = extraction.params_to_torch(params, model)
    self.assertEqual(set(back), set(weights))
    chex.assert_trees_all_equal(back, {name: weights[name] for name in back})

  def test_classifier(self):
    weights = state_dict('A.cls.')
    width, dim = weights['fc1.weight'].shape
    task = extraction.utility_task(len(weights['fc2.bias']), dim, {}, dropout=0.0, width=width)
    params = {layer: {'kernel': weights[f'{layer}.weight'].T, 'bias': weights[f'{layer}.bias']}
              for layer in ('fc1', 'fc2')}
    batch = {'image': jnp.asarray(get('copier_target'), jnp.float32), 'label': get('cls_labels'),
             'weight': np.ones(len(get('cls_labels')), np.float32)}
    logits = task.predict({'params': params}, batch, None)
    np.testing.assert_allclose(logits, get('out_cls_logits'), atol=2e-5)
    loss = task.loss({'params': params}, batch, jax.random.key(0)).values.mean()
    np.testing.assert_allclose(loss, get('out_cls_loss'), atol=2e-5)


if __name__ == '__main__':
  absltest.main()
