"""Submitter and challenger: what they compute, commit to and answer in a dispute.

A party is a pure function of the arbiter's public state: `submitter_move` and `challenger_move`
return the next message of an honest party, or of one that cheats in the ways of `Fault` and `Lie`.
The tensor of a disputed line has to be at hand for the challenger (the submitter publishes it; the
arbiter cannot force him to).
"""
import functools
from typing import NamedTuple

import numpy as np

from jaxlab.systems.agatha import bops, consistent, game, graph, merkle, scalar


class Published(NamedTuple):
  """A program with what a task needs of it.

  Attributes:
    program: graph.Program.
    hashes: of the lines.
    levels: the Merkle tree over them.
    digest: what the requester posts.
  """
  program: graph.Program
  hashes: tuple[bytes, ...]
  levels: list
  digest: bytes


class Fault(NamedTuple):
  """A cheat: in `line`, at flat `element`, step `step` (or the moved value) is XORed by `mask`."""
  line: int
  element: int
  step: int
  mask: int


class Lie(NamedTuple):
  """A challenger who disputes what is right: down to this line, element and step."""
  line: int
  element: int
  step: int


class Execution(NamedTuple):
  """One party's run of a program.

  Attributes:
    published: Published.
    parameters, inputs: uint32 arrays.
    values: of each line, uint32 arrays.
    fault: what was done wrong, or None.
  """
  published: Published
  parameters: tuple[np.ndarray, ...]
  inputs: tuple[np.ndarray, ...]
  values: tuple[np.ndarray, ...]
  fault: Fault | None = None


def publish(program):
  """The Published form of a program."""
  hashes = tuple(graph.line_hash(line) for line in program.lines)
  levels = merkle.tree(hashes)
  digest = merkle.keccak256(graph.header(program, merkle.root_of(levels)))
  return Published(program, hashes, levels, digest)


def root_over(arrays):
  """The Merkle root over the commitments of arrays, in order."""
  return merkle.root_of(merkle.tree([merkle.commit(x).commitment for x in arrays]))


def execute(published, parameters, inputs, xp=np):
  """The Execution of an honest party, all lines kept.

  Args:
    published: Published.
    parameters: leaves in the program's order, without its constants.
    inputs: arrays.
    xp: numpy, or jax.numpy for XLA line by line: the bits are the same.
  """
  program = published.program
  values = consistent.evaluate(program, parameters, inputs, xp)
  as_bits = lambda arrays: tuple(np.asarray(consistent.to_bits(np, np.asarray(x))) for x in arrays)
  return Execution(published, as_bits((*parameters, *program.constants)), as_bits(inputs),
                   tuple(np.asarray(x) for x in values))


def reader(execution, line):
  """(number of an operand, address) -> bit pattern, from what this party holds."""
  held = {'line': execution.values, 'parameter': execution.parameters, 'input': execution.inputs}

  def read(number, address):
    operand = line.operands[number]
    if operand.source == 'literal':
      return operand.number
    return int(held[operand.source][operand.number].reshape(-1)[address])

  return read


def step_values(execution, number, element):
  """The values of the steps of an element as this party claims them; of no step: its one value."""
  line, fault = execution.published.program.lines[number], execution.fault
  read = reader(execution, line)
  at_fault = fault is not None and (fault.line, fault.element) == (number, element)
  flip = {fault.step: fault.mask} if at_fault else {}
  if scalar.steps(line):
    return scalar.run(line, element, read, flip)
  ref = scalar.origin(line, element)
  return [read(ref.value, ref.address) ^ flip.get(0, 0)]


def corrupt(execution, fault, parameters, inputs):
  """The Execution of a submitter who does `fault` and goes on from there.

  A fault that later roundings swallow changes no result; then the last bit of the first output is
  flipped too, so that there is a result to dispute. The first wrong line is still the fault's.

  Returns:
    None if the fault leaves the line's output as it is.
  """
  changed = execution._replace(fault=fault)
  before = execution.values[fault.line]
  wrong = before.copy()
  value = step_values(changed, fault.line, fault.element)[-1]
  if execution.published.program.lines[fault.line].dtype == 'float32':
    value = int(bops.canon_nan(np, np.array([value], np.uint32))[0])
  wrong.reshape(-1)[fault.element] = value
  if (wrong == before).all():
    return None
  values = consistent.evaluate(execution.published.program, parameters, inputs, np,
                               [*execution.values[:fault.line], wrong])
  outputs = execution.published.program.outputs
  if all((values[n] == execution.values[n]).all() for n in outputs):
    values[outputs[0]] = values[outputs[0]].copy()
    values[outputs[0]].reshape(-1)[0] ^= 1
  return changed._replace(values=tuple(values))


