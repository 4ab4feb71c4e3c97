"""The basic operations (BOPs, arXiv 2105.04919): one table for NumPy, JAX, Python and the contract.

Every value is the uint32 bit pattern of a float32, an int32 or a truth value. Float operations
round to nearest, ties to even; every NaN is 0x7fc00000. In mode 'flush' operands and results of a
float operation whose magnitude is at most 2**-126 are zeros of their sign: 2**-126 itself too, so
that it does not matter whether the hardware finds a result tiny before or after rounding. Mode
'ieee' underflows gradually.

  numpy_bop(name, *bits, mode)   hardware float32
  jax_bop(name, *bits, mode)     'flush': hardware float32 between integer fences; 'ieee': integers
  python_bop(name, *bits, mode)  integers, scalars: what the contract computes

`name` is a name of `BOPS`.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlab.systems.agatha import softfloat

MODES = ('flush', 'ieee')
SMALLEST = 0x00800000  # 2**-126
WORD = 1 << 32
DOUBLE_WORD = 1 << 64


class Bop(NamedTuple):
  """A basic operation.

  Attributes:
    code: its number in the contract.
    arity: number of operands.
    operands: of each operand, whether it is a float (and hence flushed): a string of f and i.
    is_float: whether the result is.
  """
  code: int
  operands: str
  is_float: bool

  @property
  def arity(self):
    return len(self.operands)


_SIGNATURES = [  # in the order of their codes
    ('add', 'ff', True), ('sub', 'ff', True), ('mul', 'ff', True), ('div', 'ff', True),
    ('sqrt', 'f', True), ('max', 'ff', True), ('min', 'ff', True), ('neg', 'f', True),
    ('lt', 'ff', False), ('le', 'ff', False), ('eq', 'ff', False), ('select', 'iii', False),
    ('round_even', 'f', True), ('floor', 'f', True), ('i2f', 'i', True), ('f2i', 'f', False),
    ('ldexp2', 'fi', True), ('imul', 'ii', False), ('iadd', 'ii', False), ('isub', 'ii', False),
    ('ilt', 'ii', False), ('ieq', 'ii', False), ('iand', 'ii', False), ('ior', 'ii', False),
    ('ixor', 'ii', False), ('ishl', 'ii', False), ('ishr', 'ii', False), ('magmax', 'ii', False),
    # Of 64 bits: the chain of an exact dot and its one rounding, see scalar.py.
    ('imac', 'iii', False), ('pack', 'iiii', False),
]
BOPS = {name: Bop(code, operands, is_float)
        for code, (name, operands, is_float) in enumerate(_SIGNATURES)}
NAMES = list(BOPS)
# These see of a NaN in their float operands only that it is one.
BLIND = {'add', 'sub', 'mul', 'div', 'sqrt', 'round_even', 'floor', 'lt', 'le', 'eq', 'f2i',
         'ldexp2'}


def float_bits(value):
  """The bit pattern of a number rounded to float32, an int."""
  return int(np.float32(value).view(np.uint32))


def canon_nan(xp, bits):
  """Bit patterns with every NaN replaced by 0x7fc00000."""
  return xp.where((bits & np.uint32(softfloat.MAGNITUDE)) > np.uint32(softfloat.INFINITY),
                  np.uint32(softfloat.NAN), bits)


def flush(xp, bits):
  """Bit patterns with zeros for small magnitudes: enough inside a sum, which makes NaNs one later.

  An integer operation, it also keeps XLA from contracting a product and a sum to one FMA.
  """
  tiny = (bits & np.uint32(softfloat.MAGNITUDE)) <= np.uint32(SMALLEST)
  return xp.where(tiny, bits & np.uint32(softfloat.SIGN), bits)


def canon(xp, bits, mode='flush'):
  """Bit patterns, canonical: NaNs are one, and in mode 'flush' small magnitudes are zeros."""
  bits = canon_nan(xp, bits)
  return bits if mode == 'ieee' else flush(xp, bits)


def float_views(xp):
  """(bits -> float32, float32 -> bits) of NumPy or JAX."""
  if xp is np:
    return lambda x: x.view(np.float32), lambda x: x.view(np.uint32)
  return (lambda x: lax.bitcast_convert_type(x, jnp.float32),
          lambda x: lax.bitcast_convert_type(x, jnp.uint32))


def to_signed(xp, bits):
  return bits.view(np.int32) if xp is np else lax.bitcast_convert_type(bits, jnp.int32)


def to_unsigned(xp, numbers):
  return numbers.view(np.uint32) if xp is np else lax.bitcast_convert_type(numbers, jnp.uint32)


def _key(xp, bits):
  """Signed integers in the order of canonical numbers, NaN the largest; its own inverse."""
  s = to_signed(xp, bits)
  return s ^ ((s >> np.int32(31)) & np.int32(0x7fffffff))


def _max(xp, a, b):
  return to_unsigned(xp, _key(xp, to_unsigned(xp, xp.maximum(_key(xp, a), _key(xp, b)))))


def max_along(xp, bits, axes):
  """The largest of canonical bit patterns along some axes: BOP 'max' in any order."""
  return to_unsigned(xp, _key(xp, to_unsigned(xp, _key(xp, bits).max(axes))))


def _neg(xp, a):
  nan = a == np.uint32(softfloat.NAN)
  return xp.where(nan, a, a ^ np.uint32(softfloat.SIGN))


def _divide(xp, x, y):
  """x / y, which XLA must not turn into x * (1 / y): it sees full arrays that nobody knows."""
  if xp is np:
    return x / y
  return lax.div(*lax.optimization_barrier(tuple(jnp.broadcast_arrays(x, y))))


def add_floats(xp, x, y):
  """x + y, also where XLA knows that one is 0: it would give the other one, -0 for -0 + 0."""
  return x + y if xp is np else jnp.add(*lax.optimization_barrier((x, y)))


def _f2i(xp, x):
  inside = (x > np.float32(-2.0**31)) & (x < np.float32(2.0**31))
  cut = xp.where(inside, x, np.float32(0)).astype(np.int32)
  high, low = np.int32(2**31 - 1), np.int32(-2**31)
  return xp.where(inside, cut, xp.where(x > 0, high, xp.where(x < 0, low, np.int32(0))))


def _ldexp2(xp, a, k, mode):
  if mode == 'ieee':
    return np.ldexp(a.view(np.float32), np.clip(to_signed(np, k), -512, 512)).view(np.uint32)
  field = to_signed(xp, (a >> np.uint32(23)) & np.uint32(255))
  k = xp.clip(to_signed(xp, k), -512, 512)
  moved = a + (to_unsigned(xp, k) << np.uint32(23))
  sign = a & np.uint32(softfloat.SIGN)
  r = xp.where(field + k >= 255, sign | np.uint32(softfloat.INFINITY), moved)
  r = xp.where(field + k <= 0, sign, r)
  return xp.where((field == 0) | (field == 255), a, r)


def _array_bop(xp, name, args, mode):
  """One BOP of 32 bits on uint32 arrays whose float operands are canonical."""
  to_float, to_bits = float_views(xp)
  u32 = lambda condition: condition.astype(np.uint32)
  if name in ('add', 'sub', 'mul', 'div', 'sqrt', 'round_even', 'floor'):
    function = {'add': lambda x, y: add_floats(xp, x, y), 'mul': xp.multiply, 'sqrt': xp.sqrt,
                'sub': lambda x, y: add_floats(xp, x, -y), 'div': lambda x, y: _divide(xp, x, y),
                'round_even': xp.round, 'floor': xp.floor}[name]
    return to_bits(function(*map(to_float, args)))
  if name in ('lt', 'le', 'eq'):
    function = {'lt': xp.less, 'le': xp.less_equal, 'eq': xp.equal}[name]
    return u32(function(*map(to_float, args)))
  a, b = args[0], args[1] if len(args) > 1 else None
  if name == 'max':
    return _max(xp, a, b)
  if name == 'min':
    return _neg(xp, _max(xp, _neg(xp, a), _neg(xp, b)))
  if name == 'neg':
    return _neg(xp, a)
  if name == 'select':
    return xp.where(a != 0, b, args[2])
  if name == 'i2f':
    return to_bits(to_signed(xp, a).astype(np.float32))
  if name == 'f2i':
    return to_unsigned(xp, _f2i(xp, to_float(a)))
  if name == 'ldexp2':
    return _ldexp2(xp, a, b, mode)
  if name == 'ilt':
    return u32(to_signed(xp, a) < to_signed(xp, b))
  if name == 'ieq':
    return u32(a == b)
  if name == 'magmax':
    return xp.maximum(a & np.uint32(softfloat.MAGNITUDE), b & np.uint32(softfloat.MAGNITUDE))
  if name in ('ishl', 'ishr'):
    shifted = a << (b & np.uint32(31)) if name == 'ishl' else a >> (b & np.uint32(31))
    return xp.where(b < 32, shifted, np.uint32(0))
  return {'imul': xp.multiply, 'iadd': xp.add, 'isub': xp.subtract, 'iand': xp.bitwise_and,
          'ior': xp.bitwise_or, 'ixor': xp.bitwise_xor}[name](a, b)


def array_bop(xp, name, args, mode='flush', canonical=(), finish=True):
  """A BOP of 32 bits on uint32 arrays by the hardware's float32.

  Args:
    xp: numpy or jax.numpy (mode 'flush' only).
    name: of `BOPS`.
    args: uint32 arrays of one shape, or scalars.
    mode: 'flush' or 'ieee'.
    canonical: of each operand, whether it is known to be canonical.
    finish: False leaves a float result as the hardware gives it.

  Returns:
    uint32 array; canonical if the result is a float.
  """
  bop = BOPS[name]
  known = canonical or [False] * len(args)
  args = [arg if kind == 'i' or skip else canon(xp, arg, mode)
          for arg, kind, skip in zip(args, bop.operands, known, strict=True)]
  result = _array_bop(xp, name, args, mode)
  exact = name in ('max', 'min', 'neg')  # of canonical values again canonical
  return canon(xp, result, mode) if bop.is_float and finish and not exact else result


def numpy_bop(name, *args, mode='flush'):
  """A BOP on uint32 arrays by NumPy, see `array_bop`."""
  with np.errstate(all='ignore'):
    return array_bop(np, name, [np.atleast_1d(np.asarray(a, np.uint32)) for a in args], mode)


def jax_bop(name, *args, mode='flush'):
  """A BOP on uint32 arrays by XLA; in mode 'ieee' by integers, since XLA's CPU flushes."""
  if mode == 'flush':
    return array_bop(jnp, name, [jnp.asarray(a, jnp.uint32) for a in args])
  with jax.enable_x64(True):
    wide = [jnp.asarray(a, jnp.uint32).astype(jnp.int64) for a in args]
    return _integer_bop(softfloat.JAX, name, wide).astype(jnp.uint32)


