"""What a federated run can be asked for."""
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.federated.settings import FederatedConfig, federated_config

BASE = {
    'num_clients': 6, 'cohort_size': 4, 'rounds': 6, 'batch_size': 4,
    'partition': {'name': 'dirichlet_by_class', 'alpha': 0.5, 'min_size': 1},
    'algorithm': {'name': 'fedlalr'},
    'client_optimizer': {'name': 'fedlalr', 'learning_rate': 0.01}
}


def config(**changes):
  return {'seed': 1, 'federated': {**BASE, **changes}}


class FederatedConfigTest(parameterized.TestCase):

  def test_reads_what_a_config_says(self):
    settings = federated_config(config(local_steps=3))
    self.assertEqual(settings, FederatedConfig(**BASE, local_steps=3))
    self.assertEqual(settings.work, (4, 1, 3))
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
  )
  def test_impossible_settings(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      federated_config(config(**change))


if __name__ == '__main__':
  absltest.main()