def output_root(execution):
  """What the submitter posts as the result: the root over the outputs' commitments."""
  program = execution.published.program
  return root_over([typed(execution, number) for number in program.outputs])


def typed(execution, number):
  """The output of a line in its dtype."""
  dtype = execution.published.program.lines[number].dtype
  return consistent.from_bits(np, execution.values[number], dtype)


class Trace:
  """The commitments of an Execution, made when a dispute asks for them and then kept."""

  def __init__(self, execution, honest=None):
    """`honest` is a Trace that shares outputs with this one; they are not hashed again."""
    self.execution = execution
    self.program = execution.published.program
    self._honest = honest
    self._leaves = {'parameter': execution.parameters, 'input': execution.inputs}
    self.steps = functools.lru_cache(self._steps)

  @functools.cached_property
  def tensors(self):
    """The committed outputs of all lines."""
    honest = self._honest
    shared = honest.execution.values if honest else (None,) * len(self.execution.values)
    return [honest.tensors[i] if mine is theirs else merkle.commit(typed(self.execution, i))
            for i, (mine, theirs) in enumerate(zip(self.execution.values, shared))]

  @functools.cached_property
  def levels(self):
    """The Merkle tree over them."""
    return merkle.tree([
        merkle.trace_leaf(i, line_hash, tensor.commitment) for i, (line_hash, tensor) in enumerate(
            zip(self.execution.published.hashes, self.tensors))])

  def _steps(self, number, element):
    """(values, tree) of the steps of an element."""
    values = step_values(self.execution, number, element)
    return values, merkle.tree([merkle.step_leaf(i, value) for i, value in enumerate(values)])

  @functools.cached_property
  def leaves(self):
    """{'parameter' or 'input': (tensors, tree over their commitments)}."""
    result = {}
    for source, arrays in self._leaves.items():
      tensors = [merkle.commit(x) for x in _typed_leaves(self.program, source, arrays)]
      result[source] = tensors, merkle.tree([tensor.commitment for tensor in tensors])
    return result


def _typed_leaves(program, source, arrays):
  dtypes = program.parameter_dtypes if source == 'parameter' else program.input_dtypes
  return [consistent.from_bits(np, x, dtype) for x, dtype in zip(arrays, dtypes, strict=True)]


def witness(trace, ref, line, steps):
  """The Witness of what a step reads; `steps` is (values, tree) of its element."""
  if ref.kind == 'step':
    values, levels = steps
    return game.Witness(values[ref.value], merkle.path(levels, ref.value))
  if ref.kind == 'literal' or line.operands[ref.value].source == 'literal':
    return game.Witness()
  source, number = line.operands[ref.value][:2]
  if source == 'line':
    opening = merkle.open_element(trace.tensors[number], ref.address)
    return game.Witness(0, merkle.path(trace.levels, number), opening,
                        trace.execution.published.hashes[number])
  tensors, levels = trace.leaves[source]
  return game.Witness(0, merkle.path(levels, number),
                      merkle.open_element(tensors[number], ref.address))


def _children(levels, depth, index):
  """The two children of the node that `depth` levels lie below."""
  level = levels[depth - 1]
  return level[2 * index], level[2 * index + 1]


def submitter_move(trace, task):
  """(message, arguments) of the submitter in this state; the cheat is in his trace."""
  published = trace.execution.published
  program = published.program
  if task.state == 'TraceDue':
    return 'postTrace', (
        merkle.root_of(trace.levels), len(program.lines), merkle.root_of(published.levels),
        program.outputs, tuple(published.hashes[n] for n in program.outputs),
        tuple(trace.tensors[n].commitment for n in program.outputs),
        tuple(merkle.path(trace.levels, n) for n in program.outputs))
  if task.state == 'BisectLine':
    return 'postChildren', _children(trace.levels, task.depth, task.index)
  number = line_of(published, task)
  line = program.lines[number]
  if task.state == 'LineFound' and task.element >= line.size:  # the line alone decides
    return 'postElement', (graph.encode(line), merkle.path(published.levels, number),
                           game.Witness().opening, merkle.ZERO, ())
  steps = trace.steps(number, task.element)
  if task.state == 'LineFound':
    last = scalar.steps(line) - 1
    return 'postElement', (
        graph.encode(line), merkle.path(published.levels, number),
        merkle.open_element(trace.tensors[number], task.element), merkle.root_of(steps[1]),
        merkle.path(steps[1], last) if last >= 0 else ())
  if task.state == 'BisectStep':
    return 'postChildren', _children(steps[1], task.depth, task.index)
  return 'prove', (graph.encode(line), steps[0][task.index] if task.count else 0,
                   _witnesses(trace, line, steps, task))


