"""Measures Agatha's claims: cheats are found, honesty is safe, the bits agree, and what it costs.

The ingredients that `--ablate` takes away: the consistent evaluator (the native one takes its
place), the challenger's own execution (he believes the submitter), and the undisputed path's
silence (the trace is hashed there too). A claim without such a switch is then not judged.
"""
import contextlib
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import numpy as np

from jaxlab.systems.agatha import game, lowering, merkle, parties, play, scalar
from jaxlab.train import claims, figures
from jaxlab.train.sweep import format_table

CASES = {
    'mlp': {'model': {'name': 'mlp', 'features': [32]}, 'shape': [1, 8, 8]},
    'cnn': {'model': {'name': 'cnn', 'features': [4, 8]}, 'shape': [1, 8, 8, 3]},
    'mobilenet': {'model': {'name': 'mobilenet', 'width': 1 / 16}, 'shape': [1, 16, 16, 3]},
    'resnet50': {'model': {'name': 'resnet50', 'width': 2}, 'shape': [1, 16, 16, 3]},
    'vgg16': {'model': {'name': 'vgg16', 'width': 1 / 64}, 'shape': [1, 32, 32, 3]},
}
TIMED = {'model': {'name': 'cnn', 'features': [16, 32]}, 'shape': [1, 16, 16, 3]}
PLATFORMS = {  # name -> (XLA flags, whether pinned to one core)
    'default, 4 devices': ('--xla_force_host_platform_device_count=4', False),
    'one core': ('', True),
    'SSE4_2': ('--xla_cpu_max_isa=SSE4_2', False),
}
MOST_RATIO, LEAST_VM = 2.5, 100


def play_games(case, rng, believes):
  """Games about one random line of every kind and primitive of a case, on the Python arbiter.

  Returns:
    (rows of cheats, rows of lies): dicts with 'line', 'won' (by the honest party), 'exact' (line,
    element and rounds are as they should be).
  """
  cheats, lies = [], []
  for (kind, name), line in play.one_of_each(case.published.program, rng).items():
    rounds = play.expected_rounds(case, line)
    fault, lie = play.random_fault(case, line, rng), play.random_lie(case, line, rng)
    row = {'kind': kind, 'name': name, 'line': line}
    if believes:
      cheats.append({**row, 'won': accepted_unseen(case, fault) is None, 'exact': False})
    else:
      result = play.play(game.PyArbiter(game.Money()), case, fault=fault)
      exact = (line, fault.element, rounds) == (result.line, result.element, result.rounds)
      cheats.append({**row, 'won': result.winner == 'challenger', 'exact': exact})
    result = play.play(game.PyArbiter(game.Money()), case, lie=lie)
    lies.append({**row, 'won': result.winner == 'submitter', 'exact': result.rounds == rounds})
  return cheats, lies


def accepted_unseen(case, fault):
  """The task's state after a cheat that a challenger who does not re-execute lets pass; None if it
  did not end accepted."""
  wrong = parties.corrupt(case.trace.execution, fault, case.leaves, case.inputs)
  arbiter = game.PyArbiter(game.Money())
  number = arbiter.request('requester', case.published.digest, merkle.ZERO, merkle.ZERO, fee=1)
  arbiter.send('submitter', 'submit', number, parties.output_root(wrong),
               value=arbiter.money.submitter_deposit)
  arbiter.mine(arbiter.money.challenge_window + 1)
  arbiter.send('requester', 'settle', number)
  state = arbiter.task(number).state
  return state if state == 'Accepted' else None


@contextlib.contextmanager
def counted_hashes():
  """Counts the calls of keccak-256."""
  with mock.patch.object(merkle, 'keccak256', wraps=merkle.keccak256) as counter:
    yield counter


def undisputed(config, money, ablate):
  """Hashes of the undisputed path, those that its commitments need, and its log on the contract."""
  arbiter = play.arbiter_of('evm')(money)
  with counted_hashes() as counter:
    case = play.make_case(config)
    play.play(arbiter, case)
    if ablate:
      merkle.root_of(case.trace.levels)
    paid = counter.call_count
  with counted_hashes() as counter:
    parties.publish(case.published.program)
    parties.root_over([*case.leaves, *case.published.program.constants])
    parties.root_over(case.inputs)
    for _ in range(2):  # the submitter's result and the one that the challenger compares with it
      parties.output_root(case.trace.execution)
    return paid, counter.call_count, arbiter.log


def on_the_contract(case, rng, money):
  """Cheats on the contract, one of each kind: (share that the honest side won, log of each)."""
  program = case.published.program
  lines = {program.lines[i].kind: i for i in play.one_of_each(program, rng).values()}
  won, logs = [], {}
  for kind, line in lines.items():
    arbiter = play.arbiter_of('evm')(money)
    fault = play.random_fault(case, line, rng)
    result = play.play(arbiter, case, fault=fault)
    twin = play.play(game.PyArbiter(money), case, fault=fault)
    won.append(result.winner == 'challenger' and result == twin)
    logs[kind] = arbiter.log
  return won, logs


