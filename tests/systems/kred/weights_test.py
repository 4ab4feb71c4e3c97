"""The official parameter names: all of them, and no others."""
import jax
import numpy as np
from absl.testing import absltest

from jaxlab.config import ConfigError
from jaxlab.systems.kred import weights
from tests.systems.kred import toy_kred


def params(shared):
  net, ids = toy_kred.make_model(share_news_encoder=shared), np.ones((1, 1), int)
  shapes = jax.eval_shape(net.init, jax.random.key(0), toy_kred.make_tables(), ids, ids)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


class WeightsTest(absltest.TestCase):

  def test_round_trip_with_one_encoder_and_with_two(self):
    for shared in (True, False):
      made = params(shared)
      state = weights.params_to_torch(made)
      self.assertLen(state, 54)
      to_params, to_state = weights.official_weights({}, made)
      self.assertEqual(to_state(made).keys(), state.keys())
      jax.tree.map(np.testing.assert_array_equal, to_params(state), made)

  def test_mistakes(self):
    made = params(False)
    state = weights.params_to_torch(made)
    wrong = {name: x for name, x in state.items() if name != 'mlp_layer1.bias'}
    wrong['extra'] = np.zeros(1)
    with self.assertRaisesRegex(ConfigError, 'mlp_layer1.bias is missing; extra is left over$'):
      weights.params_from_torch(wrong, made)
    wrong = {**state, 'vert_mlp_layer2.bias': np.zeros(15)}
    with self.assertRaisesRegex(ConfigError, r'category/out/bias has shape \(15,\), expected \(3,'):
      weights.params_from_torch(wrong, made)
    with self.assertRaisesRegex(ConfigError, 'kgat.attention_layer1.weight differs from that of '
                                'the candidates: share_news_encoder=False keeps both'):
      weights.params_from_torch(state, params(True))


if __name__ == '__main__':
  absltest.main()
