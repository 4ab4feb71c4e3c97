"""Optimizers from configs: names, schedules, clipping, parameter groups; checked before a run."""
import functools
import inspect
import re
from typing import Any, NamedTuple

import jax
import optax

from jaxlab.config import ConfigError, call, check_keys, choose, require
from jaxlab.optim.adasam import adasam, scale_by_adasam
from jaxlab.optim.ema import ema
from jaxlab.optim.fedlalr import fedlalr
from jaxlab.optim.hyperparameters import RANGES, check_range, is_zero
from jaxlab.optim.sam import sam


def _public_functions(module, accepts):
  return {name: function for name, function in vars(module).items()
          if inspect.isfunction(function) and not name.startswith('_') and accepts(name, function)}


SCHEDULES = _public_functions(
    optax.schedules, lambda name, _: not name.startswith('inject_'))
_SEARCHES = ('lbfgs',)  # those whose update wants the loss too, which no loop here hands over
OPTIMIZERS = {
    **_public_functions(optax, lambda name, function: not name.startswith('scale_by_') and
                        name not in _SEARCHES and
                        'learning_rate' in inspect.signature(function).parameters),
    'adasam': adasam, 'fedlalr': fedlalr, 'sam': sam, 'scale_by_adasam': scale_by_adasam}

# The arguments of `sam`, with their defaults, that describe a perturbation.
ASCENT = {name: inspect.signature(sam).parameters[name].default
          for name in ('rho', 'norm_guard', 'perturb')}
# Of these eps is squared: vhat starts at eps^2.
_SQUARE_EPS = (adasam, fedlalr, scale_by_adasam)
OUTER_KEYS = ('groups', 'clip_norm', 'ema_decay')  # what only the outermost mapping may have


def _is_mapping(value):
  return hasattr(value, 'items')


