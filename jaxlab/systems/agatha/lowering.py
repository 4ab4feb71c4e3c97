"""Lowers a JAX function to a `graph.Program`, contractions by mode 'ordered' or 'exact'."""
import itertools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import core

from jaxlab import config as config_lib
from jaxlab.systems.agatha import elementary, merkle
from jaxlab.systems.agatha.graph import Line, Operand, Program

MODES = ('ordered', 'exact')
LEAST_BITS, MOST_BITS = 20, 24  # of the integers of mode 'exact'
EXACT_SUM = 53  # bits of an integer that float64 holds


class Value(NamedTuple):
  """A value while lowering: where it comes from, see `graph.Operand`, its shape and dtype name."""
  source: str
  number: int
  shape: tuple[int, ...]
  dtype: str


class Contraction(NamedTuple):
  """A sum of products as batches of matrix products [G, M, K] x [G, K, N].

  Attributes:
    sizes: {'g': ..., 'm': ..., 'n': ..., 'k': ...}, a tuple of sizes each.
    left, right: {axis of it: strides}, of the operands' addresses.
    order: the output's axes, row-major, as positions in g + m + n.
    left_array, right_array: (xp, array) -> [G, M, K] and [G, K, N].
  """
  sizes: dict
  left: dict
  right: dict
  order: tuple[int, ...]
  left_array: object
  right_array: object


def strides_of(shape):
  """Row-major strides in elements."""
  return tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))


def full_bounds(sizes):
  """Bounds that every index meets."""
  return tuple((0, n, 1) for n in sizes)


