"""The news task with its federation in two stages: config -> Task."""
import dataclasses
import functools
from typing import Any

import optax

from jaxlab import config as config_lib
from jaxlab.federated import settings
from jaxlab.federated.algorithms import server_descent
from jaxlab.optim.hyperparameters import check_range
from jaxlab.systems.efficient_fedrec.algorithm import efficient_fedrec
from jaxlab.tasks import news as news_task
from jaxlab.tasks.news import check

__all__ = ['CONFIG_KEYS', 'check', 'federated_config', 'make_task']
CONFIG_KEYS = ('model', 'data')  # not 'rows': word vectors never leave the server
_NAME = 'efficient_fedrec'


def _settings(*, server_learning_rate: float, union_size: int, train_news: bool = True,
              share_dropout: bool = True, chunk: int = 128):
  """Reads the mapping `config.federated.algorithm`: (rate of Adam, arguments of the algorithm)."""
  config_lib.at_least(1, {'union_size': union_size, 'chunk': chunk}, where='federated.algorithm')
  check_range('learning_rate', server_learning_rate,
              'federated.algorithm.server_learning_rate')
  return server_learning_rate, {'union_size': union_size, 'train_news': train_news,
                                'share_dropout': share_dropout, 'chunk': chunk}


@dataclasses.dataclass(frozen=True)
class Federation(settings.FederatedConfig):
  """The federation of the paper, whose server steps by Adam.

  Attributes:
    task: NewsTask.
  """
  task: Any = None

  def __post_init__(self):
    config_lib.require(self.algorithm.get('name') == _NAME, 'federated.algorithm.name',
                       f'{_NAME!r}; the other algorithms federate the task news',
                       self.algorithm.get('name'))
    config_lib.require(not self.client_optimizer, 'federated.client_optimizer',
                       'none, since clients send gradients', dict(self.client_optimizer))
    super().__post_init__()

  @property
  def message_of_parts(self):
    """A message holds the gradients of the news vectors beside those of the user model."""
    return True

  def make_algorithm(self, gradient, constants=None):
    """Efficient-FedRec; without a gradient FedSGD, whose server has the same state."""
    rate, arguments = config_lib.call(_settings, self.algorithm, 'federated.algorithm')
    optimizer = optax.adam(rate)
    if gradient is None:
      return server_descent(None, optimizer)
    return efficient_fedrec(self.task, constants, optimizer, **arguments)


def federated_config(config, task=None):
  """Reads and checks `config.federated` of a NewsTask, or of one still to be made."""
  return settings.federated_config(config, Federation, task=task)


def make_task(config):
  """Makes the NewsTask of the config, federated by Efficient-FedRec."""
  task = news_task.make_task(config)
  return dataclasses.replace(task, federation=functools.partial(federated_config, task=task))
