"""A small run in a process of its own, to be killed: `python -m tests.fault_run MODE WORKDIR
[key=value ...]`.

MODE is 'train' or 'federate'. Every step or round is appended to WORKDIR.log before it is slept
over, so that the parent knows where the run is; the final parameters go to WORKDIR.npz.
"""
import json
import resource
import sys
import time

import jax
import numpy as np

from jaxlab import cli, federated, parallel, train
from tests import toy

STEPS, SAVE_EVERY = 60, 5
PAD = 100_000  # the hook's state makes a checkpoint large enough that its write takes a while
CONFIG = {
    'seed': 3,
    'batch_size': 8,
    'steps': STEPS,
    'save_every': SAVE_EVERY,
    'log_every': 5,
    'optimizer': {'name': 'adasam', 'learning_rate': 0.01, 'rho': 0.05},
    'federated': {
        'num_clients': 6,
        'cohort_size': 3,
        'rounds': STEPS,
        'batch_size': 4,
        'save_every': SAVE_EVERY,
        'eval_every': 5,
        'partition': {'name': 'dirichlet_by_class', 'alpha': 0.5, 'min_size': 1},
        'algorithm': {'name': 'fedlalr'},
        'client_optimizer': {'name': 'fedlalr', 'learning_rate': 0.01},
    },
}


def main():
  mode, workdir, *options = sys.argv[1:]
  options = {key: json.loads(value) for key, value in (option.split('=') for option in options)}
  cli.log_to_stderr()
  pause, limit_at = options.get('pause', 0.05), options.get('limit_at')

  def watch(state, step):
    with open(f'{workdir}.log', 'a', encoding='utf-8') as file:
      file.write(f'{step}\n')
    if step == limit_at:  # from here on no file may grow beyond 50 kB: a disk that is full
      resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    time.sleep(pause)
    return state._replace(hooks={'watch': state.hooks['watch'] + step})

  hook = train.Hook('watch', lambda params: jax.random.normal(jax.random.key(0), (PAD,)), watch)
  loop = train.fit if mode == 'train' else federated.simulate
  state = loop(toy.softmax_task(noise=0.1), CONFIG, workdir=workdir, hooks=[hook])
  leaves = jax.tree.leaves(parallel.to_host(state))
  np.savez(f'{workdir}.npz', *leaves)


if __name__ == '__main__':
  main()
