"""The modules of Hybrid Encoder and the other rankers: caches, invariances, closed forms."""
import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.hybrid_encoder import model, rankers

WIDTH = 8
MODULES = {
    'hybrid': model.HybridRanker(3), 'mean': model.HybridRanker(3, 'mean'),
    'max': model.HybridRanker(3, 'max'), 'mlp': model.HybridRanker(3, 'mlp', 4),
    'cross': rankers.CrossRanker(1, 2), 'poly': rankers.PolyRanker(3, 4),
    'multi_interest': rankers.MultiInterestRanker(3, 4), 'maxsim': rankers.MaxSimRanker(),
    'siamese': rankers.SiameseRanker(4)}


def make_inputs(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
  tokens = np.arange(4) < rng.integers(1, 5, (3, 2, 1))
  return normal(3, 5, WIDTH), mask, normal(3, 2, 4, WIDTH), tokens


def make(name, **siamese):
  net = model.HybridEncoder(model.Siamese(queries=4, **siamese), MODULES[name])
  return net, jax.jit(net.init)(jax.random.key(0), *make_inputs())['params']


def everything(net, params, inputs):
  return jax.jit(net.apply)({'params': params}, *inputs)


class InvarianceTest(parameterized.TestCase):

  @parameterized.parameters(*MODULES)
  def test_order_of_pages_and_padding_change_nothing(self, name):
    net, params = make(name)
    pages, mask, tokens, token_mask = make_inputs()
    expected = everything(net, params, make_inputs())
    order = np.array([3, 0, 4, 1, 2])
    changes = {'order': (pages[:, order], mask[:, order], tokens, token_mask),
               'padding': (np.where(mask[..., None], pages, 7), mask,
                           np.where(token_mask[..., None], tokens, 7), token_mask)}
    for what, inputs in changes.items():
      for got, want in zip(everything(net, params, inputs), expected):
        np.testing.assert_allclose(got, want, atol=2e-5, err_msg=what)
    self.assertTrue(all(np.isfinite(x).all() for x in expected))
    if name not in ('cross', 'mlp'):
      np.testing.assert_allclose(expected[2][2], 0, atol=1e-6)  # a user without pages

  @parameterized.parameters('hybrid', 'mlp', 'cross')
  def test_gradients(self, name):
    net, params = make(name)
    total = lambda params: sum((x**2).sum() for x in net.apply({'params': params}, *make_inputs()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params)):
      place = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertTrue(np.isfinite(leaf).all(), place)
      if not place.endswith(('score/bias', 'attention/key/bias')):  # a softmax does not see these
        self.assertTrue(np.any(leaf), place)


class HybridTest(parameterized.TestCase):

  @parameterized.parameters('hybrid', 'mean', 'max', 'mlp')
  def test_cached_is_uncached(self, name):
    net, params = make(name)
    pages, mask, tokens, token_mask = make_inputs()
    apply = lambda method, *x: net.apply({'params': params}, *x, method=method)
    codes, _ = apply('ad_codes', tokens, token_mask)
    cached = apply('rank_cached', codes, *apply('user_keys', pages), mask)
    np.testing.assert_allclose(cached, apply('rank', pages, mask, tokens, token_mask), atol=1e-5)

  def test_one_code_with_even_attention_is_a_product_of_means(self):
    net = model.HybridRanker(1)
    pages, mask, tokens, token_mask = make_inputs()
    params = jax.device_get(net.init(jax.random.key(0), *make_inputs())['params'])
    params['ad']['codes'] = params['ad']['codes'] * 0
    params['user']['key']['kernel'] = params['user']['key']['kernel'] * 0
    scores = net.apply({'params': params}, *make_inputs())
    mean = lambda x, m: (x * m[..., None]).sum(-2) / np.maximum(m.sum(-1, keepdims=True), 1)
    ads = mean(tokens @ params['ad']['value']['kernel'], token_mask)
    users = mean(pages @ params['user']['value']['kernel'], mask)
    np.testing.assert_allclose(scores, np.einsum('bcd,bd->bc', ads, users), atol=1e-5)

  def test_head_weights_sum_to_one(self):
    net, params = make('hybrid')
    scores = lambda head: net.apply({'params': {**params, 'ranker': {
        **params['ranker'], 'head_weight': np.array(head, np.float32)}}}, *make_inputs())[2]
    np.testing.assert_allclose(scores([0, 0, 0]), scores([5, 5, 5]), atol=1e-5)
    parts = [scores([99 * (i == m) for i in range(3)]) for m in range(3)]
    np.testing.assert_allclose(scores([0, 0, 0]), np.mean(parts, axis=0), atol=1e-5)

  def test_diagnostics(self):
    self.assertAlmostEqual(float(model.code_orthogonality(3 * np.eye(4, 6))), 0, places=5)
    self.assertAlmostEqual(float(model.code_orthogonality(np.ones((3, 5)))), 6, places=4)
    self.assertAlmostEqual(float(model.mean_cosine(np.ones((3, 5)))), 1, places=5)
    self.assertAlmostEqual(float(model.mean_cosine(np.eye(3))), 0, places=5)


class SiameseTest(parameterized.TestCase):

  def test_cosine_vectors_have_length_one(self):
    net, params = make('hybrid', cosine=True)
    users, ads, _ = everything(net, params, make_inputs())
    np.testing.assert_allclose(np.linalg.norm(users[:2], axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(users[2], 0)
    np.testing.assert_allclose(np.linalg.norm(ads, axis=-1), 1, rtol=1e-5)

  def test_other_pools(self):
    pages, mask, tokens, token_mask = make_inputs()
    net, params = make('maxsim', pool='mean')
    self.assertNotIn('siamese', params)
    users, ads, _ = net.apply({'params': params}, *make_inputs())
    np.testing.assert_allclose(users[1], pages[1, :2].mean(0), atol=1e-6)
    net, params = make('maxsim', pool='cls')
    np.testing.assert_array_equal(net.apply({'params': params}, *make_inputs())[1],
                                  tokens[:, :, 0])


if __name__ == '__main__':
  absltest.main()
