"""The arbiter as a pure function of messages: what contract/Arbiter.sol does, in Python.

  Requested --submit--> Submitted --(window passes)--> Accepted
  Submitted --challenge--> TraceDue --postTrace--> BisectLine --...--> LineFound
  LineFound --nameElement, postElement--> BisectStep --...--> StepFound --prove--> the dispute's end
  any state that waits for a party --(deadline)--> the other party wins
  Requested --(deadline)--> Refunded

If the challenger wins, the task ends Rejected. If the submitter wins, it is Submitted again with a
new window: a third party may still challenge, so that nobody can shield a wrong result by losing a
dispute about it on purpose. Part of the loser's deposit is burnt, so that it is never free.
"""
from typing import Any, NamedTuple

from jaxlab import config as config_lib
from jaxlab.systems.agatha import bops, graph, merkle, scalar

STATES = ('None', 'Requested', 'Submitted', 'TraceDue', 'BisectLine', 'LineFound', 'BisectStep',
          'StepFound', 'Accepted', 'Rejected', 'Refunded')
FINAL = ('Accepted', 'Rejected', 'Refunded')
NOBODY = None


class Refused(ValueError):  # noqa: N818
  """A message that the arbiter does not accept, by the name of the contract's error.

  'Malformed' is what the contract's interface has no message or no encoding for.
  """


class Money(NamedTuple):
  """What the arbiter is deployed with.

  Attributes:
    submitter_deposit, challenger_deposit: in wei.
    burn_percent: share of the loser's deposit that is burnt, 0..100; the winner gets the rest.
    challenge_window, move_timeout: in blocks.
  """
  submitter_deposit: int = 1000
  challenger_deposit: int = 1000
  burn_percent: int = 50
  challenge_window: int = 100
  move_timeout: int = 20


def check_money(money):
  """Raises ConfigError unless the deposits, share and deadlines make sense."""
  for key, value in money._asdict().items():
    most = 100 if key == 'burn_percent' else 2**64
    config_lib.require(0 <= value <= most, key, f'0 to {most}', value)


class Task(NamedTuple):
  """The state of one task; the fields of the contract's struct."""
  state: str
  requester: Any
  fee: int
  program: bytes
  parameters: bytes
  inputs: bytes
  submitter_moves: bool = True
  deadline: int = 0
  submitter: Any = NOBODY
  challenger: Any = NOBODY
  output: bytes = merkle.ZERO
  trace_root: bytes = merkle.ZERO
  line_root: bytes = merkle.ZERO
  node: bytes = merkle.ZERO
  depth: int = 0
  index: int = 0
  count: int = 0
  element: int = 0
  value: int = 0
  line_hash: bytes = merkle.ZERO
  step_root: bytes = merkle.ZERO


class Witness(NamedTuple):
  """What a BOP reads, opened: a step's value and path, or a tensor's element and the path of its
  commitment in the trace (with its line's hash), the parameters or the inputs."""
  value: int = 0
  path: tuple[bytes, ...] = ()
  opening: merkle.Opening = merkle.Opening(1, (), merkle.ZERO, bytes(merkle.CHUNK), ())
  line_hash: bytes = merkle.ZERO


def _uint(bits):
  return lambda x: isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << bits


def _many(fits):
  return lambda x: isinstance(x, tuple | list) and all(map(fits, x))


def _struct(kind, *fields):
  return lambda x: isinstance(x, kind) and all(fits(field) for fits, field in zip(fields, x))


def _bytes(x):
  return isinstance(x, bytes)


def _word(x):
  return _bytes(x) and len(x) == 32


def _bool(x):
  return isinstance(x, bool)


def _shape(x):
  return _many(_uint(64))(x) and len(x) < 256


