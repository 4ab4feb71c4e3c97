"""FedRA (arXiv 2205.10848) on FEMNIST, every writer a client, 10 % of them malicious.

  python -m launch.federate --config=configs/fedra/femnist.py --workdir=/tmp/jaxlab/fedra-femnist
  python -m launch.federate --config=configs/fedra/femnist.py:demo \
      --workdir=/tmp/jaxlab/fedra-femnist-demo

The first command wants LEAF's FEMNIST files in the folder downloads/manual of the data sets, and an
accelerator; no run of it has been made here. CHOICE, for want of the paper's own: a CNN of two
convolutions (32, 64) and 512 hidden units, 50 writers a round, 1 local epoch of batches of 20 at a
rate of .06, 1000 rounds, STAT-OPT with ten times the size. num_clients must be the number of
writers in the files. Variant 'demo' has scikit-learn's digits, enlarged, of 20 writers.
"""
import ml_collections


def get_config(variant='femnist'):
  """Returns the experiment; `variant` is 'femnist' or 'demo'."""
  if variant not in ('femnist', 'demo'):
    raise ValueError(f"variant: expected 'femnist' or 'demo', got {variant!r}")
  demo = variant == 'demo'
  config = ml_collections.ConfigDict()
  config.task = 'classification'
  config.seed = 0
  config.data = {'name': 'femnist_demo' if demo else 'femnist', 'train': 'train', 'test': 'test'}
  config.model = {'name': 'cnn', 'features': (8, 16) if demo else (32, 64),
                  'hidden': 32 if demo else 512, 'dropout': (0.0, 0.0)}
  config.federated = {
      'num_clients': 20 if demo else 3550,
      'cohort_size': 10 if demo else 50,
      'rounds': 10 if demo else 1000,
      'partition': {'name': 'by_user'},
      'partition_by': 'user',
      'algorithm': {'name': 'fedavg'},
      'client_optimizer': {'name': 'sgd', 'learning_rate': 0.06},
      'aggregator': {'name': 'fedra', 'factor': 'product'},
      'attack': {'name': 'stat_opt', 'fraction': 0.1,
                 'quantity': {'name': 'scale', 'factor': 10.0}},
      'batch_size': 20,
      'epochs': 1,
      'log_every': 1,
      'eval_every': 5 if demo else 50,
      'save_every': 5 if demo else 100,
  }
  return config