_SOFT = {'add': softfloat.add, 'sub': softfloat.sub, 'mul': softfloat.mul, 'div': softfloat.div,
         'sqrt': softfloat.sqrt, 'max': softfloat.maximum, 'min': softfloat.minimum,
         'neg': softfloat.neg, 'lt': softfloat.lt, 'le': softfloat.le, 'eq': softfloat.eq,
         'round_even': softfloat.round_even, 'floor': softfloat.floor, 'i2f': softfloat.i2f,
         'f2i': softfloat.f2i, 'ldexp2': softfloat.ldexp2}


def _integer_bop(xp, name, args):
  """A BOP by integers, in mode 'ieee'."""
  if name in _SOFT:
    return _SOFT[name](xp, *args)
  a, b = args[:2]
  if name == 'select':
    return xp.where(a != 0, b, args[2])
  if name in ('ishl', 'ishr'):
    small = xp.minimum(b, 32)
    return (a << small) & (WORD - 1) if name == 'ishl' else a >> small
  if name == 'ilt':
    return xp.where((a ^ (1 << 31)) < (b ^ (1 << 31)), 1, 0)
  if name == 'ieq':
    return xp.where(a == b, 1, 0)
  result = {'imul': lambda: a * b, 'iadd': lambda: a + b, 'isub': lambda: a - b,
            'iand': lambda: a & b, 'ior': lambda: a | b, 'ixor': lambda: a ^ b,
            'magmax': lambda: xp.maximum(a & softfloat.MAGNITUDE, b & softfloat.MAGNITUDE)}[name]()
  return result & (WORD - 1)


