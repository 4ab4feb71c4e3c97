"""The protocol on the Python arbiter: who wins, what is pinpointed, what is refused, the money."""
import functools
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from jaxlab.config import ConfigError
from jaxlab.systems.agatha import consistent, game, lowering, merkle, parties, play, scalar

MONEY = game.Money()
SMALL = {'model': {'name': 'cnn', 'features': (2, 2)}, 'shape': (1, 4, 4, 1), 'seed': 0}


@functools.cache
def small(mode='ordered'):
  """A Case of more than 100 lines."""
  return play.make_case({**SMALL, 'mode': mode})


def tiny(seed):
  """A Case of a random program of a few lines."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, 3)).astype(np.float32)
  w = rng.normal(size=(3, int(rng.integers(1, 4)))).astype(np.float32)
  tails = [jnp.tanh, lambda y: y.max(0), lambda y: jnp.concatenate([y, -y]), lambda y: y.sum(),
           lambda y: jnp.pad(y, 1), lambda y: jnp.where(y > 0, y, y / 3)]
  picked = [tails[i] for i in rng.integers(len(tails), size=2)]
  def function(w, x):
    y = x @ w
    for tail in picked:
      y = tail(y) if y.ndim == 2 else y * 2
    return y
  return case_of(function, w, x, lowering.MODES[int(rng.integers(2))])


def case_of(function, parameters, x, mode='ordered'):
  """A Case of a function of (parameters, x)."""
  published = parties.publish(lowering.lower(function, parameters, x, mode=mode))
  case = play.Case(function, parameters, (x,), published, None)
  return case._replace(trace=parties.Trace(parties.execute(published, case.leaves, (x,))))


def owed(arbiter):
  return sum(arbiter.credit(arbiter.party(name))
             for name in ('requester', 'submitter', 'challenger'))


def check_money(test, arbiter, fee, disputed):
  """Money in is money owed and burnt, once every task has ended."""
  test.assertEqual(arbiter.balance(), owed(arbiter) + arbiter.burnt())
  deposits = MONEY.submitter_deposit + disputed * MONEY.challenger_deposit
  test.assertEqual(arbiter.balance(), fee + deposits)


class CheatTest(parameterized.TestCase):

  @parameterized.parameters(*lowering.MODES)
  def test_any_line(self, mode):
    case, rng = small(mode), np.random.default_rng(0)
    lines = case.published.program.lines
    self.assertGreater(len(lines), 100)
    for number, line in enumerate(lines):
      fault = play.random_fault(case, number, rng)
      arbiter = game.PyArbiter(MONEY)
      result = play.play(arbiter, case, fault=fault)
      where = (number, line.kind, line.name)
      self.assertEqual((result.winner, result.line, result.element),
                       ('challenger', number, fault.element), where)
      self.assertEqual(result.rounds, play.expected_rounds(case, number), where)
      self.assertEqual(arbiter.credit('challenger'),
                       MONEY.challenger_deposit + MONEY.submitter_deposit // 2)
      check_money(self, arbiter, 100, True)

  def test_lies_about_every_kind(self):
    case, rng = small(), np.random.default_rng(1)
    for line in play.one_of_each(case.published.program, rng).values():
      arbiter = game.PyArbiter(MONEY)
      result = play.play(arbiter, case, lie=play.random_lie(case, line, rng))
      self.assertEqual((result.winner, result.line), ('submitter', line))
      self.assertEqual(arbiter.credit('submitter'),
                       100 + MONEY.submitter_deposit + MONEY.challenger_deposit // 2)
      check_money(self, arbiter, 100, True)

  def test_random_games(self):
    games = 0
    for seed in range(50):
      case, rng = tiny(seed), np.random.default_rng(seed)
      lines = case.published.program.lines
      for _ in range(4):
        number = int(rng.integers(len(lines)))
        line = lines[number]
        element = int(rng.integers(line.size))
        step = int(rng.integers(max(scalar.steps(line), 1)))
        arbiter, silent = game.PyArbiter(MONEY), None
        if rng.random() < .5:
          mask = 1 << int(rng.integers(20))
          fault = parties.Fault(number, element, step, mask)
          if parties.corrupt(case.trace.execution, fault, case.leaves, case.inputs) is None:
            fault = play.random_fault(case, number, rng)
          if rng.random() < .3:
            silent = str(rng.choice(['postTrace', 'postElement', 'prove', 'postChildren']))
          result = play.play(arbiter, case, fault=fault, silent=silent)
          self.assertEqual(result.winner, 'challenger', (seed, fault, silent))
          state = 'Rejected'
        else:
          if rng.random() < .3:
            silent = str(rng.choice(['nameElement', 'choose']))
          result = play.play(arbiter, case, lie=parties.Lie(number, element, step), silent=silent)
          self.assertEqual(result.winner, 'submitter', (seed, number, element, step, silent))
          state = 'Accepted'
        self.assertEqual(arbiter.task(0).state, state)
        check_money(self, arbiter, 100, True)
        games += 1
    self.assertEqual(games, 200)

  def test_the_undisputed_path_hashes_no_trace(self):
    with mock.patch.object(merkle, 'keccak256', wraps=merkle.keccak256) as hashes:
      case = play.make_case({**SMALL, 'mode': 'ordered'})
      self.assertIsNone(play.play(game.PyArbiter(MONEY), case))
      paid = hashes.call_count
      hashes.reset_mock()
      parties.publish(case.published.program)
      parties.root_over([*case.leaves, *case.published.program.constants])
      parties.root_over(case.inputs)
      parties.output_root(case.trace.execution)
      parties.output_root(case.trace.execution)
      self.assertEqual(paid, hashes.call_count)

  def test_a_platform_that_differs_commits_nothing(self):
    with (mock.patch.object(merkle, 'keccak256') as hashes,
          mock.patch.object(play.platform, 'check_platform',
                            side_effect=play.platform.PlatformError('add'))):
      with self.assertRaisesRegex(play.platform.PlatformError, 'add'):
        play.make_case({**SMALL, 'mode': 'ordered'})
      hashes.assert_not_called()

  def test_a_program_without_parameters(self):
    case = case_of(lambda _, x: x * 2, {}, np.ones((2, 3), np.float32))
    result = play.play(game.PyArbiter(MONEY), case, fault=parties.Fault(0, 4, 0, 1))
    self.assertEqual((result.winner, result.element), ('challenger', 4))

  def test_an_honest_submitter_of_any_nan(self):
    patterns = np.array([0x3f800000, 0x7f800001], np.int32)
    case = case_of(lambda _, x: lax.bitcast_convert_type(x, jnp.float32), {}, patterns)
    result = play.play(game.PyArbiter(MONEY), case, lie=parties.Lie(0, 1, 0))
    self.assertEqual(result.winner, 'submitter')

  def test_a_fault_that_changes_nothing(self):
    case = case_of(lambda _, x: x * 2, {}, np.full(1, np.nan, np.float32))
    with self.assertRaisesRegex(ConfigError, 'fault: expected one that changes'):
      play.play(game.PyArbiter(MONEY), case, fault=parties.Fault(0, 0, 0, 1))

  def test_a_commitment_to_something_else_than_is_published(self):
    trace = small().trace
    task = game.Task('LineFound', 'requester', 0, *(merkle.ZERO,) * 3, index=2)
    move = parties.challenger_move(trace, task, (), trace.execution.values[2].reshape(-1))
    self.assertEqual(move, ('nameElement', (0,)))

  def test_the_result_is_that_of_the_evaluator(self):
    case = small()
    got = consistent.consistent(case.function)(case.variables, *case.inputs)
    np.testing.assert_array_equal(
        np.asarray(got), parties.typed(case.trace.execution, case.published.program.outputs[0]))


class Script:
  """A task brought to a state by honest messages of a cheat's dispute, one at a time."""

  def __init__(self, arbiter, case, line=1):
    self.arbiter, self.case = arbiter, case
    fault = play.random_fault(case, line, np.random.default_rng(0))
    self.wrong = parties.Trace(parties.corrupt(case.trace.execution, fault, case.leaves,
                                               case.inputs), case.trace)
    self.requester, self.submitter, self.challenger, self.other = map(
        arbiter.party, ('requester', 'submitter', 'challenger', 'other'))
    self.number, self.children = None, ()

  def next(self):
    """(sender, name, arguments without the task's number, value) of the next message."""
    if self.number is None:
      roots = (self.case.published.digest,
               parties.root_over([*self.case.leaves, *self.case.published.program.constants]),
               parties.root_over(self.case.inputs))
      return self.requester, 'request', roots, 100
    task = self.arbiter.task(self.number)
    if task.state == 'Requested':
      return (self.submitter, 'submit', (parties.output_root(self.wrong.execution),),
              MONEY.submitter_deposit)
    if task.state == 'Submitted':
      return (self.challenger, 'challenge', (parties.output_root(self.case.trace.execution),),
              MONEY.challenger_deposit)
    if task.submitter_moves:
      name, arguments = parties.submitter_move(self.wrong, task)
      self.children = arguments
      return self.submitter, name, arguments, 0
    tensor = self.wrong.execution.values[task.index].reshape(-1) if (
        task.state == 'LineFound') else None
    return (self.challenger, *parties.challenger_move(self.case.trace, task, self.children, tensor),
            0)

  def send(self):
    """Sends the next message; returns it."""
    sender, name, arguments, value = message = self.next()
    if name == 'request':
      self.number = self.arbiter.request(sender, *arguments, fee=value)
    else:
      self.arbiter.send(sender, name, self.number, *arguments, value=value)
    return message

  def until(self, name):
    """Sends all messages before the first of this name."""
    while self.next()[1] != name:
      self.send()