def _schedule(value, where, tick=1):
  """The optax schedule that a mapping {name, ...} describes; anything else is returned as it is.

  It goes on by one with every `tick` updates.
  """
  if not _is_mapping(value):
    return value
  for key, number in value.items():
    if key.endswith('value'):
      check_range('learning_rate', number, f'{where}.{key}')
  parts = {key: [_schedule(part, f'{where}.{key}[{i}]') for i, part in enumerate(value[key])]
           for key in value if key == 'schedules'}
  make = choose(value.get('name'), SCHEDULES, f'{where}.name')
  schedule = call(make, {**value, **parts}, where)
  return schedule if tick == 1 else lambda count: schedule(count // tick)


def _named(config, where):
  """The function that `config` names, and the keys that may describe it."""
  require('name' in config, f'{where}.name', 'the name of an optimizer', None)
  function = choose(config['name'], OPTIMIZERS, f'{where}.name')
  keys = ('base', *ASCENT) if function is sam else inspect.signature(function).parameters
  return function, ('name', *keys)


def _checked(config, where, tick):
  """The function that `config` names, and the other keys with their schedules built."""
  function, keys = _named(config, where)
  check_keys(config, keys, where)
  arguments = {key: config[key] for key in config if key != 'name'}
  for key in arguments.keys() & RANGES.keys():
    arguments[key] = _schedule(arguments[key], f'{where}.{key}', tick)
    squared = key == 'eps' and function in _SQUARE_EPS
    check_range('squared_eps' if squared else key, arguments[key], f'{where}.{key}')
  return function, arguments


class _Part(NamedTuple):
  """A group's optimizer with its perturbation, if it has one, taken apart.

  Attributes:
    optimizer: GradientTransformation of the gradient, perturbed or not.
    ascent: the arguments of `sam` as they stand in the config, or None.
    where: dotted path of the config.
    pattern: compiled regex of the parameter paths.
    frozen: whether the group's parameters stay as they are.
  """
  optimizer: optax.GradientTransformation
  ascent: Any
  where: str
  pattern: Any = None
  frozen: bool = False


def _part(config, where, tick):
  """The part that a mapping of an optimizer describes."""
  function, arguments = _checked(config, where, tick)
  if function not in (adasam, sam):
    return _Part(call(function, arguments, where), None, where)
  ascent = {key: config.get(key, default) for key, default in ASCENT.items()}
  if function is adasam:
    optimizer = call(adasam, {**arguments, 'rho': 0}, where)
  else:
    base = f'{where}.base'
    require(_is_mapping(config.get('base')), base, 'a mapping that describes an optimizer',
            config.get('base'))
    optimizer, inner_ascent, *_ = _part(config['base'], base, tick)
    require(inner_ascent is None, base, 'an optimizer without a perturbation of its own',
            config['base']['name'])
  return _Part(optimizer, None if is_zero(ascent['rho']) else ascent, where)


def _group(group, shared, where, tick):
  """The part that an element of `groups` describes; `shared` are the keys outside the groups."""
  require(_is_mapping(group), where, 'a mapping with the key match', group)
  require(isinstance(group.get('match'), str), f'{where}.match', 'a regex of parameter paths',
          group.get('match'))
  try:
    pattern = re.compile(group['match'])
  except re.error as error:
    raise ConfigError(f'{where}.match: {group["match"]!r} is no regex: {error}') from error
  if 'frozen' in group:
    check_keys(group, ('match', 'frozen'), where)
    require(group['frozen'] is True, f'{where}.frozen', 'True', group['frozen'])
    return _Part(optax.set_to_zero(), None, where, pattern, frozen=True)
  own = {key: group[key] for key in group if key != 'match'}
  if own.get('name', shared['name']) != shared['name']:
    # Of another optimizer's hyperparameters only the learning rate means the same here.
    shared = {key: shared[key] for key in shared if key == 'learning_rate'}
  return _part({**shared, **own}, where, tick)._replace(pattern=pattern)


def _assign(params, parts, where):
  """A pytree like `params` with the `where` of the one part that each parameter belongs to."""
  wrong = []

  def owner(path, _):
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    owners = [part for part in parts if part.pattern.fullmatch(path)]
    if len(owners) != 1:
      patterns = ' and '.join(repr(part.pattern.pattern) for part in owners)
      wrong.append(f'{path} is matched by {patterns or "none"}')
    return owners[0].where if owners else None

  owners = jax.tree_util.tree_map_with_path(owner, params)
  if wrong:
    patterns = ', '.join(repr(part.pattern.pattern) for part in parts)
    raise ConfigError(f'{where}.groups: expected exactly one of {patterns} to match each '
                      f'parameter, but {"; ".join(wrong)}')
  return owners


def _common_ascent(parts):
  """The first part with a perturbation, or None; raises ConfigError if another has another one."""
  ascents = [part for part in parts if part.ascent]
  for part in ascents[1:]:
    require(part.ascent == ascents[0].ascent, f'{part.where}.rho',
            f'the perturbation of {ascents[0].where}, {ascents[0].ascent}', part.ascent)
  return ascents[0] if ascents else None


def make_optimizer(config, where='optimizer', *, tick=1):
  """Builds the optimizer that a config describes.

  >>> optimizer = make_optimizer({
  ...     'name': 'adasam', 'rho': 0.05, 'clip_norm': 1.0,
  ...     'learning_rate': {'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0,
  ...                       'peak_value': 1e-3, 'warmup_steps': 100, 'decay_steps': 1000},
  ...     'groups': ({'match': '.*/kernel', 'weight_decay': 0.01}, {'match': '.*/bias'},
  ...                {'match': 'embedding/.*', 'frozen': True})})
  >>> make_optimizer({'name': 'sgd', 'learning_rate': -0.1})
  Traceback (most recent call last):
  jaxlab.config.ConfigError: optimizer.learning_rate: expected a finite number >= 0, got -0.1

  Args:
    config: mapping with
      name: 'adasam', 'fedlalr', 'sam' (with `base`, the mapping of the optimizer that it feeds), or
        an optimizer of optax ('sgd', 'adamw', ...) that steps by gradients alone, which 'lbfgs'
        does not.
      learning_rate, rho, ...: the arguments of that function. A schedule is a mapping {name: a
        function of optax.schedules, ...its arguments}, in optimizer steps.
      clip_norm: optional; clips the gradient that enters the moments (under SAM the one at the
        perturbed point) to this global norm.
      ema_decay: optional; keeps an average of the parameters (`ema`) in the state.
      groups: optional sequence of mappings {match: regex, ...}. The regex must match the whole path
        of a parameter ('Dense_0/kernel'), and each parameter must belong to exactly one group. The
        other keys override those above for the group; with another `name` only `learning_rate` is
        inherited. {match, frozen: True} leaves parameters as they are.
    where: dotted path of `config` in the experiment, for messages.
    tick: updates in which the schedules go on by one step.

  Returns:
    GradientTransformationExtraArgs. The perturbation of groups is a single one: leaves that are
    frozen, or whose group has no rho, are neither perturbed nor counted in its norm.

  Raises:
    ConfigError: an unknown key or name, an ill-typed or impossible value, groups that disagree on
      the perturbation; in `init` (also under `jax.eval_shape`) a parameter that belongs to no group
      or to several.
  """
  require(_is_mapping(config), where, 'a mapping that describes an optimizer', config)
  check_keys(config, (*_named(config, where)[1], *OUTER_KEYS), where)
  shared = {key: config[key] for key in config if key not in OUTER_KEYS}
  groups, clip_norm = config.get('groups'), config.get('clip_norm')
  check_range('ema_decay', config.get('ema_decay'), f'{where}.ema_decay')
  check_range('clip_norm', clip_norm, f'{where}.clip_norm')
  trained = perturbed = None
  if groups is None:
    parts = [_part(shared, where, tick)]
    optimizer = parts[0].optimizer
  else:
    require(isinstance(groups, list | tuple) and groups, f'{where}.groups', 'some mappings', groups)
    _checked(shared, where, tick)
    parts = [_group(group, shared, f'{where}.groups[{i}]', tick)
             for i, group in enumerate(groups)]
    assign = functools.partial(_assign, parts=parts, where=where)
    mask = lambda chosen: lambda params: jax.tree.map(lambda owner: owner in chosen, assign(params))
    trained = mask({part.where for part in parts if not part.frozen})
    perturbed = mask({part.where for part in parts if part.ascent})
    optimizer = optax.partition({part.where: part.optimizer for part in parts}, assign)
  if clip_norm is not None:
    clip = optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip if trained is None else optax.masked(clip, trained), optimizer)
  first = _common_ascent(parts)
  if first is not None:
    ascent = {**first.ascent, 'rho': _schedule(first.ascent['rho'], f'{first.where}.rho', tick)}
    optimizer = call(sam, ascent, first.where, optimizer=optimizer, mask=perturbed)
  if config.get('ema_decay') is not None:
    optimizer = optax.chain(optimizer, ema(config['ema_decay']))
  return optax.with_extra_args_support(optimizer)
