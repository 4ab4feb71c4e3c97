"""Baselines: a whole program as one scalar instruction after the other.

They stand for the virtual machines of TrueBit and Arbitrum, in which every instruction of a
verified computation is interpreted; they are not those machines. `instructions` flattens a program
to a list of (BOP, target, operands) over one flat memory of 32-bit words. `interpret` runs it in
Python, `compiled` as a loop that XLA compiles, still one instruction an iteration. Programs in mode
'exact' have sums of 64 bits and are refused.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlab.systems.agatha import bops, consistent, scalar

COPY = 'ior'  # of a value with itself


class Machine(NamedTuple):
  """A program for the machine.

  Attributes:
    code: int32 [instructions, 5]: BOP's code, target, three operands' addresses.
    start: uint32 [words], the memory with parameters, inputs and literals.
    outputs: (first address, shape) of each output.
    used: codes of the BOPs that occur.
  """
  code: np.ndarray
  start: np.ndarray
  outputs: tuple[tuple[int, tuple[int, ...]], ...]
  used: tuple[int, ...]


def instructions(program, parameters, inputs):
  """The Machine of a program in mode 'ordered' with its data.

  Raises:
    ValueError: the program has exact sums.
  """
  leaves = {'parameter': [*parameters, *program.constants], 'input': inputs}
  memory, base, size = [], {}, 0
  for source, arrays in leaves.items():
    for number, x in enumerate(arrays):
      words = consistent.to_bits(np, np.asarray(x)).reshape(-1)
      base[source, number], size = size, size + words.size
      memory.append(words)
  literals, code = {}, []

  def constant(bits):
    return literals.setdefault(bits, len(literals))

  blocks = []  # per step of a line: BOP's code, targets and operands over all outputs
  line_size = []
  for number, line in enumerate(program.lines):
    if line.kind == 'EXACT':
      raise ValueError('exact sums need 64 bits: lower the program in mode ordered')
    line_size.append(line.size)
    blocks.append((number, line, max(scalar.steps(line), 1)))
  for number, line, count in blocks:
    base['line', number], size = size + (count - 1) * line.size, size + count * line.size
  literal_base = size
  for number, line, count in blocks:
    outputs = np.arange(line.size)
    first = base['line', number] - (count - 1) * line.size

    def address(ref, first=first, line=line, outputs=outputs):
      if ref.kind == 'step':
        return first + ref.value * line.size + outputs
      if ref.kind == 'literal':
        return np.full(line.size, literal_base + constant(ref.value))
      operand = line.operands[ref.value]
      if operand.source == 'literal':
        return np.full(line.size, literal_base + constant(operand.number))
      return base[operand.source, operand.number] + ref.address

    for step in range(count):
      if scalar.steps(line):
        name, refs = scalar.step(line, outputs, step)
        columns = [address(ref) for ref in refs]
      else:
        name, source = COPY, np.zeros(line.size, np.int64)
        for j in reversed(range(len(line.operands))):
          inside, at = scalar.locate(line, line.operands[j], outputs)
          source = np.where(inside, address(scalar.Ref('element', j, at)), source)
        columns = [source, source]
      columns += [columns[0]] * (3 - len(columns))
      columns = [np.broadcast_to(column, outputs.shape) for column in columns]
      code.append(np.stack([np.full(line.size, bops.BOPS[name].code),
                            first + step * line.size + outputs, *columns], 1))
  code = np.concatenate(code).astype(np.int32)
  start = np.zeros(literal_base + len(literals), np.uint32)
  leaf_words = np.concatenate(memory) if memory else np.zeros(0, np.uint32)
  start[:leaf_words.size] = leaf_words
  start[literal_base:] = list(literals)
  results = tuple((base['line', n], program.lines[n].shape) for n in program.outputs)
  return Machine(code, start, results, tuple(np.unique(code[:, 0]).tolist()))


def read_outputs(machine, memory):
  """The outputs' bit patterns from the final memory."""
  return [np.asarray(memory[at:at + int(np.prod(shape, dtype=int))], np.uint32).reshape(shape)
          for at, shape in machine.outputs]


def interpret(machine):
  """Runs the instructions one by one in Python, with integer arithmetic; the outputs."""
  memory = machine.start.tolist()
  table = [(bops.NAMES[code], bops.BOPS[bops.NAMES[code]].arity) for code in range(len(bops.BOPS))]
  for code, target, *operands in machine.code.tolist():
    name, arity = table[code]
    memory[target] = bops.python_bop(name, *(memory[at] for at in operands[:arity]))
  return read_outputs(machine, np.array(memory, np.uint32))


def compiled(machine):
  """A function without arguments that runs the instructions in a loop compiled by XLA."""
  branch = {code: i for i, code in enumerate(machine.used)}
  code = machine.code.copy()
  code[:, 0] = [branch[c] for c in code[:, 0]]

  def operation(name):
    arity = bops.BOPS[name].arity
    return lambda *args: bops.array_bop(jnp, name, args[:arity])

  branches = [operation(bops.NAMES[c]) for c in machine.used]

  @jax.jit
  def run(code, memory):
    def step(i, memory):
      row = code[i]
      value = lax.switch(row[0], branches, *(memory[row[j]] for j in (2, 3, 4)))
      return memory.at[row[1]].set(value)
    return lax.fori_loop(0, code.shape[0], step, memory)

  code, start = jnp.asarray(code), jnp.asarray(machine.start)
  return lambda: read_outputs(machine, np.asarray(run(code, start)))
