"""`launch.inject`: models x defences over a benchmark, one report."""
import inspect
import json
import pathlib

from jaxlab import config as config_lib
from jaxlab.systems.bipia import benchmark, defences, evaluation, judges, loading, report, toy
from jaxlab.systems.bipia import responders as responders_lib
from jaxlab.train.workdir import open_workdir, write_atomically

_KEYS = ('system', 'data', 'defences', 'models', 'judge', 'registry', 'clean', 'strict')


def official(*, folder: str, split: str = 'test', tasks: tuple = benchmark.TASKS,
             seed: int = benchmark.SEED, stealth: bool = False,
             max_contexts: int | None = None, max_attacks: int | None = None):
  """(Benchmark, training Benchmark or None, registry) of the official files.

  Args:
    folder: see `benchmark.load`, as of split, tasks, seed, stealth.
    max_contexts: see `benchmark.subset`, as of max_attacks.
  """
  config_lib.require(split in ('train', 'test'), 'data.split', "'train' or 'test'", split)
  whole = benchmark.load(folder, split, tasks=tasks, seed=seed, stealth=stealth)
  try:
    train = benchmark.load(folder, 'train', tasks=tasks, seed=seed)
  except config_lib.ConfigError:
    train = None  # only in-context examples need it, and they say so
  chosen = benchmark.subset(whole, max_contexts=max_contexts, max_attacks=max_attacks, seed=seed)
  return chosen, train, judges.registry(whole.attacks)


def toy_benchmark(*, contexts: int = 100, max_attacks: int | None = 12, seed: int = 0):
  """(Benchmark, training Benchmark, registry) of the toy: attacks of types 5 to 7."""
  config_lib.at_least(1, {'contexts': contexts})
  chosen = benchmark.subset(toy.benchmark('test', contexts_of=contexts, seed=seed),
                            max_attacks=max_attacks, seed=seed)
  return chosen, toy.benchmark('train', contexts_of=contexts, seed=seed), toy.registry()


def local(*, checkpoint: str, max_new: int = 2048, batch_size: int = 8, dtype: str = 'float32'):
  """A responder of a folder: a public checkpoint, or a run of the task bipia."""
  config_lib.at_least(1, {'max_new': max_new, 'batch_size': batch_size})
  model, params, coder, ends = loading.checkpoint(checkpoint, dtype=dtype)
  return responders_lib.local(model, params, coder, max_new=max_new, batch_size=batch_size,
                              eos_ids=ends)


def replay(*, path: str):
  """A responder of recorded answers."""
  return responders_lib.replay(path)


DATA = {'official': official, 'toy': toy_benchmark}
RESPONDERS = {'local': local, 'endpoint': responders_lib.endpoint, 'replay': replay}
# The argument that says how many answers are made at the same time; of a replay it is one.
_AT_ONCE = {'local': 'batch_size', 'endpoint': 'concurrency'}
_JUDGE = {'local': {'max_new': 32}, 'endpoint': {'max_tokens': 32}, 'replay': {}}  # defaults


