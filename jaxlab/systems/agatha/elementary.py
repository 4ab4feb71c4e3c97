"""Elementary functions as fixed straight-line programs of basic operations.

A program is a tuple of `Step`s; what a step reads is a `Ref`: an operand of the equation, an
earlier step, or a literal bit pattern. `Builder` writes them:

  >>> b = Builder(1)
  >>> b.finish(b.mul(b.operand(0), 2.0))
  (Step(bop='mul', refs=(Ref(kind='operand', value=0), Ref(kind='literal', value=1073741824))),)

Constants are the float32 roundings of the decimals. exp, sigmoid and tanh are those of the golden
vectors; log, erf and erfc are fits of our own (least squares at Chebyshev nodes).
"""
import math
from typing import NamedTuple

from jaxlab.systems.agatha import bops

MAX_STEPS = 255


class Ref(NamedTuple):
  """What a step reads: kind 'operand', 'step' or 'literal', and its number or bit pattern."""
  kind: str
  value: int


class Step(NamedTuple):
  """One basic operation."""
  bop: str
  refs: tuple[Ref, ...]


class Builder:
  """Writes a straight-line program; each BOP is a method that takes refs, floats or bit ints."""

  def __init__(self, operands):
    self._operands = operands
    self._steps = []

  def operand(self, number):
    """The Ref of an operand."""
    return Ref('operand', number)

  def __getattr__(self, name):
    if name not in bops.BOPS:
      raise AttributeError(name)
    return lambda *args: self._emit(name, args)

  def _emit(self, name, args):
    refs = tuple(arg if isinstance(arg, Ref) else literal(arg) for arg in args)
    if len(refs) != bops.BOPS[name].arity:
      raise ValueError(f'{name}: expected {bops.BOPS[name].arity} operands, got {len(refs)}')
    self._steps.append(Step(name, refs))
    return Ref('step', len(self._steps) - 1)

  def finish(self, result):
    """The program whose last step is `result`.

    Raises:
      ValueError: the result is not the last step, or there are more than 255.
    """
    if result != Ref('step', len(self._steps) - 1) or len(self._steps) > MAX_STEPS:
      raise ValueError(f'expected the last of at most {MAX_STEPS} steps, got {result}')
    return tuple(self._steps)


def literal(value):
  """The Ref of a constant: a float is rounded to float32, an int is a bit pattern (mod 2**32)."""
  return Ref('literal', bops.float_bits(value) if isinstance(value, float) else value % bops.WORD)


def _horner(b, x, coefficients):
  """The polynomial whose highest coefficient comes first."""
  p = literal(coefficients[0])
  for c in coefficients[1:]:
    p = b.add(b.mul(p, x), c)
  return p


def _reduced_exp(b, x):
  """(n, e**r - 1) such that x = n * log(2) + r, n whole and r small."""
  n = b.round_even(b.min(b.max(b.mul(x, 1.44269504088896341), -200.0), 200.0))
  r = b.sub(x, b.mul(n, 0.693359375))
  r = b.sub(r, b.mul(n, -2.12194440e-4))
  p = _horner(b, r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
                     1.6666665459e-1, 5.0000001201e-1))
  return n, b.add(b.mul(p, b.mul(r, r)), r)


def _scaled_exp(b, x, n, part):
  """e**x from what `_reduced_exp` found."""
  y = b.ldexp2(b.add(part, 1.0), b.f2i(n))
  y = b.select(b.lt(88.72283935546875, x), math.inf, y)
  return b.select(b.lt(x, -87.33654022216796875), 0.0, y)


def exp(b, x):
  """e**x: below 8e-8 relative error."""
  return _scaled_exp(b, x, *_reduced_exp(b, x))


def expm1(b, x):
  """e**x - 1: below 4 ulp, also near 0, where 1 need not be added and taken away."""
  n, part = _reduced_exp(b, x)
  return b.select(b.eq(n, 0.0), part, b.sub(_scaled_exp(b, x, n, part), 1.0))


def sigmoid(b, x):
  """1 / (1 + exp(-x))."""
  return b.div(1.0, b.add(1.0, exp(b, b.neg(x))))


def absolute(b, x):
  """|x|."""
  return b.max(x, b.neg(x))


