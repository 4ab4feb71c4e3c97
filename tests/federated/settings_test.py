"""What a federated run can be asked for."""
import inspect

from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.federated.algorithms import ALGORITHMS, CLIENT_OPTIMIZERS
from jaxlab.federated.settings import FederatedConfig, federated_config

BASE = {
    'num_clients': 6, 'cohort_size': 4, 'rounds': 6, 'batch_size': 4,
    'partition': {'name': 'dirichlet_by_class', 'alpha': 0.5, 'min_size': 1},
    'algorithm': {'name': 'fedlalr'},
    'client_optimizer': {'name': 'fedlalr', 'learning_rate': 0.01}
}
RATE = {'learning_rate': 0.1}
SGD = {'name': 'sgd', **RATE}
OWN_RULE = {'client_optimizer': {}}
FEDLADA = {
    'algorithm': {'name': 'fedlada', **RATE}, 'client_optimizer': {'name': 'scale_by_adasam'}}


def config(**changes):
  return {'seed': 1, 'federated': {**BASE, **changes}}


class FederatedConfigTest(parameterized.TestCase):

  def test_reads_what_a_config_says(self):
    settings = federated_config(config(local_steps=3))
    self.assertEqual(settings, FederatedConfig(**BASE, local_steps=3))
    self.assertEqual(settings.work, (4, 1, 3, False))
    self.assertIsNone(settings.make_codec(settings.make_algorithm(None)))
    self.assertIsNone(settings.make_threat(seed=0))

  def test_a_config_without_it(self):
    with self.assertRaisesRegex(ConfigError, '^config.federated: missing$'):
      federated_config({'seed': 1})

  @parameterized.parameters(
      ({'cohort_size': 7}, 'federated.cohort_size: expected at most num_clients=6, got 7'),
      ({'rounds': 0}, 'federated.rounds: expected at least 1, got 0'),
      ({'num_client': 3}, "federated: unknown key 'num_client'; did you mean 'num_clients'"),
      ({'algorithm': {'name': 'fedavgg'}
       }, "federated.algorithm.name: unknown name 'fedavgg'; did you mean 'fedavg'"),
      ({'algorithm': {'name': 'fedlalr', 'vhat_ag': 'max'}
       }, "federated.algorithm: unknown key 'vhat_ag'; did you mean 'vhat_agg'"),
      ({'algorithm': {'name': 'fedlalr', 'vhat_agg': 'median'}
       }, 'federated.algorithm.vhat_agg: expected'),
      ({'client_optimizer': {'name': 'sgd', 'learning_rate': 0.1}
       }, "federated.client_optimizer.name: expected 'fedlalr' under"),
      ({'client_optimizer': {'name': 'fedlalr', 'learning_rate': -0.1}
       }, 'federated.client_optimizer.learning_rate: expected a finite'),
      ({'aggregator': {'name': 'meen'}
       }, "federated.aggregator.name: unknown name 'meen'; did you mean 'mean'"),
      ({'partition': {'name': 'dirichlet_by_class', 'alhpa': 1.0}
       }, "partition: unknown key 'alhpa'; did you mean 'alpha'"),
      ({'batch_size': 5, 'accumulate': 2
       }, 'federated.batch_size: expected a multiple of accumulate=2, got 5'),
      ({'rounds_per_call': 4}, 'federated.rounds: expected a multiple of rounds_per_call=4, got 6'),
      ({'client_optimizer': {**BASE['client_optimizer'], 'ema_decay': 0.9}
       }, 'federated.client_optimizer: expected none of groups, clip_norm, ema_decay under'),
      ({**FEDLADA, 'client_optimizer': {'name': 'scale_by_adasam', 'ema_decay': 0.9}
       }, 'federated.client_optimizer: expected none of groups, clip_norm, ema_decay under'),
      ({**FEDLADA, 'algorithm': {'name': 'fedlada', 'learning_rate': 0.0}
       }, 'learning_rate: expected more than 0, got 0.0'),
      ({**FEDLADA, 'algorithm': {**FEDLADA['algorithm'], 'amend': 1.5}
       }, r'amend: expected a number in \[0, 1\], got 1.5'),
      ({**OWN_RULE, 'algorithm': {'name': 'feddyn', **RATE, 'weighting': 'examples'}
       }, "federated.algorithm: unknown key 'weighting'"),
      ({'algorithm': {'name': 'fedavg'}, 'client_optimizer': {'name': 'lbfgs', **RATE}
       }, "federated.client_optimizer.name: unknown name 'lbfgs'"),
  )
  def test_impossible_settings(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      federated_config(config(**change))

  @parameterized.parameters(
      ({'name': 'fedsgd', 'server_learning_rate': 0.1},), ({'name': 'mime', **RATE},),
      ({'name': 'mimelite', **RATE},), ({'name': 'scaffold', **RATE, 'option': 1},))
  def test_fixed_local_steps_give_no_full_gradient(self, algorithm):
    federated_config(config(**OWN_RULE, algorithm=algorithm, epochs=2))
    name = algorithm['name']
    message = (f'^federated.local_steps: expected 0 under the algorithm .*{name}.*, which needs '
               'the gradient over all rows .*, got 3')
    with self.assertRaisesRegex(ConfigError, message):
      federated_config(config(**OWN_RULE, algorithm=algorithm, local_steps=3))

  def test_fixed_local_steps_for_those_that_step_alone(self):
    for name in ('scaffold', 'feddyn'):
      federated_config(config(**OWN_RULE, algorithm={'name': name, **RATE}, local_steps=3))

  def test_a_server_cannot_step_back(self):
    for name, make in ALGORITHMS.items():
      accepts = inspect.signature(make).parameters
      if 'server_learning_rate' not in accepts:
        continue
      algorithm = {'name': name, 'server_learning_rate': -1.0}
      algorithm |= RATE if 'learning_rate' in accepts else {}
      optimizer = {'name': 'scale_by_adasam'} if name in CLIENT_OPTIMIZERS else SGD
      optimizer = optimizer if 'client_optimizer' in accepts else {}
      with self.subTest(name), self.assertRaisesRegex(
          ConfigError, 'server_learning_rate: expected a finite number >= 0, got -1.0'):
        federated_config(config(algorithm=algorithm, client_optimizer=optimizer))

  @parameterized.parameters((-1, 'at least 0, got -1'), ('one', "int, got 'one'"))
  def test_an_impossible_seed(self, seed, message):
    with self.assertRaisesRegex(ConfigError, f'^seed: expected {message}'):
      federated_config({**config(), 'seed': seed})


if __name__ == '__main__':
  absltest.main()
