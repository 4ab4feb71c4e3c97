"""Checks of experiment configs: wrong keys, types and values end in one clear line.

A config is a plain nested mapping (an `ml_collections.ConfigDict` or a dict). Each part is checked
by whoever consumes it: `call` hands a sub-mapping to a function as keyword arguments and uses the
function's signature as the schema. This module imports nothing but the standard library, so that
every brick may use it.
"""
import collections.abc
import difflib
import inspect
import json
import pathlib
import types
import typing


class ConfigError(ValueError):
  """A config that cannot be run. The message names the key and what was expected."""


def unknown(kind, name, allowed, where=''):
  """The ConfigError for a name that is not one of `allowed`, with the nearest allowed name."""
  close = _nearest(str(name), sorted(map(str, allowed)))
  hint = f'; did you mean {" or ".join(map(repr, close))}?' if close else ''
  prefix = f'{where}: ' if where else ''
  return ConfigError(
      f'{prefix}unknown {kind} {name!r}{hint} (known: {", ".join(sorted(map(str, allowed)))})')


def _nearest(name, allowed):
  """Those of `allowed` that are most like `name`: several where they are equally like it."""
  likeness = [difflib.SequenceMatcher(None, option, name).ratio() for option in allowed]
  return [option for option, ratio in zip(allowed, likeness) if ratio == max(likeness) >= 0.4]


def check_keys(config, allowed, where='config'):
  """Raises ConfigError if `config` has a key that is not in `allowed`."""
  for key in config:
    if key not in allowed:
      raise unknown('key', f'{key}', allowed, where)


def require(condition, key, expected, value):
  """Raises ConfigError `key: expected ..., got ...` unless `condition` holds."""
  if not condition:
    raise ConfigError(f'{key}: expected {expected}, got {value!r}')


def at_least(bound, values, names=None, where=''):
  """Raises ConfigError `where.name: expected at least ..., got ...` for a value below `bound`.

  Args:
    bound: number.
    values: mapping of names to numbers, or an object that has them as attributes.
    names: those that are looked at; by default all of a mapping.
    where: dotted path of the values in the experiment; '' if they have none.
  """
  values = values if names is None else {
      name: values[name] if isinstance(values, collections.abc.Mapping) else getattr(values, name)
      for name in names}
  for name, value in values.items():
    require(value >= bound, f'{where}.{name}' if where else name, f'at least {bound}', value)


def choose(name, options, where):
  """Returns `options[name]`; raises ConfigError naming the key and the nearest option."""
  if name not in options:
    raise unknown('name', name, options, where)
  return options[name]


def choose_named(config, options, where):
  """`choose` by the 'name' of the mapping `config`; raises ConfigError also if it has none."""
  if 'name' not in config:
    raise ConfigError(f'{where}.name: missing')
  return choose(config['name'], options, f'{where}.name')


def section(config, key):
  """Returns the part `config[key]`; raises ConfigError if it is missing or no mapping."""
  if key not in config:
    raise ConfigError(f'config.{key}: missing')
  check_type(config[key], collections.abc.Mapping, f'config.{key}')
  return config[key]


def read_saved(directory):
  """The config that a run saved in its workdir, config.json; ConfigError if it is no json."""
  try:
    return json.loads(pathlib.Path(directory, 'config.json').read_text())
  except ValueError as error:
    raise ConfigError(f'--workdir={directory}: config.json: expected json ({error})') from error


def _matches(value, annotation):
  if annotation is inspect.Parameter.empty or annotation is typing.Any:
    return True
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    return any(_matches(value, a) for a in typing.get_args(annotation))
  if origin is typing.Literal:
    return value in typing.get_args(annotation)
  if annotation is None or annotation is type(None):
    return value is None
  if annotation is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  kind = origin or annotation
  if kind in (tuple, list, collections.abc.Sequence):
    elements = [a for a in typing.get_args(annotation) if a is not Ellipsis]
    is_sequence = isinstance(value, (tuple, list))
    return is_sequence and (not elements or
                            all(any(_matches(v, a) for a in elements) for v in value))
  if kind in (dict, collections.abc.Mapping):
    return isinstance(value, collections.abc.Mapping) or hasattr(value, 'items')
  return isinstance(value, kind) if isinstance(kind, type) else True


def _spell(annotation):
  is_class = isinstance(annotation, type)
  return annotation.__name__ if is_class else str(annotation).replace('typing.', '')


def check_type(value, annotation, key):
  """Raises ConfigError if `value` does not fit the annotation (int fits float, bool neither)."""
  if not _matches(value, annotation):
    raise ConfigError(
        f'{key}: expected {_spell(annotation)}, got {value!r} ({type(value).__name__})')


def check_arguments(function, config, where, *, drop=('name',), injected=()):
  """Checks `config` against the signature of `function` as `call` does, without calling it.

  Returns:
    The keyword arguments that `config` gives.
  """
  parameters = inspect.signature(function).parameters
  allowed = [name for name, p in parameters.items()
             if name not in injected and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
  arguments = {key: value for key, value in config.items() if key not in drop}
  check_keys(arguments, allowed, where)
  for key, value in arguments.items():
    check_type(value, parameters[key].annotation, f'{where}.{key}')
  for name in allowed:
    if parameters[name].default is inspect.Parameter.empty and name not in arguments:
      raise ConfigError(f'{where}.{name}: missing')
  return arguments


def call(function, config, where, *, drop=('name',), **injected):
  """Calls `function(**injected, **config)` after checking `config` against its signature.

  Args:
    function: a callable whose keyword parameters are the schema (names, annotations, defaults).
    config: mapping of keyword arguments; keys in `drop` are left out.
    where: dotted path of `config` in the experiment, for error messages.
    **injected: arguments that come from code and may not be set by the config.

  Raises:
    ConfigError: unknown, missing or ill-typed key, or a ValueError of the function itself, prefixed
      by `where`.
  """
  arguments = check_arguments(function, config, where, drop=drop, injected=injected)
  try:
    return function(**injected, **arguments)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f'{where}: {error}') from error