def check(config):
  """Checks a config of `launch.inject` without reading files or calling anybody.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  config_lib.check_keys(config, _KEYS)
  data = config_lib.section(config, 'data')
  config_lib.check_arguments(config_lib.choose_named(data, DATA, 'data'), data, 'data')
  for part in ('models', 'defences'):
    rows = config.get(part, ())
    config_lib.check_type(rows, tuple, f'config.{part}')
    config_lib.require(len(rows) > 0, f'config.{part}', 'at least one', rows)
  for i, spec in enumerate(config['models']):
    _check_responder(spec, f'models[{i}]', ('label', 'defences'))
  for i, spec in enumerate(config['defences']):
    config_lib.check_type(spec, dict, f'defences[{i}]')
    defences.check_defence(spec, f'defences[{i}]')
  for part in ('models', 'defences'):
    labels = [_label(row) for row in config[part]]
    for i, label in enumerate(labels):
      config_lib.check_type(label, str, f'{part}[{i}].label')
      config_lib.require(label not in ('', '..') and pathlib.PurePath(label).name == label,
                         f'{part}[{i}].label', 'the name of a folder', label)
    config_lib.require(len(set(labels)) == len(labels), f'config.{part}',
                       "different names, or a 'label' for each", labels)
  for i, spec in enumerate(config['models']):
    for label in _defences_of(spec, config):
      config_lib.require(label in map(_label, config['defences']), f'models[{i}].defences',
                         'labels of config.defences', label)
  for i, spec in enumerate(config['defences']):
    config_lib.require(
        spec['name'] != 'markers' or all(
            model['name'] != 'endpoint' or _label(spec) not in _defences_of(model, config)
            for model in config['models']),
        f'defences[{i}].name', 'no boundary tokens: an endpoint takes text alone', spec['name'])
  if config.get('judge') is not None:
    _check_responder(config['judge'], 'judge', ())
  for name, kind in (('registry', str | None), ('clean', bool), ('strict', bool)):
    config_lib.check_type(config.get(name, False if kind is bool else None), kind, f'config.{name}')


def _check_responder(spec, where, own):
  config_lib.check_type(spec, dict, where)
  function = config_lib.choose_named(spec, RESPONDERS, where)
  config_lib.check_keys(spec, ('name', *own, *inspect.signature(function).parameters), where)
  config_lib.check_arguments(function, _unlabelled(spec), where)


def _label(spec):
  return spec.get('label', spec.get('name'))


def _unlabelled(spec):
  return {key: value for key, value in spec.items() if key not in ('label', 'defences')}


def _defences_of(model, config):
  """Labels of the defences that a model is measured under: all, or those that it names."""
  return tuple(model.get('defences', map(_label, config['defences'])))


def make_responder(spec, where):
  """(responder, answers that are written at once, and lost by a kill) of a mapping."""
  function = RESPONDERS[spec['name']]
  respond = config_lib.call(function, _unlabelled(spec), where)
  if spec['name'] not in _AT_ONCE:
    return respond, 1
  argument = _AT_ONCE[spec['name']]
  return respond, spec.get(argument, inspect.signature(function).parameters[argument].default)


def run(config, workdir):
  """Evaluates every model under every defence; goes on where a killed run stopped.

  Args:
    config: see `check`.
    workdir: folder: MODEL/DEFENCE/{responses,scores}.jsonl, report.json, figures/.

  Returns:
    ({'MODEL, DEFENCE': summary}, the printed tables).
  """
  check(config)
  workdir = open_workdir(workdir, config)
  data = config['data']
  whole, train, registry = config_lib.call(DATA[data['name']], data, 'data')
  if config.get('registry') is not None:
    registry = judges.read_registry(config['registry'])
  clean = whole.clean() if config.get('clean', True) else []
  judge, judge_chunk = None, 64  # a kill loses scores by rule alone, which cost nothing
  if config.get('judge') is not None:
    spec = config['judge']
    judge, judge_chunk = make_responder({**_JUDGE[spec['name']], **spec}, 'judge')
  summaries = {}
  for i, model in enumerate(config['models']):
    respond, chunk = make_responder(model, f'models[{i}]')
    for j, spec in enumerate(config['defences']):
      if _label(spec) not in _defences_of(model, config):
        continue
      defend = defences.make_defence(spec, f'defences[{j}]', train)
      folder = workdir / _label(model) / _label(spec)
      records = evaluation.evaluate(_Rows(whole, clean), defend, respond, registry, folder,
                                    judge=judge, strict=config.get('strict', False), chunk=chunk,
                                    judge_chunk=judge_chunk)
      summaries[f'{_label(model)}, {_label(spec)}'] = report.summary(records)
  return summaries, write_report(summaries, workdir)


class _Rows:
  """The attacked samples, made when asked for, then the clean ones, as one sequence."""

  def __init__(self, whole, clean):
    self._whole, self._clean = whole, clean

  def __len__(self):
    return len(self._whole) + len(self._clean)

  def __getitem__(self, index):
    if index >= len(self):
      raise IndexError(index)
    attacked = len(self._whole)
    return self._whole[index] if index < attacked else self._clean[index - attacked]


def write_report(summaries, workdir):
  """Writes report.json, report.txt and figures/; returns the tables."""
  workdir = pathlib.Path(workdir)
  text = report.tables(summaries)
  write_atomically(workdir / 'report.json',
                   json.dumps(report.as_json(summaries), indent=1) + '\n')
  write_atomically(workdir / 'report.txt', text + '\n')
  report.draw(summaries, workdir / 'figures')
  return text
