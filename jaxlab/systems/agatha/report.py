"""What launch/dispute.py prints and draws."""
import collections
import pathlib

import numpy as np

from jaxlab import config as config_lib
from jaxlab.systems.agatha import game, lowering, play, scalar
from jaxlab.train import figures
from jaxlab.train.sweep import format_table

KEYS = ('system', 'seed', 'mode', 'arbiter', 'model', 'shape', 'cheat', 'money', 'fee', 'sizes')
WHO = ('nobody', 'submitter', 'challenger')


def check(config):
  """Raises ConfigError for the first thing in a dispute's config that cannot be run."""
  config_lib.check_keys(config, KEYS)
  for key in KEYS:
    config_lib.require(key in config, f'config.{key}', 'a value', None)
  config_lib.require(config['mode'] in lowering.MODES, 'config.mode', f'one of {lowering.MODES}',
                     config['mode'])
  config_lib.require(config['arbiter'] in ('python', 'evm'), 'config.arbiter', "'python' or 'evm'",
                     config['arbiter'])
  sizes = {f'sizes[{i}]': size for i, size in enumerate(config['sizes'])}
  for where, size in sizes.items():
    config_lib.check_keys(size, ('model', 'shape'), where)
  for where, size in {'config': config, **sizes}.items():
    config_lib.require('model' in size and 'shape' in size, where, 'a model and a shape',
                       list(size))
    model = config_lib.choose_named(size['model'], play.MODELS, f'{where}.model')
    config_lib.check_arguments(model, size['model'], f'{where}.model', injected=('num_classes',))
    config_lib.check_type(size['shape'], tuple[int, ...], f'{where}.shape')
    config_lib.at_least(1, {f'shape[{i}]': n for i, n in enumerate(size['shape'])}, where=where)
  for key in ('fee', 'seed'):
    config_lib.check_type(config[key], int, f'config.{key}')
  config_lib.at_least(0, config, ('fee', 'seed'), 'config')
  config_lib.check_keys(config['cheat'], ('who', 'line'), 'config.cheat')
  for key in ('who', 'line'):
    config_lib.require(key in config['cheat'], f'config.cheat.{key}', 'a value', None)
  config_lib.check_type(config['cheat']['line'], int, 'config.cheat.line')
  config_lib.require(config['cheat']['who'] in WHO, 'config.cheat.who', f'one of {WHO}',
                     config['cheat']['who'])
  game.check_money(config_lib.call(game.Money, config['money'], 'money'))


def gas_table(log):
  """Count, bytes and gas of each kind of message."""
  rows = collections.defaultdict(list)
  for name, size, gas in log:
    rows[name].append((size, gas))
  table = [(name, len(x), sum(size for size, _ in x), max(gas for _, gas in x),
            sum(gas for _, gas in x)) for name, x in rows.items()]
  table.append(('all', len(log), sum(size for _, size, _ in log), '',
                sum(gas for *_, gas in log)))
  return format_table(('message', 'sent', 'bytes', 'most gas', 'gas'), table)


def _play(config, arbiter, case, line):
  who, rng = config['cheat']['who'], np.random.default_rng(config['seed'])
  lines = len(case.published.program.lines)
  config_lib.require(0 <= line < lines, 'config.cheat.line', f'0 to {lines - 1}', line)
  cheat = {'nobody': dict, 'submitter': lambda: {'fault': play.random_fault(case, line, rng)},
           'challenger': lambda: {'lie': play.random_lie(case, line, rng)}}[who]()
  return play.play(arbiter, case, fee=config['fee'], **cheat)


def dispute(config):
  """Plays the config's task; returns the text of what happened."""
  case, money = play.make_case(config), game.Money(**config['money'])
  arbiter = play.arbiter_of(config['arbiter'])(money)
  line = config['cheat']['line']
  result = _play(config, arbiter, case, line)
  program = case.published.program
  text = [f'{config["model"]["name"]}: {len(program.lines)} lines, '
          f'{scalar.work(program)} basic operations, mode {config["mode"]}', gas_table(arbiter.log)]
  if result is None:
    text.append('nobody challenged: the result is accepted')
  else:
    found = program.lines[result.line]
    text.append(f'{result.winner} wins after {result.rounds} rounds (formula: '
                f'{play.expected_rounds(case, line)}); line {result.line} ({found.name}), '
                f'element {result.element}')
  parties = ', '.join(f'{name} {arbiter.credit(arbiter.party(name))}'
                      for name in ('requester', 'submitter', 'challenger'))
  return '\n'.join([*text, f'owed: {parties}; burnt {arbiter.burnt()}'])


def cost(config, entry):
  """(basic operations, rounds, bytes, gas) of a dispute about the last DOT of a model."""
  case = play.make_case({**config, **entry})
  arbiter = play.arbiter_of(config['arbiter'])(game.Money(**config['money']))
  program = case.published.program
  line = max(i for i, x in enumerate(program.lines) if x.kind in ('DOT', 'EXACT'))
  fault = play.random_fault(case, line, np.random.default_rng(config['seed']))
  result = play.play(arbiter, case, fault=fault)
  return (scalar.work(program), result.rounds, sum(size for _, size, _ in arbiter.log),
          sum(gas for *_, gas in arbiter.log))


def draw(points, path):
  """The figure of cost against size; `points` are rows of `cost`."""
  work, rounds, size, gas = np.array(sorted(points), float).T
  figures.compare({'million gas': (np.log10(work), gas[None] / 1e6),
                   'ten rounds': (np.log10(work), rounds[None] / 10),
                   'ten kB of messages': (np.log10(work), size[None] / 1e4)}, pathlib.Path(path),
                  xlabel='log10 of the basic operations of the model', ylabel='cost of a dispute')


def sizes(config, workdir):
  """Draws the cost of a dispute against the size of the model; returns a table."""
  points = [cost(config, entry) for entry in config['sizes']]
  path = pathlib.Path(workdir) / 'figures' / 'cost.png'
  draw(points, path)
  names = [entry['model']['name'] for entry in config['sizes']]
  table = format_table(('model', 'BOPs', 'rounds', 'bytes', 'gas'),
                       [(name, *point) for name, point in zip(names, points)])
  return f'{table}\nfigure: {path}'