def spoilt(name, argument):
  """(error, a variant of an argument of a message) of every way to spoil it."""
  if isinstance(argument, bool):
    yield 'Malformed', 2
  elif isinstance(argument, int):
    yield from (('Malformed', wrong) for wrong in (-1, 2**64))
  elif isinstance(argument, merkle.Opening):
    yield 'BadProof', argument._replace(chunk=b'\xff' * len(argument.chunk))
    yield 'BadProof', argument._replace(chunk=argument.chunk[1:])
    yield 'BadProof', argument._replace(dtype=argument.dtype % 4 + 1)
    yield 'BadProof', argument._replace(shape=(*argument.shape, 1))
    yield 'Malformed', argument._replace(dtype=256)
    yield 'Malformed', argument._replace(shape=(*argument.shape, -1))
    yield 'Malformed', argument._replace(root=argument.root + b'\0')
  elif isinstance(argument, bytes) and len(argument) == 32:
    yield 'Malformed', argument[1:]
    yield 'Malformed', argument + b'\0'
    if name not in ('submit', 'challenge'):
      yield 'BadProof', bytes(31) + b'\x01'
  elif name == 'prove' and isinstance(argument, tuple):
    first = argument[0]
    yield 'BadProof', (first._replace(path=(*first.path, merkle.ZERO), value=12345), *argument[1:])
    yield 'Malformed', (first._replace(value=2**64), *argument[1:])
    yield 'Malformed', (first._replace(path=(b'',)), *argument[1:])
    yield 'BadProof|Panic', argument[1:] if len(argument) == 1 else argument[:1]
  elif isinstance(argument, tuple) and isinstance(argument[0], bytes):
    yield 'Malformed', (argument[0][1:], *argument[1:])


