"""FedLALR (arXiv 2309.09719) on scikit-learn's handwritten digits, 20 clients with Dirichlet(0.1)
labels.

  python -m launch.federate --config=configs/fedlalr/digits.py --workdir=/tmp/jaxlab/fedlalr
  python -m launch.sweep --config=configs/fedlalr/digits.py --workdir=/tmp/jaxlab/fedlalr-sweep

The first command trains FedLALR (alpha .01): 60 rounds, 10 seconds on two cores, test accuracy
about .97. The second compares FedLALR, FedAvg and FedAdam, each at the best of its grid of rates:
about a minute. Variants: 'fedavg', 'fedadam' take the place of FedLALR; 'iid' deals the labels
evenly.
"""
import ml_collections

ALGORITHMS = {
    'fedlalr': ({
        'name': 'fedlalr', 'vhat_agg': 'mean', 'sync_momentum': True, 'weighting': 'uniform'
    }, {'name': 'fedlalr', 'learning_rate': 0.01, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-8}),
    'fedavg': ({'name': 'fedavg',
                'server_learning_rate': 1.0}, {'name': 'sgd', 'learning_rate': 0.3}),
    'fedadam': (
        {'name': 'fedadam', 'server_learning_rate': 0.03, 'b1': 0.9, 'b2': 0.99,
         'tau': 1e-3}, {'name': 'sgd', 'learning_rate': 0.3}),
}


def _arm(name, *grid):
  algorithm, optimizer = ALGORITHMS[name]
  return {
      'set': (('federated.algorithm', algorithm), ('federated.client_optimizer', optimizer)),
      'grid': grid
  }


def get_config(variant='fedlalr'):
  """Returns the experiment; `variant` is one of 'fedlalr', 'fedavg', 'fedadam', 'iid'."""
  if variant not in (*ALGORITHMS, 'iid'):
    raise ValueError(f"variant: expected one of {', '.join(ALGORITHMS)}, iid, got {variant!r}")
  algorithm, optimizer = ALGORITHMS['fedlalr' if variant == 'iid' else variant]
  config = ml_collections.ConfigDict()
  config.task = 'classification'
  config.seed = 0
  config.data = {'name': 'digits', 'train': 'train[:1297]', 'test': 'train[1297:]'}
  config.model = {'name': 'mlp', 'features': (64,)}
  config.federated = {
      'num_clients': 20,
      'cohort_size': 20,
      'rounds': 60,
      'partition': {'name': 'iid'} if variant == 'iid' else
                   {'name': 'dirichlet_by_class', 'alpha': 0.1, 'min_size': 8},
      'algorithm': algorithm,
      'client_optimizer': optimizer,
      'aggregator': {'name': 'mean'},
      'batch_size': 16,
      'epochs': 1,
      'clients_per_vmap': 0,
      'rounds_per_call': 1,
      'log_every': 1,
      'eval_every': 1,
      'save_every': 20,
  }
  rates = 'federated.client_optimizer.learning_rate'
  server_rates = 'federated.algorithm.server_learning_rate'
  config.sweep = {
      'arms': {
          'FedLALR': _arm('fedlalr', (rates, (0.001, 0.003, 0.01, 0.03))),
          'FedAvg': _arm('fedavg', (rates, (0.1, 0.3, 1.0))),
          'FedAdam': _arm('fedadam', (rates, (0.1, 0.3)), (server_rates, (0.01, 0.03))),
      },
      'seeds': (0,),
      'metric': 'test/accuracy',
      'target': 0.92,
      'last': 5,
  }
  return config