_words, _u64, _task = _many(_word), _uint(64), _uint(256)
_opening = _struct(merkle.Opening, _uint(8), _shape, _word, _bytes, _words)
_witness = _struct(Witness, _u64, _words, _opening, _word)
_ARGUMENTS = {  # as the contract's interface declares them
    'request': (_word, _word, _word), 'submit': (_task, _word), 'settle': (_task,),
    'withdraw': (), 'challenge': (_task, _word),
    'postTrace': (_task, _word, _u64, _word, _many(_u64), _words, _words, _many(_words)),
    'postChildren': (_task, _word, _word), 'choose': (_task, _word, _word, _bool),
    'nameElement': (_task, _u64), 'postElement': (_task, _bytes, _words, _opening, _word, _words),
    'prove': (_task, _bytes, _u64, _many(_witness)),
}
_PAYABLE = ('request', 'submit', 'challenge')


def check_call(name, arguments, value):
  """Raises Refused unless the contract's interface has a message like this, so paid or not."""
  expected = _ARGUMENTS.get(name)
  _require(expected is not None and len(arguments) == len(expected) and all(
      fits(argument) for fits, argument in zip(expected, arguments)), 'Malformed')
  _require(value == 0 or name in _PAYABLE and _uint(256)(value), 'WrongPayment')


class Ledger(NamedTuple):
  """Everything that the arbiter stores: tasks in order, what it owes to whom, what is burnt."""
  tasks: tuple[Task, ...] = ()
  credit: dict = {}
  burnt: int = 0


class Call(NamedTuple):
  """One message: its name, sender, payment, arguments, and the block it is in."""
  name: str
  sender: Any
  value: int
  block: int
  arguments: tuple


def _require(condition, error):
  if not condition:
    raise Refused(error)


def apply(money, ledger, call):
  """The Ledger after a message.

  Raises:
    Refused: the message is malformed, not allowed now, comes from the wrong party, is paid wrongly
      or proves nothing; nothing has changed.
  """
  check_call(call.name, call.arguments, call.value)
  if call.name == 'withdraw':
    return ledger._replace(credit={**ledger.credit, call.sender: 0})
  if call.name == 'request':
    task = Task('Requested', call.sender, call.value, *call.arguments)
    return ledger._replace(tasks=(*ledger.tasks, _next(money, task, call, 'Requested', True)))
  number, *arguments = call.arguments
  _require(number < len(ledger.tasks), 'WrongState')
  task, paid, burnt = _MESSAGES[call.name](money, ledger.tasks[number], call, *arguments)
  credit = dict(ledger.credit)
  for party, amount in paid:
    credit[party] = credit.get(party, 0) + amount
  tasks = (*ledger.tasks[:number], task, *ledger.tasks[number + 1:])
  return Ledger(tasks, credit, ledger.burnt + burnt)


def _next(money, task, call, state, submitter_moves):
  wait = money.challenge_window if state == 'Submitted' else money.move_timeout
  return task._replace(state=state, submitter_moves=submitter_moves, deadline=call.block + wait)


def _waiting(task, call, state):
  _require(task.state == state, 'WrongState')
  _require(call.block <= task.deadline, 'TooLate')


def _moving(task, call, state, submitter):
  _waiting(task, call, state)
  _require(task.submitter_moves == submitter, 'WrongState')
  _require(call.sender == (task.submitter if submitter else task.challenger), 'WrongRole')


def _submit(money, task, call, output):
  _waiting(task, call, 'Requested')
  _require(call.value == money.submitter_deposit, 'WrongPayment')
  task = task._replace(submitter=call.sender, output=output)
  return _next(money, task, call, 'Submitted', False), (), 0


def _settle(money, task, call):
  _require(task.state not in FINAL, 'WrongState')
  _require(call.block > task.deadline, 'TooEarly')
  if task.state == 'Requested':
    return task._replace(state='Refunded'), [(task.requester, task.fee)], 0
  if task.state == 'Submitted':
    paid = [(task.submitter, task.fee + money.submitter_deposit)]
    return task._replace(state='Accepted'), paid, 0
  return _end(money, task, call, not task.submitter_moves)


