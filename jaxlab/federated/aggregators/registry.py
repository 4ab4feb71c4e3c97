"""All aggregators by name."""
import inspect
from collections.abc import Mapping

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.centers import centered_clip, rfa
from jaxlab.federated.aggregators.distance import bulyan, krum, multi_krum
from jaxlab.federated.aggregators.means import (
  clipped_gaussian,
  norm_bound,
  uniform_mean,
  weighted_mean,
)
from jaxlab.federated.aggregators.order import median, trimmed_mean
from jaxlab.federated.aggregators.quantities import truncated
from jaxlab.federated.aggregators.quantity_aware import fedra
from jaxlab.federated.aggregators.residuals import residual
from jaxlab.federated.aggregators.similarity import fltrust, foolsgold
from jaxlab.federated.aggregators.spectral import dnc

AGGREGATORS = {
    'mean': weighted_mean, 'uniform_mean': uniform_mean, 'clipped_gaussian': clipped_gaussian,
    'norm_bound': norm_bound, 'median': median, 'trimmed_mean': trimmed_mean, 'krum': krum,
    'multi_krum': multi_krum, 'bulyan': bulyan, 'rfa': rfa, 'centered_clip': centered_clip,
    'residual': residual, 'dnc': dnc, 'foolsgold': foolsgold, 'fltrust': fltrust, 'fedra': fedra,
    'truncated': truncated}
# Aggregators whose state is shaped like the model, as the message must be.
MODEL_SHAPED = ('centered_clip', 'foolsgold', 'fltrust')
# Those that cannot do with some rows of a table: they remember, or blur, the whole model.
WHOLE_MODEL = (*MODEL_SHAPED, 'clipped_gaussian')


def make_aggregator(config, algorithm, num_clients=None):
  """Makes the aggregator that `config` ({name, ...}) asks for.

  Args:
    config: {name, ...keyword arguments}; 'truncated' wraps the aggregator of its key 'rule'.
    algorithm: Algorithm.
    num_clients: clients of the federation, for those that remember each client.

  Raises:
    ConfigError: unknown name or key, or an algorithm that brings an aggregation of its own is asked
      to use another.
  """
  config_lib.choose_named(config, AGGREGATORS, 'federated.aggregator')
  if algorithm.aggregator is not None:
    config_lib.require(
        config['name'] == 'mean', 'federated.aggregator.name',
        "'mean' (this algorithm aggregates a part of its message by a rule of its own)",
        config['name'])
    return algorithm.aggregator
  return _make(config, 'federated.aggregator', num_clients)


def _make(config, where, num_clients):
  maker = config_lib.choose_named(config, AGGREGATORS, where)
  injected = {}
  if 'num_clients' in inspect.signature(maker).parameters:
    injected['num_clients'] = num_clients
  if maker is truncated:
    if 'rule' not in config:
      raise config_lib.ConfigError(f'{where}.rule: missing')
    config_lib.check_type(config['rule'], Mapping, f'{where}.rule')
    injected['rule'] = _make(config['rule'], f'{where}.rule', num_clients)
    return config_lib.call(maker, config, where, drop=('name', 'rule'), **injected)
  return config_lib.call(maker, config, where, **injected)
