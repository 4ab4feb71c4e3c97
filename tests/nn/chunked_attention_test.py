"""Attention in blocks of queries against attention in float64."""
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.nn import chunked_attention

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(2, n, 3, 8)).astype(np.float32) for n in (11, 7, 7))
BIASES = {'none': None, 'keys': np.where(np.arange(7) < 5, 0, -1e9)[None, None, None],
          'full': RNG.normal(size=(2, 1, 11, 7))}


def weights(bias):
  logits = np.einsum('bmhd,bnhd->bhmn', Q, K, dtype=np.float64) / np.sqrt(8)
  return special.softmax(logits + (0 if bias is None else bias), axis=-1)


class ChunkedAttentionTest(parameterized.TestCase):

  @parameterized.product(block=(4, 6, 11, 256), bias=list(BIASES))
  def test_equals_float64(self, block, bias):
    bias = BIASES[bias] if BIASES[bias] is None else BIASES[bias].astype(np.float32)
    with mock.patch.object(chunked_attention, 'BLOCK', block):
      out = chunked_attention.attention(Q, K, V, bias)
      received = chunked_attention.attention_received(Q, K, bias)
    want = weights(bias)
    np.testing.assert_allclose(out, np.einsum('bhmn,bnhd->bmhd', want, V), atol=1e-5)
    np.testing.assert_allclose(received, want.sum(2), atol=1e-5)

  def test_large_logits_and_hidden_rows_stay_finite(self):
    out = chunked_attention.attention(1e3 * Q, K, V, np.full((1, 1, 1, 7), -1e9, np.float32))
    self.assertTrue(np.isfinite(out).all())

  def test_gradients_equal_those_of_one_block(self):
    def gradients(block):
      with mock.patch.object(chunked_attention, 'BLOCK', block):
        loss = lambda q, k, v: (chunked_attention.attention(q, k, v)**2).sum()
        return jax.grad(loss, argnums=(0, 1, 2))(Q, K, V)
    for one, many in zip(gradients(256), gradients(4)):
      np.testing.assert_allclose(one, many, atol=1e-5)
      self.assertGreater(np.abs(one).min(), 0)


if __name__ == '__main__':
  absltest.main()
