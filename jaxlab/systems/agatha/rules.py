"""Which lines a JAX primitive becomes.

A rule takes (lowering, equation, *Values) and returns the Values of the results. A primitive that
has no rule is refused by name: nothing falls back to XLA.
"""
import itertools
import math

import numpy as np
from jax import lax

from jaxlab.systems.agatha import elementary
from jaxlab.systems.agatha import lowering as lowering_lib
from jaxlab.systems.agatha.lowering import Contraction, strides_of

ONE, TRUE, ALL, MAGNITUDE = 0x3f800000, 1, 0xffffffff, 0x7fffffff
NEGATIVE_INFINITY, POSITIVE_INFINITY, NAN = 0xff800000, 0x7f800000, 0x7fc00000
RULES = {}


def _rule(*names):
  def register(function):
    RULES.update(dict.fromkeys(names, function))
    return function
  return register


# --- one element at a time


def _power(b, x, y, multiply, one):
  """x**y for a static integer by squaring, the lowest bit first."""
  if y == 0:
    return b.select(0, x, one)
  result, power = None, x
  for i, bit in enumerate(bin(abs(y))[:1:-1]):
    power = multiply(power, power) if i else power
    if bit == '1':
      result = power if result is None else multiply(result, power)
  return b.div(1.0, result) if y < 0 else result


def _sign(b, x):
  magnitude = b.select(b.eq(x, 0.0), 0.0, b.ior(b.iand(x, 0x80000000), ONE))
  return b.select(b.eq(x, x), magnitude, math.nan)


def _truth(b, x):
  return b.iadd(x, 0)


def _canonical_nan(b, x):
  """Any bit pattern as a float32 whose NaN is the one that is committed."""
  return b.select(b.ilt(POSITIVE_INFINITY, b.iand(x, MAGNITUDE)), NAN, x)


_FLOAT = {
    'add': lambda b, x, y: b.add(x, y), 'add_any': lambda b, x, y: b.add(x, y),
    'sub': lambda b, x, y: b.sub(x, y), 'mul': lambda b, x, y: b.mul(x, y),
    'div': lambda b, x, y: b.div(x, y), 'max': lambda b, x, y: b.max(x, y),
    'min': lambda b, x, y: b.min(x, y), 'neg': lambda b, x: b.neg(x),
    'abs': elementary.absolute, 'sign': _sign,
    'sqrt': lambda b, x: b.sqrt(x), 'rsqrt': elementary.rsqrt, 'exp': elementary.exp,
    'exp2': lambda b, x: elementary.exp(b, b.mul(x, math.log(2.0))),
    'expm1': elementary.expm1, 'log': elementary.log, 'log1p': elementary.log1p,
    'tanh': elementary.tanh,
    'logistic': elementary.sigmoid, 'erf': elementary.erf, 'erfc': elementary.erfc,
    'square': lambda b, x: b.mul(x, x), 'floor': lambda b, x: b.floor(x),
    'ceil': lambda b, x: b.neg(b.floor(b.neg(x))),
    'lt': lambda b, x, y: b.lt(x, y), 'le': lambda b, x, y: b.le(x, y),
    'gt': lambda b, x, y: b.lt(y, x), 'ge': lambda b, x, y: b.le(y, x),
    'eq': lambda b, x, y: b.eq(x, y), 'ne': lambda b, x, y: b.ieq(b.eq(x, y), 0),
    'is_finite': lambda b, x: b.lt(elementary.absolute(b, x), math.inf),
}
_INTEGER = {
    'add': lambda b, x, y: b.iadd(x, y), 'add_any': lambda b, x, y: b.iadd(x, y),
    'sub': lambda b, x, y: b.isub(x, y), 'mul': lambda b, x, y: b.imul(x, y),
    'neg': lambda b, x: b.isub(0, x), 'eq': lambda b, x, y: b.ieq(x, y),
    'ne': lambda b, x, y: b.ieq(b.ieq(x, y), 0),
    'and': lambda b, x, y: b.iand(x, y), 'or': lambda b, x, y: b.ior(x, y),
    'xor': lambda b, x, y: b.ixor(x, y), 'not': lambda b, x: b.ixor(x, ALL),
    'shift_left': lambda b, x, y: b.ishl(x, y),
    'shift_right_logical': lambda b, x, y: b.ishr(x, y),
}
_ORDERED_INTEGER = {
    'lt': lambda b, x, y: b.ilt(x, y), 'gt': lambda b, x, y: b.ilt(y, x),
    'le': lambda b, x, y: b.ieq(b.ilt(y, x), 0), 'ge': lambda b, x, y: b.ieq(b.ilt(x, y), 0),
    'max': lambda b, x, y: b.select(b.ilt(x, y), y, x),
    'min': lambda b, x, y: b.select(b.ilt(x, y), x, y),
    'abs': lambda b, x: b.select(b.ilt(x, 0), b.isub(0, x), x),
}
_BOOLEAN = {'eq': _INTEGER['eq'], 'ne': _INTEGER['ne'], 'and': _INTEGER['and'],
            'or': _INTEGER['or'], 'xor': _INTEGER['xor'], 'not': lambda b, x: b.ixor(x, TRUE)}
