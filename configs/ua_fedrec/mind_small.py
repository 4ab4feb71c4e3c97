"""UA-FedRec (arXiv 2202.06701) on MIND-small, the settings of the official code.

  python -m launch.federate --config=configs/ua_fedrec/mind_small.py \
      --workdir=/tmp/jaxlab/ua-fedrec-mind

It wants MINDsmall_train and MINDsmall_dev unpacked in downloads/manual/MINDsmall of the data sets,
glove.840B.300d.txt in the folder where it is started (or --config.data.word_vectors=FILE) and an
accelerator; no run of it has been made here. Expected at 1 % malicious without a defence: a
validation AUC of .50 to .55 that never learns; .66 to .68 without the attack. 10 000 rounds of 50
users, 1 % malicious. num_clients must be the number of users with a training click. Variants:
'lstur', 'clean' (nobody attacks), 'release', 'norm_bound', 'multi_krum', 'median', 'trimmed_mean',
'krum', 'rows' (in rounds without the attack only the words that the users read are sent and
updated; the official Adam moves all), and the other attacks 'lie', 'gaussian', 'sign_std',
'label_flip' and 'popularity'.
"""
import ml_collections

AGGREGATORS = {
    'norm_bound': {'name': 'norm_bound', 'bound': 10.0},
    'multi_krum': {'name': 'multi_krum', 'num_malicious': 1, 'keep': 49, 'squared': False},
    'krum': {'name': 'krum', 'num_malicious': 1, 'squared': False},
    'median': {'name': 'median', 'lower': True},
    'trimmed_mean': {'name': 'trimmed_mean', 'beta': 1},
}
OTHERS = ('lie', 'gaussian', 'sign_std', 'label_flip', 'popularity')  # what it is compared with
MODELS = {
    'nrms': {
        'news': {'name': 'nrms', 'embed': 300, 'heads': 20, 'head_dim': 20, 'queries': 200,
                 'dropout': 0.2, 'mask_padding': False},
        'user': {'name': 'nrms', 'heads': 20, 'head_dim': 20, 'queries': 200,
                 'output_dropout': 0.2, 'mask_padding': False}},
    'lstur': {
        'news': {'name': 'lstur', 'embed': 300, 'features': 400, 'queries': 200, 'window': 3,
                 'dropout': 0.2, 'mask_padding': False},
        'user': {'name': 'lstur', 'features': 400, 'mask_padding': False}},
}


def get_config(variant='attack'):
  """Returns the experiment; `variant` is one of 'attack', 'lstur', 'clean', 'release',
  'norm_bound', 'multi_krum', 'median', 'trimmed_mean', 'krum', 'rows', or one of `OTHERS`.
  """
  variants = ('attack', 'lstur', 'clean', 'release', *AGGREGATORS, 'rows', *OTHERS)
  if variant not in variants:
    raise ValueError(f"variant: expected one of {', '.join(variants)}, got {variant!r}")
  config = ml_collections.ConfigDict()
  config.task = 'ua_fedrec'
  config.seed = 0
  config.data = {
      'name': 'mind_small', 'history_length': 50, 'pad_side': 'front', 'negatives': 20,
      'title_length': 30, 'min_count': 3, 'word_vectors': 'glove.840B.300d.txt'
  }
  config.model = MODELS['lstur' if variant == 'lstur' else 'nrms']
  config.rows = variant == 'rows'
  config.federated = {
      'num_clients': 50000,
      'cohort_size': 50,
      'rounds': 10000,
      'partition': {'name': 'by_user'},
      'partition_by': 'user',
      'algorithm': {'name': 'fedsgd', 'server_learning_rate': 1e-4},
      'aggregator': AGGREGATORS.get(variant, {'name': 'mean'}),
      'batch_size': 16,
      'epochs': 1,
      'rounds_per_call': 1,
      'log_every': 10,
      'eval_every': 100,
      'eval_splits': ('dev',),
      'save_every': 500,
  }
  config.attack = {
      'fraction': 0.0 if variant == 'clean' else 0.01,
      'name': variant if variant in OTHERS else 'ua_fedrec',
      'news_sign': 'release' if variant == 'release' else 'paper',
      'news': 3.0, 'user': 3.0, 'quantity': 3.0, 'own_clients': 50, 'refresh_every': 100
  }
  return config
