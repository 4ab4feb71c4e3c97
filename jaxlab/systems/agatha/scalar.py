"""The scalar program of an output element: how many BOPs, and what each of them reads.

Nothing is stored: `steps`, `step` and `origin` compute it from the line, as the contract does
(contract/Lines.sol), in the pinpoint protocol's second phase (arXiv 2105.04919). A step's value is
a bit pattern of 32 bits, or of 64 in the integer sums of mode 'exact'.
"""
from typing import NamedTuple

from jaxlab.systems.agatha import bops


class Ref(NamedTuple):
  """What a step reads.

  Attributes:
    kind: 'literal', 'step' or 'element'.
    value: bit pattern, number of the step, or number of the operand.
    address: flat index of the element.
  """
  kind: str
  value: int
  address: int = 0


def locate(line, operand, output, term=0):
  """(whether the index is within the operand's bounds, its flat address).

  Args:
    line: graph.Line.
    operand: graph.Operand of it.
    output: flat index of the output element; an int or an integer array.
    term: flat index of the term, likewise.
  """
  address, inside = operand.offset, True
  count = len(line.sizes)
  for i in reversed(range(count + len(line.inner))):
    if i >= count:
      term, index = divmod(term, line.inner[i - count])
    else:
      output, index = divmod(output, line.sizes[i])
      if operand.bounds:
        low, high, step = operand.bounds[i]
        inside = inside & (index >= low) & (index < high) & ((index - low) % step == 0)
        index = (index - low) // step
    address = address + index * operand.strides[i]
  return inside, address


def _element(line, number, output, term=0):
  return Ref('element', number, locate(line, line.operands[number], output, term)[1])


def _width(terms):
  return 1 << (terms - 1).bit_length()


def steps(line):
  """BOPs of one output element; 0 where it is only moved."""
  return {'MOVE': lambda: 0, 'MAP': lambda: len(line.body), 'DOT': lambda: 2 * line.terms,
          'REDUCE': lambda: _width(line.terms) - 1, 'EXACT': lambda: line.terms + 1}[line.kind]()


def origin(line, output):
  """The Ref of what an element of a line without BOPs is a copy of."""
  for number, operand in enumerate(line.operands):
    inside, address = locate(line, operand, output)
    if inside:
      return Ref('element', number, address)
  raise ValueError(f'{line.name}: element {output} comes from nowhere')


def step(line, output, number):
  """(BOP's name, Refs) of step `number` of an output element."""
  if line.kind == 'MAP':
    name, refs = line.body[number]
    return name, tuple(_element(line, ref.value, output) if ref.kind == 'operand' else
                       Ref(ref.kind, ref.value) for ref in refs)
  if line.kind == 'REDUCE':
    return _reduce_step(line, output, number)
  if line.kind == 'DOT':
    if number % 2 == 0:
      return 'mul', tuple(_element(line, side, output, number // 2) for side in (0, 1))
    total = Ref('step', number - 2) if number > 1 else Ref('literal', 0)
    return 'add', (total, Ref('step', number - 1))
  total = Ref('step', number - 1) if number else Ref('literal', 0)
  if number < line.terms:
    return 'imac', (total, *(_element(line, side, output, number) for side in (0, 1)))
  return 'pack', (total, *(_element(line, side, output) for side in (2, 3)),
                  Ref('literal', line.body[0]))


def _reduce_step(line, output, number):
  """Level by level: of a level of 2 * width values, value i is the BOP of values i, i + width."""
  width, first, previous = _width(line.terms) // 2, 0, None
  while number >= first + width:
    previous, first, width = first, first + width, width // 2
  bop, identity = line.body

  def ref(i):
    if previous is not None:
      return Ref('step', previous + i)
    return _element(line, 0, output, i) if i < line.terms else Ref('literal', identity)

  return bop, (ref(number - first), ref(number - first + width))


def run(line, output, read, flip={}):
  """The values of all steps of an output element.

  Args:
    line: graph.Line.
    output: flat index of the element.
    read: (number of the operand, address) -> bit pattern.
    flip: number of a step -> mask to XOR into its value: what a cheat does.
  """
  values = []
  for number in range(steps(line)):
    name, refs = step(line, output, number)
    values.append(bops.python_bop(name, *(
        values[ref.value] if ref.kind == 'step' else ref.value if ref.kind == 'literal' else read(
            ref.value, ref.address) for ref in refs)) ^ flip.get(number, 0))
  return values


def work(program):
  """BOPs of the whole program."""
  return sum(line.size * steps(line) for line in program.lines)
