"""The news task and its federation, some of whose clients attack: config -> Task."""
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab.data import pipeline
from jaxlab.federated import attacks, settings, simulation
from jaxlab.federated import clients as clients_lib
from jaxlab.federated.algorithms import server_descent
from jaxlab.federated.round import Threat
from jaxlab.optim.hyperparameters import check_range
from jaxlab.systems.ua_fedrec import attack as attack_lib
from jaxlab.systems.ua_fedrec import comparison
from jaxlab.tasks import news as news_task
from jaxlab.train.step import task_gradient

CONFIG_KEYS = (*news_task.CONFIG_KEYS, 'attack')


@dataclasses.dataclass(frozen=True)
class AttackConfig:
  """The mapping `config.attack`.

  Attributes:
    fraction: of the clients that are malicious, in [0, 1).
    name: 'ua_fedrec', or one that it is compared with: 'lie', 'gaussian' and 'sign_std' know the
      messages of the own clients alone, and of the own clients of 'label_flip' and 'popularity' the
      samples lie (see `comparison`); their sizes stay true.
    deviations: of 'lie' (0 for 1.5), 'gaussian' and 'sign_std' (0 for 3), in standard deviations
      of the own messages.
    news_sign: 'paper', 'release' or 'none', see `attack.Strength`.
    news: lambda_1.
    user: lambda_2.
    quantity: lambda_3.
    own_clients: clean messages that the attacker looks at in a round.
    refresh_every: rounds between searches for near and far news.
  """
  fraction: float
  name: Literal['ua_fedrec', 'lie', 'gaussian', 'sign_std', 'label_flip',
                'popularity'] = 'ua_fedrec'
  deviations: float = 0.0
  news_sign: Literal['paper', 'release', 'none'] = 'paper'
  news: float = 3.0
  user: float = 3.0
  quantity: float = 3.0
  own_clients: int = 50
  refresh_every: int = 100

  def __post_init__(self):
    config_lib.require(0 <= self.fraction < 1, 'attack.fraction', 'in [0, 1)', self.fraction)
    config_lib.at_least(0, self, ('deviations', 'news', 'user', 'quantity'), 'attack')
    config_lib.at_least(1, self, ('own_clients', 'refresh_every'), 'attack')

  @property
  def poison(self):
    """What the malicious clients make of their samples, see `Attack.poison`; None for no lie."""
    return {'label_flip': comparison.flip_clicks,
            'popularity': lambda table, rows, rng: comparison.least_popular_clicks(
                table, rows, comparison.click_rates(table))}.get(self.name)

  def forge(self, encode, features):
    """The Forge of a news encoder (see `NewsTask`) and the features of all news."""
    if self.name == 'ua_fedrec':
      return attack_lib.ua_forge(encode, features, self.strength, refresh_every=self.refresh_every)
    return comparison.uninformed({
        'lie': lambda: attacks.lie(z=self.deviations or 1.5, knowledge='own'),
        'gaussian': lambda: attacks.gaussian_moments(scale=self.deviations or 3.0),
        'sign_std': lambda: attacks.sign_std(scale=self.deviations or 3.0, knowledge='own'),
    }[self.name]())

  @property
  def strength(self):
    """Strength."""
    sign = attack_lib.NEWS_SIGNS[self.news_sign]
    return attack_lib.Strength(sign, self.news, self.user, self.quantity)


@dataclasses.dataclass(frozen=True)
class Federation(settings.FederatedConfig):
  """The federation of the paper: FedSGD whose server steps by Adam, and the attack.

  Attributes:
    task: NewsTask.
    liars: AttackConfig.
  """
  task: Any = None
  liars: AttackConfig | None = None

  def __post_init__(self):
    config_lib.require(self.algorithm.get('name') == 'fedsgd', 'federated.algorithm.name',
                       "'fedsgd', whose message is the gradient of the model",
                       self.algorithm.get('name'))
    super().__post_init__()
    config_lib.require(not self.attack, 'federated.attack', 'nothing beside config.attack',
                       dict(self.attack))

  def make_algorithm(self, gradient, constants=None):
    """FedSGD with Adam at the rate `algorithm.server_learning_rate`."""
    del constants

    def of_rate(*, server_learning_rate: float):
      check_range('learning_rate', server_learning_rate,
                  'federated.algorithm.server_learning_rate')
      return server_descent(gradient, optax.adam(server_learning_rate))

    return config_lib.call(of_rate, self.algorithm, 'federated.algorithm')

  def make_threat(self, seed):
    """The Threat of the malicious clients that `seed` draws; None without any."""
    if not self.liars.fraction:
      return None
    clients = simulation.make_clients(self.task, self, seed)
    malicious = attacks.malicious_clients({'fraction': self.liars.fraction}, self.num_clients, seed,
                                          where='attack')
    config_lib.require(clients.sizes[malicious[:-1]].sum() > 0, 'attack.fraction',
                       f'so much that some of {self.num_clients} clients with data are malicious',
                       self.liars.fraction)
    if self.liars.poison:
      return Threat(attacks.honest()._replace(poison=self.liars.poison), malicious)
    columns = pipeline.columns(self.task.dataset('train'))
    own = jax.tree.map(jnp.asarray, own_data(columns, clients, malicious, self.work))
    constants = jax.jit(lambda: self.task.init(jax.random.key(0))['constants'])()
    algorithm = self.make_algorithm(task_gradient(self.task, constants, self.accumulate))
    learn = attack_lib.own_clients(algorithm, *own, count=self.liars.own_clients)
    forge = self.liars.forge(self.task.encode, constants['news'])
    return Threat(attack_lib.from_own(forge, learn), malicious)


def attack_config(config):
  """Reads and checks `config.attack`."""
  return config_lib.call(AttackConfig, config_lib.section(config, 'attack'), 'attack', drop=())


def own_data(table, clients, malicious, work):
  """The data of the malicious clients.

  Args:
    table: columns of all samples.
    clients: Clients.
    malicious: bool [N + 1] by client.
    work: LocalWork of a whole pass.

  Returns:
    (table of their rows, index int32 [M, S, B], sizes float32 [M]) of those who have rows.
  """
  ids = [c for c in np.flatnonzero(malicious[:-1]) if clients.sizes[c]]
  sizes = clients.sizes[ids]
  rows = np.concatenate([clients.of(c) for c in ids])
  index = np.full((len(ids), clients_lib.num_steps(sizes, work).max(), work.batch_size), -1,
                  np.int32)
  ends = np.cumsum(sizes)
  for one, start, end in zip(index, ends - sizes, ends):
    one.ravel()[:end - start] = np.arange(start, end)
  return {name: column[rows] for name, column in table.items()}, index, sizes.astype(np.float32)


def check(config):
  """Checks `config.model`, `config.data` and `config.attack` without loading data.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type or value.
  """
  news_task.check(config)
  attack_config(config)


def federated_config(config):
  """Reads and checks `config.federated`; the Federation has no task yet."""
  return settings.federated_config(config, Federation, task=None, liars=attack_config(config))


def attacked(task, liars):
  """A NewsTask that is federated with the attackers of an AttackConfig."""
  return dataclasses.replace(task, federation=functools.partial(
      settings.federated_config, kind=Federation, task=task, liars=liars))


def make_task(config):
  """Makes the NewsTask: `tasks.news` of the config, federated with those of `config.attack`."""
  return attacked(news_task.make_task(config), attack_config(config))
