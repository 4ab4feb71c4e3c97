"""GraphFormers (arXiv 2105.02605) on "See Also" links of installed packages' docstrings.

  python -m launch.train --config=configs/graphformers/see_also.py \
      --workdir=/tmp/jaxlab/graphformers
  python -m launch.train --config=configs/graphformers/see_also.py:plm \
      --workdir=/tmp/jaxlab/graphformers-plm

Variants: graphformers, progressive (polluted centres for the first half), plm (the text alone),
and the cascades max, mean, att, gat. 3,001 training pairs, 600 test pairs, two layers from random
weights. With --config.data.center_length=4 a centre keeps two word pieces, and neighbours decide.
"""
import ml_collections


def get_config(variant='graphformers'):
  """Returns the experiment; `variant` is an architecture or 'progressive'."""
  config = ml_collections.ConfigDict()
  config.task = 'graphformers'
  config.seed = 0
  progressive = variant == 'progressive'
  config.data = {'name': 'demo', 'neighbors': 5, 'token_length': 16,
                 'center_length': ml_collections.config_dict.placeholder(int),
                 'vocab_size': 2000, 'candidates': 300, 'pollute_rate': 0.15}
  config.model = {'architecture': 'graphformers' if progressive else variant, 'name': 'bert-tiny',
                  'hidden_size': 96, 'num_attention_heads': 4, 'intermediate_size': 384,
                  'dropout': 0.1, 'score_scale': 0.1, 'initializer_range': 0.1}
  config.optimizer = {'name': 'adam', 'learning_rate': 3e-3}
  config.predict = {'batch_size': 256, 'seed': 0}
  config.batch_size = 60
  if progressive:
    config.phases = ({'steps': 150, 'arms': ('polluted',)}, {'steps': 150, 'arms': ('clean',)})
  else:
    config.steps = 300
  config.log_every = 25
  config.eval_every = 150
  config.save_every = 150
  config.eval_splits = ('validation', 'test')
  return config
