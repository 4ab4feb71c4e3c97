"""Scoring in pieces: any size of piece, both axes, and its gradient."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.models import decoder_lm, scoring

CONFIG = decoder_lm.DecoderConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1,
                                  num_attention_heads=2, intermediate_size=12, init='scaled')
MODEL = decoder_lm.DecoderLM(CONFIG)
TOKENS = np.random.default_rng(0).integers(1, 11, (3, 9))


@functools.cache
def params():
  return jax.jit(MODEL.init)(jax.random.key(0), TOKENS)['params']


class ChunksTest(parameterized.TestCase):

  @parameterized.product(axis=[0, 1], chunk=[0, 1, 3, 4, 7, 50])
  def test_pieces_are_put_together(self, axis, chunk):
    x, y = np.arange(7 * 7 * 2.).reshape(7, 7, 2), np.arange(49).reshape(7, 7)
    function = lambda pair, y: {'sum': pair['x'].sum(-1) + y, 'twice': 2 * pair['x']}
    out = scoring.over_chunks(function, chunk, {'x': x}, y, axis=axis)
    np.testing.assert_allclose(out['sum'], x.sum(-1) + y)
    np.testing.assert_allclose(out['twice'], 2 * x)

  def test_logits_of_one_piece_exist_at_once(self):
    run = jax.jit(functools.partial(scoring.token_logprobs, MODEL, chunk=2))
    text = str(jax.make_jaxpr(run)(params(), TOKENS))
    self.assertIn('3,2,11', text)
    self.assertNotIn('3,8,11', text)


class LogprobsTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 1), (0.7, 4))
  def test_by_hand(self, temperature, first):
    logits = jax.jit(MODEL.apply)({'params': params()}, TOKENS)[0]
    expected = special.log_softmax(np.asarray(logits, np.float64) / temperature, -1)
    expected = np.take_along_axis(expected[:, :-1], TOKENS[:, 1:, None], -1)[..., 0]
    for chunk in (0, 3):
      scores = scoring.token_logprobs(MODEL, params(), TOKENS, temperature=temperature, chunk=chunk,
                                      first=first)
      np.testing.assert_allclose(scores, expected[:, first - 1:], atol=1e-5)

  def test_gradients_do_not_depend_on_the_pieces(self):
    loss = lambda chunk: jax.jit(jax.grad(lambda p: scoring.token_logprobs(
        MODEL, p, TOKENS, chunk=chunk).sum()))(params())
    for a, b in zip(jax.tree.leaves(loss(0)), jax.tree.leaves(loss(3))):
      np.testing.assert_allclose(a, b, atol=1e-4)

  def test_half_precision_logits(self):
    logits = jnp.array([[1000.0, 0.0, -1000.0]], jnp.float16)
    self.assertEqual(float(scoring.gather_logprobs(logits, jnp.array([0]))[0]), 0)


if __name__ == '__main__':
  absltest.main()
