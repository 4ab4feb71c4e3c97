"""All attacks by name, who commits them, and their configs."""
import inspect
from collections.abc import Mapping

import numpy as np

from jaxlab import config as config_lib
from jaxlab.federated.attacks.labels import label_flip
from jaxlab.federated.attacks.optimized import dyn_opt, stat_opt
from jaxlab.federated.attacks.quantities import QUANTITIES, enhanced
from jaxlab.federated.attacks.replacement import model_replacement
from jaxlab.federated.attacks.simple import (
  gaussian,
  gaussian_moments,
  honest,
  lie,
  same_value,
  sign_flip,
  sign_std,
)

ATTACKS = {
    'honest': honest, 'label_flip': label_flip, 'gaussian': gaussian,
    'gaussian_moments': gaussian_moments, 'sign_flip': sign_flip, 'same_value': same_value,
    'lie': lie, 'sign_std': sign_std, 'stat_opt': stat_opt, 'dyn_opt': dyn_opt,
    'model_replacement': model_replacement}
HONEST_MESSAGES = ('honest', 'label_flip')  # these send what they trained
_MALICIOUS, _POISON = 3, 4  # streams of randomness, beside those of sampling and shuffling


def make_attack(config, where='federated.attack'):
  """Makes the Attack that `config` asks for; None for an empty mapping.

  Args:
    config: {name, fraction (of the clients, see `malicious_clients`), quantity {name, ...} of
      `QUANTITIES`, ...keyword arguments}.
    where: dotted path of `config`, for messages.

  Raises:
    ConfigError: unknown name or key, or an impossible value.
  """
  if not config:
    return None
  maker = config_lib.choose_named(config, ATTACKS, where)
  own = ('name', 'fraction', 'quantity')
  config_lib.check_keys(config, (*own, *inspect.signature(maker).parameters), where)
  fraction = config.get('fraction', 0.1)
  config_lib.check_type(fraction, float, f'{where}.fraction')
  config_lib.require(0 <= fraction < 1, f'{where}.fraction', 'in [0, 1)', fraction)
  attack = config_lib.call(maker, config, where, drop=own)
  if 'quantity' not in config:
    return attack
  config_lib.check_type(config['quantity'], Mapping, f'{where}.quantity')
  claim = config_lib.choose_named(config['quantity'], QUANTITIES, f'{where}.quantity')
  return enhanced(attack, config_lib.call(claim, config['quantity'], f'{where}.quantity'))


def malicious_clients(config, num_clients, seed, where='federated.attack'):
  """Who is malicious: bool [num_clients + 1], fixed by the seed; the last is for padding.

  The number is that of `config['fraction']` of the clients (0.1 by default), rounded.

  Raises:
    ConfigError: a fraction other than 0 that makes nobody malicious; `where` names its mapping.
  """
  chosen = np.zeros(num_clients + 1, bool)
  if config:
    fraction = config.get('fraction', 0.1)
    count = round(fraction * num_clients)
    config_lib.require(count > 0 or fraction == 0, f'{where}.fraction',
                       f'so much that some of {num_clients} clients are malicious, or 0', fraction)
    rng = np.random.default_rng([seed, _MALICIOUS])
    chosen[rng.choice(num_clients, count, replace=False)] = True
  return chosen


def poisoned(columns, attack, rows, seed):
  """The columns of the training data with these rows poisoned.

  Args:
    columns: {name: [N, ...]}.
    attack: Attack with a `poison`.
    rows: rows of the malicious clients.
    seed: of the run.
  """
  return attack.poison(columns, rows, np.random.default_rng([seed, _POISON]))
