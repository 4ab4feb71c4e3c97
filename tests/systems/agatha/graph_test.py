"""Lowered programs: every evaluator agrees, the scalar programs agree with the arrays."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from jaxlab.config import ConfigError
from jaxlab.systems.agatha import consistent, graph, lowering, parties, play, scalar, vm

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5)).astype(np.float32)
IMAGE = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
SMALL = {'model': {'name': 'cnn', 'features': (4,)}, 'shape': (2, 6, 6, 3), 'seed': 0}


def conv(x, kernel, **kwargs):
  arguments = {'window_strides': (1, 1), 'padding': 'SAME', **kwargs}
  return lax.conv_general_dilated(x, kernel, **arguments)


def kernel(*shape):
  return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def _integer_powers(x):
  unsigned = x.astype(jnp.uint32)**5
  return x**3 - lax.integer_pow(x, 1) * lax.integer_pow(x, 0) + unsigned.astype(jnp.int32)


FUNCTIONS = {
    'pad': lambda x: lax.pad(x, 2.0, ((1, -1, 2), (-2, 3, 0))),
    'concatenate': lambda x: jnp.concatenate([x[1:], x * 2, x[::-1, ::-1]]),
    'strided': lambda x: x.T[::2, 1:4].reshape(-1),
    'cumsum': lambda x: jnp.cumsum(x, 1) + lax.cumsum(x, 0, reverse=True),
    'reductions': lambda x: x.sum() + x.max(0).sum() + x.min(1).max() + x.prod(),
    'integers': lambda x: (x > 0).sum(0) * jnp.arange(5) - (x * 9).astype(jnp.int32)[0],
    'comparisons': lambda x: jnp.where((x > 0) & (x <= 1) | ~(x != x), x, -x),
    'scan': lambda x: lax.scan(lambda c, row: (c * 0.5 + row, c), x[0], x)[1],
    'powers': lambda x: x**3 + x**-2 + jnp.abs(x)**5 + jnp.sign(x) + jnp.square(x),
    'integer powers': lambda x: _integer_powers((x * 9).astype(jnp.int32)),
    'gradient': jax.grad(lambda x: jnp.sum(jnp.tanh(x) * x)),
    'batched dot': lambda x: jnp.einsum('ij,kj,il->kil', x, x, x),
    'rounding': lambda x: jnp.floor(x * 3) + jnp.ceil(x) + jnp.round(x * 2) + jnp.clip(x, -1, 1),
    'checkpoint': lambda x: jax.checkpoint(jax.nn.silu)(x) + jax.nn.gelu(x, approximate=False),
}
IMAGES = {
    'grouped': lambda x: conv(x, kernel(3, 2, 2, 6), feature_group_count=2,
                              dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
    'depthwise, strided': lambda x: conv(x, kernel(3, 3, 1, 4), feature_group_count=4,
                                         window_strides=(2, 1),
                                         dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
    'dilated': lambda x: conv(x, kernel(2, 2, 4, 3), rhs_dilation=(2, 1), lhs_dilation=(1, 2),
                              padding=((1, 0), (2, 1)),
                              dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
    'channels first': lambda x: conv(x, kernel(2, 5, 3, 3), padding='VALID',
                                     dimension_numbers=('NCHW', 'OIHW', 'NCHW')),
    'pooling': lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 2, 1),
                                           'SAME'),
    'mean pooling': lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 2, 1),
                                                'VALID'),
}
CASES = [(name, f, X) for name, f in FUNCTIONS.items()] + [
    (name, f, IMAGE) for name, f in IMAGES.items()]


class LoweringTest(parameterized.TestCase):

  @parameterized.named_parameters(*CASES)
  def test_arrays_and_scalar_programs(self, function, x):
    for mode in lowering.MODES:
      program = lowering.lower(lambda _, x: function(x), {}, x, mode=mode)
      run = parties.execute(parties.publish(program), [], [x])
      want = np.asarray(function(x))
      got = parties.typed(run, program.outputs[0])
      np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
      xla = jax.jit(consistent.consistent(lambda _, x: function(x), mode))({}, x)
      np.testing.assert_array_equal(np.asarray(xla).view(np.uint32), got.view(np.uint32))
      rng = np.random.default_rng(2)
      for number, line in enumerate(program.lines):
        bare = line._replace(name='', arrange=None, restore=None)
        self.assertEqual(graph.decode(graph.encode(line)), bare)
        for element in rng.integers(line.size, size=4):
          self.assertEqual(parties.step_values(run, number, int(element))[-1],
                           run.values[number].reshape(-1)[element], (line.kind, line.name))

  def test_unknown_primitives_are_named(self):
    with self.assertRaisesRegex(NotImplementedError, "primitive 'sin'"):
      lowering.lower(lambda _, x: jnp.sin(x), {}, X)
    with self.assertRaisesRegex(NotImplementedError, "primitive 'while'"):
      lowering.lower(lambda _, x: lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x), {}, X)
    with self.assertRaisesRegex(TypeError, 'bfloat16'):
      lowering.lower(lambda _, x: x.astype(jnp.bfloat16), {}, X)
    with self.assertRaisesRegex(ConfigError, 'mode: expected one of'):
      lowering.lower(lambda _, x: x, {}, X, mode='fast')

  @parameterized.parameters('int32', 'uint32', 'bool')
  def test_contractions_of_other_dtypes_are_named(self, dtype):
    x = np.ones((1, 2, 2, 1), dtype)
    dot = lambda x: lax.dot_general(x, x, (((1,), (1,)), ((), ())))
    to_float = lambda x: lax.dot_general(x, x, (((1,), (1,)), ((), ())),
                                         preferred_element_type=jnp.float32)
    for function in (dot, to_float):
      with self.assertRaisesRegex(NotImplementedError, f"primitive 'dot_general' of {dtype}"):
        lowering.lower(lambda _, x: function(x), {}, x)
    with self.assertRaisesRegex(NotImplementedError, f"'conv_general_dilated' of {dtype}"):
      lowering.lower(lambda _, x: conv(x, x), {}, x)

  @parameterized.parameters(
      (lambda x, none: none @ none.T, 'an argument: no consistent rule for an empty array'),
      (lambda x, none: x[:0], 'a result: no consistent rule for an empty array'),
      (lambda x, _: x[:, :0] @ x[:0], 'slice: no consistent rule for an empty array'),
      (lambda x, _: lax.scan(lambda c, _: (c, c), x, None, 0)[0], 'scan: no consistent rule'))
  def test_empty_arrays_are_named(self, function, message):
    arguments = (X, np.zeros((4, 0), np.float32)) if 'argument' in message else (X, X)
    with self.assertRaisesRegex(NotImplementedError, message):
      lowering.lower(lambda _, *args: function(*args), {}, *arguments)

  def test_nothing_is_no_result(self):
    with self.assertRaisesRegex(ValueError, 'no result'):
      lowering.lower(lambda _, x: (), {}, X)

  def test_the_nan_of_a_bitcast_is_the_committed_one(self):
    patterns = np.array([1, 0x80000001, 0x3f800000, 0x7f800000, 0x7f800001, 0xffffffff], np.uint32)
    program = lowering.lower(lambda _, x: lax.bitcast_convert_type(x, jnp.float32), {}, patterns)
    for xp in (np, jnp):
      got, = consistent.evaluate(program, [], (patterns,), xp)
      np.testing.assert_array_equal(got, [*patterns[:4], 0x7fc00000, 0x7fc00000])

  def test_a_damaged_line_is_refused(self):
    data = graph.encode(lowering.lower(lambda _, x: x + 1, {}, X).lines[0])
    for broken in (data[:-1], b'\xff' + data[1:], b''):
      with self.assertRaisesRegex(ValueError, 'line'):
        graph.decode(broken)

  def test_several_outputs_and_an_input_as_output(self):
    function = lambda p, x: {'a': x, 'b': x @ p}
    p = RNG.normal(size=(5, 2)).astype(np.float32)
    got = consistent.consistent(function)(p, X)
    np.testing.assert_array_equal(got['a'], X)
    np.testing.assert_allclose(got['b'], X @ p, rtol=1e-5)

  def test_inputs_of_many_arrays_and_fewer_bits(self):
    function = lambda p, batch: batch['x'] @ p + batch['y']
    p, batch = np.eye(5, dtype=np.float32), {'x': X, 'y': np.zeros(5, np.float32)}
    np.testing.assert_array_equal(consistent.consistent(function)(p, batch), X)
    got = consistent.consistent(function, 'exact', bits=4)(p, batch)
    scale = 2.0**np.ceil(np.log2(np.abs(X).max(1, keepdims=True)))
    np.testing.assert_array_equal(got, np.rint(X * 16 / scale) * scale / 16)


class ModelTest(parameterized.TestCase):

  def test_near_plain_jit_and_prepared(self):
    function, variables, inputs = play.make_model(SMALL)
    plain = jax.jit(function)(variables, *inputs)
    leaves = jax.tree.leaves(variables)
    for mode in lowering.MODES:
      program = lowering.lower(function, variables, *inputs, mode=mode)
      line_by_line = consistent.evaluate(program, leaves, inputs, np)[program.outputs[0]]
      prepared = consistent.prepare(program, leaves)
      self.assertNotEmpty(prepared['line'])
      got = jax.jit(lambda prepared, x, program=program: consistent.run_prepared(
          program, prepared, (x,)))(prepared, *inputs)
      np.testing.assert_array_equal(np.asarray(got).view(np.uint32), line_by_line)
      np.testing.assert_allclose(got, plain, atol=1e-5)

  def test_virtual_machines(self):
    config = {'model': {'name': 'cnn', 'features': (2,)}, 'shape': (1, 4, 4, 1), 'seed': 1}
    function, variables, inputs = play.make_model(config)
    leaves = jax.tree.leaves(variables)
    program = lowering.lower(function, variables, *inputs)
    want = consistent.evaluate(program, leaves, inputs, np)[program.outputs[0]]
    machine = vm.instructions(program, leaves, inputs)
    moved = sum(line.size for line in program.lines if not scalar.steps(line))
    self.assertLen(machine.code, scalar.work(program) + moved)
    np.testing.assert_array_equal(vm.interpret(machine)[0], want)
    np.testing.assert_array_equal(vm.compiled(machine)()[0], want)
    with self.assertRaisesRegex(ValueError, 'mode ordered'):
      vm.instructions(lowering.lower(function, variables, *inputs, mode='exact'), leaves, inputs)


class ExactTest(absltest.TestCase):

  def dot(self, a, b):
    program = lowering.lower(lambda _, a, b: a @ b, {}, a, b, mode='exact')
    return consistent.evaluate(program, [], (a, b), np)[program.outputs[0]].view(np.float32)

  def test_order_and_error(self):
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 700), (700, 5)))
    got = self.dot(a, b)
    for _ in range(3):
      order = rng.permutation(700)
      np.testing.assert_array_equal(self.dot(a[:, order], b[order]), got)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    ordered = consistent.ordered_dot(np, a.view(np.uint32)[None], b.view(np.uint32)[None])
    ordered = ordered[0].view(np.float32)
    self.assertLess(np.abs(got - truth).max(), 4 * np.abs(ordered - truth).max())

  def test_long_sums(self):
    rng = np.random.default_rng(4)
    a, b = (rng.uniform(.5, 1, shape).astype(np.float32) for shape in ((1, 20000), (20000, 1)))
    got = self.dot(a, b)
    quantized = [np.rint(x.astype(np.float64) * 2**20).astype(np.int64) for x in (a, b)]
    total = int((quantized[0] @ quantized[1])[0, 0])
    self.assertEqual(got[0, 0], np.float32(total * 2.0**-40))
    order = rng.permutation(20000)
    self.assertEqual(self.dot(a[:, order], b[order])[0, 0], got[0, 0])

  def test_rows_that_are_not_finite_or_zero(self):
    a = np.array([[1, np.inf], [1, np.nan], [0, 0], [2, 3]], np.float32)
    got = self.dot(a, np.ones((2, 1), np.float32))[:, 0]
    np.testing.assert_array_equal(got.view(np.uint32),
                                  [0x7fc00000, 0x7fc00000, 0, np.float32(5).view(np.uint32)])


if __name__ == '__main__':
  absltest.main()
