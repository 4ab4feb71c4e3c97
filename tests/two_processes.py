"""One of two processes with two CPU devices each: `python -m tests.two_processes PROCESS PORT
FOLDER`.

Trains and federates the toy Task, records which rows it reads, saves and restores through
checkpoints.
"""
import json
import sys

import jax
import numpy as np

from jaxlab import federated, parallel, train
from jaxlab.data import pipeline
from tests import toy

TRAIN = {'seed': 1, 'batch_size': 8, 'steps': 8, 'save_every': 4, 'log_every': 4, 'eval_every': 4,
         'optimizer': {'name': 'adasam', 'learning_rate': 0.01, 'rho': 0.1}}
FEDERATE = {
    'seed': 1, 'federated': {
        'num_clients': 6, 'cohort_size': 5, 'rounds': 4, 'batch_size': 4, 'save_every': 2,
        'partition': {'name': 'dirichlet_by_class', 'alpha': 0.5, 'min_size': 1}, 'algorithm': {
            'name': 'fedlalr'
        }, 'client_optimizer': {'name': 'fedlalr', 'learning_rate': 0.01}
    }
}


def main():
  process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
  parallel.initialize(f'localhost:{port}', 2, process, cpu_devices=2)
  assert (jax.device_count(), jax.local_device_count(), jax.process_count()) == (4, 2, 2)
  task = toy.softmax_task()
  trained = train.fit(task, TRAIN, workdir=f'{folder}/train')
  parallel.assert_replicated(trained)
  # The same call finds the finished run and gives back the same state.
  again = train.fit(task, TRAIN, workdir=f'{folder}/train')
  toy.assert_trees_equal(trained, again)
  # No evaluation sees more rows than the first, so that its state is the result.
  early = {**TRAIN, 'steps': 16, 'early_stop': {'metric': 'test/seen', 'patience': 1}}
  stopped = train.fit(task, early, workdir=f'{folder}/early')
  assert int(stopped.step) == 8
  toy.assert_trees_equal(stopped.params, train.fit(task, {**TRAIN, 'steps': 4}).params)
  toy.assert_trees_equal(stopped, train.fit(task, early, workdir=f'{folder}/early'))
  federation = federated.simulate(task, FEDERATE, workdir=f'{folder}/federate')
  parallel.assert_replicated(federation)
  toy.assert_trees_equal(federation, federated.simulate(task, FEDERATE,
                                                        workdir=f'{folder}/federate'))
  staged = {**FEDERATE['federated'], 'stage': True}
  toy.assert_trees_equal(federation, federated.simulate(task, {**FEDERATE, 'federated': staged}))
  rows = pipeline.train_batches(task.dataset('train'), batch_size=8, seed=TRAIN['seed'],
                                process_index=process, process_count=2)
  iterator = iter(rows)
  ids = [next(iterator)['id'].tolist() for _ in range(TRAIN['steps'])]
  np.savez(f'{folder}/process{process}.npz',
           *jax.tree.leaves(parallel.to_host((trained.params, federation.server))))
  with open(f'{folder}/process{process}.json', 'w', encoding='utf-8') as file:
    json.dump(ids, file)


if __name__ == '__main__':
  main()
