"""The news recommender of Efficient-FedRec (arXiv 2109.05446) on a planted world of MIND's format.

  python -m launch.train --config=configs/efficient_fedrec/mind_demo.py --workdir=/tmp/jaxlab/news
  python -m launch.federate --config=configs/efficient_fedrec/mind_demo.py \
      --workdir=/tmp/jaxlab/news-federated

The first command trains NRMS centrally, the second by Efficient-FedRec with a client a user;
'adressa' takes the world written as Adressa's files. On 'mind' a constant score has dev/auc .5, the
score that drew the clicks .86.
"""
import ml_collections


def get_config(variant='mind'):
  """Returns the experiment; `variant` is 'mind' or 'adressa'."""
  if variant not in ('mind', 'adressa'):
    raise ValueError(f"variant: expected 'mind' or 'adressa', got {variant!r}")
  config = ml_collections.ConfigDict()
  config.task = 'efficient_fedrec'
  config.seed = 0
  config.data = {'name': {'mind': 'mind_demo', 'adressa': 'adressa_demo'}[variant],
                 'history_length': 10, 'pad_side': 'back', 'negatives': 4, 'title_length': 8,
                 'min_count': 1}
  config.model = {
      'news': {'name': 'nrms', 'embed': 300, 'heads': 4, 'head_dim': 5, 'queries': 16,
               'dropout': 0.0, 'mask_padding': False, 'word_deviation': 0.5},
      'user': {'name': 'nrms', 'heads': 4, 'head_dim': 5, 'queries': 16, 'input_dropout': 0.0,
               'mask_padding': False}
  }
  config.batch_size = 64
  config.steps = 400
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-3}
  config.log_every = 50
  config.eval_every = 100
  config.eval_splits = ('dev',)
  config.save_every = 200
  config.federated = {
      'num_clients': 800,
      'cohort_size': 50,
      'rounds': 250,
      'partition': {'name': 'by_user'},
      'partition_by': 'user',
      'algorithm': {'name': 'efficient_fedrec', 'server_learning_rate': 3e-3, 'union_size': 401},
      'aggregator': {'name': 'mean'},
      'batch_size': 8,
      'epochs': 1,
      'log_every': 25,
      'eval_every': 25,
      'eval_splits': ('dev',),
      'save_every': 125,
  }
  return config
