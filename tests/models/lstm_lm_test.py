"""LSTMLM: size, shapes, causality, the LSTM's equations, gradients, dtypes."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.models import LSTMLM

TOKENS = np.random.default_rng(0).integers(0, 9, (3, 7)).astype(np.int32)


def small(**changes):
  return LSTMLM(**{'vocab_size': 9, 'embed': 4, 'hidden': 5, **changes})


@functools.cache
def start():
  return jax.jit(small().init)(jax.random.key(0), TOKENS)


@functools.cache
def apply():
  return jax.jit(small().apply)


class LSTMLMTest(chex.TestCase):

  def test_size_of_the_shakespeare_network(self):
    shapes = jax.eval_shape(LSTMLM(90).init, jax.random.key(0), jnp.zeros((1, 80), jnp.int32))
    lstm = lambda width: 4 * (width * 256 + 256 * 256 + 256)
    self.assertEqual(sum(x.size for x in jax.tree.leaves(shapes)),
                     90 * 8 + lstm(8) + lstm(256) + 256 * 90 + 90)

  @chex.variants(with_jit=True, without_jit=True)
  def test_jit_and_train_change_nothing(self):
    out = self.variant(lambda v, x: small().apply(v, x, train=True))(start(), TOKENS)
    chex.assert_shape(out, (3, 7, 9))
    np.testing.assert_allclose(out, apply()(start(), TOKENS), atol=1e-6)

  def test_equations(self):
    model = small(layers=1)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    params = variables['params']
    cell = jax.tree.map(np.asarray, params['OptimizedLSTMCell_0'])
    out = jax.jit(model.apply)(variables, TOKENS)
    h = c = np.zeros((3, 5))
    for t in range(7):
      x = np.asarray(params['Embed_0']['embedding'])[TOKENS[:, t]]
      gate = lambda g: (x @ cell[f'i{g}']['kernel'] + h @ cell[f'h{g}']['kernel'] +
                        cell[f'h{g}']['bias'])
      c = special.expit(gate('f')) * c + special.expit(gate('i')) * np.tanh(gate('g'))
      h = special.expit(gate('o')) * np.tanh(c)
      expected = h @ params['Dense_0']['kernel'] + params['Dense_0']['bias']
      np.testing.assert_allclose(out[:, t], expected, atol=1e-5)

  @parameterized.parameters(0, 3, 6)
  def test_a_token_changes_the_logits_from_it_on_and_none_before(self, t):
    changed = TOKENS.copy()
    changed[:, t] = (changed[:, t] + 1) % 9
    before, after = apply()(start(), TOKENS), apply()(start(), changed)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    self.assertGreater(np.abs(before - after)[:, t:].max((0, 2)).min(), 1e-6)

  def test_every_gradient_is_finite_and_not_zero(self):
    loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(
        small().apply(v, TOKENS[:, :-1], train=True), TOKENS[:, 1:]).mean()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(start())):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))

  def test_bytes_are_tokens_too(self):
    np.testing.assert_array_equal(apply()(start(), TOKENS),
                                  apply()(start(), TOKENS.astype(np.uint8)))

  def test_bfloat16_computes_and_float32_trains(self):
    self.assertTrue(all(p.dtype == jnp.float32 for p in jax.tree.leaves(start())))
    out = jax.jit(small(dtype=jnp.bfloat16).apply)(start(), TOKENS)
    exact = apply()(start(), TOKENS)
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, exact, atol=0.1)
    self.assertFalse(np.array_equal(out, exact))


if __name__ == '__main__':
  absltest.main()
