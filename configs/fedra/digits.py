"""FedRA (arXiv 2205.10848) on scikit-learn's handwritten digits, 50 clients of log-normal size, a
tenth of them malicious.

  python -m launch.federate --config=configs/fedra/digits.py --workdir=/tmp/jaxlab/fedra

40 rounds of 25 clients, softmax regression; the test accuracy is about .95 although the attackers
push against the benign direction with enlarged sizes (metrics m_true, m_hat, recall,
false_positive_rate, kept_weight_share by round). Variants: 'fedavg' is averaged by size and
collapses; 'clean' has no attack.
"""
import ml_collections


def get_config(variant='fedra'):
  """Returns the experiment; `variant` is one of 'fedra', 'fedavg', 'clean'."""
  if variant not in ('fedra', 'fedavg', 'clean'):
    raise ValueError(f"variant: expected 'fedra', 'fedavg' or 'clean', got {variant!r}")
  config = ml_collections.ConfigDict()
  config.task = 'classification'
  config.seed = 0
  config.data = {'name': 'digits', 'train': 'train[:1297]', 'test': 'train[1297:]'}
  config.model = {'name': 'mlp', 'features': ()}
  config.federated = {
      'num_clients': 50,
      'cohort_size': 25,
      'rounds': 40,
      'partition': {'name': 'quantity', 'law': 'lognormal', 'spread': 1.0, 'min_size': 2},
      'algorithm': {'name': 'fedavg'},
      'client_optimizer': {'name': 'sgd', 'learning_rate': 1.0},
      'aggregator': {'name': 'mean'} if variant == 'fedavg' else
                    {'name': 'fedra', 'factor': 'product', 'm_max': 5, 'floor': 0.4},
      'attack': {} if variant == 'clean' else
                {'name': 'sign_std', 'fraction': 0.1, 'scale': 3.0,
                 'quantity': {'name': 'moments', 'scale': 3.0}},
      'batch_size': 512,
      'epochs': 5,
      'rounds_per_call': 1,
      'log_every': 1,
      'eval_every': 5,
      'save_every': 20,
  }
  return config
