"""Straight-line programs: XLA's few canonicalisations give NumPy's bits, on hard operands."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.agatha import bops, elementary, straight_line

_EDGES = np.array([
    0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x80800000, 0x00800001, 0x7f7fffff,
    0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0xffffffff, 0x7fffffff,
    0x3f800000, 0xbf800000, 0x3f7fffff, 0x4b000000, 0xcf000000, 0x0d800000, 0x8d800000, 0x0d7fffff,
    0x3d800000, 0xbd7fffff, 0x42b17218, 0xc2aeac50, 0x00000017, 0x0000007f,
    0x01000001, 0x80800002], np.uint32)  # the last two add up to 2**-126
_BOPS = [name for name in bops.BOPS if name not in ('imac', 'pack')]
_LITERALS = [*map(int, _EDGES), *map(bops.float_bits, (0.5, 2.0, -200.0, 1e-30, -1e-30, 2.0**-100))]


def operands(rng, count=3):
  """Pairs of edges, edges with random patterns and random numbers of all sizes: uint32 [n]."""
  size = len(_EDGES)**2 + 600
  result = []
  for i in range(count):
    edges = np.tile(_EDGES, len(_EDGES)) if i % 2 else np.repeat(_EDGES, len(_EDGES))
    numbers = rng.normal(size=300) * 2.0**rng.integers(-130, 128, 300)
    with np.errstate(over='ignore'):
      numbers = numbers.astype(np.float32).view(np.uint32)
    one = np.concatenate([edges, rng.integers(0, 1 << 32, 300).astype(np.uint32), numbers])
    result.append(np.concatenate([one[:size - 600], rng.permutation(one[size - 600:])]))
  return result


def random_body(rng, steps, count=3):
  """A program that mostly reads its last values, so that looseness travels."""
  b = elementary.Builder(count)
  refs = [b.operand(i) for i in range(count)]
  for _ in range(steps):
    name = _BOPS[rng.integers(len(_BOPS))]
    pool = [*refs[-4:], *refs[-4:], refs[rng.integers(len(refs))],
            elementary.literal(_LITERALS[rng.integers(len(_LITERALS))])]
    args = [pool[rng.integers(len(pool))] for _ in range(bops.BOPS[name].arity)]
    refs.append(getattr(b, name)(*args))
  return b.finish(refs[-1])


def numpy_values(body, known, arrays):
  with np.errstate(all='ignore'):
    return straight_line.run(np, body, known, arrays)


class StraightLineTest(parameterized.TestCase):

  def check(self, bodies, known, arrays):
    @jax.jit
    def run(*arrays):
      return [straight_line.run(jnp, body, known, arrays) for body in bodies]

    for body, got in zip(bodies, run(*arrays), strict=True):
      wanted = numpy_values(body, known, arrays)
      np.testing.assert_array_equal(np.broadcast_to(got, wanted.shape), wanted, err_msg=str(body))

  @parameterized.product(seed=[0, 1, 2, 3], steps=[1, 3, 8])
  def test_random_programs(self, seed, steps):
    rng = np.random.default_rng(seed)
    arrays = operands(rng)
    bodies = [random_body(rng, steps) for _ in range(12)]
    self.check(bodies, (False,) * 3, arrays)
    canonical = [bops.canon(np, x) for x in arrays]
    self.check(bodies[:6], (True, False, True), [canonical[0], arrays[1], canonical[2]])

  @parameterized.parameters(*_BOPS)
  def test_every_operation_with_every_literal(self, name):
    rng = np.random.default_rng(0)
    arity, bodies = bops.BOPS[name].arity, []
    for literal in _LITERALS if arity > 1 else _LITERALS[:1]:
      for place in range(max(arity, 1)):
        b = elementary.Builder(3)
        args = [b.operand(i) for i in range(arity)]
        if arity > 1:
          args[place] = elementary.literal(literal)
        # The reader of the result decides what may show of it.
        result = getattr(b, name)(*args)
        bodies.append(b.finish(b.ior(result, 0)))
    self.check(bodies, (False,) * 3, operands(rng))

  @parameterized.parameters('exp', 'expm1', 'sigmoid', 'tanh', 'rsqrt', 'log', 'log1p', 'erf',
                            'erfc')
  def test_elementary_functions(self, name):
    b = elementary.Builder(1)
    body = b.finish(getattr(elementary, name)(b, b.operand(0)))
    self.check([body], (False,), operands(np.random.default_rng(1), 1))

  def test_the_patterns_of_bounds_and_sums(self):
    b = elementary.Builder(2)
    x, y = b.operand(0), b.operand(1)
    z = b.add(b.max(b.mul(x, y), -200.0), 1.0)
    bodies = [b.finish(b.sub(z, 1.0))]  # two sums in a row
    b = elementary.Builder(2)
    bodies.append(b.finish(b.max(b.max(b.mul(x, y), 0.0), b.neg(b.mul(x, y)))))
    b = elementary.Builder(2)
    bodies.append(b.finish(b.select(b.lt(x, y), b.add(x, y), x)))  # x is not made canonical
    b = elementary.Builder(2)
    bodies.append(b.finish(b.add(b.mul(x, y), y)))  # no FMA
    self.check(bodies, (False, False), operands(np.random.default_rng(2), 2))

  def test_two_sums_in_a_row_are_two_under_fast_math(self):
    b = elementary.Builder(1)
    body = b.finish(b.sub(b.add(b.operand(0), 1.0), 1.0))
    x = np.random.default_rng(3).normal(size=999).astype(np.float32).view(np.uint32)
    run = jax.jit(lambda x: straight_line.run(jnp, body, (False,), (x,)),
                  compiler_options={'xla_cpu_enable_fast_math': True})
    np.testing.assert_array_equal(run(x), numpy_values(body, (False,), (x,)))


if __name__ == '__main__':
  absltest.main()
