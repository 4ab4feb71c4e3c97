"""Straight-line programs of basic operations (`elementary.Step`) on whole arrays.

NumPy canonicalises every operand and result, as the operations are defined. Under XLA that would be
most of the work, so there it is done where a bit could show: NaNs are made one where an integer
operation or the reader of the program would see their payload; small magnitudes are flushed but
where none can come out. Every product, quotient and root still ends in integer operations, so that
XLA can neither contract it with a sum nor rewrite it.
"""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab.systems.agatha import bops, softfloat

_NEVER_TINY = {'round_even', 'floor'}
# A sum with a number of this magnitude or more is 0 or at least 2**-124: what cancels it is a
# multiple of 2**-124 itself.
_LARGE = bops.float_bits(2.0**-100)


def canonical_steps(body, operands):
  """Of each step, whether its value is canonical, given of each operand whether it is."""
  known = []
  for step in body:
    refs = [_of(ref, known, operands) for ref in step.refs]
    known.append(bops.BOPS[step.bop].is_float or (step.bop == 'select' and all(refs[1:])))
  return known


def _of(ref, steps, operands):
  if ref.kind == 'literal':
    return is_canonical(ref.value)
  return (steps if ref.kind == 'step' else operands)[ref.value]


def is_canonical(bits):
  """Whether a bit pattern, an int, is its own `bops.canon`."""
  return int(bops.canon(np, np.array([bits], np.uint32))[0]) == bits


def run(xp, body, known, arrays):
  """The last value of a program, uint32 in the shape that the operands broadcast to.

  Args:
    xp: numpy or jax.numpy.
    body: tuple of `elementary.Step`.
    known: of each operand, whether it is canonical.
    arrays: uint32 operands that broadcast.
  """
  return (_run_numpy if xp is np else _run_jax)(body, known, arrays)


def _run_numpy(body, known, arrays):
  canonical, values = canonical_steps(body, known), []
  for step in body:
    args = [np.full((1,), ref.value, np.uint32) if ref.kind == 'literal' else
            (values if ref.kind == 'step' else arrays)[ref.value] for ref in step.refs]
    fine = [_of(ref, canonical, known) for ref in step.refs]
    values.append(bops.array_bop(np, step.bop, args, canonical=fine))
  return values[-1]


class _Value(NamedTuple):
  """A value on the way.

  Attributes:
    bits: uint32 array or scalar.
    loose: whether its NaNs may be any; otherwise it is what NumPy has.
    bare: whether it comes from a sum and nothing keeps XLA from looking into it.
    literal: its bit pattern, an int, or None.
  """
  bits: object
  loose: bool = False
  bare: bool = False
  literal: int | None = None

  @property
  def exact(self):
    """What NumPy has."""
    return bops.canon_nan(jnp, self.bits) if self.loose else self.bits


def _run_jax(body, known, arrays):
  canonical, values, flushed = canonical_steps(body, known), [], {}
  for step in body:
    args = []
    for ref, kind in zip(step.refs, bops.BOPS[step.bop].operands):
      if ref.kind == 'literal':
        args.append(_Value(np.uint32(ref.value), literal=ref.value))
        if kind == 'f' and not is_canonical(ref.value):
          args[-1] = _Value(bops.canon(jnp, args[-1].bits))
        continue
      value = values[ref.value] if ref.kind == 'step' else _Value(arrays[ref.value])
      if kind == 'f' and not _of(ref, canonical, known):
        value = flushed.setdefault(ref, _Value(bops.flush(jnp, value.exact), loose=True))
      args.append(value)
    values.append(_step(step, args, [_of(ref, canonical, known) for ref in step.refs]))
  return values[-1].exact


def _step(step, args, canonical):
  """The value of a step whose float operands are canonical but for their NaNs."""
  name, kinds = step.bop, bops.BOPS[step.bop].operands
  if name == 'select':
    of_floats = all(canonical[1:])  # then making NaNs one can wait
    yes, no = (arg.bits if of_floats else arg.exact for arg in args[1:])
    return _Value(jnp.where(args[0].exact != 0, yes, no),
                  of_floats and any(arg.loose for arg in args[1:]))
  if name in ('max', 'min'):
    return _extremum(step, args)
  if name == 'neg':
    return _Value(args[0].bits ^ np.uint32(softfloat.SIGN), loose=True, bare=args[0].bare)
  bits = [arg.bits if kind == 'f' and name in bops.BLIND else arg.exact
          for arg, kind in zip(args, kinds)]
  if name in ('add', 'sub'):  # of two bare sums in a row XLA could make one
    bits = [bops.flush(jnp, x) if arg.bare else x for x, arg in zip(bits, args)]
  result = bops.array_bop(jnp, name, bits, canonical=[True] * len(bits), finish=False)
  if name == 'i2f' or not bops.BOPS[name].is_float:
    return _Value(result)
  if name in ('add', 'sub') and any(map(_is_large, args)):
    return _Value(result, loose=True, bare=True)
  if name not in _NEVER_TINY:
    result = bops.flush(jnp, result)
  return _Value(result, loose=name != 'ldexp2' or args[0].loose)


def _is_large(arg):
  return arg.literal is not None and (
      _LARGE <= arg.literal & softfloat.MAGNITUDE < softfloat.INFINITY)


def _extremum(step, args):
  """max or min: by a comparison where one side is a number, whose sign of zero then decides."""
  if step.refs[0] == step.refs[1]:
    return args[0]
  x, c = sorted(args, key=lambda arg: arg.literal is not None)
  number = c.literal is not None and c.literal & softfloat.MAGNITUDE <= softfloat.INFINITY
  if x.literal is not None or not number or c.literal == softfloat.SIGN:
    return _Value(bops.array_bop(jnp, step.bop, [arg.exact for arg in args],
                                 canonical=[True, True]))
  to_float, _ = bops.float_views(jnp)
  x_number, c_number = to_float(x.bits), np.uint32(c.literal).view(np.float32)
  # +0 is more than -0; a NaN compares as false and stays.
  other = x_number <= c_number if step.bop == 'max' else x_number > c_number
  return _Value(jnp.where(other, c.bits, x.bits), x.loose)
