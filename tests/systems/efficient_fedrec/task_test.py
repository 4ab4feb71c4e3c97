"""Efficient-FedRec by config: what `simulate` runs, and what is refused."""
import dataclasses

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel, systems
from jaxlab.config import ConfigError
from jaxlab.systems import efficient_fedrec
from tests import conftest, toy_news

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
ALGORITHM = {'name': 'efficient_fedrec', 'server_learning_rate': 0.01, 'union_size': 25}
FEDERATED = {'num_clients': 6, 'cohort_size': 4, 'rounds': 2, 'partition': {'name': 'by_user'},
             'partition_by': 'user', 'algorithm': ALGORITHM, 'batch_size': 4,
             'eval_splits': ('dev',)}
CONFIG = {
    'task': 'efficient_fedrec', 'seed': 0,
    'data': {'name': 'mind_demo', 'history_length': 10, 'pad_side': 'back', 'negatives': 4},
    'model': {'news': {'name': 'nrms'}, 'user': {'name': 'nrms'}}, 'federated': FEDERATED}


def make_task():
  task = toy_news.make_task()
  return dataclasses.replace(
      task, federation=lambda config: efficient_fedrec.federated_config(config, task))


class TaskTest(parameterized.TestCase):

  @parameterized.parameters(
      {}, {'aggregator': {'name': 'median'}},
      {'secure': {'clip': 1.0, 'bits': 16, 'max_weight': 16, 'neighbors': 0}})
  def test_rounds(self, **parts):
    task = make_task()
    start = task.init(jax.random.split(jax.random.key(0))[0])['params']
    state = federated.simulate(task, {'federated': {**FEDERATED, **parts}},
                               devices=jax.devices()[:2])
    parallel.assert_replicated(state)
    for side in ('news', 'user'):
      moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start[side], state.params[side])
      self.assertBetween(max(map(float, jax.tree.leaves(moved))), 0.005, 0.021)  # Adam's two steps

  def test_good(self):
    systems.check(CONFIG)

  @parameterized.parameters(
      ({'algorithm': {'name': 'fedavg'}}, "^federated.algorithm.name: expected 'efficient_fedrec'"),
      ({'algorithm': {**ALGORITHM, 'union_sise': 3}}, "'union_sise'; .* 'union_size'"),
      ({'algorithm': {**ALGORITHM, 'union_size': 0}}, 'union_size: expected at least 1'),
      ({'algorithm': {**ALGORITHM, 'server_learning_rate': float('nan')}},
       '^federated.algorithm.server_learning_rate: expected a finite number'),
      ({'client_optimizer': {'name': 'sgd'}}, 'federated.client_optimizer: expected none'),
      ({'attack': {'name': 'lie', 'fraction': .2}}, 'federated.attack.name: expected one of'),
      ({'aggregator': {'name': 'fltrust', 'root_examples': 4}}, 'federated.aggregator.name'),
      ({'secure': {'clip': 1.0, 'max_weight': 8}, 'aggregator': {'name': 'median'}}, 'aggregator'))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      systems.check({**CONFIG, 'federated': {**FEDERATED, **change}})


if __name__ == '__main__':
  absltest.main()