def _end(money, task, call, submitter_won):
  """The end of a dispute."""
  lost = money.challenger_deposit if submitter_won else money.submitter_deposit
  burnt = lost * money.burn_percent // 100
  if submitter_won:
    paid = [(task.submitter, lost - burnt)]
    return _next(money, task._replace(challenger=NOBODY), call, 'Submitted', False), paid, burnt
  paid = [(task.challenger, money.challenger_deposit + lost - burnt), (task.requester, task.fee)]
  return task._replace(state='Rejected', submitter_moves=False), paid, burnt


def _challenge(money, task, call, output):
  _waiting(task, call, 'Submitted')
  _require(call.value == money.challenger_deposit, 'WrongPayment')
  _require(output != task.output, 'BadProof')
  return _next(money, task._replace(challenger=call.sender), call, 'TraceDue', True), (), 0


def _post_trace(money, task, call, root, count, line_root, outputs, hashes, commitments, paths):
  _moving(task, call, 'TraceDue', True)
  header = b'\x05' + count.to_bytes(8, 'big') + line_root
  # With too few hashes or paths the header ends too early; too many are not looked at.
  _require(0 < len(outputs) == len(commitments), 'BadProof')
  for number, line_hash, commitment, path in zip(outputs, hashes, commitments, paths):
    header += number.to_bytes(8, 'big')
    leaf = merkle.trace_leaf(number, line_hash, commitment)
    _require(merkle.climb(leaf, number, path) == root, 'BadProof')
  _require(merkle.keccak256(header) == task.program, 'BadProof')
  _require(merkle.root_of(merkle.tree(commitments)) == task.output, 'BadProof')
  task = task._replace(trace_root=root, line_root=line_root)
  return _bisect(money, task, call, 'BisectLine', root, count)


def _bisect(money, task, call, state, root, count):
  task = task._replace(node=root, index=0, depth=merkle.depth_of(count), count=count)
  return _arrive(money, task, call, state)


def _arrive(money, task, call, state):
  if task.depth:
    return _next(money, task, call, state, True), (), 0
  if task.index >= task.count:  # a padding leaf
    return _end(money, task, call, task.node == merkle.ZERO)
  found = ('LineFound', False) if state == 'BisectLine' else ('StepFound', True)
  return _next(money, task, call, *found), (), 0


def _bisecting(task, call, submitter, left, right):
  state = task.state if task.state == 'BisectStep' else 'BisectLine'
  _moving(task, call, state, submitter)
  _require(merkle.node(left, right) == task.node, 'BadProof')


def _post_children(money, task, call, left, right):
  _bisecting(task, call, True, left, right)
  return _next(money, task, call, task.state, False), (), 0


def _choose(money, task, call, left, right, go_right):
  _bisecting(task, call, False, left, right)
  task = task._replace(node=right if go_right else left, index=2 * task.index + int(go_right),
                       depth=task.depth - 1)
  return _arrive(money, task, call, task.state)


def _name_element(money, task, call, element):
  _moving(task, call, 'LineFound', False)
  return _next(money, task._replace(element=element), call, 'LineFound', True), (), 0


def _decode(data):
  try:
    return graph.decode(data)
  except ValueError as error:
    raise Refused('BadProof') from error


def _post_element(money, task, call, data, line_path, opening, step_root, last_path):
  _moving(task, call, 'LineFound', True)
  line_hash = merkle.keccak256(b'\x06' + data)
  _require(merkle.climb(line_hash, task.index, line_path) == task.line_root, 'BadProof')
  line = _decode(data)
  if task.element >= line.size:
    return _end(money, task, call, True)
  proved = merkle.opened(opening, task.element)
  _require(proved is not None, 'BadProof')
  commitment, value = proved
  _require(merkle.trace_leaf(task.index, line_hash, commitment) == task.node, 'BadProof')
  _require((opening.dtype, tuple(opening.shape)) == (merkle.DTYPES[line.dtype], line.shape),
           'BadProof')
  count = scalar.steps(line)
  task = task._replace(line_hash=line_hash, step_root=step_root, value=value)
  if not count:
    return _next(money, task._replace(count=0), call, 'StepFound', True), (), 0
  leaf = merkle.step_leaf(count - 1, value)
  _require(merkle.climb(leaf, count - 1, last_path) == step_root, 'BadProof')
  return _bisect(money, task, call, 'BisectStep', step_root, count)


