"""InfoCSE (arXiv 2202.13802) on docstrings of installed packages, and its baselines.

  python -m launch.train --config=configs/infocse/docstrings.py --workdir=/tmp/jaxlab/infocse
  python -m launch.train --config=configs/infocse/docstrings.py:twin --workdir=/tmp/jaxlab/simcse

A small transformer from random weights. The split 'test' asks for numpy's description of a
function by JAX's. Baselines are variants: 'once' (annotated after the warm-up only), 'twin'
(SimCSE), 'crop', 'shuffle' and 'cutoff' (ConSERT's), 'neighbour', 'random' (of the same document),
'span' (a crop of a neighbour, as in DeCLUTR).
"""
import ml_collections

# variant -> (config.positives, whether and how often a phase picks positives)
VARIANTS = {
    'infocse': ({}, 'rounds'), 'once': ({}, 'once'), 'twin': ({}, 'never'),
    'crop': ({'view': 'crop'}, 'never'), 'shuffle': ({'view': 'shuffle'}, 'never'),
    'cutoff': ({'view': 'cutoff'}, 'never'), 'neighbour': ({'name': 'neighbour'}, 'rounds'),
    'random': ({'name': 'random'}, 'rounds'),
    'span': ({'name': 'neighbour', 'view': 'crop'}, 'rounds')}
WARM_UP, ROUND, ROUNDS = 100, 100, 4


def get_config(variant='infocse'):
  """Returns the experiment; `variant` is one of 'infocse', 'once', 'twin', 'crop', 'shuffle',
  'cutoff', 'neighbour', 'random', 'span'."""
  positives, how = VARIANTS[variant]
  steps = ROUND * ROUNDS
  config = ml_collections.ConfigDict()
  config.task = 'infocse'
  config.seed = 0
  config.data = {'name': 'docstrings', 'max_length': 32, 'max_sentences': 32, 'vocab_size': 4000}
  config.model = {'name': 'bert-tiny', 'num_hidden_layers': 1, 'hidden_size': 64,
                  'num_attention_heads': 4, 'intermediate_size': 128, 'dropout': 0.1,
                  'pooler': 'mean'}
  config.positives = {'name': 'annotated', 'view': 'none', **positives}
  config.loss = {'temperature': 0.05}
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-3}
  config.batch_size = 64
  config.phases = (
      {'steps': WARM_UP},
      {'steps': steps, 'refresh_every': {'rounds': ROUND, 'once': steps, 'never': 0}[how]})
  config.log_every = config.eval_every = 100
  config.save_every = 100
  return config