def start(module, flags='', **arguments):
  """A process on CPUs that runs a module of this system and prints JSON."""
  return subprocess.Popen(
      [sys.executable, '-m', f'jaxlab.systems.agatha.{module}', json.dumps(arguments)],
      stdout=subprocess.PIPE, text=True,
      env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'})


def finish(name, process):
  """What a process printed; raises RuntimeError if it failed."""
  out, _ = process.communicate()
  if process.returncode:
    raise RuntimeError(f'{name}: the evaluation ended with status {process.returncode}')
  return json.loads(out.splitlines()[-1])


def agreement(found, reference):
  """{case: whether every digest is the reference's}."""
  return {case: {digest for ways in found.values() for digest in ways[case].values()} == {right}
          for case, right in reference.items()}


def timings(seed, one_core):
  """Seconds of every evaluator on the small CNN, by a process on one core or on all."""
  return finish('timing', start('speed', config={**TIMED, 'seed': seed}, one_core=one_core,
                                vm_too=one_core))


def operations(seed):
  """Number of basic operations of the small CNN."""
  function, variables, inputs = play.make_model({**TIMED, 'seed': seed})
  return scalar.work(lowering.lower(function, variables, *inputs))


def main(seed, workdir, ablate):
  """Prints the tables, writes results.json and figure.png; True unless a claim does not hold."""
  rng, money = np.random.default_rng(seed), game.Money()
  judge = lambda condition: claims.NOT_JUDGED if ablate else claims.verdict(condition)
  configs = {name: {**case, 'seed': seed, 'mode': 'ordered'} for name, case in CASES.items()}
  # Before anything else needs the cores.
  times, on_all = timings(seed, one_core=True), timings(seed, one_core=False)
  processes = {name: start('bits', flags, evaluator='native' if ablate else 'consistent',
                           cases=configs, one_core=one_core)
               for name, (flags, one_core) in PLATFORMS.items()}
  cases = {name: play.make_case(config) for name, config in configs.items()}
  games = {name: play_games(case, rng, ablate) for name, case in cases.items()}
  cheats, lies = ([row for rows in games.values() for row in rows[side]] for side in (0, 1))
  paid, needed, log = undisputed(configs['cnn'], money, ablate)
  won, logs = on_the_contract(cases['mlp'], rng, money)
  found = {name: finish(name, process) for name, process in processes.items()}
  reference = {
      name: bits_digest(case) for name, case in cases.items()}
  agrees = agreement(found, reference)
  ratio, ratio_on_all = ({mode: found[mode] / found['native'] for mode in lowering.MODES}
                         for found in (times, on_all))
  ratios = lambda found: ', '.join(f'{mode} {value:.2f}x' for mode, value in found.items())
  vm_ratio = times['vm'] / max(times[mode] for mode in lowering.MODES)
  gas = {name: [cost for message, _, cost in log if message == name] for name, *_ in log}
  totals = {kind: sum(cost for *_, cost in entries) for kind, entries in logs.items()}
  share = lambda rows, key: f'{sum(row[key] for row in rows)} of {len(rows)}'
  table = [
      claims.Claim('a last-bit cheat in any kind of line of any model is found and loses',
                   'one honest challenger is enough', share(cheats, 'won'),
                   claims.verdict(all(row['won'] for row in cheats))),
      claims.Claim('line, element and rounds are those of the fault and the formula',
                   'O(log n), unverified', share(cheats, 'exact'),
                   claims.verdict(all(row['exact'] for row in cheats))),
      claims.Claim('an honest submitter wins against a lying challenger', 'not available',
                   share(lies, 'won'), judge(all(row['won'] and row['exact'] for row in lies))),
      claims.Claim('the contract decides as the Python arbiter, a dispute below 5 M gas',
                   'not available', f'{sum(won)} of {len(won)}; gas {totals}',
                   judge(all(won) and max(totals.values()) < 5e6)),
      claims.Claim('no trace is hashed on the undisputed path', 'negligible on-chain overhead',
                   f'{paid} hashes, {needed} for the commitments; gas {gas}',
                   claims.verdict(paid == needed)),
      claims.Claim('the same bits on 1 and 2 cores, jit and op by op, devices 0..3, SSE4_2',
                   'cross-platform consistency', f'{sum(agrees.values())} of {len(agrees)} models',
                   claims.verdict(all(agrees.values()))),
      claims.Claim(f'consistent, in its faster mode, <= {MOST_RATIO}x native on the small CNN',
                   '1.03x', f'one core: {ratios(ratio)}; all cores: {ratios(ratio_on_all)}',
                   judge(min(ratio.values()) <= MOST_RATIO)),
      claims.Claim(f'VM-style >= {LEAST_VM}x consistent', '602x (latency)', f'{vm_ratio:.0f}x',
                   judge(vm_ratio >= LEAST_VM)),
  ]
  print(format_table(('evaluator of the small CNN', 'ms on one core', 'on all', 'what it is'), [
      (name, f'{1e3 * times[name]:.3f}', f'{1e3 * on_all[name]:.3f}' if name in on_all else '',
       what) for name, what in (
          ('native', 'plain jit'), ('ordered', 'consistent, sums in order'),
          ('exact', 'consistent, exact sums'),
          ('vm', 'stand-in for a VM: every scalar operation interpreted in Python'),
          ('compiled scalar', 'the same instructions in one loop compiled by XLA'))]))
  figures.compare({'seconds': (np.arange(len(times)), np.log10([[*times.values()]]))},
                  pathlib.Path(workdir) / 'figure.png', xlabel=', '.join(times),
                  ylabel='log10 of seconds', title='one inference of the small CNN')
  results = {'cheats': cheats, 'lies': lies, 'gas': logs, 'undisputed': log, 'times': times,
             'times_on_all_cores': on_all, 'operations': operations(seed), 'digests': found,
             'agrees': agrees}
  return claims.report('agatha', table, results, workdir, seed=seed, ablate=ablate)


def bits_digest(case):
  """The digest of the honest result, evaluated by NumPy."""
  from jaxlab.systems.agatha import bits
  return bits.digest(parties.typed(case.trace.execution, case.published.program.outputs[0]))
