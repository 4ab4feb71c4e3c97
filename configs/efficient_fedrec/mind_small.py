"""Efficient-FedRec (arXiv 2109.05446) with NRMS, not the paper's BERT, on MIND-small or Adressa.

  python -m launch.train --config=configs/efficient_fedrec/mind_small.py --workdir=/tmp/jaxlab/mind
  python -m launch.federate --config=configs/efficient_fedrec/mind_small.py \
      --workdir=/tmp/jaxlab/mind-federated

The first command trains centrally, the second by Efficient-FedRec with the published schedule.
Wants the unpacked files in the folder downloads/manual of the data sets (see the system's README),
glove.840B.300d.txt (`--config.data.word_vectors=FILE`; without it word vectors start at random) and
an accelerator. No run of it has been made here; the official run of the federated algorithm with a
BERT news encoder (see "What differs" in the system's README) reports AUC .6728 on MIND's test and
.7980 on Adressa's. num_clients must be the number of users with a training click, which depends on
the data set. Variants: 'mind_large', 'adressa', and 'lstur' or 'naml' for the other models on
MIND-small.
"""
import ml_collections

NEWS = {
    'nrms': {'name': 'nrms', 'embed': 300, 'heads': 20, 'head_dim': 20, 'queries': 200},
    'lstur': {'name': 'lstur', 'embed': 300, 'features': 400, 'queries': 200},
    'naml': {'name': 'naml', 'embed': 300, 'features': 400, 'queries': 200, 'category_embed': 100},
}
USER = {
    'nrms': {'name': 'nrms', 'heads': 20, 'head_dim': 20, 'queries': 200, 'input_dropout': 0.2},
    'lstur': {'name': 'lstur', 'features': 400},
    'naml': {'name': 'naml', 'queries': 200},
}


def get_config(variant='mind_small'):
  """Returns the experiment; `variant` is a data set, or a model on MIND-small (see above)."""
  variants = ('mind_small', 'mind_large', 'adressa', *NEWS)
  if variant not in variants:
    raise ValueError(f"variant: expected one of {', '.join(variants)}, got {variant!r}")
  model = variant if variant in NEWS else 'nrms'
  config = ml_collections.ConfigDict()
  config.task = 'efficient_fedrec'
  config.seed = 0
  config.data = {'name': 'mind_small' if variant in NEWS else variant, 'history_length': 50,
                 'pad_side': 'back', 'negatives': 20, 'title_length': 30,
                 'abstract_length': 50 if model == 'naml' else 0, 'min_count': 3,
                 'word_vectors': ml_collections.config_dict.placeholder(str)}
  config.model = {'news': {**NEWS[model], 'mask_padding': False},
                  'user': {**USER[model], 'mask_padding': False}}
  config.batch_size = 64
  config.steps = 20_000
  config.optimizer = {'name': 'adam', 'learning_rate': 5e-5}
  config.log_every = 100
  config.eval_every = 2_000
  config.eval_splits = ('dev',)
  config.save_every = 2_000
  adressa = variant == 'adressa'
  config.federated = {
      'num_clients': 50_000 if variant != 'mind_large' else 700_000,
      'cohort_size': 50,
      'rounds': 500 if adressa else 2_000,
      'partition': {'name': 'by_user'},
      'partition_by': 'user',
      'algorithm': {'name': 'efficient_fedrec', 'server_learning_rate': 5e-5, 'union_size': 8_000},
      'aggregator': {'name': 'mean'},
      'batch_size': 16,
      'epochs': 1,
      'log_every': 10,
      'eval_every': 10 if adressa else 100,
      'eval_splits': ('dev',),
      'save_every': 100,
  }
  return config