def signed(x, width=WORD):
  """The two's complement number of a bit pattern below `width`."""
  return x - width if x >= width // 2 else x


def _imac(total, a, b):
  return (total + signed(a) * signed(b)) % DOUBLE_WORD


def _pack(total, a, b, bits):
  """float32(total * 2**(ea + eb - 2 * bits)), ea and eb such that |a| < 2**ea, |b| < 2**eb; NaN if
  a or b is not finite."""
  fields = [(x >> 23) & 255 for x in (a, b)]
  if 255 in fields:
    return softfloat.NAN
  number = signed(total, DOUBLE_WORD)
  return softfloat.round_pack(softfloat.PYTHON, int(number < 0), abs(number),
                              sum(fields) - 252 - 2 * bits)


def python_bop(name, *args, mode='flush'):
  """A BOP on Python integers, as the contract does it. 'imac' and 'pack' take 64 bits first."""
  flush = lambda x: int(x) if mode == 'ieee' or x & softfloat.MAGNITUDE > SMALLEST else (
      x & softfloat.SIGN)
  bop = BOPS[name]
  args = [flush(x) if kind == 'f' else int(x) for x, kind in zip(args, bop.operands, strict=True)]
  if name == 'imac':
    return _imac(*args)
  result = _pack(*args) if name == 'pack' else _integer_bop(softfloat.PYTHON, name, args)
  return flush(result) if bop.is_float or name == 'pack' else result