_ELEMENTWISE = {'float32': _FLOAT, 'int32': {**_INTEGER, **_ORDERED_INTEGER}, 'uint32': _INTEGER,
                'bool': _BOOLEAN}


@_rule(*{name for table in _ELEMENTWISE.values() for name in table})
def _elementwise(low, eqn, *values):
  name, dtype = eqn.primitive.name, values[0].dtype
  if name not in _ELEMENTWISE[dtype]:
    raise NotImplementedError(f'no consistent rule for the primitive {name!r} of {dtype}')
  out = eqn.outvars[0].aval
  return [low.map(name, out.shape, out.dtype.name, values, _ELEMENTWISE[dtype][name])]


@_rule('integer_pow')
def _integer_pow(low, eqn, x):
  y = eqn.params['y']
  if x.dtype == 'float32':
    same, multiply, one = (lambda b, x: b.max(x, x)), 'mul', 1.0
  else:
    same, multiply, one = _truth, 'imul', 1
  program = same if y == 1 else lambda b, x: _power(b, x, y, getattr(b, multiply), one)
  return [low.map('integer_pow', x.shape, x.dtype, [x], program)]


@_rule('round')
def _round(low, eqn, x):
  if eqn.params['rounding_method'] != lax.RoundingMethod.TO_NEAREST_EVEN:
    raise NotImplementedError("no consistent rule for the primitive 'round' away from zero")
  return [low.map('round', x.shape, x.dtype, [x], lambda b, x: b.round_even(x))]


@_rule('select_n')
def _select_n(low, eqn, which, *cases):
  if len(cases) != 2 or which.dtype != 'bool':
    raise NotImplementedError("no consistent rule for the primitive 'select_n' of more than 2")
  out = eqn.outvars[0].aval
  return [low.map('select_n', out.shape, out.dtype.name, [which, *cases],
                  lambda b, p, no, yes: b.select(p, yes, no))]


@_rule('clamp')
def _clamp(low, eqn, least, x, most):
  if x.dtype != 'float32':
    raise NotImplementedError(f"no consistent rule for the primitive 'clamp' of {x.dtype}")
  return [low.map('clamp', x.shape, x.dtype, [least, x, most],
                  lambda b, least, x, most: b.min(b.max(least, x), most))]


_CONVERSIONS = {
    ('int32', 'float32'): lambda b, x: b.i2f(x), ('float32', 'int32'): lambda b, x: b.f2i(x),
    ('bool', 'float32'): lambda b, x: b.select(x, 1.0, 0.0),
    ('float32', 'bool'): lambda b, x: b.ieq(b.eq(x, 0.0), 0),
    **{(a, 'bool'): lambda b, x: b.ieq(b.ieq(x, 0), 0) for a in ('int32', 'uint32')},
    **{(a, c): _truth for a, c in itertools.permutations(('int32', 'uint32'))},
    ('bool', 'int32'): _truth, ('bool', 'uint32'): _truth,
}


@_rule('convert_element_type')
def _convert(low, eqn, x):
  new = eqn.outvars[0].aval.dtype.name
  if new == x.dtype:
    return [x]
  if (x.dtype, new) not in _CONVERSIONS:
    raise NotImplementedError(
        f"no consistent rule for the primitive 'convert_element_type' from {x.dtype} to {new}")
  return [low.map('convert_element_type', x.shape, new, [x], _CONVERSIONS[x.dtype, new])]


@_rule('bitcast_convert_type')
def _bitcast(low, eqn, x):
  out = eqn.outvars[0].aval
  program = _canonical_nan if out.dtype == np.float32 else _truth
  return [low.map('bitcast_convert_type', out.shape, out.dtype.name, [x], program)]


# --- data movement


