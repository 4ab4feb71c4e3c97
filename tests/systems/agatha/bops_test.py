"""Basic operations and elementary functions against golden vectors, each other and float64."""
import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.systems.agatha import bops, consistent, lowering, merkle, platform
from tests import golden_reader

ROOT = pathlib.Path(__file__).parents[3]
GOLDEN = golden_reader.Golden('agatha')
BINARY = ('add', 'sub', 'mul', 'div', 'max', 'lt')
PAIRS = 100_000


def floats(key):
  """A golden array of bit patterns as float32."""
  return GOLDEN[key].view(np.float32)


def outputs(function, *inputs, mode='ordered', bits=None):
  """(NumPy's, XLA's line by line, XLA's as a whole) bits of `function(*inputs)`."""
  program = lowering.lower(lambda _, *x: function(*x), {}, *inputs, mode=mode, bits=bits)
  evaluate = lambda xp, *x: consistent.evaluate(program, [], x, xp)[program.outputs[0]]
  whole = jax.jit(lambda *x: evaluate(jnp, *x))
  return [np.asarray(x) for x in (evaluate(np, *inputs), evaluate(jnp, *inputs), whole(*inputs))]


def mismatches():
  """Names of the golden arrays in which any evaluator has a wrong bit: empty if all is right."""
  wrong = []

  def compare(name, results, key=None):
    want = GOLDEN[key or name].astype(np.uint32)
    if any((np.asarray(x).reshape(want.shape) != want).any() for x in results):
      wrong.append(name)

  a, b = GOLDEN['bop_a'], GOLDEN['bop_b']
  for mode in bops.MODES:
    names = (*BINARY, 'sqrt')
    args = {name: (a, b)[:bops.BOPS[name].arity] for name in names}
    xla = jax.jit(lambda args, mode=mode: {
        name: bops.jax_bop(name, *x, mode=mode) for name, x in args.items()})(args)
    for name in names:
      compare(f'{name}_{mode}', [xla[name], bops.numpy_bop(name, *args[name], mode=mode)])
  x = floats('tr_x')
  for name, function in (('exp', jnp.exp), ('sigmoid', jax.nn.sigmoid), ('tanh', jnp.tanh)):
    compare(f'{name}_flush', outputs(function, x))
  left, right = floats('dot_a'), floats('dot_b')
  compare('dot_ordered', outputs(jnp.matmul, left, right))
  compare('dot_exact20', outputs(jnp.matmul, left, right, mode='exact', bits=20))
  for stride in (1, 2):
    for padding in ('SAME', 'VALID'):
      conv = functools.partial(
          jax.lax.conv_general_dilated, window_strides=(stride, stride), padding=padding,
          dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      compare(f'conv_s{stride}_{padding.lower()}', outputs(conv, floats('conv_x'),
                                                           floats('conv_k')))
  compare('sum_tree', outputs(lambda x: x.sum(-1), floats('red_x')))
  compare('softmax', outputs(jax.nn.softmax, floats('red_x')))
  return wrong


class GoldenTest(parameterized.TestCase):

  def test_every_array(self):
    self.assertEqual(mismatches(), [])
    left, right = floats('dot_a'), floats('dot_b')
    program = lowering.lower(lambda _, a, b: a @ b, {}, left, right, mode='exact', bits=20)
    values = consistent.evaluate(program, [], (left, right), np)
    integers = [v for v, line in zip(values, program.lines) if line.name.endswith('quantize')]
    for got, key in zip(integers, ('dot_exact20_qa', 'dot_exact20_qb'), strict=True):
      np.testing.assert_array_equal(got[0].view(np.int32), GOLDEN[key])
    i, j = GOLDEN['chain_ij']
    chain = [consistent.ordered_dot(np, left.view(np.uint32)[None, i:i + 1, :k],
                                    right.view(np.uint32)[None, :k, j:j + 1])[0, 0, 0]
             for k in range(left.shape[1] + 1)]
    np.testing.assert_array_equal(np.array(chain, np.uint32), GOLDEN['chain'])
    self.check_merkle()
    self.assertEqual(GOLDEN.unread(), [])

  def check_merkle(self):
    for t in range(11):
      self.assertEqual(merkle.keccak256(GOLDEN[f'kec{t}_msg'].tobytes()),
                       GOLDEN[f'kec{t}_out'].tobytes())
    for t in range(9):
      tensor = merkle.commit(floats(f'mk{t}_x').reshape(GOLDEN[f'mk{t}_shape']))
      index, chunk = map(int, GOLDEN[f'mk{t}_index'])
      opening = merkle.open_element(tensor, index)
      self.assertEqual(merkle.root_of(tensor.levels), GOLDEN[f'mk{t}_tree'].tobytes())
      self.assertEqual(tensor.commitment, GOLDEN[f'mk{t}_root'].tobytes())
      self.assertEqual(opening.chunk, GOLDEN[f'mk{t}_chunk'].tobytes())
      self.assertEqual(opening.chunk, tensor.chunks[chunk])
      self.assertEqual(b''.join(opening.path), GOLDEN[f'mk{t}_proof'].tobytes())

  @parameterized.parameters('--xla_cpu_max_isa=SSE4_2', '--xla_disable_hlo_passes=fusion')
  def test_under_other_flags(self, flag):
    program = ('from tests.systems.agatha import bops_test; import os; '
               'os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); '
               'wrong = bops_test.mismatches(); assert not wrong, wrong')
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True,
                          env={'XLA_FLAGS': flag, 'JAX_PLATFORMS': 'cpu', 'PATH': '',
                               'PYTHONPATH': str(ROOT)}, check=False)
    self.assertEqual(done.returncode, 0, done.stderr)


