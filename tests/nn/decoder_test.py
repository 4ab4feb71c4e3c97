"""Grouped attention: against plain multi-head attention, its masks and its cache."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.nn import decoder


def by_hand(query, key, value, visible):
  """One head after the other, in float64."""
  out = np.zeros(query.shape)
  groups = query.shape[2] // key.shape[1]
  for head in range(query.shape[2]):
    k, v = key[:, head // groups], value[:, head // groups]
    scores = np.einsum('btd,bsd->bts', query[:, :, head], k) / np.sqrt(query.shape[-1])
    weights = special.softmax(np.where(visible, scores, -1e9), -1)
    out[:, :, head] = weights @ v
  return out


class AttentionTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 4)
  def test_consecutive_heads_share_a_key(self, kv_heads):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 4, 6))
    key, value = rng.normal(size=(2, 2, kv_heads, 5, 6))
    visible = rng.random((2, 3, 5)) < .7
    visible[0, 0] = False  # a query that sees nothing
    out = decoder.grouped_attention(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)),
                                    jnp.asarray(visible))
    np.testing.assert_allclose(out, by_hand(query, key, value, visible), atol=1e-5)
    np.testing.assert_allclose(out[0, 0, 0], value[0, 0].mean(0), atol=1e-5)

  def test_a_cache_is_written_where_it_is_told(self):
    initializer = nn.initializers.normal(0.5)
    layer = decoder.DecoderAttention(2, 1, 4, True, False, True, 1e-6, initializer, initializer)
    x = jax.random.normal(jax.random.key(0), (2, 1, 6))
    tables = (jnp.ones((2, 1, 4)), jnp.zeros((2, 1, 4)))
    cache = (jnp.full((2, 1, 3, 4), 7.0), jnp.full((2, 1, 3, 4), 8.0))
    visible = jnp.array([[[False, True, False]]] * 2)
    variables = layer.init(jax.random.key(1), x, tables, visible, cache, 1)
    out, new = layer.apply(variables, x, tables, visible, cache, 1)
    for before, after in zip(cache, new):
      np.testing.assert_array_equal(before[:, :, ::2], after[:, :, ::2])
      self.assertTrue(np.all(before[:, :, 1] != after[:, :, 1]))
    alone, none = layer.apply(variables, x, tables, jnp.ones((2, 1, 1), bool))
    np.testing.assert_allclose(out, alone, atol=1e-6)
    self.assertIsNone(none)


class SwiGLUTest(absltest.TestCase):

  def test_formula(self):
    layer = decoder.SwiGLU(5, True, nn.initializers.normal(1.), nn.initializers.normal(1.))
    x = np.random.default_rng(0).normal(size=(1, 2, 3)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)
    p = variables['params']
    dense = lambda name, x: x @ p[name]['kernel'] + p[name]['bias']
    gate = dense('gate_proj', x)
    expected = dense('down_proj', gate * special.expit(gate) * dense('up_proj', x))
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