def _prove(money, task, call, data, value, witnesses):
  _moving(task, call, 'StepFound', True)
  _require(merkle.keccak256(b'\x06' + data) == task.line_hash, 'BadProof')
  line = _decode(data)
  if not task.count:
    _require(witnesses, 'BadProof')
    ref, value = scalar.origin(line, task.element), task.value
    truth = _read(task, line, ref, witnesses, 0)
  else:
    _require(merkle.step_leaf(task.index, value) == task.node, 'BadProof')
    name, refs = scalar.step(line, task.element, task.index)
    # A packed step of a MAP has room for three operands, and the contract goes through all.
    _require(len(witnesses) >= (3 if line.kind == 'MAP' else len(refs)), 'BadProof')
    truth = bops.python_bop(name, *(_read(task, line, ref, witnesses, i)
                                    for i, ref in enumerate(refs)))
  return _end(money, task, call, truth == value)


def _read(task, line, ref, witnesses, number):
  """The value that a Ref stands for, if its witness proves it."""
  if ref.kind == 'literal':
    return ref.value
  if ref.kind == 'element' and line.operands[ref.value].source == 'literal':
    return line.operands[ref.value].number
  witness = witnesses[number]
  if ref.kind == 'step':
    leaf = merkle.step_leaf(ref.value, witness.value)
    _require(merkle.climb(leaf, ref.value, witness.path) == task.step_root, 'BadProof')
    return witness.value
  operand = line.operands[ref.value]
  proved = merkle.opened(witness.opening, ref.address)
  _require(proved is not None, 'BadProof')
  leaf, value = proved
  root = {'line': task.trace_root, 'parameter': task.parameters, 'input': task.inputs}[
      operand.source]
  if operand.source == 'line':
    leaf = merkle.trace_leaf(operand.number, witness.line_hash, leaf)
  _require(merkle.climb(leaf, operand.number, witness.path) == root, 'BadProof')
  return value


_MESSAGES = {'submit': _submit, 'settle': _settle, 'challenge': _challenge,
             'postTrace': _post_trace, 'postChildren': _post_children, 'choose': _choose,
             'nameElement': _name_element, 'postElement': _post_element, 'prove': _prove}


class PyArbiter:
  """An arbiter in this process with the interface of `evm.EvmArbiter`: blocks and messages."""

  def __init__(self, money):
    check_money(money)
    self.money, self.ledger, self.block = money, Ledger(), 0
    self.paid = 0  # by all parties together
    self.withdrawn = 0
    self.log = []  # (message, bytes, gas) of what was accepted

  def party(self, name):
    """The address of a new party."""
    return name

  def send(self, sender, name, *arguments, value=0):
    """Applies a message in a block of its own; raises Refused."""
    self.block += 1
    call = Call(name, sender, value, self.block, arguments)
    due = self.ledger.credit.get(sender, 0) if name == 'withdraw' else 0
    self.ledger = apply(self.money, self.ledger, call)
    self.paid += value
    self.withdrawn += due
    self.log.append((name, message_bytes(arguments), 0))

  def request(self, sender, *roots, fee):
    """Sends 'request'; returns the number of the task."""
    self.send(sender, 'request', *roots, value=fee)
    return len(self.ledger.tasks) - 1

  def mine(self, blocks):
    """Lets time pass."""
    self.block += blocks

  def task(self, number):
    """The Task."""
    return self.ledger.tasks[number]

  def credit(self, party):
    """What the arbiter owes to a party."""
    return self.ledger.credit.get(party, 0)

  def burnt(self):
    """What is burnt."""
    return self.ledger.burnt

  def balance(self):
    """What the arbiter holds, burnt money included."""
    return self.paid - self.withdrawn


def message_bytes(arguments):
  """Bytes of a message's arguments in 32-byte words, as calldata packs them, heads left out."""
  if isinstance(arguments, bytes):
    return -(-len(arguments) // 32) * 32
  return sum(map(message_bytes, arguments)) if isinstance(arguments, tuple | list) else 32