def malformed(name, arguments):
  """(error, a variant of a message's arguments with one of them spoilt)."""
  yield 'Malformed', arguments[1:]
  for i, argument in enumerate(arguments):
    for error, wrong in spoilt(name, argument):
      yield error, (*arguments[:i], wrong, *arguments[i + 1:])
  if name == 'postTrace':
    root, count, lines, *lists = arguments
    yield 'Malformed', (root, count, lines + lists[0][0].to_bytes(8, 'big'), *((),) * 4)
    yield 'BadProof', (root, count, lines, lists[0][1:], *lists[1:])
    yield 'BadProof|Panic', (root, count, lines, lists[0], (), *lists[2:])


DISPUTE = ('submit', 'challenge', 'postTrace', 'postChildren', 'choose', 'nameElement',
           'postElement', 'prove')


def check_refusals(test, arbiter, case):
  """Walks through a dispute; before each kind of message, what must be refused is refused."""
  script, seen = Script(arbiter, case), set()
  script.send()
  while not seen >= set(DISPUTE):
    sender, name, arguments, value = script.next()
    if name not in seen:
      send = functools.partial(arbiter.send, value=value)
      number, before = script.number, arbiter.task(script.number)
      if name not in ('submit', 'challenge'):
        with test.assertRaisesRegex(game.Refused, 'WrongRole'):
          send(script.other, name, number, *arguments)
      else:
        with test.assertRaisesRegex(game.Refused, 'WrongPayment'):
          arbiter.send(sender, name, number, *arguments, value=value - 1)
      for error, wrong in malformed(name, arguments):
        with test.assertRaisesRegex(game.Refused, error, msg=(name, wrong)):
          send(sender, name, number, *wrong)
      for wrong in (-1, 2**256):
        with test.assertRaisesRegex(game.Refused, 'Malformed'):
          send(sender, name, wrong, *arguments)
      with test.assertRaisesRegex(game.Refused, 'WrongPayment'):
        arbiter.send(sender, name, number, *arguments, value=value + 1)
      with test.assertRaisesRegex(game.Refused, 'TooEarly'):
        arbiter.send(script.other, 'settle', number)
      test.assertEqual(arbiter.task(number), before)
      seen.add(name)
    last = script.send()
    if name in ('postTrace', 'postElement', 'submit'):  # a replay
      with test.assertRaisesRegex(game.Refused, 'WrongState'):
        arbiter.send(last[0], name, script.number, *last[2], value=last[3])
  test.assertEqual(arbiter.task(script.number).state, 'Rejected')
  with test.assertRaisesRegex(game.Refused, 'WrongState'):
    arbiter.send(script.other, 'settle', script.number)
  balance = arbiter.balance()
  for error, name, arguments, value in (
      ('Malformed', 'burn', (script.number,), 0), ('WrongPayment', 'withdraw', (), 7),
      ('WrongPayment', 'request', (merkle.ZERO,) * 3, -5),
      ('Malformed', 'request', (merkle.ZERO,) * 2, 5)):
    with test.assertRaisesRegex(game.Refused, error):
      arbiter.send(script.other, name, *arguments, value=value)
  test.assertEqual(arbiter.balance(), balance)


