"""KRED (arXiv 1910.11494) on a made-up world of news in which entities matter.

  python -m launch.train --config=configs/kred/demo.py --workdir=/tmp/jaxlab/kred
  python -m launch.train --config=configs/kred/demo.py:none --workdir=/tmp/jaxlab/kred-none

Variants: 'kred'; 'none', all entity slots empty; 'transe', with entity vectors of our own TransE in
place of the planted ones; 'official', the official code's forms of everything. Stage 1 trains the
five tasks in turn, stage 2 user2item alone. Times and figures are in the README of the system.
"""
import ml_collections

ARMS = ('category', 'popularity', 'item2item', 'user2item', 'local')
TRANSE = {'source': 'transe', 'dim': 100, 'steps': 1000, 'batch_size': 512}


def get_config(variant='kred'):
  """Returns the experiment; `variant` is 'kred', 'none', 'transe' or 'official'."""
  if variant not in ('kred', 'none', 'transe', 'official'):
    raise ValueError(f'variant: expected kred, none, official or transe, got {variant!r}')
  official = variant == 'official'
  config = ml_collections.ConfigDict()
  config.task = 'kred'
  config.seed = 0
  config.target = 'user2item'
  config.model = {'features': 100 if official else 32, 'hidden': 128 if official else 32,
                  'official_compat': official, 'entity_layer': True}
  config.data = {
      'name': 'kred_demo', 'history_length': 10,
      'history_keep': 'first' if official else 'last', 'negatives': 4, 'slots': 3,
      'neighbours': 8, 'entities': variant != 'none',
      'graph': TRANSE if variant == 'transe' else {'source': 'mind'},
      'documents': {'name': 'lsa', 'dim': 32, 'min_count': 3}, 'seed': 0
  }
  config.optimizer = {'name': 'adam', 'learning_rate': 3e-3}
  config.phases = ({'steps': 120, 'arms': ARMS}, {'steps': 60})
  config.batch_size = 128
  config.eval_splits = ('dev', 'test', 'dev_item2item', 'dev_category', 'dev_popularity',
                        'dev_local')
  config.log_every = 20
  config.eval_every = 60
  config.steps_per_call = 20
  config.predict = {'news': 20}
  return config
