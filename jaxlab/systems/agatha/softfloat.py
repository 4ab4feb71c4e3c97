"""IEEE-754 binary32 in integer arithmetic, as the contract does it (arXiv 2105.04919, the arbiter).

One code over two kinds of integers: `PYTHON`, unbounded scalars, and `JAX`, int64 arrays (under
`jax.enable_x64`). Values are bit patterns, 0 <= x < 2**32; every NaN result is `NAN`. Underflow is
gradual; flushing is the caller's.
"""
import math
import types

import jax.numpy as jnp
from jax import lax

NAN, INFINITY, SIGN, MAGNITUDE = 0x7fc00000, 0x7f800000, 0x80000000, 0x7fffffff
GUARD = 32  # extra bits of an addition: what is shifted further right only matters as 'not zero'


def _jax_isqrt(v):
  root = jnp.floor(jnp.sqrt(v.astype(jnp.float64))).astype(jnp.int64)
  root = root - (root * root > v)
  return root + ((root + 1) * (root + 1) <= v)


PYTHON = types.SimpleNamespace(where=lambda condition, x, y: x if condition else y,
                               bit_length=int.bit_length, isqrt=math.isqrt, maximum=max,
                               minimum=min)
JAX = types.SimpleNamespace(where=jnp.where, bit_length=lambda x: 64 - lax.clz(x),
                            isqrt=_jax_isqrt, maximum=jnp.maximum, minimum=jnp.minimum)


def is_nan(x):
  """Whether a bit pattern is any NaN."""
  return (x & MAGNITUDE) > INFINITY


def _is_infinite(x):
  return (x & MAGNITUDE) == INFINITY


def _is_zero(x):
  return (x & MAGNITUDE) == 0


def _unpack(xp, x):
  """(m, e) with |x| = m * 2**e and 2**23 <= m < 2**24, or m = 0; finite x."""
  field, fraction = (x >> 23) & 0xff, x & 0x7fffff
  m = xp.where(field == 0, fraction, fraction | 0x800000)
  shift = 24 - xp.bit_length(m)
  return m << shift, xp.maximum(field, 1) - 150 - shift


def _shift_right(xp, m, shift):
  """m >> shift with the lowest bit set if anything was lost; 0 <= shift, m < 2**61."""
  shift = xp.minimum(shift, 61)
  kept = m >> shift
  return kept | xp.where(kept << shift == m, 0, 1)


def round_pack(xp, sign, m, e):
  """The bits of (-1)**sign * m * 2**e rounded once, to nearest, ties to even; 0 <= m < 2**61."""
  q = xp.maximum(e + xp.bit_length(m) - 24, -149)
  right = xp.minimum(xp.maximum(q - e, 0), 61)
  left = xp.minimum(xp.maximum(e - q, 0), 24)
  kept = m >> right
  twice = 2 * (m - (kept << right))
  unit = 1 << right if xp is PYTHON else jnp.left_shift(jnp.int64(1), right)
  up = (twice > unit) | ((twice == unit) & (kept & 1 == 1))
  kept = (kept + xp.where(up, 1, 0)) << left
  bits = xp.minimum((xp.minimum(q + 149, 255) << 23) + kept, INFINITY)
  return (sign << 31) | xp.where(m == 0, 0, bits)


def add(xp, a, b):
  """a + b."""
  swap = (b & MAGNITUDE) > (a & MAGNITUDE)
  big, small = xp.where(swap, b, a), xp.where(swap, a, b)
  (m, e), (n, f) = _unpack(xp, big), _unpack(xp, small)
  n = _shift_right(xp, n << GUARD, xp.maximum(e - f, 0))
  differ = (big ^ small) >> 31 == 1
  total = (m << GUARD) + xp.where(differ, -n, n)
  exact_zero = xp.where((a == SIGN) & (b == SIGN), SIGN, 0)
  r = xp.where(total == 0, exact_zero, round_pack(xp, big >> 31, total, e - GUARD))
  r = xp.where(_is_infinite(big), xp.where(_is_infinite(small) & differ, NAN, big), r)
  return xp.where(is_nan(a) | is_nan(b), NAN, r)


def sub(xp, a, b):
  """a - b."""
  return add(xp, a, b ^ SIGN)


def mul(xp, a, b):
  """a * b."""
  sign = (a ^ b) >> 31
  (m, e), (n, f) = _unpack(xp, a), _unpack(xp, b)
  r = round_pack(xp, sign, m * n, e + f)
  infinite = _is_infinite(a) | _is_infinite(b)
  r = xp.where(infinite, (sign << 31) | INFINITY, r)
  invalid = infinite & (_is_zero(a) | _is_zero(b))
  return xp.where(is_nan(a) | is_nan(b) | invalid, NAN, r)