def check_an_element_that_is_not_there(test, arbiter):
  """A challenger who names one has lost; the honest submitter has an answer to it."""
  lie = parties.Lie(1, 10**6, 0)
  result = play.play(arbiter, small(), lie=lie)
  test.assertEqual((result.winner, result.messages[-1]), ('submitter', 'postElement'))


class RefusalTest(parameterized.TestCase):

  def test_wrong_roles_payments_proofs_and_replays(self):
    check_refusals(self, game.PyArbiter(MONEY), small())

  def test_a_trace_without_outputs(self):
    arbiter = game.PyArbiter(MONEY)
    program = merkle.keccak256(b'\x05' + (1).to_bytes(8, 'big') + merkle.ZERO)
    number = arbiter.request('requester', program, merkle.ZERO, merkle.ZERO, fee=0)
    arbiter.send('submitter', 'submit', number, merkle.ZERO, value=MONEY.submitter_deposit)
    arbiter.send('challenger', 'challenge', number, program, value=MONEY.challenger_deposit)
    with self.assertRaisesRegex(game.Refused, 'BadProof'):
      arbiter.send('submitter', 'postTrace', number, merkle.ZERO, 1, merkle.ZERO, *((),) * 4)

  def test_an_element_that_is_not_there(self):
    check_an_element_that_is_not_there(self, game.PyArbiter(MONEY))

  @parameterized.parameters(
      ('submit', 'Refunded'), ('challenge', 'Accepted'), ('postTrace', 'Rejected'),
      ('postChildren', 'Rejected'), ('choose', 'Submitted'), ('nameElement', 'Submitted'),
      ('postElement', 'Rejected'), ('prove', 'Rejected'))
  def test_the_clock(self, name, state):
    arbiter = game.PyArbiter(MONEY)
    script = Script(arbiter, small())
    script.send()
    script.until(name)
    sender, _, arguments, value = script.next()
    window = arbiter.task(script.number).state == 'Submitted'
    arbiter.mine((MONEY.challenge_window if window else MONEY.move_timeout) + 1)
    with self.assertRaisesRegex(game.Refused, 'TooLate'):
      arbiter.send(sender, name, script.number, *arguments, value=value)
    arbiter.send(script.other, 'settle', script.number)
    self.assertEqual(arbiter.task(script.number).state, state)
    self.assertEqual(arbiter.balance() - arbiter.burnt() - owed(arbiter),
                     100 + MONEY.submitter_deposit if state == 'Submitted' else 0)

  def test_no_stuck_state_after_a_lost_challenge(self):
    arbiter = game.PyArbiter(MONEY)
    script = Script(arbiter, small())
    script.send()
    script.until('nameElement')
    arbiter.mine(MONEY.move_timeout + 1)
    arbiter.send(script.submitter, 'settle', script.number)  # a crony loses on purpose
    while arbiter.task(script.number).state != 'Rejected':  # and an honest third party wins
      script.send()
    self.assertEqual(owed(arbiter) + arbiter.burnt(), arbiter.balance())

  def test_withdrawal_and_deposits(self):
    arbiter = game.PyArbiter(MONEY)
    play.play(arbiter, small())
    due = arbiter.credit('submitter')
    self.assertEqual(due, 100 + MONEY.submitter_deposit)
    arbiter.send('submitter', 'withdraw')
    self.assertEqual((arbiter.credit('submitter'), arbiter.balance()), (0, 0))
    with self.assertRaisesRegex(ConfigError, 'burn_percent: expected 0 to 100, got 101'):
      game.PyArbiter(MONEY._replace(burn_percent=101))


