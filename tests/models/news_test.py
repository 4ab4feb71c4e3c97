"""News and user encoders: golden vectors, padding, gradients, weights to PyTorch and back."""
import functools
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models import news as models
from jaxlab.models import news_weights
from tests.golden_reader import Golden

GOLDEN = Golden('ua_fedrec')
MODELS = {
    'nrms': (models.NRMSNews(19, embed=7, heads=2, head_dim=3, queries=5, dropout=0.2),
             models.NRMSUser(heads=2, head_dim=3, queries=5, output_dropout=0.2)),
    'lstur': (models.LSTURNews(19, embed=7, features=6, queries=5), models.LSTURUser(features=6)),
}
# Softmax does not see what is added to all of its inputs: these have no gradient at all.
INVARIANT = ('attention/key/bias', 'pooling/score/bias')


def torch_names(name, kind):
  """({news name: array}, {user name: array}) of a golden model's parameters or gradients."""
  prefix = f'{name}/{kind}/'
  arrays = {key[len(prefix):]: GOLDEN[key] for key in GOLDEN.unread() if key.startswith(prefix)}
  return tuple({key.removeprefix(side): x for key, x in arrays.items() if key.startswith(side)}
               for side in ('text_encoder.', 'user_encoder.'))


@functools.cache
def golden_model(name):
  """(params {'news', 'user'}, gradients of the golden's loss in PyTorch names)."""
  news, user = torch_names(name, 'param')
  params = {'news': news_weights.params_from_torch(news, f'{name}_news'),
            'user': news_weights.params_from_torch(user, f'{name}_user')}
  return jax.tree.map(jnp.float32, params), torch_names(name, 'grad')


def forward(name, params):
  """News vectors, user vectors, scores and mean loss on the golden's data, dropout off."""
  news_model, user_model = MODELS[name]
  history = GOLDEN['history']
  vectors = news_model.apply({'params': params['news']}, {'title': GOLDEN['news_tokens']})
  users = user_model.apply({'params': params['user']}, vectors[history], history > 0)
  scores = jnp.einsum('bd,bcd->bc', users, vectors[GOLDEN['candidates']])
  labels = jnp.zeros(len(scores), jnp.int32)
  loss = optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
  return vectors, users, scores, loss


