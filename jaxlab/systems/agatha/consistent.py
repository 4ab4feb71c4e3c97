"""Evaluates a program with the same bits on every platform (arXiv 2105.04919, XCE).

Values are uint32 bit patterns throughout. A kernel's bits depend on its line alone: where XLA could
rewrite them, float operations stand between integer operations (`bops.canon`, `straight_line`), and
sums have a fixed order or are exact. So it does not matter whether XLA compiles the lines one by
one or all at once, or how many threads it has; NumPy runs the same kernels.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxlab.systems.agatha import bops, lowering, merkle, straight_line
from jaxlab.systems.agatha import graph as graph_lib

# Longer programs run in a loop: fused into readers of many slices (a convolution's patches, a
# tree's levels) they would be computed once for each.
FEW_STEPS = 4
LEVELS_AT_ONCE = 16  # values of a halving tree that one kernel takes: four levels
# Of these the order is free: their halving tree gives the same bits as any other.
_FREE = {'max', 'magmax', 'iand', 'ior', 'iadd'}


def to_bits(xp, array):
  """The uint32 bit patterns of an array of a committed dtype, NaNs canonical."""
  array = xp.asarray(array)
  if array.dtype == np.uint32:
    return array
  if array.dtype == np.bool_:
    return array.astype(np.uint32)
  if xp is np:
    bits = np.ascontiguousarray(array).view(np.uint32)
  else:
    bits = lax.bitcast_convert_type(array, jnp.uint32)
  return bops.canon_nan(xp, bits) if array.dtype == np.float32 else bits


def from_bits(xp, bits, dtype):
  """The inverse of `to_bits`."""
  if dtype == 'uint32':
    return bits
  if dtype == 'bool':
    return bits.astype(bool)
  return bits.view(dtype) if xp is np else lax.bitcast_convert_type(bits, dtype)


def canonical_lines(program):
  """Of each line, whether no element of its output can be a magnitude that is flushed."""
  known = []
  for line in program.lines:
    operands = [straight_line.is_canonical(op.number) if op.source == 'literal' else
                op.source == 'line' and known[op.number] for op in line.operands]
    if line.kind == 'MAP':
      known.append(straight_line.canonical_steps(line.body, operands)[-1])
    elif line.kind == 'MOVE':
      known.append(all(operands))
    elif line.kind == 'REDUCE':
      known.append(bops.BOPS[line.body[0]].is_float and (line.terms > 1 or operands[0]))
    else:
      known.append(True)
  return known


def _map(xp, line, known, arrays):
  """A straight-line program; `known` says which operands are canonical."""
  if xp is np or len(line.body) < FEW_STEPS or line.size < 2:
    result = straight_line.run(xp, line.body, known, arrays)
    return result.reshape(line.shape) if result.size == line.size else xp.broadcast_to(
        result, line.shape)
  # Two blocks along the first axis that has two: other shapes than the line's own would have XLA
  # divide to find each element's place in whatever it fuses with the cut.
  first, *rest = [n for n in line.shape if n > 1]
  half = -(-first // 2)

  def halves(x):
    rows = jnp.broadcast_to(x, line.shape).reshape(first, *rest)
    return jnp.pad(rows, ((0, 2 * half - first), *((0, 0),) * len(rest))).reshape(2, half, *rest)

  scalar = [not np.ndim(x) for x in arrays]
  cut = [None if alone else halves(x) for x, alone in zip(arrays, scalar)]

  def block(parts):
    given = [x if alone else part for x, part, alone in zip(arrays, parts, scalar)]
    return jnp.broadcast_to(straight_line.run(jnp, line.body, known, given), (half, *rest))

  return lax.map(block, cut).reshape(2 * half, *rest)[:first].reshape(line.shape)


def ordered_dot(xp, a, b, known=(False, False)):
  """[G, M, K] x [G, K, N] -> [G, M, N] bit patterns: s = +0; for k ascending: s = s + a * b.

  `known` says of both whether they are canonical.
  """
  to_float, to_bits_ = bops.float_views(xp)
  a, b = (x if fine else bops.flush(xp, x) for x, fine in zip((a, b), known))

  def term(total, pair):
    left, right = pair
    product = bops.flush(xp, to_bits_(to_float(left)[:, :, None] * to_float(right)[:, None, :]))
    total = bops.add_floats(xp, to_float(total), to_float(product))
    return bops.flush(xp, to_bits_(total)), None

  total = xp.zeros((a.shape[0], a.shape[1], b.shape[2]), np.uint32)
  if xp is np:
    for k in range(a.shape[2]):
      total, _ = term(total, (np.ascontiguousarray(a[:, :, k]), np.ascontiguousarray(b[:, k])))
  else:
    total, _ = lax.scan(term, total, (a.transpose(2, 0, 1), b.transpose(1, 0, 2)))
  return bops.canon_nan(xp, total)


def exact_dot(xp, a, b, row, column, bits):
  """Integers [G, M, K] x [G, K, N], magnitudes [G, M] and [G, N] -> [G, M, N] bit patterns.

  float64 holds the sums of 2**(53 - 2 * bits) products exactly, so that neither the order nor
  fused multiply-adds matter; longer sums are added in int64.
  """
  with jax.enable_x64(True):
    signed = [bops.to_signed(xp, x).astype(np.float64) for x in (a, b)]
    block = 1 << lowering.EXACT_SUM - 2 * bits
    products = [xp.matmul(signed[0][:, :, k:k + block], signed[1][:, k:k + block])
                for k in range(0, a.shape[2], block)]
    total = products[0] if len(products) == 1 else sum(p.astype(np.int64) for p in products)
    rounded = bops.float_views(xp)[1](total.astype(np.float32))
  field = lambda x: bops.to_signed(xp, (x >> np.uint32(23)) & np.uint32(255))
  row, column = field(row)[:, :, None], field(column)[:, None, :]
  shift = row + column - np.int32(252 + 2 * bits)
  shift = bops.to_unsigned(xp, shift)
  scaled = bops.array_bop(xp, 'ldexp2', [rounded, shift], canonical=[True, True])
  return xp.where((row == 255) | (column == 255), np.uint32(0x7fc00000), scaled)


def _reduce(xp, line, known, x, axes):
  """The halving tree over the terms of an array, padded to a power of two with the identity.

  Args:
    xp: numpy or jax.numpy.
    line: the REDUCE.
    known: whether `x` is canonical.
    x: uint32 array.
    axes: of the terms, the last fastest.

  Returns:
    The other axes, in order.
  """
  bop, identity = line.body
  if line.terms == 1:
    return x
  if bops.BOPS[bop].is_float and not known:
    x = bops.canon(xp, x)
  if bop in _FREE:
    return _free_reduce(xp, bop, x, axes)
  sizes = [x.shape[axis] for axis in axes]
  if any(n & (n - 1) for n in sizes[1:]):  # the padding would come between the terms
    kept = [i for i in range(x.ndim) if i not in axes]
    x = x.transpose(*axes, *kept).reshape(-1, *(x.shape[i] for i in kept))
    axes, sizes = (0,), [line.terms]

  blind = bop in bops.BLIND  # then making NaNs one comes last

  def combine(a, b):
    if blind:
      return bops.flush(xp, bops.array_bop(xp, bop, (a, b), canonical=[True, True], finish=False))
    return bops.array_bop(xp, bop, (a, b), canonical=[True, True])

  # The upper half of all terms is that of their first axis, then that of the next.
  filled = (1 << merkle.depth_of(sizes[0])) - sizes[0]
  x = xp.pad(x, [(0, filled if i == axes[0] else 0) for i in range(x.ndim)],
             constant_values=np.uint32(identity))
  for axis in axes:
    part = lambda x, start, stop: x[(slice(None),) * axis + (slice(start, stop),)]
    while x.shape[axis] > 1:
      if xp is jnp:  # else XLA's fusion would compute a level once for each of its readers
        x = lax.optimization_barrier(x)
      parts = min(x.shape[axis], LEVELS_AT_ONCE)
      width = x.shape[axis] // parts
      x = [part(x, i * width, (i + 1) * width) for i in range(parts)]
      while len(x) > 1:
        half = len(x) // 2
        x = [combine(*pair) for pair in zip(x[:half], x[half:])]
      x = x[0]
  return bops.canon_nan(xp, x) if blind else x


def _free_reduce(xp, bop, x, axes):
  if bop == 'iadd':
    return x.sum(axes, dtype=np.uint32)
  if bop == 'magmax':
    return (x & np.uint32(0x7fffffff)).max(axes)
  if bop == 'max':
    return bops.max_along(xp, x, axes)
  return (np.bitwise_and if bop == 'iand' else np.bitwise_or).reduce(x, axes) if xp is np else (
      lax.reduce_and(x, axes) if bop == 'iand' else lax.reduce_or(x, axes))


def _kept(x):
  """x in an array of its own: XLA fuses it neither with what it is made of nor with its readers.

  It is the result of a call that may not be inlined. XLA's CPU fuses over an optimization_barrier.
  """
  with set_xla_metadata(inlineable='false'):
    return _copy(x)


@jax.jit
def _copy(x):
  return x ^ np.uint32(0)  # something to call for: JAX leaves a function of nothing out


def kernel(xp, line, known, *arrays):
  """The output of a line, uint32 [shape], from its operands' bit patterns."""
  if line.kind == 'MAP':
    result = _map(xp, line, known, arrays)
  elif line.kind == 'MOVE':
    result = line.arrange(xp, *arrays)
  elif line.kind == 'REDUCE':
    if xp is jnp and line.name.startswith('reduce_window'):  # read by strides: slow if fused
      arrays = map(_kept, arrays)
    result = _reduce(xp, line, *known, *line.arrange(xp, *arrays))
  elif line.kind == 'DOT':
    result = line.restore(ordered_dot(xp, *line.arrange(xp, *arrays), known))
  else:
    result = line.restore(exact_dot(xp, *line.arrange(xp, *arrays), *line.body))
    result = result if xp is np else _kept(result)
  return result.reshape(line.shape)


