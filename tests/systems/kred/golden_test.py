"""KRED against the golden arrays: the official code as it is, corrected, and with masks."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.kred import losses, model, transe, weights
from tests import golden_reader

GOLDEN = golden_reader.Golden('kred')
VARIANTS = {
    'official': model.OFFICIAL,
    'paper': model.Variant(score_relu=True, mask_padding=False),
    'strict': model.Variant(mask_padding=False),
    'masked': model.STRICT,
}
ENCODER = {'kgat_att1': 'entity/att1', 'kgat_att2': 'entity/att2', 'kgat_agg': 'entity/agg',
           'distill_att1': 'distill/att1', 'distill_att2': 'distill/att2',
           'final1': 'distill/final1', 'final2': 'distill/final2'}
HEADS = {'u2i': 'user2item', 'vert': 'category', 'local': 'local', 'pop': 'popularity'}
LOOSE = {'rtol': 1e-4, 'atol': 1e-5}


def put(params, path, value):
  *parents, last = path.split('/')
  for key in parents:
    params = params.setdefault(key, {})
  params[last] = np.asarray(value, np.float32)


@functools.cache
def golden_params():
  """The golden weights as ours."""
  params = {}
  dense = [(f'{tower}_{theirs}', f'{ours}/{path}') for theirs, path in ENCODER.items()
           for tower, ours in (('cand', 'news'), ('hist', 'history'))]
  dense += [(f'user_att{i}', f'user/att{i}') for i in (1, 2)]
  dense += [(f'{theirs}_{i}', f'{ours}/{("hidden", "out")[i - 1]}')
            for theirs, ours in HEADS.items() for i in (1, 2)]
  for theirs, ours in dense:
    for part in ('kernel', 'bias'):
      put(params, f'{ours}/{part}', GOLDEN[f'{theirs}_{part}'])
  for theirs, ours in (('position', 'position'), ('type', 'type'), ('freq', 'frequency')):
    for tower, mine in (('cand', 'news'), ('hist', 'history')):
      put(params, f'{mine}/context/{ours}', GOLDEN[f'{tower}_{theirs}_emb'])
  return params


def tables():
  names = {'entities': 'entities', 'frequency': 'freq', 'position': 'position', 'type': 'type',
           'document': 'doc'}
  return {'graph': {'entity': GOLDEN['entity_embedding'], 'relation': GOLDEN['relation_embedding'],
                    'tails': GOLDEN['adj_entity'], 'relations': GOLDEN['adj_relation']},
          'news': {ours: GOLDEN[f'news_{theirs}'] for ours, theirs in names.items()}}


def make_model(variant):
  params = golden_params()
  context = params['news']['context']
  return model.KRED(
      categories=len(params['category']['out']['bias']),
      features=len(params['news']['distill']['final2']['bias']),
      hidden=len(params['user']['att1']['bias']), positions=len(context['position']),
      frequencies=len(context['frequency']), types=len(context['type']),
      share_news_encoder=False, variant=variant)


@functools.cache
def outputs(name):
  net = make_model(VARIANTS[name])
  return jax.device_get(jax.jit(net.apply)({'params': golden_params()}, tables(),
                                           GOLDEN['user_history'], GOLDEN['candidates']))


class GoldenTest(parameterized.TestCase):

  @parameterized.parameters(*VARIANTS)
  def test_vectors(self, name):
    out = outputs(name)
    np.testing.assert_allclose(out['vectors'], GOLDEN[f'{name}_candidate_vec'], **LOOSE)
    np.testing.assert_allclose(out['users'], GOLDEN[f'{name}_user_vec'], **LOOSE)

  @parameterized.parameters('official', 'paper', 'strict')
  def test_the_rest(self, name):
    out = outputs(name)
    close = lambda key, value, **tolerance: np.testing.assert_allclose(
        value, GOLDEN[f'{name}_{key}'], **(tolerance or LOOSE))
    close('kgat_candidates', out['weights']['g'])
    close('distill_attention', out['weights']['entity'])
    probability = jax.nn.sigmoid(out['user2item'])
    close('u2i_prob', probability)
    close('vert_prob', jax.nn.softmax(out['category']))
    close('pop_prob', jax.nn.softmax(out['popularity']))
    close('local_prob', jax.nn.sigmoid(out['local']))
    close('i2i_cos', model.cosine(out['vectors'][:, 0], out['vectors'][:, 1]))
    last = np.full(len(probability), probability.shape[1] - 1)
    close('u2i_loss', losses.choose_one(probability, last, official=True).mean(), rtol=1e-5)
    for key, head in (('vert', 'category'), ('pop', 'popularity')):
      logits, label = out[head][:, 0], GOLDEN[f'{key}_label']
      close(f'{key}_loss_code', losses.classify(logits, label, official=True).mean(), rtol=1e-5)
      close(f'{key}_loss_plain', losses.classify(logits, label).mean(), rtol=1e-5)

  def test_the_choices_agree_where_they_should(self):
    scores = jnp.array([[.2, .9, .1], [.5, .5, .7]])
    target = jnp.array([1, 0])
    q = np.exp(10 * np.asarray(scores, np.float64))
    q /= q.sum(-1, keepdims=True)
    hit = np.eye(3)[np.asarray(target)]
    np.testing.assert_allclose(losses.choose_one(scores, target, official=True),
                               -(hit * np.log(q) + (1 - hit) * np.log(1 - q)).mean(-1), rtol=1e-4)
    np.testing.assert_allclose(losses.choose_one(scores, target),
                               -np.log((hit * q).sum(-1)), rtol=1e-4, atol=2e-6)

  @parameterized.parameters(1, 2)
  def test_transe(self, norm):
    params = {'entity': GOLDEN['entity_embedding'], 'relation': GOLDEN['relation_embedding']}
    value, gradient = jax.value_and_grad(transe.loss)(
        params, GOLDEN['transe_pos'], GOLDEN['transe_neg'], 1.0, norm)
    np.testing.assert_allclose(value, GOLDEN[f'transe_l{norm}_loss'], rtol=1e-5)
    for name in params:
      np.testing.assert_allclose(gradient[name], GOLDEN[f'transe_l{norm}_grad_{name}'], rtol=1e-3,
                                 atol=1e-5)

  def test_official_names_go_round(self):
    params = golden_params()
    state = weights.params_to_torch(params)
    self.assertEqual(len(state), 54)
    for official, ours in (
        ('news_embedding.kgat.attention_layer1.weight', GOLDEN['cand_kgat_att1_kernel'].T),
        ('news_embedding.title_embeddings.weight', GOLDEN['cand_position_emb']),
        ('user_modeling.news_embedding.final_embedding2.bias', GOLDEN['hist_final2_bias']),
        ('user_modeling.user_attention_layer2.weight', GOLDEN['user_att2_kernel'].T),
        ('mlp_layer1.weight', GOLDEN['u2i_1_kernel'].T),
        ('vert_mlp_layer2.bias', GOLDEN['vert_2_bias'])):
      np.testing.assert_allclose(state[official], ours, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, weights.params_from_torch(state, params), params)


class ZEveryArrayTest(absltest.TestCase):

  def test_zz_every_array_was_compared(self):
    self.assertEmpty(GOLDEN.unread())


if __name__ == '__main__':
  absltest.main()
