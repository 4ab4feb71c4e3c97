"""Hyperparameters: which values are possible, and values that follow a schedule."""
import math

from jaxlab import config

_RATE = ('a finite number >= 0', lambda value: 0 <= value < math.inf)
_DECAY = ('a number in [0, 1)', lambda value: 0 <= value < 1)
_POSITIVE = ('a finite number > 0', lambda value: 0 < value < math.inf)
# float32 has no square of less: it is 0, and 0 / 0 in the first step is NaN.
_SQUARED = ('a number in [1.1e-19, 1e19], whose square is a positive float32',
            lambda value: 1.1e-19 <= value <= 1e19)

RANGES = {
    'learning_rate': _RATE, 'rho': _RATE, 'weight_decay': _RATE,
    'b1': _DECAY, 'b2': _DECAY, 'ema_decay': _DECAY,
    'eps': _POSITIVE, 'squared_eps': _SQUARED, 'tau': _POSITIVE, 'norm_guard': _POSITIVE,
    'max_norm': _POSITIVE, 'clip_norm': _POSITIVE,
}  # fmt: skip


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)


def is_zero(value):
  """True for a Python 0 only: an array or a tracer may be 0 at one step and not at the next."""
  return _is_number(value) and value == 0


def check_range(name, value, key):
  """Raises ConfigError if `value` is impossible for the hyperparameter `name`.

  Args:
    name: a key of `RANGES`.
    value: a number is checked. None, schedules, arrays and tracers pass: an option that is off, and
      values that are not known before the program runs.
    key: how the message calls the value.
  """
  deferred = value is None or callable(value) or hasattr(value, 'dtype')
  if _is_number(value) or not deferred:
    expected, possible = RANGES[name]
    config.require(_is_number(value) and possible(value), key, expected, value)


def check_ranges(**hyperparameters):
  """`check_range` of each keyword argument under its own name."""
  for name, value in hyperparameters.items():
    check_range(name, value, name)


def value_at(hyperparameter, count):
  """The value at optimizer step `count` of a schedule, or the constant itself."""
  return hyperparameter(count) if callable(hyperparameter) else hyperparameter