def div(xp, a, b):
  """a / b."""
  sign = (a ^ b) >> 31
  (m, e), (n, f) = _unpack(xp, a), _unpack(xp, b)
  n = xp.where(n == 0, 1, n)
  quotient = (m << 36) // n
  sticky = xp.where(quotient * n == m << 36, 0, 1)
  r = round_pack(xp, sign, 2 * quotient + sticky, e - f - 37)
  r = xp.where(_is_infinite(a) | _is_zero(b), (sign << 31) | INFINITY, r)
  r = xp.where(_is_infinite(b) | _is_zero(a), sign << 31, r)
  invalid = (_is_infinite(a) & _is_infinite(b)) | (_is_zero(a) & _is_zero(b))
  return xp.where(is_nan(a) | is_nan(b) | invalid, NAN, r)


def sqrt(xp, a):
  """The square root of a."""
  m, e = _unpack(xp, a)
  odd = e & 1
  radicand, half = m << (odd + 34), (e - odd - 34) >> 1
  root = xp.isqrt(radicand)
  sticky = xp.where(root * root == radicand, 0, 1)
  r = round_pack(xp, a >> 31, 2 * root + sticky, half - 1)
  r = xp.where(_is_zero(a) | _is_infinite(a), a, r)
  negative = (a >> 31 == 1) & (_is_zero(a) == False)  # noqa: E712
  return xp.where(is_nan(a) | negative, NAN, r)


def _key(xp, x):
  """Integers in the order of the numbers, -0 just below +0."""
  return xp.where(x >> 31 == 1, -1 - (x & MAGNITUDE), x)


def maximum(xp, a, b):
  """The larger; +0 is larger than -0, and a NaN wins."""
  r = xp.where(_key(xp, a) >= _key(xp, b), a, b)
  return xp.where(is_nan(a) | is_nan(b), NAN, r)


def neg(xp, a):
  """-a."""
  return xp.where(is_nan(a), NAN, a ^ SIGN)


def minimum(xp, a, b):
  """The smaller, with the rules of `maximum`."""
  return neg(xp, maximum(xp, neg(xp, a), neg(xp, b)))


def _ordered(xp, condition, a, b):
  return xp.where(is_nan(a) | is_nan(b), 0, xp.where(condition, 1, 0))


def eq(xp, a, b):
  """1 if a == b else 0."""
  return _ordered(xp, (a == b) | (_is_zero(a) & _is_zero(b)), a, b)


def lt(xp, a, b):
  """1 if a < b else 0."""
  return _ordered(xp, (_key(xp, a) < _key(xp, b)) & (eq(xp, a, b) == 0), a, b)


def le(xp, a, b):
  """1 if a <= b else 0."""
  return lt(xp, a, b) | eq(xp, a, b)


def _to_integer(xp, a, up):
  """|a| as an integer below 2**24 by `up(kept, lost, half)`; larger |a| is an integer already."""
  m, e = _unpack(xp, a)
  right = xp.minimum(xp.maximum(-e, 0), 61)
  kept = m >> right
  unit = 1 << right if xp is PYTHON else jnp.left_shift(jnp.int64(1), right)
  return kept + xp.where(up(kept, 2 * (m - (kept << right)), unit), 1, 0)


def _integral(xp, a, up):
  whole = (a & MAGNITUDE) >= 0x4b000000  # 2**23
  r = round_pack(xp, a >> 31, _to_integer(xp, a, up), 0)
  return xp.where(is_nan(a), NAN, xp.where(whole, a, r))


def round_even(xp, a):
  """a rounded to an integral value, ties to even; the sign stays."""
  return _integral(xp, a, lambda kept, twice, unit:
                   (twice > unit) | ((twice == unit) & (kept & 1 == 1)))


def floor(xp, a):
  """The largest integral value that is not above a."""
  return _integral(xp, a, lambda kept, twice, unit: (twice > 0) & (a >> 31 == 1))


def i2f(xp, a):
  """The float nearest to a two's complement int32."""
  negative = a >> 31
  return round_pack(xp, negative, xp.where(negative == 1, (1 << 32) - a, a), 0)


def f2i(xp, a):
  """a cut to an int32 (two's complement); out of range saturates, NaN gives 0."""
  negative = a >> 31 == 1
  small = _to_integer(xp, a, lambda kept, twice, unit: kept < 0)
  m, e = _unpack(xp, a)
  size = xp.where(e > 0, m << xp.minimum(xp.maximum(e, 0), 16), small)
  size = xp.minimum(size, xp.where(negative, 1 << 31, (1 << 31) - 1))
  size = xp.where(is_nan(a), 0, size)
  return xp.where(negative & (size != 0), (1 << 32) - size, size)


def ldexp2(xp, a, k):
  """a * 2**k for a two's complement int32 k."""
  k = xp.minimum(xp.maximum(xp.where(k >> 31 == 1, k - (1 << 32), k), -512), 512)
  m, e = _unpack(xp, a)
  r = round_pack(xp, a >> 31, m, e + k)
  r = xp.where(_is_infinite(a), a, r)
  return xp.where(is_nan(a), NAN, r)
