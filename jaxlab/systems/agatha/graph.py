"""The computation graph: a jaxpr lowered to lines that a contract can read.

A line is one of five kinds; its output has a static shape, and which elements it reads is affine in
the index of the output element (and of the terms that it sums), so that the contract computes every
address from the line alone:

  MOVE    the first operand whose bounds hold the index: reshape, transpose, slice, pad, concatenate
  MAP     a straight-line program of BOPs on one element of each operand
  DOT     s = +0; for k ascending: s = s + a[k] * b[k]: dot, convolution, grouped or not
  REDUCE  a halving tree of one BOP, padded with its identity: sum, max, pooling
  EXACT   the sum of integer products a[k] * b[k], rounded once: mode 'exact' of DOT

Lines are numbered in the order of the jaxpr; operands are earlier lines, parameters, inputs or
literals (arXiv 2105.04919, the graph of the pinpoint protocol; the packing is our own).
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlab.systems.agatha import bops, elementary, merkle

KINDS = ('MOVE', 'MAP', 'DOT', 'REDUCE', 'EXACT')
SOURCES = ('literal', 'line', 'parameter', 'input')
REFS = ('literal', 'step', 'operand')


class Operand(NamedTuple):
  """What a line reads.

  Attributes:
    source: of `SOURCES`.
    number: of the line, parameter or input; the bit pattern of a literal.
    offset: of the element's flat address.
    strides: of the address by the index in each of the line's sizes and inner sizes.
    bounds: MOVE only: (low, high, step) by size. The operand has the element if low <= index < high
      and step divides index - low, everywhere; the strides count (index - low) // step.
  """
  source: str
  number: int
  offset: int
  strides: tuple[int, ...]
  bounds: tuple[tuple[int, int, int], ...] = ()


class Line(NamedTuple):
  """One equation.

  Attributes:
    kind: of `KINDS`.
    name: the primitive that it came from; no part of the program's digest.
    shape: of the output.
    dtype: its name.
    sizes: the output's index split in any way whose product is its size, row-major.
    inner: sizes of the index of the terms (DOT, REDUCE, EXACT), the last fastest.
    operands: what is read.
    body: MAP: the program; REDUCE: (BOP, identity's bits); EXACT: (bits,).
    arrange: (numpy or jax.numpy, operands' arrays) -> the arrays that the kernel of the kind takes:
      MOVE the output; REDUCE an array whose other axes are the output's, and the axes of the terms
      (as `inner`, or all in one); DOT [G, M, K], [G, K, N]. Not part of the digest.
    restore: array of a DOT or EXACT kernel [G, M, N] -> the output.
  """
  kind: str
  name: str
  shape: tuple[int, ...]
  dtype: str
  sizes: tuple[int, ...]
  inner: tuple[int, ...]
  operands: tuple[Operand, ...]
  body: tuple[Any, ...]
  arrange: Callable | None = None
  restore: Callable | None = None

  @property
  def size(self):
    """Number of output elements."""
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def terms(self):
    """Number of terms of an output element."""
    return int(np.prod(self.inner, dtype=np.int64))


class Program(NamedTuple):
  """A lowered function of one pytree of parameters and any inputs.

  Attributes:
    lines: in order.
    outputs: numbers of the lines that are returned.
    parameters: names of the parameters in order; constants of the function come last.
    parameter_dtypes: their dtype names.
    constants: arrays of those that are constants.
    input_dtypes: dtype names of the inputs.
    tree: structure of the result.
    mode: how contractions are evaluated, 'ordered' or 'exact'.
  """
  lines: tuple[Line, ...]
  outputs: tuple[int, ...]
  parameters: tuple[str, ...]
  parameter_dtypes: tuple[str, ...]
  constants: tuple[np.ndarray, ...]
  input_dtypes: tuple[str, ...]
  tree: Any
  mode: str


def _u32(*numbers):
  return b''.join(int(n).to_bytes(4, 'big', signed=n < 0) for n in numbers)


def encode_operand(operand):
  """The bytes of an operand: source, number, offset, strides, then bounds."""
  return (bytes([SOURCES.index(operand.source)]) +
          _u32(operand.number, operand.offset, *operand.strides) +
          b''.join(_u32(*bound) for bound in operand.bounds))


def _encode_body(line):
  if line.kind == 'MAP':
    steps = b''.join(
        bytes([bops.BOPS[step.bop].code]) +
        b''.join(bytes([REFS.index(ref.kind)]) + _u32(ref.value) for ref in step.refs) +
        bytes(5 * (3 - len(step.refs))) for step in line.body)
    return bytes([len(line.body)]) + steps
  if line.kind == 'REDUCE':
    return bytes([bops.BOPS[line.body[0]].code]) + _u32(line.body[1])
  return bytes(line.body)


def encode(line):
  """The bytes of a line, big-endian: what its hash covers and the contract reads.

  kind, dtype, rank, dims; counts of sizes and inner sizes, those; number of operands, those; body.
  """
  return (bytes([KINDS.index(line.kind), merkle.DTYPES[line.dtype], len(line.shape)]) +
          _u32(*line.shape) + bytes([len(line.sizes), len(line.inner)]) +
          _u32(*line.sizes, *line.inner) + bytes([len(line.operands)]) +
          b''.join(map(encode_operand, line.operands)) + _encode_body(line))


def decode(data):
  """The Line that `encode` packed, without name and arrangement.

  Raises:
    ValueError: the bytes are no line.
  """
  position = 0

  def take(size=1):
    nonlocal position
    position += size
    if position > len(data):
      raise ValueError('a line that ends too early')
    return data[position - size:position]

  byte = lambda: take()[0]
  u32 = lambda: int.from_bytes(take(4), 'big')
  i32 = lambda: int.from_bytes(take(4), 'big', signed=True)
  many = lambda read, count: tuple(read() for _ in range(count))
  try:
    kind, dtype = KINDS[byte()], merkle.DTYPE_NAMES[byte()]
    shape = many(u32, byte())
    counts = many(byte, 2)
    sizes, inner = (many(u32, count) for count in counts)
    bounds = (lambda: many(lambda: many(i32, 3), len(sizes))) if kind == 'MOVE' else tuple
    operands = many(lambda: Operand(SOURCES[byte()], u32(), i32(), many(i32, sum(counts)),
                                    bounds()), byte())
    if kind == 'MAP':
      body = many(lambda: _decode_step(byte, u32), byte())
    else:
      body = {'REDUCE': lambda: (bops.NAMES[byte()], u32()),
              'EXACT': lambda: (byte(),)}.get(kind, tuple)()
  except (IndexError, KeyError) as error:
    raise ValueError(f'no line: {error}') from error
  return Line(kind, '', shape, dtype, sizes, inner, operands, body)


def _decode_step(byte, u32):
  bop = bops.NAMES[byte()]
  refs = [elementary.Ref(REFS[byte()], u32()) for _ in range(3)]
  return elementary.Step(bop, tuple(refs[:bops.BOPS[bop].arity]))


def kernel_key(line):
  """Bytes that lines share whose kernels do the same: all but the numbers of the operands."""
  blank = [op if op.source == 'literal' else op._replace(source='line', number=0)
           for op in line.operands]
  return encode(line._replace(operands=tuple(blank)))


def line_hash(line):
  """keccak-256 of a line."""
  return merkle.keccak256(b'\x06' + encode(line))


def header(program, line_root):
  """The bytes whose hash is the program's digest: counts, the lines' root, the outputs' numbers."""
  return (b'\x05' + len(program.lines).to_bytes(8, 'big') + line_root +
          b''.join(n.to_bytes(8, 'big') for n in program.outputs))


def text(program):
  """The program as people read it, a line each."""
  rows = []
  for number, line in enumerate(program.lines):
    reads = ' '.join(f'{op.source[0]}{op.number:#x}' if op.source == 'literal'
                     else f'{op.source}{op.number}' for op in line.operands)
    rows.append(f'{number} {line.kind} {line.name} {reads} -> {line.dtype}{list(line.shape)}')
  return '\n'.join(rows)