def _witnesses(trace, line, steps, task):
  if not task.count:
    return (witness(trace, scalar.origin(line, task.element), line, steps),)
  _, refs = scalar.step(line, task.element, task.index)
  found = tuple(witness(trace, ref, line, steps) for ref in refs)
  return found + (game.Witness(),) * (3 - len(found))


def line_of(published, task):
  """The number of the disputed line."""
  return task.index if task.state == 'LineFound' else published.hashes.index(task.line_hash)


def challenger_move(trace, task, children, tensor, lie=None):
  """(message, arguments) of the challenger in this state.

  Args:
    trace: his own Trace.
    task: the arbiter's game.Task.
    children: what the submitter posted last, while bisecting.
    tensor: the submitter's output of the disputed line, uint32 [size]; looked at in LineFound.
    lie: the Lie of a dishonest one.
  """
  if task.state == 'LineFound':
    if lie is not None:
      return 'nameElement', (lie.element,)
    mine = trace.execution.values[task.index].reshape(-1)
    # None differs if the submitter committed to something else than he publishes: any will do.
    return 'nameElement', (int(np.argmax(mine != tensor)),)
  if lie is not None:
    target = lie.line if task.state == 'BisectLine' else lie.step
    return 'choose', (*children, bool(target >> (task.depth - 1) & 1))
  levels = trace.levels
  if task.state == 'BisectStep':
    number = line_of(trace.execution.published, task)
    levels = trace.steps(number, task.element)[1]
  mine = _children(levels, task.depth, task.index)
  return 'choose', (*children, children[0] == mine[0])


def rounds(lines, steps):
  """Rounds of a dispute: halvings of the lines, naming, halvings of the steps, arbitration."""
  return merkle.depth_of(lines) + 1 + merkle.depth_of(steps) + 1


class Result(NamedTuple):
  """How a dispute went.

  Attributes:
    winner: 'submitter' or 'challenger'.
    line, element: what was pinpointed.
    rounds: bisections, naming and arbitration.
    messages: names in order.
  """
  winner: str
  line: int
  element: int
  rounds: int
  messages: tuple[str, ...]


def dispute(arbiter, number, submitter, challenger, mine, theirs, lie=None, silent=None):
  """Plays a challenged task to the end of its dispute.

  Args:
    arbiter: game.PyArbiter or evm.EvmArbiter.
    number: of the task, in state TraceDue.
    submitter, challenger: their addresses.
    mine, theirs: the Traces of submitter and challenger.
    lie: Lie of a dishonest challenger.
    silent: name of the message at which its party stops answering.

  Returns:
    Result.
  """
  messages, children, line, count = [], (), -1, 0
  while True:
    task = arbiter.task(number)
    if task.state in ('Submitted', *game.FINAL):
      winner = 'challenger' if task.state == 'Rejected' else 'submitter'
      return Result(winner, line, task.element, count, tuple(messages))
    if task.state == 'LineFound':
      line = task.index
    if task.submitter_moves:
      sender, (name, arguments) = submitter, submitter_move(mine, task)
      children = arguments
    else:
      tensor = mine.execution.values[task.index].reshape(-1) if task.state == 'LineFound' else None
      sender = challenger
      name, arguments = challenger_move(theirs, task, children, tensor, lie)
    try:
      if name == silent:
        raise game.Refused('silent')
      arbiter.send(sender, name, number, *arguments)
    except game.Refused:  # who cannot answer runs out of time
      arbiter.mine(arbiter.money.move_timeout + 1)
      name = 'settle'
      arbiter.send(challenger if task.submitter_moves else submitter, name, number)
    count += name in ('choose', 'nameElement', 'prove')
    messages.append(name)

