"""DeepQSE (arXiv 2210.08809) on docstrings of installed packages, from random weights.

  python -m launch.train --config=configs/deepqse/docstrings.py --workdir=/tmp/jaxlab/deepqse
  python -m launch.predict --config=configs/deepqse/docstrings.py --checkpoint=/tmp/jaxlab/deepqse \
      --config.predict.query='singular values' --input=page.html --output=snippets.jsonl

Variants: 'efficient' (both stages), 'joint' (DeepQSE), 'parade' and 'birch' (without the query's
vector, and without the page, in what ranks). The queries are some words of the gold sentence.
"""
import ml_collections

CONTEXTS = {'efficient': 'query', 'joint': 'query', 'parade': 'sentences', 'birch': 'none'}


def get_config(variant='efficient'):
  """Returns the experiment; `variant` is one of 'efficient', 'joint', 'parade', 'birch'."""
  config = ml_collections.ConfigDict()
  config.task = 'deepqse'
  config.seed = 0
  config.data = {'folder': '', 'train': 'train', 'test': 'test', 'max_sentences': 24,
                 'max_query': 16, 'max_title': 8, 'max_sentence': 40, 'vocab_size': 2000}
  config.model = {'kind': 'efficient' if variant == 'efficient' else 'joint',
                  'context': CONTEXTS[variant], 'candidates': 8, 'name': 'bert-tiny',
                  'num_hidden_layers': 2, 'hidden_size': 64, 'num_attention_heads': 4,
                  'intermediate_size': 128, 'dropout': 0.0}
  config.predict = {'query': '', 'sentences': 1}
  config.batch_size = 8
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-3, 'clip_norm': 1.0}
  steps = 160
  if variant == 'efficient':
    config.phases = (
        {'steps': steps, 'arms': ('coarse',), 'trainable': 'coarse/.*'},
        {'steps': steps, 'trainable': 'fine/.*', 'refresh_every': steps})
  else:
    config.steps = steps
  config.log_every = 40
  config.eval_every = 0
  config.save_every = steps
  return config
