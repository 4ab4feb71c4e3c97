"""DebiasedRec against the golden arrays: encoders, attention, scores, loss, all gradients."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.systems.debiasedrec import model, task
from tests.golden_reader import Golden

GOLDEN = Golden('debiasedrec')
VALUES = {'rtol': 1e-4, 'atol': 1e-5}
GRADIENTS = {'rtol': 1e-3, 'atol': 1e-5}
PATHS = {
    'word_emb': ('news', 'words', 'embedding'),
    'conv_kernel': ('news', 'title', 'conv', 'kernel'),
    'conv_bias': ('news', 'title', 'conv', 'bias'),
    'word_att_W': ('news', 'title', 'pooling', 'hidden', 'kernel'),
    'word_att_b': ('news', 'title', 'pooling', 'hidden', 'bias'),
    'word_att_q': ('news', 'title', 'pooling', 'score', 'kernel'),
    'pos_emb': ('click', 'bias', 'kind0', 'embedding'),
    'size_emb': ('click', 'bias', 'kind1', 'embedding'),
    'bias_joint_W': ('click', 'bias', 'joint', 'kernel'),
    'bias_joint_b': ('click', 'bias', 'joint', 'bias'),
    'user_att_Wr': ('click', 'user', 'news', 'kernel'),
    'user_att_b': ('click', 'user', 'news', 'bias'),
    'user_att_Wb': ('click', 'user', 'slot', 'kernel'),
    'user_att_q': ('click', 'user', 'query'),
    'bias_score_W1': ('click', 'score', 'hidden', 'kernel'),
    'bias_score_b1': ('click', 'score', 'hidden', 'bias'),
    'bias_score_w2': ('click', 'score', 'out', 'kernel'),
    'bias_score_b2': ('click', 'score', 'out', 'bias'),
}


def f32(name):
  return GOLDEN[name].astype(np.float32)


def make_params():
  # The score of the word attention has a bias here, which its softmax does not see.
  params = {'news': {'title': {'pooling': {'score': {'bias': np.zeros(1, np.float32)}}}}}
  for name, path in PATHS.items():
    value, node = f32(f'param_{name}'), params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    if name == 'conv_kernel':
      value = value[:, None]
    node[path[-1]] = value[:, None] if name in ('word_att_q', 'bias_score_w2') else value
  return params


def encoder(params):
  words, features = params['words']['embedding'].shape[1], params['title']['conv']['bias'].shape[0]
  return model.CNNNews(len(params['words']['embedding']), words, features,
                       len(params['title']['pooling']['hidden']['bias']),
                       params['title']['conv']['kernel'].shape[0], dropout=0.0)


def click_model(params):
  kinds = [params['bias'][f'kind{k}']['embedding'] for k in range(2)]
  return model.ClickModel(
      model.BiasEncoder([len(kind) for kind in kinds], kinds[0].shape[1],
                        len(params['bias']['joint']['bias'])),
      model.BiasUser(len(params['user']['query'])), hidden=len(params['score']['hidden']['bias']))


def slots(side):
  return np.stack([GOLDEN[f'{side}_position'], GOLDEN[f'{side}_size']], -1)


def encode(params, side):
  title = GOLDEN[f'{side}_title']
  flat = encoder(params).apply({'params': params}, {'title': title.reshape(-1, title.shape[-1])})
  return flat.reshape(*title.shape[:2], -1)


def scores(params):
  net = click_model(params['click'])
  return net.apply({'params': params['click']}, encode(params['news'], 'hist'), slots('hist'),
                   GOLDEN['hist_mask'], encode(params['news'], 'cand'), slots('cand'),
                   method='train_scores')


class GoldenTest(absltest.TestCase):

  def test_news(self):
    params = make_params()['news']
    for side in ('hist', 'cand'):
      np.testing.assert_allclose(encode(params, side), GOLDEN[f'news_{side}'], **VALUES)

  def test_bias_vectors_and_user(self):
    params = make_params()['click']
    net = click_model(params)
    for side in ('hist', 'cand'):
      out = net.bias.apply({'params': params['bias']}, slots(side))
      np.testing.assert_allclose(out, GOLDEN[f'bias_{side}'], **VALUES)
    arguments = f32('news_hist'), slots('hist'), GOLDEN['hist_mask']
    user, attention = net.apply({'params': params}, *arguments, method='user_vector')
    np.testing.assert_allclose(user, GOLDEN['user_vec'], **VALUES)
    np.testing.assert_allclose(attention, GOLDEN['user_attention'], **VALUES)
    without = {**params, 'user': {**params['user'], 'slot': {
        'kernel': np.zeros_like(params['user']['slot']['kernel'])}}}
    _, attention = net.apply({'params': without}, *arguments, method='user_vector')
    np.testing.assert_allclose(attention, GOLDEN['user_attention_no_bias'], **VALUES)
    blind = net.clone(user=net.user.clone(bias=False))
    del without['user']['slot']
    _, attention = blind.apply({'params': without}, *arguments, method='user_vector')
    np.testing.assert_allclose(attention, GOLDEN['user_attention_no_bias'], **VALUES)

  def test_scores(self):
    params = make_params()
    preference, bias = jax.jit(scores)(params)
    np.testing.assert_allclose(preference, GOLDEN['preference_score'], **VALUES)
    np.testing.assert_allclose(bias, GOLDEN['bias_score'], **VALUES)
    np.testing.assert_allclose(preference + bias, GOLDEN['click_score'], **VALUES)
    served = click_model(params['click']).apply(
        {'params': params['click']}, f32('news_hist'), slots('hist'), GOLDEN['hist_mask'],
        f32('news_cand'), method='serve')
    np.testing.assert_allclose(served, GOLDEN['serving_score'], **VALUES)

  def test_loss_and_gradients(self):
    label = GOLDEN['label']
    order = np.stack([np.roll(np.arange(GOLDEN['cand_size'].shape[1]), -i) for i in label])

    def total(params):  # the click comes first
      ordered = [jnp.take_along_axis(x, order, axis=1) for x in scores(params)]
      return task.joint_loss(*ordered, np.ones(order.shape, bool), name='softmax',
                             product=False).mean()

    value, gradients = jax.jit(jax.value_and_grad(total))(make_params())
    np.testing.assert_allclose(value, GOLDEN['train_loss'], rtol=1e-5)
    for name, path in PATHS.items():
      leaf = gradients
      for key in path:
        leaf = leaf[key]
      expected = GOLDEN[f'grad_{name}']
      np.testing.assert_allclose(leaf.reshape(expected.shape), expected, **GRADIENTS,
                                 err_msg=name)
    np.testing.assert_allclose(gradients['click']['score']['out']['bias'], 0, atol=1e-6)

  def test_z_every_array_was_looked_at(self):
    self.assertEmpty(GOLDEN.unread())


if __name__ == '__main__':
  absltest.main()