@_rule('copy', 'copy_p', 'stop_gradient', 'optimization_barrier')
def _same(low, eqn, *values):
  del low, eqn
  return list(values)


@_rule('reshape', 'squeeze', 'expand_dims')
def _reshape(low, eqn, x):
  if eqn.params.get('dimensions') is not None and eqn.primitive.name == 'reshape':
    raise NotImplementedError("no consistent rule for the primitive 'reshape' with dimensions")
  return [low.reshape(x, eqn.outvars[0].aval.shape, eqn.primitive.name)]


@_rule('transpose')
def _transpose(low, eqn, x):
  order, shape = eqn.params['permutation'], eqn.outvars[0].aval.shape
  by = strides_of(x.shape)
  return [low.move('transpose', x, shape, shape, [by[i] for i in order],
                   lambda xp, x: x.transpose(order))]


@_rule('broadcast_in_dim')
def _broadcast_in_dim(low, eqn, x, *dynamic):
  if dynamic:
    raise NotImplementedError("no rule for the primitive 'broadcast_in_dim' to a dynamic shape")
  shape, axes = eqn.params['shape'], eqn.params['broadcast_dimensions']
  by = [0] * len(shape)
  for axis, n, stride in zip(axes, x.shape, strides_of(x.shape)):
    by[axis] = stride if n == shape[axis] else 0
  wide = [1] * len(shape)
  for axis, n in zip(axes, x.shape):
    wide[axis] = n
  return [low.move('broadcast_in_dim', x, shape, shape, by,
                   lambda xp, x: xp.broadcast_to(x.reshape(wide), shape))]