class Lowering:
  """Collects the lines of a program; the rules call its methods."""

  def __init__(self, mode, bits, parameters, inputs):
    """Starts with the leaves of the parameters and the inputs (avals)."""
    self.mode, self._bits = mode, bits
    self.lines = []
    self.constants = []
    self._parameters = len(parameters)
    self.leaves = [Value(source, number, x.shape, x.dtype.name) for source, leaves in (
        ('parameter', parameters), ('input', inputs)) for number, x in enumerate(leaves)]

  def constant(self, array):
    """The Value of an array known now: a literal, or one more parameter."""
    array = np.asarray(array)
    if array.dtype.name not in merkle.DTYPES:
      raise TypeError(f'constant of dtype {array.dtype.name}: expected {", ".join(merkle.DTYPES)}')
    if not array.shape:
      bits = int(merkle.words(array)[0])
      return Value('literal', bits, (), array.dtype.name)
    self.constants.append(array)
    number = self._parameters + len(self.constants) - 1
    return Value('parameter', number, array.shape, array.dtype.name)

  def emit(self, kind, name, shape, dtype, sizes, operands, *, inner=(), body=(), arrange=None,
           restore=None):
    """Adds a line; operands are (Value, offset, strides[, bounds]). Returns its Value."""
    reads = tuple(Operand(value.source, value.number, *rest) for value, *rest in operands)
    self.lines.append(Line(kind, name, tuple(shape), dtype, tuple(sizes), tuple(inner), reads,
                           tuple(body), arrange, restore))
    return Value('line', len(self.lines) - 1, tuple(shape), dtype)

  def move(self, name, value, shape, sizes, strides, arrange, offset=0):
    """A MOVE of one operand; `arrange` is (xp, array) -> array."""
    return self.emit('MOVE', name, shape, value.dtype, sizes,
                     [(value, offset, tuple(strides), full_bounds(sizes))], arrange=arrange)

  def reshape(self, value, shape, name='reshape'):
    """The same elements in another shape."""
    size = math.prod(shape)
    return self.move(name, value, shape, (size,), (1,), lambda xp, x: x.reshape(shape))

  def broadcast(self, value, shape):
    """NumPy broadcasting to `shape`, as a line; the value itself where it has the shape."""
    if value.shape == tuple(shape):
      return value
    return self.move('broadcast', value, shape, shape, _broadcast_strides(value.shape, shape),
                     lambda xp, x: xp.broadcast_to(x, shape))

  def map(self, name, shape, dtype, values, program):
    """A MAP; `program(b, *refs)` writes it. The values broadcast to `shape` as in NumPy."""
    builder = elementary.Builder(len(values))
    steps = builder.finish(program(builder, *map(builder.operand, range(len(values)))))
    flat = all(value.shape in ((), tuple(shape)) for value in values)
    sizes = (math.prod(shape),) if flat else shape
    operands = [(value, 0, (int(value.shape == tuple(shape)),) if flat else _broadcast_strides(
        value.shape, shape)) for value in values]
    return self.emit('MAP', name, shape, dtype, sizes, operands, body=steps)

  def pad(self, value, padding_value, config, name='pad'):
    """lax.pad: `config` holds (low, high, interior) by axis; the value itself where all are 0."""
    if not any(map(any, config)):
      return value
    shape = tuple(low + high + n + max(n - 1, 0) * interior
                  for n, (low, high, interior) in zip(value.shape, config))
    bounds = tuple((low, low + (n - 1) * (interior + 1) + 1, interior + 1)
                   for n, (low, _, interior) in zip(value.shape, config))

    def arrange(xp, x, fill):
      cut = tuple(slice(max(-low, 0), (n + max(n - 1, 0) * i) - max(-high, 0))
                  for n, (low, high, i) in zip(x.shape, config))
      if any(i for _, _, i in config):
        wide = xp.full([n + max(n - 1, 0) * i for n, (_, _, i) in zip(x.shape, config)], fill)
        spread = tuple(slice(None, None, i + 1) for _, _, i in config)
        if xp is np:
          wide[spread] = x
        else:
          wide = wide.at[spread].set(x)
        x = wide
      margins = [(max(low, 0), max(high, 0)) for low, high, _ in config]
      if xp is np:
        return np.pad(x[cut], margins, constant_values=fill)
      return jax.lax.pad(x[cut], fill, [(*margin, 0) for margin in margins])

    return self.emit('MOVE', name, shape, value.dtype, shape, [
        (value, 0, strides_of(value.shape), bounds),
        (padding_value, 0, (0,) * len(shape), full_bounds(shape))], arrange=arrange)

  def concatenate(self, values, axis, name='concatenate'):
    """Values one after the other along an axis."""
    shape = list(values[0].shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    starts = itertools.accumulate([0, *(value.shape[axis] for value in values)])
    operands = []
    for value, start in zip(values, starts):
      bounds = list(full_bounds(shape))
      bounds[axis] = (start, start + value.shape[axis], 1)
      operands.append((value, 0, strides_of(value.shape), tuple(bounds)))
    return self.emit('MOVE', name, shape, values[0].dtype, shape, operands,
                     arrange=lambda xp, *arrays: xp.concatenate(arrays, axis))

  def reduce(self, name, bop, identity, value, shape, strides, inner, inner_strides, arrange):
    """A REDUCE whose output has `shape`; strides are of the value's addresses."""
    return self.emit('REDUCE', name, shape, value.dtype, shape,
                     [(value, 0, (*strides, *inner_strides))], inner=inner,
                     body=(bop, identity), arrange=arrange)

  def contract(self, name, left, right, shape, spec):
    """A Contraction by the mode of the program."""
    outer = [*spec.sizes['g'], *spec.sizes['m'], *spec.sizes['n']]
    sizes, inner = tuple(outer[i] for i in spec.order), tuple(spec.sizes['k'])

    def restore(x):
      return x.reshape(outer).transpose(spec.order).reshape(shape)

    def strides(side):
      zeros = {axis: (0,) * len(spec.sizes[axis]) for axis in 'gmn'}
      both = {**zeros, **side}
      flat = [*both['g'], *both['m'], *both['n']]
      return (*(flat[i] for i in spec.order), *both['k'])

    if self.mode == 'ordered':
      return self.emit(
          'DOT', name, shape, 'float32', sizes, [(left, 0, strides(spec.left)),
                                                 (right, 0, strides(spec.right))], inner=inner,
          arrange=lambda xp, a, b: (spec.left_array(xp, a), spec.right_array(xp, b)),
          restore=restore)
    g, m, n, k = (math.prod(spec.sizes[axis]) for axis in 'gmnk')
    # As many as float64 can sum at once, at least 20: longer sums are then taken in blocks.
    bits = self._bits or min(max((EXACT_SUM - merkle.depth_of(k)) // 2, LEAST_BITS), MOST_BITS)
    a, row = self._quantized(name, left, 'gmk', spec.sizes, spec.left, spec.left_array, (g, m, k),
                             bits)
    b, column = self._quantized(name, right, 'gkn', spec.sizes, spec.right, spec.right_array,
                                (g, k, n), bits)
    packed = {  # row-major strides of [G, M, K], [G, K, N], [G, M], [G, N]
        'a': _side(spec.sizes, 'gmk'), 'b': _side(spec.sizes, 'gkn'),
        'row': {**_side(spec.sizes, 'gm'), 'k': (0,) * len(inner)},
        'column': {**_side(spec.sizes, 'gn'), 'k': (0,) * len(inner)}}
    operands = [(value, 0, strides(packed[key])) for value, key in zip(
        (a, b, row, column), packed)]
    return self.emit('EXACT', name, shape, 'float32', sizes, operands, inner=inner, body=(bits,),
                     arrange=lambda xp, *arrays: arrays, restore=restore)

  def _quantized(self, name, value, axes, sizes, strides, arrange, shape, bits):
    """(integers in `shape`, largest magnitude of each row or column) of one side."""
    split = tuple(n for axis in axes for n in sizes[axis])
    steps = tuple(s for axis in axes for s in strides[axis])
    if value.shape != shape or steps != strides_of(split):
      value = self.move(f'{name}.arrange', value, shape, split, steps, arrange)
    axis = axes.index('k')
    kept = tuple(n for i, n in enumerate(shape) if i != axis)
    by = strides_of(shape)
    largest = self.reduce(
        f'{name}.largest', 'magmax', 0, value, kept, [s for i, s in enumerate(by) if i != axis],
        (shape[axis],), (by[axis],),
        lambda xp, x: (x, (axis,)))
    each = self.reshape(largest, (*kept[:axis], 1, *kept[axis:]), f'{name}.spread')
    return self.map(f'{name}.quantize', shape, 'int32', [value, each],
                    lambda b, x, largest: quantize(b, x, largest, bits)), largest


def quantize(b, x, largest, bits):
  """round_even(x * 2**(bits - e)), e such that 2**(e - 1) <= largest < 2**e."""
  field = b.iand(b.ishr(largest, 23), 255)
  return b.f2i(b.round_even(b.ldexp2(x, b.isub(bits + 126, field))))


def _side(sizes, axes):
  """{axis: strides} of a row-major array with these axes."""
  by = iter(strides_of([n for axis in axes for n in sizes[axis]]))
  return {axis: tuple(next(by) for _ in sizes[axis]) for axis in axes}


def _broadcast_strides(shape, target):
  by = strides_of(shape)
  lead = len(target) - len(shape)
  return (0,) * lead + tuple(0 if n == 1 and t != 1 else s
                             for n, t, s in zip(shape, target[lead:], by))


def lower(function, parameters, *inputs, mode='ordered', bits=None):
  """The Program of `function(parameters, *inputs)`.

  Args:
    function: a traceable function; jit, custom derivatives, remat and scan are flattened.
    parameters: pytree of arrays (or their shapes and dtypes): float32, int32, uint32 or bool.
    *inputs: likewise; their leaves are the program's inputs, in order.
    mode: 'ordered' (IEEE sums, k ascending) or 'exact' (integer sums, one rounding).
    bits: of the integers of mode 'exact', 1..24; by the length of the sum, 20 to 24, by default.

  Raises:
    ConfigError: `mode` is unknown or `bits` out of range.
    NotImplementedError: a primitive that has no rule, by its name, or an empty array.
    TypeError: a dtype that has no commitment.
    ValueError: the function returns nothing.
  """
  from jaxlab.systems.agatha import rules
  config_lib.require(mode in MODES, 'mode', f'one of {MODES}', mode)
  config_lib.require(bits is None or 1 <= bits <= MOST_BITS, 'bits', f'1 to {MOST_BITS}', bits)
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(parameters, *inputs)
  leaves, _ = jax.tree_util.tree_flatten_with_path(parameters)
  if not closed.out_avals:
    raise ValueError('a function that returns no array: there is no result to commit to')
  for name, avals in (('an argument', closed.in_avals), ('a result', closed.out_avals)):
    for aval in avals:
      check_array(name, aval)
  lowering = Lowering(mode, bits, closed.in_avals[:len(leaves)], closed.in_avals[len(leaves):])
  results = flatten(lowering, closed.jaxpr, map(lowering.constant, closed.consts), lowering.leaves,
                    rules.RULES)
  results = [value if value.source == 'line' else _copy(lowering, value) for value in results]
  names = [jax.tree_util.keystr(path) for path, _ in leaves]
  names += [f'constant {i}' for i in range(len(lowering.constants))]
  dtypes = [aval.dtype.name for aval in closed.in_avals]
  count = len(leaves)
  return Program(tuple(lowering.lines), tuple(value.number for value in results), tuple(names),
                 (*dtypes[:count], *(x.dtype.name for x in lowering.constants)),
                 tuple(lowering.constants), tuple(dtypes[count:]), jax.tree.structure(shapes), mode)


def _copy(lowering, value):
  return lowering.move('copy', value, value.shape, (math.prod(value.shape),),
                       (int(bool(value.shape)),), lambda xp, x: xp.asarray(x))


def check_array(name, aval):
  """Checks that a line can hold values of this type.

  Raises:
    NotImplementedError: it is empty; a dispute about a line has to name an element of it.
    TypeError: the dtype has no commitment.
  """
  if 0 in aval.shape:
    raise NotImplementedError(f'{name}: no consistent rule for an empty array {aval.shape}')
  if aval.dtype.name not in merkle.DTYPES:
    raise TypeError(f'{name}: no commitment for dtype {aval.dtype.name}; expected '
                    f'{", ".join(merkle.DTYPES)}')


def flatten(lowering, jaxpr, constants, arguments, rules):
  """Lowers the equations of a jaxpr; returns the Values of its results."""
  values = dict(zip(jaxpr.constvars, constants, strict=True))
  values.update(zip(jaxpr.invars, arguments, strict=True))
  read = lambda var: lowering.constant(np.asarray(var.val, var.aval.dtype)) if isinstance(
      var, core.Literal) else values[var]
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name not in rules:
      raise NotImplementedError(f'no consistent rule for the primitive {name!r}')
    for var in (*eqn.invars, *eqn.outvars):
      check_array(name, var.aval)
    results = rules[name](lowering, eqn, *map(read, eqn.invars))
    values.update(zip(eqn.outvars, results, strict=True))
  return [read(var) for var in jaxpr.outvars]

