"""Any task with any optimizer, algorithm and aggregator: two steps and two rounds of each."""
import importlib
import inspect
import itertools

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel, systems, train
from jaxlab.federated.aggregators import AGGREGATORS
from jaxlab.federated.algorithms import ALGORITHMS, CLIENT_OPTIMIZERS

DIGITS = {'name': 'digits', 'train': 'train[:64]', 'test': 'train[64:96]'}
TASKS = {
    'mlp': {'task': 'classification', 'data': DIGITS, 'model': {'name': 'mlp', 'features': (8,)}},
    'cnn': {'task': 'classification', 'data': DIGITS,
            'model': {'name': 'cnn', 'features': (2, 2), 'hidden': 4, 'dropout': (0.0, 0.0)}},
}
OPTIMIZERS = {'sgd': {'name': 'sgd', 'learning_rate': 0.1},
              'adasam': {'name': 'adasam', 'learning_rate': 0.01, 'rho': 0.05}}
SERVER_RATE, LOCAL_RATE = {'server_learning_rate': 0.03}, {'learning_rate': 0.01}
ALGORITHM_ARGUMENTS = {
    **{name: SERVER_RATE for name in ('fedadam', 'fedadagrad', 'fedams', 'fedsgd', 'fedyogi')},
    **{name: LOCAL_RATE for name in ('fedlada', 'scaffold', 'feddyn', 'mime', 'mimelite')}}
AGGREGATOR_ARGUMENTS = {
    'clipped_gaussian': {'clip_norm': 1.0, 'noise_multiplier': 0.1},
    'trimmed_mean': {'beta': 1}, 'centered_clip': {'tau': 1.0}, 'fltrust': {'root_examples': 8},
    **{name: {'num_malicious': 0} for name in ('krum', 'multi_krum', 'bulyan', 'dnc')},
    'truncated': {'alpha': 0.2, 'alpha_star': 0.5, 'rule': {'name': 'mean'}}}
OWN_OPTIMIZERS = {
    'fedlalr': {'name': 'fedlalr', 'learning_rate': 0.01},
    'scale_by_adasam': {'name': 'scale_by_adasam'}
}


def changed(before, after):
  """True if every leaf is finite and some leaf moved."""
  pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after)))
  return all(np.isfinite(b).all() for _, b in pairs) and any((a != b).any() for a, b in pairs)


def federated_optimizers(algorithm):
  """The client optimizers to try: the algorithm's own, or a plain one and AdaSAM, or none."""
  needed = CLIENT_OPTIMIZERS.get(algorithm)
  if needed:
    return {needed: OWN_OPTIMIZERS[needed]}
  takes_one = 'client_optimizer' in inspect.signature(ALGORITHMS[algorithm]).parameters
  return OPTIMIZERS if takes_one else {'none': {}}


def rotated(rows, **columns):
  """Hands row i the i-th value of each column, which differ in length: pairs meet at small cost."""
  return [(*row, *(values[i % len(values)] for values in columns.values()))
          for i, row in enumerate(rows)]


# Every algorithm with every optimizer that it takes; accumulation and aggregators take turns.
ALONE = [(algorithm, optimizer) for algorithm in ALGORITHMS
         for optimizer in federated_optimizers(algorithm)]
FEDERATED = [
    *rotated([('mlp', *row) for row in ALONE], accumulate=(1, 2), aggregator=('mean',)),
    *[('mlp', 'fedavg', 'adasam', 1 + i % 2, name) for i, name in enumerate(AGGREGATORS)],
    *rotated([(task, 'fedavg', optimizer) for task in TASKS if task != 'mlp'
              for optimizer in OPTIMIZERS], accumulate=(1, 2), aggregator=tuple(AGGREGATORS)),
]
CENTRAL = rotated(list(itertools.product(TASKS, OPTIMIZERS)), accumulate=(2, 1, 1))


class CompositionTest(parameterized.TestCase):

  @parameterized.parameters(*CENTRAL)
  def test_centrally(self, task, optimizer, accumulate):
    config = {**TASKS[task], 'seed': 0, 'batch_size': 8, 'steps': 2, 'accumulate': accumulate,
              'optimizer': OPTIMIZERS[optimizer], 'eval_splits': ()}
    made = systems.make_task(config)
    start = made.init(jax.random.split(jax.random.key(0))[0])['params']
    state = train.fit(made, config, devices=jax.devices()[:2])
    parallel.assert_replicated(state)
    self.assertTrue(changed(start, parallel.to_host(state.params)))

  @parameterized.parameters(*FEDERATED)
  def test_federated(self, task, algorithm, optimizer, accumulate, aggregator):
    config = {**TASKS[task], 'seed': 0, 'federated': {
        'num_clients': 5, 'cohort_size': 4, 'rounds': 2, 'batch_size': 8, 'accumulate': accumulate,
        'eval_splits': (),
        'partition': {'name': 'iid'}, 'aggregator': {
                'name': aggregator, **AGGREGATOR_ARGUMENTS.get(aggregator, {})},
        'algorithm': {'name': algorithm, **ALGORITHM_ARGUMENTS.get(algorithm, {})},
        'client_optimizer': federated_optimizers(algorithm)[optimizer]}}
    made = systems.make_task(config)
    start = made.init(jax.random.split(jax.random.key(0))[0])['params']
    state = federated.simulate(made, config, devices=jax.devices()[:2])
    parallel.assert_replicated(state)
    self.assertTrue(changed(start, parallel.to_host(state.params)))


# A config of each Task of a system; some take a minute to compile.
DEMOS = (
    'bipia.toy', 'debiasedrec.simulator', 'deepqse.docstrings', 'effopd.sorting:base',
    'efficient_fedrec.mind_demo', 'embmarker.docstrings', 'fedra.digits', 'graphformers.see_also',
    'hybrid_encoder.demo', 'infocse.docstrings', 'kred.demo', 'moge2.scenes', 'topi.digits',
    'vla_jepa.tabletop', 'xdeepfm.demo')
# The loops' keys, which a round has no use for.
LOOPS = ('phases', 'steps', 'optimizer', 'federated', 'batch_size', 'accumulate', 'steps_per_call',
         'eval_splits', 'eval_every', 'log_every', 'save_every')
ATTACKED = {
    'num_clients': 5, 'cohort_size': 4, 'rounds': 1, 'batch_size': 4, 'local_steps': 1,
    'eval_splits': (), 'partition': {'name': 'iid'},
    'aggregator': {'name': 'trimmed_mean', 'beta': 1},
    'attack': {'name': 'sign_std', 'fraction': 0.2, 'scale': 1.0},
    'algorithm': {'name': 'fedadam', **SERVER_RATE}, 'client_optimizer': OPTIMIZERS['adasam']}


@pytest.mark.slow
class EveryTaskTest(parameterized.TestCase):

  @parameterized.parameters(*DEMOS)
  def test_federated_with_adasam_under_attack(self, name):
    module, _, variant = name.partition(':')
    config = importlib.import_module(f'configs.{module}').get_config(*filter(None, [variant]))
    config = {key: value for key, value in config.to_dict().items() if key not in LOOPS}
    if config['task'] == 'efficient_fedrec':  # its algorithm is its own; the Task is that of news
      config['task'] = 'news'
    config['federated'] = ATTACKED
    made = systems.make_task(config)
    start = made.init(jax.random.split(jax.random.key(0))[0])['params']
    state = federated.simulate(made, config, devices=jax.devices()[:1])
    self.assertTrue(changed(start, parallel.to_host(state.params)))


if __name__ == '__main__':
  absltest.main()
