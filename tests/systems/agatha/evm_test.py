"""The contract on an EVM in this process: its arithmetic, its decisions, its gas, its artefact."""
import functools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxlab.systems.agatha import bops, evm, game, merkle, play
from tests import golden_reader
from tests.systems.agatha import bops_test, game_test

GOLDEN = golden_reader.Golden('agatha')


@functools.cache
def arbiter():
  """One deployed contract for all tests."""
  return evm.EvmArbiter(game_test.MONEY)


def golden_pairs(rows):
  """(mode, BOP, operands, results) of these rows of the golden pairs."""
  a, b = GOLDEN['bop_a'][rows], GOLDEN['bop_b'][rows]
  for mode in bops.MODES:
    for name in (*bops_test.BINARY, 'sqrt'):
      yield mode, name, (a, b)[:bops.BOPS[name].arity], GOLDEN[f'{name}_{mode}'][rows]


class ArithmeticTest(parameterized.TestCase):

  def check(self, rows):
    for mode, name, args, want in golden_pairs(rows):
      got, gas = arbiter().bop(name, *args, mode=mode)
      np.testing.assert_array_equal(got, want, f'{name} {mode}')
      self.assertLess(gas, 3000, name)

  def test_a_sample_of_the_golden_pairs(self):
    self.check(np.arange(7, 5500, 229))

  @pytest.mark.slow
  def test_all_golden_pairs(self):
    for first in range(0, 5500, 500):
      self.check(np.arange(first, first + 500))

  def test_every_bop_is_that_of_python(self):
    rng = np.random.default_rng(0)
    for name, bop in bops.BOPS.items():
      args = bops_test.operands(name, rng, 12)
      if name in ('imac', 'pack'):
        args = [rng.integers(0, 2**64, 12, np.uint64), *args[1:3]]
      bits = (20,) if name == 'pack' else ()
      got, gas = arbiter().bop(name, *args, bits=20)
      want = [bops.python_bop(name, *map(int, row), *bits) for row in zip(*args)]
      self.assertEqual(got, want, name)
      self.assertLess(gas, 3000, name)
      self.assertLen(bop.operands, len(args) + len(bits))

  def test_openings(self):
    x = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    opening = merkle.open_element(merkle.commit(x), 13)
    self.assertEqual(arbiter().opened(opening, 13), merkle.opened(opening, 13))
    chunk = bytes([opening.chunk[0] ^ 1]) + opening.chunk[1:]
    for wrong, index in ((opening._replace(chunk=chunk), 13), (opening, 13 + 4096),
                         (opening._replace(path=opening.path[1:]), 13)):
      self.assertIsNone(merkle.opened(wrong, index))
      self.assertIsNone(arbiter().opened(wrong, index))


class GameTest(parameterized.TestCase):

  @parameterized.parameters('DOT', 'REDUCE')
  def test_the_contract_decides_as_python(self, kind):
    case, rng = game_test.small(), np.random.default_rng(3)
    line = next(i for i, x in enumerate(case.published.program.lines) if x.kind == kind)
    fault = play.random_fault(case, line, rng)
    arbiter().log.clear()
    result = play.play(arbiter(), case, fault=fault)
    self.assertEqual(result, play.play(game.PyArbiter(game_test.MONEY), case, fault=fault))
    self.assertEqual(result.winner, 'challenger')
    self.assertLess(sum(gas for *_, gas in arbiter().log), 5_000_000)

  def test_an_exact_sum_and_a_lie(self):
    case, rng = game_test.small('exact'), np.random.default_rng(4)
    line = next(i for i, x in enumerate(case.published.program.lines) if x.kind == 'EXACT')
    lie = play.random_lie(case, line, rng)
    before = arbiter().balance() - arbiter().burnt() - game_test.owed(arbiter())
    self.assertEqual(before, 0)
    result = play.play(arbiter(), case, lie=lie)
    self.assertEqual(result, play.play(game.PyArbiter(game_test.MONEY), case, lie=lie))
    self.assertEqual(result.winner, 'submitter')
    self.assertEqual(arbiter().balance(), arbiter().burnt() + game_test.owed(arbiter()))

  def test_refusals(self):
    game_test.check_refusals(self, arbiter(), game_test.small())

  def test_an_element_that_is_not_there(self):
    game_test.check_an_element_that_is_not_there(self, arbiter())

  @parameterized.parameters(('submit', 'Refunded'), ('postTrace', 'Rejected'),
                            ('choose', 'Submitted'))
  def test_the_clock(self, name, state):
    script = game_test.Script(arbiter(), game_test.small())
    script.send()
    script.until(name)
    sender, _, arguments, value = script.next()
    arbiter().mine(game_test.MONEY.move_timeout + 1)
    with self.assertRaisesRegex(game.Refused, 'TooLate'):
      arbiter().send(sender, name, script.number, *arguments, value=value)
    arbiter().send(script.other, 'settle', script.number)
    self.assertEqual(arbiter().task(script.number).state, state)
    if state == 'Submitted':  # so that the other tests find no open task
      arbiter().mine(game_test.MONEY.challenge_window + 1)
      arbiter().send(script.other, 'settle', script.number)


class ArtefactTest(absltest.TestCase):

  def test_size(self):
    self.assertLess(len(evm.artefact()['deployed']) // 2, 24_576)

  @unittest.skipUnless(shutil.which('npm'), 'npm is missing')
  def test_the_artefact_is_what_npms_solc_compiles(self):
    compiler = evm.artefact()['compiler'].split('+')[0]
    with tempfile.TemporaryDirectory() as folder:
      subprocess.run(['npm', 'install', '--silent', f'solc@{compiler}'], cwd=folder, check=True)
      done = subprocess.run(
          ['node', str(evm.FOLDER / 'compile.cjs')], capture_output=True, text=True, check=True,
          env={**os.environ, 'NODE_PATH': str(pathlib.Path(folder) / 'node_modules')})
    self.assertEqual(json.loads(done.stdout), evm.artefact())


if __name__ == '__main__':
  absltest.main()
