"""UA-FedRec (arXiv 2202.06701) on planted news: NRMS, 800 users of whom 10 % attack.

  python -m launch.federate --config=configs/ua_fedrec/demo.py --workdir=/tmp/jaxlab/ua-fedrec

250 rounds of 50 users, FedSGD with Adam at the server. The AUC on dev stays near chance; in the
variant 'clean' nobody attacks. Others: 'release' (the sign of the official code), 'lstur',
'norm_bound', 'multi_krum', 'rows' (word vectors by row), and the attacks 'lie', 'gaussian',
'sign_std', 'label_flip' and 'popularity'.
"""
import ml_collections

AGGREGATORS = {'norm_bound': {'name': 'norm_bound', 'bound': 0.5},
               'multi_krum': {'name': 'multi_krum', 'num_malicious': 1, 'keep': 49}}
OTHERS = ('lie', 'gaussian', 'sign_std', 'label_flip', 'popularity')  # what it is compared with
MODELS = {
    'nrms': {
        'news': {'name': 'nrms', 'embed': 32, 'heads': 4, 'head_dim': 8, 'queries': 16,
                 'dropout': 0.0, 'mask_padding': False, 'word_deviation': 0.25},
        'user': {'name': 'nrms', 'heads': 4, 'head_dim': 8, 'queries': 16, 'mask_padding': False}},
    'lstur': {
        'news': {'name': 'lstur', 'embed': 32, 'features': 32, 'queries': 16, 'dropout': 0.0,
                 'mask_padding': False, 'word_deviation': 0.25},
        'user': {'name': 'lstur', 'features': 32, 'mask_padding': False}},
}


def get_config(variant='attack'):
  """Returns the experiment; `variant` is one of 'attack', 'clean', 'release', 'lstur',
  'norm_bound', 'multi_krum', 'rows', or one of `OTHERS`.
  """
  variants = ('attack', 'clean', 'release', 'lstur', *AGGREGATORS, 'rows', *OTHERS)
  if variant not in variants:
    raise ValueError(f"variant: expected one of {', '.join(variants)}, got {variant!r}")
  config = ml_collections.ConfigDict()
  config.task = 'ua_fedrec'
  config.seed = 0
  config.data = {
      'name': 'mind_demo', 'history_length': 10, 'pad_side': 'front', 'negatives': 4,
      'title_length': 8, 'min_count': 1
  }
  config.model = MODELS['lstur' if variant == 'lstur' else 'nrms']
  config.rows = variant == 'rows'
  config.federated = {
      'num_clients': 800,
      'cohort_size': 50,
      'rounds': 250,
      'partition': {'name': 'by_user'},
      'partition_by': 'user',
      'algorithm': {'name': 'fedsgd', 'server_learning_rate': 0.003},
      'aggregator': AGGREGATORS.get(variant, {'name': 'mean'}),
      'batch_size': 4,
      'epochs': 1,
      'rounds_per_call': 5,
      'log_every': 5,
      'eval_every': 25,
      'eval_splits': ('dev',),
      'save_every': 50,
  }
  config.attack = {
      'fraction': 0.0 if variant == 'clean' else 0.1,
      'name': variant if variant in OTHERS else 'ua_fedrec',
      'news_sign': 'release' if variant == 'release' else 'paper',
      'news': 3.0, 'user': 3.0, 'quantity': 3.0, 'own_clients': 8, 'refresh_every': 25
  }
  return config
