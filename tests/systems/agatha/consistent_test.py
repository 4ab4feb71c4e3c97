"""The consistent evaluator: NumPy, by line and compiled as a whole, on zeros of either sign."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.agatha import consistent, lowering

_ZERO = np.float32(-0.0)  # with which XLA's rewritings of sums with 0 would show


def _conv(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME',
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _zeros(*shape):
  return np.full(shape, _ZERO)


class ZerosTest(parameterized.TestCase):

  def check(self, function, *inputs, mode='ordered'):
    """All three evaluators have the same bits; returns them."""
    program = lowering.lower(lambda _, *args: function(*args), {}, *inputs, mode=mode)
    wanted = consistent.outputs_of(program, consistent.evaluate(program, [], inputs, np), np)
    prepared = consistent.prepare(program, [])
    whole = jax.jit(functools.partial(consistent.run_prepared, program, prepared))(inputs)
    lines = consistent.outputs_of(program, consistent.evaluate(program, [], inputs, jnp))
    for got in (whole, lines):
      np.testing.assert_array_equal(np.asarray(got).view(np.uint32), wanted.view(np.uint32))
    return wanted

  @parameterized.parameters(
      (lambda x: x + 0.0, 0.0), (lambda x: 0.0 + x, 0.0), (lambda x: x - 0.0, _ZERO),
      (lambda x: x - _ZERO, 0.0), (lambda x: 0.0 - x, 0.0), (lambda x: x + jnp.zeros(4), 0.0),
      (lambda x: x + _ZERO, _ZERO), (lambda x: jnp.maximum(x, 0.0), 0.0),
      (lambda x: jnp.minimum(x, 0.0), _ZERO), (lambda x: x * 0.0, _ZERO))
  def test_with_numbers(self, function, wanted):
    got = self.check(function, _zeros(4))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))

  @parameterized.product(terms=[1, 2, 3, 5, 17, 33], axis=[0, 1])
  def test_sums_and_products(self, terms, axis):
    x = _zeros(2, 3, 4)
    for _ in range(axis):
      x = x.swapaxes(0, 1)
    x = np.repeat(x, terms, axis)
    total = self.check(lambda x: x.sum(axis), x)
    # Padded to a power of two with +0.
    padded = x.shape[axis] & (x.shape[axis] - 1)
    np.testing.assert_array_equal(np.signbit(total), not padded)
    self.check(lambda x: x.prod(axis), x)

  @parameterized.product(terms=[1, 2, 3], mode=['ordered', 'exact'])
  def test_contractions_start_from_plus_zero(self, terms, mode):
    got = self.check(jnp.matmul, _zeros(2, terms), np.ones((terms, 3), np.float32), mode=mode)
    self.assertFalse(np.signbit(got).any())
    got = self.check(_conv, _zeros(1, 3, 3, terms), np.ones((1, 1, terms, 2), np.float32),
                     mode=mode)
    self.assertFalse(np.signbit(got).any())


class ReduceTest(parameterized.TestCase):

  @parameterized.parameters(
      ((4, 6, 8), (0, 2)), ((3, 4, 8), (0, 1, 2)), ((5, 4, 2), (0, 2)), ((4, 3, 5), (0, 1)),
      ((2, 3, 4), (1, 2)), ((2, 3, 7), (2, 1)), ((1, 40, 3), (1,)), ((2, 1, 2), (1,)))
  def test_the_tree_of_some_axes_is_that_of_their_row_major_order(self, shape, axes):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got = ZerosTest.check(self, lambda x: jnp.sum(x, axes), x)
    ordered = tuple(sorted(axes))
    kept = [i for i in range(len(shape)) if i not in axes]
    terms = x.transpose(*ordered, *kept).reshape(-1, *(shape[i] for i in kept))
    while len(terms) & (len(terms) - 1):
      terms = np.concatenate([terms, np.zeros_like(terms[:1])])
    while len(terms) > 1:
      half = len(terms) // 2
      terms = terms[:half] + terms[half:]
    np.testing.assert_array_equal(got, terms[0])
    for reduce in (jnp.max, jnp.min, jnp.prod):
      ZerosTest.check(self, lambda x, reduce=reduce: reduce(x, axes), x)


if __name__ == '__main__':
  absltest.main()
