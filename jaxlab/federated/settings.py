"""The settings of a federated run: the mapping `config.federated`, read and checked."""
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import partition
from jaxlab.federated import aggregators, algorithms, attacks, sampling, secure_aggregation
from jaxlab.federated import clients as clients_lib
from jaxlab.federated.round import Threat
from jaxlab.train import early_stop


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
  """The settings of `simulate`, the mapping `config.federated`.

  Attributes:
    num_clients: clients that the training split is dealt to.
    cohort_size: clients a round, as `sampling` has it.
    rounds: rounds of the run.
    partition: {name, ...} for `data.partition.make_partition`.
    sampling: {name, ...} for `sampling.make_sampler`: who takes part in a round.
    algorithm: {name, ...} for `algorithms.make_algorithm`.
    client_optimizer: config for `optim.make_optimizer`; none for an algorithm with a rule of its
      own (scaffold, feddyn, mime, mimelite, fedsgd).
    aggregator: {name, ...} for `aggregators.make_aggregator`.
    attack: {name, ...} for `attacks.make_attack`; empty where all clients are honest. Who is
      malicious is fixed by the seed.
    secure: keyword arguments of `secure_aggregation.secure_mean`, under which the server sees sums
      alone; empty for none.
    batch_size: examples of a local step.
    epochs: local passes a round.
    local_steps: if positive, exactly so many local steps a round instead; refused under an
      algorithm that needs the gradient over all rows of a client.
    drop_remainder: whether the last batch of a local pass is left out where it is not full.
    accumulate: microbatches of a local batch.
    partition_by: column of the training split that the partition looks at; iid and quantity look
      at none.
    clients_per_vmap: clients side by side on a device; 0 takes `default_clients_per_vmap`.
    stage: False keeps all clients' data on the device; True sends the rows of each cohort, built by
      Grain while the cohort before runs.
    rounds_per_call: rounds scanned in one device program; `rounds` and every interval must be
      multiples of it.
    log_every: rounds between metric rows.
    eval_every: rounds between evaluations of `eval_splits`; 0 for the end only.
    eval_splits: splits to evaluate the global model on.
    save_every: rounds between checkpoints; 0 for the end only.
    keep: newest checkpoints that stay.
    max_bad_rounds: refused rounds in a row that end the run.
    early_stop: mapping for `train.early_stop.EarlyStop`, by which the run may end before its
      rounds; its result is then the state of its best evaluation. Empty for all rounds.
  """
  num_clients: int
  cohort_size: int
  rounds: int
  partition: Mapping
  algorithm: Mapping
  sampling: Mapping = dataclasses.field(default_factory=lambda: {'name': 'uniform'})
  client_optimizer: Mapping = dataclasses.field(default_factory=dict)
  aggregator: Mapping = dataclasses.field(default_factory=lambda: {'name': 'mean'})
  attack: Mapping = dataclasses.field(default_factory=dict)
  secure: Mapping = dataclasses.field(default_factory=dict)
  batch_size: int = 16
  epochs: int = 1
  local_steps: int = 0
  drop_remainder: bool = False
  accumulate: int = 1
  partition_by: str = 'label'
  clients_per_vmap: int = 0
  stage: bool = False
  rounds_per_call: int = 1
  log_every: int = 1
  eval_every: int = 1
  eval_splits: Sequence[str] = ('test',)
  save_every: int = 0
  keep: int = 2
  max_bad_rounds: int = 5
  early_stop: Mapping = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    config_lib.at_least(
        1, self, ('num_clients', 'cohort_size', 'rounds', 'batch_size', 'epochs', 'accumulate',
                  'rounds_per_call', 'log_every', 'max_bad_rounds'), 'federated')
    config_lib.at_least(
        0, self, ('local_steps', 'clients_per_vmap', 'eval_every', 'save_every'), 'federated')
    config_lib.require(self.cohort_size <= self.num_clients, 'federated.cohort_size',
                       f'at most num_clients={self.num_clients}', self.cohort_size)
    config_lib.require(self.batch_size % self.accumulate == 0, 'federated.batch_size',
                       f'a multiple of accumulate={self.accumulate}', self.batch_size)
    for name in ('rounds', 'log_every', 'eval_every', 'save_every'):
      config_lib.require(
          getattr(self, name) % self.rounds_per_call == 0, f'federated.{name}',
          f'a multiple of rounds_per_call={self.rounds_per_call}', getattr(self, name))
    self.stopping()
    partition.check(self.partition, 'federated.partition')
    algorithm = self.make_algorithm(None)
    config_lib.require(
        not (self.local_steps and algorithm.needs_full_gradient), 'federated.local_steps',
        f'0 under the algorithm {dict(self.algorithm)}, which needs the gradient over all rows of '
        'a client, and so whole passes over them', self.local_steps)
    config_lib.require(
        not (self.drop_remainder and algorithm.needs_full_gradient), 'federated.drop_remainder',
        f'False under the algorithm {dict(self.algorithm)}, for the same reason', True)
    aggregator = self.make_aggregator(algorithm)
    self._check_aggregation(aggregator)
    self._check_sampling(algorithm, aggregator)

  def stopping(self):
    """The EarlyStop of the run, or None."""
    return early_stop.read(self.early_stop, 'federated.early_stop', eval_every=self.eval_every,
                           eval_splits=self.eval_splits)

  def _check_sampling(self, algorithm, aggregator):
    sampler = self.make_sampler(np.ones(self.num_clients), 0)
    config_lib.require(
        sampler.smallest >= aggregator.minimum or aggregator.minimum <= 1, 'federated.sampling',
        f'one that gives at least the {aggregator.minimum} clients a round that the aggregator '
        f'{self.aggregator["name"]} needs', dict(self.sampling))
    config_lib.require(
        not self.secure or sampler.weighting is None and sampler.smallest == sampler.largest,
        'federated.sampling', 'one of cohorts of one size under secure aggregation',
        dict(self.sampling))
    config_lib.require(
        sampler.weighting is None or algorithm.init_client is None, 'federated.sampling',
        f'one that draws a client once a round under {self.algorithm["name"]}, whose clients keep '
        'a state', dict(self.sampling))

  def _check_aggregation(self, aggregator):
    config_lib.require(
        self.cohort_size >= aggregator.minimum, 'federated.cohort_size',
        f'at least {aggregator.minimum} under the aggregator {self.aggregator["name"]}',
        self.cohort_size)
    config_lib.require(not (aggregator.root_examples and self.stage), 'federated.stage',
                       f'False under the aggregator {self.aggregator["name"]}, whose root data '
                       'stay on the device', self.stage)
    name = self.algorithm['name']
    config_lib.require(
        not self.message_of_parts or not set(self.rules) & set(aggregators.MODEL_SHAPED),
        'federated.aggregator.name',
        f'one without a state under {name}, whose message is more than an update of the model',
        self.aggregator['name'])
    if not attacks.make_attack(self.attack):
      return
    config_lib.require(
        not self.message_of_parts or self.attack['name'] in attacks.HONEST_MESSAGES,
        'federated.attack.name',
        f'one of {", ".join(attacks.HONEST_MESSAGES)} under {name}, whose message is more than an '
        'update of the model', self.attack['name'])
    config_lib.require(
        self.attack['name'] != 'model_replacement' or name in ('fedavg', 'fedprox'),
        'federated.algorithm.name', 'fedavg or fedprox under the attack model_replacement', name)

  @property
  def rules(self):
    """The names of the aggregator and of the one that it wraps, if any."""
    return [rule['name'] for rule in (self.aggregator, self.aggregator.get('rule')) if rule]

  @property
  def message_of_parts(self):
    """Whether a message is more than an update of the model."""
    return self.algorithm['name'] in algorithms.MESSAGES_OF_PARTS

  def make_aggregator(self, algorithm):
    """The aggregator of an algorithm."""
    codec = self.make_codec(algorithm)
    if codec is not None:
      return codec.aggregator
    return aggregators.make_aggregator(self.aggregator, algorithm, self.num_clients)

  def make_codec(self, algorithm):
    """The Codec of secure aggregation; None without it."""
    if not self.secure:
      return None
    return secure_aggregation.make_codec(self.secure, self.aggregator, algorithm, self.num_clients,
                                         self.cohort_size)

  def make_threat(self, seed):
    """The Threat of the attack; None where all clients are honest."""
    attack = attacks.make_attack(self.attack)
    if attack is None:
      return None
    return Threat(attack, attacks.malicious_clients(self.attack, self.num_clients, seed))

  def make_algorithm(self, gradient, constants=None):
    """The algorithm over this gradient function, None for its shapes alone.

    Args:
      gradient: `TaskGradient`, or None.
      constants: the Flax collection 'constants', for the algorithms of a system; None with it.
    """
    del constants
    return algorithms.make_algorithm(self.algorithm, self.client_optimizer, gradient,
                                     self.num_clients)

  def make_sampler(self, sizes, seed):
    """The Sampler of clients with these numbers of examples [N]."""
    return sampling.make_sampler(self.sampling, sizes, self.cohort_size, seed)

  @property
  def work(self):
    """The LocalWork of a round."""
    return clients_lib.LocalWork(self.batch_size, self.epochs, self.local_steps,
                                 self.drop_remainder)


def federated_config(config, kind=FederatedConfig, **parts):
  """Reads and checks `config.federated`.

  Args:
    config: of the experiment.
    kind: FederatedConfig, or the subclass of a system with an algorithm or a threat of its own.
    **parts: fields of `kind` that no config holds.
  """
  if 'federated' not in config:
    raise config_lib.ConfigError('config.federated: missing')
  seed = config.get('seed', 0)
  config_lib.check_type(seed, int, 'seed')
  config_lib.at_least(0, {'seed': seed})
  return config_lib.call(kind, config['federated'], 'federated', drop=(), **parts)