class _Kernels:
  """Compiled kernels by what they compute: lines that differ in their operands' numbers share."""

  def __init__(self):
    self._jitted = {}

  def __call__(self, line, key, known, arrays):
    key = (key, known, tuple(x.shape for x in arrays))
    if key not in self._jitted:
      self._jitted[key] = jax.jit(functools.partial(kernel, jnp, line, known))
    return self._jitted[key](*arrays)


_KERNELS = _Kernels()


def _at_least_vector(x):
  """NumPy's scalars warn of integer overflow; its arrays wrap silently, as meant."""
  return np.atleast_1d(x)


def evaluate(program, parameters, inputs, xp=jnp, given=()):
  """The outputs of all lines, a list of uint32 arrays.

  Args:
    program: graph.Program.
    parameters: leaves, constants left out.
    inputs: arrays.
    xp: jax.numpy (compiled line by line, or traceable as a whole) or numpy.
    given: outputs of the first lines, taken as they are.
  """
  sources = {'parameter': [to_bits(xp, x) for x in (*parameters, *program.constants)],
             'input': [to_bits(xp, x) for x in inputs], 'line': list(given)}
  known = canonical_lines(program)
  for line in program.lines[len(given):]:
    sources['line'].append(_evaluate_line(xp, line, known, sources))
  return sources['line']