class GoldenTest(parameterized.TestCase):

  @parameterized.parameters('nrms', 'lstur')
  def test_vectors_scores_loss_and_gradients(self, name):
    params, gradients = golden_model(name)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)

    def loss(params):
      out = forward(name, params)
      return out[3], out

    (_, out), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for key, value in zip(('news_vecs', 'user_vecs', 'scores', 'loss'), out):
      close(value, GOLDEN[f'{name}/{key}'], err_msg=key)
    for side, expected in zip(('news', 'user'), gradients):
      found = news_weights.params_to_torch(ours[side], f'{name}_{side}')
      for key, value in expected.items():
        if key == 'gru.bias_hh_l0':  # the gates r and z have their bias in bias_ih_l0
          value = np.where(np.arange(len(value)) < len(value) * 2 // 3, 0, value)
        close(found[key], value, err_msg=key)
      self.assertEqual(found.keys(), expected.keys())

  def test_zz_every_array_was_compared(self):
    for name in MODELS:
      golden_model(name)
    left = [key for key in GOLDEN.unread() if key.startswith(('nrms/', 'lstur/'))]
    self.assertEmpty(left)  # the attack's arrays are those of the system's tests


class WeightsTest(parameterized.TestCase):

  @parameterized.parameters('nrms_news', 'nrms_user', 'lstur_news', 'lstur_user')
  def test_there_and_back(self, encoder):
    name, side = encoder.split('_')
    params = golden_model(name)[0][side]
    torch = news_weights.params_to_torch(params, encoder)
    chex.assert_trees_all_close(news_weights.params_from_torch(torch, encoder), params, atol=1e-7)
    torch['extra'] = torch.pop(sorted(torch)[0])
    with self.assertRaisesRegex(ConfigError, r"missing: \['.+'\], left over: \['extra'\]"):
      news_weights.params_from_torch(torch, encoder)


class Words(nn.Module):
  """A stand-in for a pretrained text encoder."""

  @nn.compact
  def __call__(self, ids, mask, deterministic=True):
    del deterministic
    return types.SimpleNamespace(hidden_states=(nn.Embed(9, 6)(ids) * (1 + mask[..., None]),))


NEWS = {
    'nrms': functools.partial(models.NRMSNews, 9, embed=4, heads=2, head_dim=2, queries=3),
    'lstur': functools.partial(models.LSTURNews, 9, embed=4, features=4, queries=3),
    'naml': functools.partial(models.NAMLNews, 9, 3, 4, embed=4, features=4, queries=3,
                              category_embed=2),
    'plm': lambda **kwargs: models.PretrainedNews(Words(), features=4, queries=3, **kwargs),
}
USERS = {
    'nrms': functools.partial(models.NRMSUser, heads=2, head_dim=2, queries=3),
    'lstur': functools.partial(models.LSTURUser, features=4),
    'naml': functools.partial(models.NAMLUser, queries=3),
}


def some_news(rows=5, length=6):
  rng = np.random.default_rng(0)
  real = np.arange(length) < [[6], [4], [5], [2], [3]]
  text = lambda: rng.integers(1, 9, (rows, length)) * real
  title = text()
  return {'title': title, 'title_mask': (title > 0).astype(int), 'abstract': text(),
          'category': np.arange(rows) % 3, 'subcategory': np.arange(rows) % 4}


def longer(news, words):
  pad = lambda x: np.pad(x, ((0, 0), (0, words))) if x.ndim == 2 else x
  return {name: pad(x) for name, x in news.items()}


class PaddingTest(parameterized.TestCase):

  @parameterized.product(name=tuple(NEWS), mask_padding=[True, False])
  def test_words(self, name, mask_padding):
    model, news = NEWS[name](mask_padding=mask_padding), some_news()
    variables = model.init(jax.random.key(0), news)
    run = jax.jit(model.apply)
    short, long = run(variables, news), run(variables, longer(news, 3))
    difference = np.abs(short - long).max()
    if mask_padding:
      self.assertLess(difference, 1e-6)
    else:
      self.assertGreater(difference, 1e-3)

  @parameterized.product(name=tuple(USERS), side=['front', 'back'])
  def test_clicks(self, name, side):
    model = USERS[name](mask_padding=True)
    vectors = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    real = np.ones((3, 5), bool)
    variables = model.init(jax.random.key(0), vectors, real)
    pads = {'front': (2, 0), 'back': (0, 2)}[side]
    padded = np.pad(vectors, ((0, 0), pads, (0, 0)), constant_values=7)
    out = model.apply(variables, padded, np.pad(real, ((0, 0), pads)))
    np.testing.assert_allclose(out, model.apply(variables, vectors, real), atol=1e-6)
    unmasked = USERS[name](mask_padding=False)
    self.assertGreater(np.abs(unmasked.apply(variables, padded, np.pad(real, ((0, 0), pads))) -
                              out).max(), 1e-3)

  @parameterized.parameters(*USERS)
  def test_nobody_is_zero(self, name):
    model = USERS[name](mask_padding=True)
    vectors, real = np.ones((2, 3, 4), np.float32), np.zeros((2, 3), bool)
    variables = model.init(jax.random.key(0), vectors, real)
    self.assertFalse(np.any(model.apply(variables, vectors, real)))
    gradient = jax.grad(lambda v: model.apply(variables, v, real).sum())(vectors)
    self.assertTrue(np.isfinite(gradient).all())

  @parameterized.parameters(*NEWS)
  def test_a_news_without_words_is_finite(self, name):
    for mask_padding in (True, False):
      model = NEWS[name](mask_padding=mask_padding)
      empty = {key: np.zeros_like(x) for key, x in some_news().items()}
      variables = model.init(jax.random.key(0), empty)
      out, gradient = jax.value_and_grad(lambda v: model.apply(v, empty).sum())(variables)
      chex.assert_tree_all_finite((out, gradient))


class GradientTest(parameterized.TestCase):

  @parameterized.parameters(*NEWS)
  def test_every_parameter_of_the_news_encoders(self, name):
    model, news = NEWS[name](), some_news()
    variables = model.init(jax.random.key(0), news)
    rngs = {'dropout': jax.random.key(1)}
    loss = lambda v: (model.apply(v, news, train=True, rngs=rngs)**3).sum()
    self.check(jax.jit(jax.grad(loss))(variables)['params'])

  @parameterized.parameters(*USERS)
  def test_every_parameter_of_the_user_encoders(self, name):
    model = USERS[name]()
    vectors = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    real = np.ones((3, 5), bool)
    variables = model.init(jax.random.key(0), vectors, real)
    self.check(jax.jit(jax.grad(lambda v: (model.apply(v, vectors, real)**3).sum()))(
        variables)['params'])

  def check(self, gradient):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertTrue(np.isfinite(leaf).all(), name)
      largest = np.abs(leaf).max()
      if name.endswith(INVARIANT):
        self.assertLess(largest, 1e-5, name)
      else:
        self.assertGreater(largest, 0, name)

  def test_dropout_acts_in_training_alone(self):
    model, news = NEWS['nrms'](dropout=0.5), some_news()
    variables = model.init(jax.random.key(0), news)
    train = lambda seed: model.apply(variables, news, train=True,
                                     rngs={'dropout': jax.random.key(seed)})
    self.assertGreater(np.abs(train(0) - train(1)).max(), 1e-3)
    np.testing.assert_array_equal(model.apply(variables, news), model.apply(variables, news))

  def test_half_precision(self):
    for name, make in NEWS.items():
      if name != 'plm':
        model = make(dtype=jnp.bfloat16)
        variables = model.init(jax.random.key(0), some_news())
        self.assertEqual(model.apply(variables, some_news()).dtype, jnp.float32)
        self.assertTrue(all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables)))


class WordDeviationTest(parameterized.TestCase):

  @parameterized.parameters(
      (lambda **a: models.NRMSNews(200, embed=50, heads=2, head_dim=3, queries=5, **a),),
      (lambda **a: models.LSTURNews(200, embed=50, features=6, queries=5, **a),),
      (lambda **a: models.NAMLNews(200, 4, 4, embed=50, features=6, queries=5, **a),))
  def test_random_word_vectors_have_it(self, make):
    ids = jnp.ones((1, 8), jnp.int32)
    news = {'title': ids, 'abstract': ids, 'category': ids[:, 0], 'subcategory': ids[:, 0]}
    unit, half = (make(**options).init(jax.random.key(0), news)['params']['words']['embedding']
                  for options in ({}, {'word_deviation': 0.5}))
    self.assertAlmostEqual(float(unit[1:].std()), 1.0, delta=0.05)
    np.testing.assert_allclose(half, unit / 2, rtol=1e-6)
    np.testing.assert_array_equal(half[0], 0)


if __name__ == '__main__':
  absltest.main()