class MerkleTest(parameterized.TestCase):

  @parameterized.parameters(((),), ((9,),), ((3, 5),), ((0,),), ((17000,),))
  def test_openings(self, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tensor = merkle.commit(array)
    for index in {0, max(array.size - 1, 0)}:
      opening = merkle.open_element(tensor, index)
      commitment, value = merkle.opened(opening, index)
      self.assertEqual(commitment, tensor.commitment)
      if array.size:
        self.assertEqual(value, array.reshape(-1)[index].view(np.uint32))
      chunk = bytes([opening.chunk[0] ^ 1]) + opening.chunk[1:]
      self.assertIsNone(merkle.opened(opening._replace(chunk=chunk), index))
      self.assertIsNone(merkle.opened(opening, index + 256 * (1 << len(opening.path))))
      for change in ({'dtype': 2}, {'shape': (*shape, 1)}):
        wrong = merkle.opened(opening._replace(**change), index)
        self.assertTrue(wrong is None or wrong[0] != commitment)

  def test_dtypes(self):
    same = merkle.commit(np.array([0x7fc00000, 0], np.uint32).view(np.float32)).commitment
    other = np.array([0xffc00001, 0], np.uint32)
    self.assertEqual(merkle.commit(other.view(np.float32)).commitment, same)
    self.assertNotEqual(merkle.commit(other.view(np.int32)).commitment, same)
    with self.assertRaisesRegex(TypeError, 'float64'):
      merkle.commit(np.zeros(3))

  def test_doubled_leaves_are_another_tree(self):
    leaves = [bytes([i]) * 32 for i in range(3)]
    self.assertNotEqual(merkle.root_of(merkle.tree(leaves)),
                        merkle.root_of(merkle.tree([*leaves, leaves[-1]])))
    self.assertIsNone(merkle.climb(leaves[0], 4, merkle.path(merkle.tree(leaves), 0)))


if __name__ == '__main__':
  absltest.main()