def _evaluate_line(xp, line, known, sources):
  arrays = [np.uint32(op.number) if op.source == 'literal' else sources[op.source][op.number]
            for op in line.operands]
  fine = tuple(op.source == 'line' and known[op.number] for op in line.operands)
  if xp is jnp:
    return _KERNELS(line, graph_lib.kernel_key(line), fine, arrays)
  as_array = _at_least_vector if line.kind == 'MAP' else np.asarray
  with np.errstate(all='ignore'):  # NumPy warns of what the contract defines
    return kernel(np, line, fine, *map(as_array, arrays))


def static_lines(program):
  """Numbers of the lines that depend on parameters and literals alone.

  Broadcasts are left out: they are cheaper done again than kept.
  """
  found = set()
  for number, line in enumerate(program.lines):
    sources = [op.source != 'input' and (op.source != 'line' or op.number in found)
               for op in line.operands]
    grows = line.kind == 'MOVE' and any(0 in op.strides for op in line.operands) and line.size > 1
    if all(sources) and not grows:
      found.add(number)
  return found


def prepare(program, parameters):
  """What `run_prepared` needs of the parameters, once for many inputs: uint32 arrays."""
  sources = {'parameter': [to_bits(jnp, x) for x in (*parameters, *program.constants)],
             'line': {}}
  known = canonical_lines(program)
  for number in sorted(static_lines(program)):
    sources['line'][number] = _evaluate_line(jnp, program.lines[number], known, sources)
  return sources


def run_prepared(program, prepared, inputs):
  """The result pytree for these inputs; traceable."""
  sources = {**prepared, 'input': [to_bits(jnp, x) for x in inputs],
             'line': dict(prepared['line'])}
  known = canonical_lines(program)
  for number, line in enumerate(program.lines):
    if number not in sources['line']:
      sources['line'][number] = _evaluate_line(jnp, line, known, sources)
  return outputs_of(program, sources['line'])


def outputs_of(program, values, xp=jnp):
  """The result pytree from the lines' values."""
  leaves = [from_bits(xp, values[n], program.lines[n].dtype) for n in program.outputs]
  return jax.tree.unflatten(program.tree, leaves)


def consistent(function, mode='ordered', bits=None):
  """`function(parameters, *inputs)` with bits that do not depend on the platform.

  Traceable; lowered anew for new shapes. See `lowering.lower` for the arguments and errors.
  """
  @functools.cache
  def program_of(tree, shapes):
    arguments = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    return lowering.lower(function, *arguments, mode=mode, bits=bits)

  def run(parameters, *inputs):
    leaves, tree = jax.tree.flatten((parameters, *inputs))
    leaves = [jnp.asarray(x) for x in leaves]
    program = program_of(tree, tuple((x.shape, x.dtype) for x in leaves))
    count = len(jax.tree.leaves(parameters))
    return outputs_of(program, evaluate(program, leaves[:count], leaves[count:]))

  return run