def _with_sign_of(b, x, y):
  """The magnitude y >= 0 with the sign bit of x."""
  return b.ior(y, b.iand(x, 0x80000000))


def tanh(b, x):
  """The hyperbolic tangent: below 9e-8 absolute error."""
  x = b.max(x, x)  # flushes
  a = absolute(b, x)
  t = b.sub(1.0, b.div(2.0, b.add(exp(b, b.mul(2.0, a)), 1.0)))
  z = b.mul(a, a)
  small = b.add(b.mul(b.mul(b.add(b.mul(0.13333333333, z), -0.33333333333), z), a), a)
  return _with_sign_of(b, x, b.select(b.lt(a, 0.0625), small, t))


def rsqrt(b, x):
  """1 / sqrt(x)."""
  return b.div(1.0, b.sqrt(x))


# log(1 + f) = f - f**2 / 2 + f**3 * P(f) on sqrt(1/2) - 1 <= f <= sqrt(2) - 1.
_LOG = (-0.076342257386, 0.12761468263, -0.13160233715, 0.1420177621, -0.16623353849,
        0.20001226025, -0.25000821123, 0.33333331716)
# erf(x) = x * P(x**2) on |x| <= 1; erfc(x) = exp(-x**2) * Q(1 / x) / x on 1 <= x <= 10.1, beyond
# which exp(-x**2) is zero.
_ERF = (7.8538471726e-05, -0.00080101893279, 0.0051883271963, -0.026853811678, 0.11283585142,
        -0.37612625824, 1.1283791657)
_ERFC = (-0.024641706195, 0.20336336513, -0.70254272856, 1.3406208131, -1.5203924425,
         0.94541496541, -0.109160058, -0.26834420018, -0.00095150138504, 0.56421710386)


def log(b, x):
  """The natural logarithm: below 3 ulp."""
  x = b.add(x, 0.0)  # flushes
  bits = b.isub(x, 0x3f3504f3)  # so that the field changes at sqrt(1/2)
  k = b.isub(b.ishr(b.iadd(bits, 0x40000000), 23), 128)
  m = b.isub(x, b.ishl(k, 23))
  f = b.sub(m, 1.0)
  z = b.mul(f, f)
  p = b.mul(b.mul(_horner(b, f, _LOG), z), f)
  n = b.i2f(k)
  y = b.add(b.mul(n, -2.12194440e-4), p)
  y = b.sub(y, b.mul(0.5, z))
  y = b.add(b.add(y, f), b.mul(n, 0.693359375))
  y = b.select(b.eq(x, math.inf), math.inf, y)
  y = b.select(b.eq(x, 0.0), -math.inf, y)
  return b.select(b.le(0.0, x), y, math.nan)


def log1p(b, x):
  """log(1 + x): log's absolute error; exact to first order where 1 + x rounds to 1."""
  u = b.add(1.0, x)
  y = log(b, u)
  # The rounding of 1 + x is undone to first order.
  lost = b.sub(x, b.sub(u, 1.0))
  y = b.add(y, b.select(b.lt(absolute(b, x), 1.0), b.div(lost, u), 0.0))
  return b.select(b.eq(u, 1.0), x, y)


def _erfc_of_large(b, a):
  """erfc(a) for a >= 1."""
  inverse = b.div(1.0, a)
  return b.mul(exp(b, b.neg(b.mul(a, a))), b.mul(_horner(b, inverse, _ERFC), inverse))


def erf(b, x):
  """The error function: below 3 ulp."""
  x = b.max(x, x)  # flushes
  a = absolute(b, x)
  small = b.mul(a, _horner(b, b.mul(a, a), _ERF))
  large = b.sub(1.0, _erfc_of_large(b, a))
  return _with_sign_of(b, x, b.select(b.lt(a, 1.0), small, large))


def erfc(b, x):
  """1 - erf(x): below 4e-8 absolute error for x >= 1, else 2e-7."""
  a = absolute(b, x)
  large = _erfc_of_large(b, a)
  small = b.sub(1.0, b.mul(x, _horner(b, b.mul(x, x), _ERF)))
  large = b.select(b.lt(x, 0.0), b.sub(2.0, large), large)
  return b.select(b.lt(a, 1.0), small, large)
