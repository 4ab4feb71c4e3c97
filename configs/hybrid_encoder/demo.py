"""Hybrid Encoder (arXiv 2104.10925) on a made-up world in which a click needs two interests.

  python -m launch.train --config=configs/hybrid_encoder/demo.py --workdir=/tmp/jaxlab/hybrid
  python -m launch.train --config=configs/hybrid_encoder/demo.py:cross --workdir=/tmp/jaxlab/cross

Variants are the rankers of stage 2: hybrid, cross, poly, multi_interest, maxsim, siamese; and
'joint', the hybrid one with retrieval trained on in stage 2. Chance has test/recall@10 .05; the
README of the system has figures. It needs pip install 'jaxlab[text]'.
"""
import ml_collections

RANKERS = {'hybrid': {'codes': 4}, 'cross': {'layers': 2, 'heads': 4}, 'poly': {'codes': 4},
           'multi_interest': {'codes': 4}, 'maxsim': {}, 'siamese': {}}
RETRIEVAL, RANKING = 'text/.*|siamese/.*', 'ranker/.*'


def phases(config, *, steps, optimizers, refresh_every, joint):
  """Adds stage 1 and stage 2; `steps` and `optimizers` are of each."""
  config.phases = (
      {'steps': steps[0], 'trainable': RETRIEVAL, 'optimizer': optimizers[0]},
      {'steps': steps[1], 'trainable': '.*' if joint else RANKING, 'optimizer': optimizers[1],
       'refresh_every': refresh_every})


def base(variant, rankers, text):
  """What the data sets share."""
  name = 'hybrid' if variant == 'joint' else variant
  if name not in rankers:
    raise ValueError(f'variant: expected one of {", ".join(sorted([*rankers, "joint"]))}, got '
                     f'{variant!r}')
  config = ml_collections.ConfigDict()
  config.task = 'hybrid_encoder'
  config.seed = 0
  config.model = {'text': text, 'page_pool': 'mean',
                  'siamese': {'pool': 'attention', 'queries': 64, 'cosine': False},
                  'ranker': {'name': name, **rankers[name]}}
  config.loss = {'temperature': 1.0, 'log_q': False, 'top_k': 100, 'hard': 7, 'random': 1,
                 'retrieval_weight': 0.5 if variant == 'joint' else 0.0, 'orthogonality': 0.0}
  config.predict = {'retrieve': 100, 'recommend': 10, 'backend': 'exact', 'factory': 'Flat',
                    'probes': 0, 'retrieval_share': 0.0}
  config.eval_splits = ('validation', 'test')
  return config


def get_config(variant='hybrid'):
  """Returns the experiment; `variant` is a ranker or 'joint'."""
  config = base(variant, RANKERS, {
      'name': 'bert-tiny', 'num_hidden_layers': 1, 'hidden_size': 32, 'num_attention_heads': 4,
      'intermediate_size': 64, 'dropout': 0.0})
  config.data = {'name': 'demo', 'history_length': 8, 'title_length': 8, 'vocab_size': 800,
                 'corpus_ranks': True}
  config.loss.top_k = 40
  config.predict.retrieve = 40
  adam = {'name': 'adam', 'learning_rate': 3e-3}
  phases(config, steps=(400, 400), optimizers=(adam, adam), refresh_every=200,
         joint=variant == 'joint')
  config.batch_size = 128
  config.log_every = 50
  config.eval_every = 400
  config.save_every = 200
  config.steps_per_call = 10
  return config