def operands(name, rng, count):
  """Random bit patterns for a BOP: any, normal numbers of like size, small integers."""
  def column(kind):
    anything = rng.integers(0, 2**32, count, np.uint32)
    if kind == 'i':
      small = rng.integers(-40, 40, count).astype(np.int32).view(np.uint32)
      return np.where(rng.random(count) < .5, small, anything)
    near = (rng.normal(size=count) * 2.0**rng.integers(-3, 4, count)).astype(np.float32)
    return np.where(rng.random(count) < .5, near.view(np.uint32), anything)
  return [column(kind) for kind in bops.BOPS[name].operands]


class RandomTest(parameterized.TestCase):

  NAMES = [name for name in bops.NAMES if name not in ('imac', 'pack')]

  def test_xla_is_numpy(self):
    rng = np.random.default_rng(0)
    args = {name: operands(name, rng, PAIRS) for name in self.NAMES}
    found = jax.jit(lambda args: {name: bops.jax_bop(name, *x) for name, x in args.items()})(args)
    for name in self.NAMES:
      np.testing.assert_array_equal(found[name], bops.numpy_bop(name, *args[name]), name)

  @parameterized.parameters(*NAMES)
  def test_python_integers_are_numpy(self, name):
    args = operands(name, np.random.default_rng(1), PAIRS // 20)
    for mode in bops.MODES:
      want = bops.numpy_bop(name, *args, mode=mode)
      got = [bops.python_bop(name, *map(int, row), mode=mode) for row in zip(*args)]
      np.testing.assert_array_equal(np.array(got, np.uint32), want)

  def test_xla_integers_are_numpy_in_mode_ieee(self):
    rng = np.random.default_rng(2)
    args = {name: operands(name, rng, 2000) for name in self.NAMES}
    found = jax.jit(lambda args: {name: bops.jax_bop(name, *x, mode='ieee')
                                  for name, x in args.items()})(args)
    for name in self.NAMES:
      np.testing.assert_array_equal(found[name], bops.numpy_bop(name, *args[name], mode='ieee'),
                                    name)

  def test_check_platform(self):
    platform.check_platform()


class ElementaryTest(parameterized.TestCase):

  @parameterized.parameters(
      (jnp.log, np.log, 1, 'positive'), (jnp.log1p, np.log1p, 2, 'positive'),
      (jax.lax.erf, special.erf, 3, 'small'),
      (jnp.expm1, np.expm1, 4, 'small'),
      (jax.lax.rsqrt, lambda x: 1 / np.sqrt(x), 2, 'positive'),
      (jnp.exp2, np.exp2, 5, 'small'))
  def test_units_in_the_last_place(self, function, reference, most, domain):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=20000) * 2).clip(-9, 9).astype(np.float32)
    x[:200] = np.logspace(-30, -1, 200)
    if domain == 'positive':
      x = np.concatenate([np.abs(x) + 1e-6, np.logspace(-30, 30, 2000)]).astype(np.float32)
    got = outputs(function, x)[0].view(np.float32).astype(np.float64)
    want = reference(x.astype(np.float64))
    self.assertLess((np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32))).max(), most)

  def test_erfc(self):
    x = np.linspace(-9, 9, 5001, dtype=np.float32)
    got = outputs(jax.lax.erfc, x)[0].view(np.float32)
    np.testing.assert_allclose(got, special.erfc(x.astype(np.float64)), rtol=0, atol=2.5e-7)


if __name__ == '__main__':
  absltest.main()