def _slice_of(low, x, start, limit, steps, name='slice'):
  by = strides_of(x.shape)
  shape = tuple(-(-(b - a) // s) for a, b, s in zip(start, limit, steps))
  index = tuple(slice(a, b, s) for a, b, s in zip(start, limit, steps))
  return low.move(name, x, shape, shape, [s * n for s, n in zip(steps, by)],
                  lambda xp, x: x[index], sum(a * n for a, n in zip(start, by)))


@_rule('slice')
def _slice(low, eqn, x):
  start, limit = eqn.params['start_indices'], eqn.params['limit_indices']
  return [_slice_of(low, x, start, limit, eqn.params['strides'] or (1,) * len(start))]


def _part(low, x, axis, start, stop, name):
  """x[start:stop] along an axis."""
  low_end, high_end = [0] * len(x.shape), list(x.shape)
  low_end[axis], high_end[axis] = start, stop
  return _slice_of(low, x, low_end, high_end, (1,) * len(x.shape), name)


@_rule('split')
def _split(low, eqn, x):
  ends = list(itertools.accumulate([0, *eqn.params['sizes']]))
  return [_part(low, x, eqn.params['axis'], *pair, 'split') for pair in itertools.pairwise(ends)]


@_rule('rev')
def _rev(low, eqn, x):
  axes, by = eqn.params['dimensions'], strides_of(x.shape)
  return [low.move('rev', x, x.shape, x.shape,
                   [-s if i in axes else s for i, s in enumerate(by)],
                   lambda xp, x: xp.flip(x, axes), sum((x.shape[i] - 1) * by[i] for i in axes))]


@_rule('pad')
def _pad(low, eqn, x, fill):
  return [low.pad(x, fill, eqn.params['padding_config'])]


@_rule('concatenate')
def _concatenate(low, eqn, *values):
  return [low.concatenate(values, eqn.params['dimension'])]


@_rule('iota')
def _iota(low, eqn):
  out, axis = eqn.outvars[0].aval, eqn.params['dimension']
  wide = [1] * len(out.shape)
  wide[axis] = -1
  return [low.constant(np.broadcast_to(np.arange(out.shape[axis]).reshape(wide), out.shape).astype(
      out.dtype))]


# --- sums


_REDUCTIONS = {
    ('reduce_sum', 'float32'): ('add', 0), ('reduce_max', 'float32'): ('max', NEGATIVE_INFINITY),
    ('reduce_min', 'float32'): ('min', POSITIVE_INFINITY), ('reduce_prod', 'float32'): ('mul', ONE),
    ('reduce_sum', 'int32'): ('iadd', 0), ('reduce_sum', 'uint32'): ('iadd', 0),
    ('reduce_and', 'bool'): ('iand', TRUE), ('reduce_or', 'bool'): ('ior', 0),
    ('reduce_and', 'int32'): ('iand', ALL), ('reduce_or', 'int32'): ('ior', 0),
}


def _reduction(name, dtype):
  if (name, dtype) not in _REDUCTIONS:
    raise NotImplementedError(f'no consistent rule for the primitive {name!r} of {dtype}')
  return _REDUCTIONS[name, dtype]


@_rule(*{name for name, _ in _REDUCTIONS})
def _reduce(low, eqn, x):
  name, axes = eqn.primitive.name, sorted(eqn.params['axes'])
  kept = [i for i in range(len(x.shape)) if i not in axes]
  by = strides_of(x.shape)
  return [low.reduce(
      name, *_reduction(name, x.dtype), x, [x.shape[i] for i in kept], [by[i] for i in kept],
      [x.shape[i] for i in axes], [by[i] for i in axes], lambda xp, x: (x, tuple(axes)))]


@_rule('reduce_window_max', 'reduce_window_min', 'reduce_window_sum')
def _reduce_window(low, eqn, x):
  params, name = eqn.params, eqn.primitive.name.replace('_window', '')
  bop, identity = _reduction(name, x.dtype)
  fill = lowering_lib.Value('literal', identity, (), x.dtype)
  x = low.pad(x, fill, [(a, b, d - 1) for (a, b), d in zip(
      params['padding'], params['base_dilation'])])
  out, by = eqn.outvars[0].aval.shape, strides_of(x.shape)
  window, steps, dilation = (
      params[key] for key in ('window_dimensions', 'window_strides', 'window_dilation'))

  def arrange(xp, x):
    return xp.stack([window_slice(x, at, out, steps, dilation) for at in itertools.product(
        *map(range, window))]), (0,)

  return [low.reduce(eqn.primitive.name, bop, identity, x, out,
                     [s * n for s, n in zip(steps, by)], window,
                     [d * n for d, n in zip(dilation, by)], arrange)]


def window_slice(x, at, out, steps, dilation):
  """The elements at position `at` of every window: [out]."""
  return x[tuple(slice(i * d, i * d + (n - 1) * s + 1, s)
                 for i, n, s, d in zip(at, out, steps, dilation))]


@_rule('cumsum')
def _cumsum(low, eqn, x):
  axis, n = eqn.params['axis'], x.shape[eqn.params['axis']]
  order = range(n)[::-1] if eqn.params['reverse'] else range(n)
  parts, total = {}, None
  for i in order:
    part = _part(low, x, axis, i, i + 1, 'cumsum')
    total = part if total is None else low.map(
        'cumsum', part.shape, part.dtype, [total, part], _ELEMENTWISE[x.dtype]['add'])
    parts[i] = total
  return [low.concatenate([parts[i] for i in range(n)], axis, 'cumsum')]


def _require_floats(eqn):
  for var in (*eqn.invars, *eqn.outvars):
    if var.aval.dtype != np.float32:
      raise NotImplementedError(
          f'no consistent rule for the primitive {eqn.primitive.name!r} of {var.aval.dtype}')


@_rule('dot_general')
def _dot_general(low, eqn, left, right):
  _require_floats(eqn)
  (left_k, right_k), (left_g, right_g) = eqn.params['dimension_numbers']
  sides = {}
  for side, value, k, g in (('left', left, left_k, left_g), ('right', right, right_k, right_g)):
    free = [i for i in range(len(value.shape)) if i not in (*k, *g)]
    axes = {'g': g, 'k': k, 'm' if side == 'left' else 'n': free}
    sides[side] = axes, strides_of(value.shape), value.shape
  sizes = {axis: tuple(shape[i] for i in axes[axis])
           for axes, _, shape in sides.values() for axis in axes}
  strides = {side: {axis: tuple(by[i] for i in axes[axis]) for axis in axes}
             for side, (axes, by, _) in sides.items()}
  g, m, n, k = (math.prod(sizes[axis]) for axis in 'gmnk')
  left_order = [i for axis in 'gmk' for i in sides['left'][0][axis]]
  right_order = [i for axis in 'gkn' for i in sides['right'][0][axis]]
  count = sum(len(sizes[axis]) for axis in 'gmn')
  spec = Contraction(sizes, strides['left'], strides['right'], tuple(range(count)),
                     lambda xp, x: x.transpose(left_order).reshape(g, m, k),
                     lambda xp, x: x.transpose(right_order).reshape(g, k, n))
  return [low.contract('dot_general', left, right, eqn.outvars[0].aval.shape, spec)]


@_rule('conv_general_dilated')
def _conv(low, eqn, x, kernel):
  params, numbers = eqn.params, eqn.params['dimension_numbers']
  _require_floats(eqn)
  if params['batch_group_count'] != 1:
    raise NotImplementedError(
        "no consistent rule for the primitive 'conv_general_dilated' with batch groups")
  (x_n, x_c, *x_s), (k_out, k_in, *k_s), out_spec = (
      numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
  config = [(0, 0, 0)] * len(x.shape)
  for axis, (a, b), d in zip(x_s, params['padding'], params['lhs_dilation']):
    config[axis] = (a, b, d - 1)
  x = low.pad(x, lowering_lib.Value('literal', 0, (), x.dtype), config, 'conv.pad')
  shape, steps, dilation = (
      eqn.outvars[0].aval.shape, params['window_strides'], params['rhs_dilation'])
  groups = params['feature_group_count']
  c_in, c_out = kernel.shape[k_in], kernel.shape[k_out] // groups
  window, out = [kernel.shape[i] for i in k_s], [shape[i] for i in out_spec[2:]]
  by, kernel_by = strides_of(x.shape), strides_of(kernel.shape)
  batch = x.shape[x_n]
  sizes = {'g': (groups,), 'm': (batch, *out), 'n': (c_out,), 'k': (*window, c_in)}
  left = {'g': (c_in * by[x_c],),
          'm': (by[x_n], *(s * by[i] for s, i in zip(steps, x_s))),
          'k': (*(d * by[i] for d, i in zip(dilation, x_s)), by[x_c])}
  right = {'g': (c_out * kernel_by[k_out],), 'n': (kernel_by[k_out],),
           'k': (*(kernel_by[i] for i in k_s), kernel_by[k_in])}
  rows, terms = batch * math.prod(out), math.prod(window) * c_in

  def left_array(xp, x):
    x = x.transpose(x_n, *x_s, x_c)
    ones = (1,)
    slices = [window_slice(x, (0, *at, 0), (batch, *out, groups * c_in), (*ones, *steps, *ones),
                           (*ones, *dilation, *ones)) for at in itertools.product(
                               *map(range, window))]
    patches = xp.stack(slices, -2) if groups > 1 else xp.concatenate(slices, -1)
    return patches.reshape(rows, -1, groups, c_in).transpose(2, 0, 1, 3).reshape(
        groups, rows, terms)

  def right_array(xp, kernel):
    return kernel.transpose(*k_s, k_in, k_out).reshape(terms, groups, c_out).transpose(1, 0, 2)

  # Output axes as positions in (group, batch, *spatial, channel of the group).
  position = {out_spec[0]: [1], out_spec[1]: [0, 2 + len(out)],
              **{axis: [2 + i] for i, axis in enumerate(out_spec[2:])}}
  order = tuple(i for axis in range(len(shape)) for i in position[axis])
  return [low.contract('conv_general_dilated', x, kernel, shape,
                       Contraction(sizes, left, right, order, left_array, right_array))]


# --- programs inside programs


@_rule('pjit', 'jit', 'closed_call', 'core_call', 'custom_jvp_call', 'custom_vjp_call',
       'custom_vjp_call_jaxpr', 'remat', 'remat2', 'checkpoint')
def _call(low, eqn, *values):
  inner = next(eqn.params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in eqn.params)
  constants = map(low.constant, getattr(inner, 'consts', ()))
  return lowering_lib.flatten(low, getattr(inner, 'jaxpr', inner), constants, values, RULES)


@_rule('scan')
def _scan(low, eqn, *values):
  params = eqn.params
  first, carried = params['num_consts'], params['num_consts'] + params['num_carry']
  constants, carry, rows = values[:first], list(values[first:carried]), values[carried:]
  order = range(params['length'])
  outputs = {}
  for i in order[::-1] if params['reverse'] else order:
    row = [low.reshape(_part(low, x, 0, i, i + 1, 'scan'), x.shape[1:], 'scan') for x in rows]
    inner = params['jaxpr']
    results = lowering_lib.flatten(low, inner.jaxpr, map(low.constant, inner.consts),
                                   (*constants, *carry, *row), RULES)
    carry, outputs[i] = results[:params['num_carry']], results[params['num_carry']:]
  stacked = [low.concatenate([low.reshape(low.broadcast(value, value.shape), (1, *value.shape),
                                          'scan') for value in column], 0, 'scan')
             for column in zip(*(outputs[i] for i in order))]
  return [*carry, *stacked]

