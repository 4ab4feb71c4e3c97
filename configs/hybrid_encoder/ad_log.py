"""Hybrid Encoder (arXiv 2104.10925) on a log of ads, or on MIND in its place, with BERT base.

  python -m launch.train --config=configs/hybrid_encoder/ad_log.py --workdir=/tmp/jaxlab/hybrid
  python -m launch.train --config=configs/hybrid_encoder/ad_log.py:mind --workdir=/tmp/jaxlab/mind

Variants: hybrid and cross on the folder ad_log of the data sets' downloads/manual (README of the
system), and 'mind', hybrid on MIND small. `model.text.folder` is a local folder of a published
encoder; it wants an accelerator. Rates, batch and weight decay are choices: the paper's could not
be read; neither has been trained on here. Expected: not available.
"""
from configs.hybrid_encoder import demo

RANKERS = {'hybrid': {'codes': 8, 'aggregate': 'weighted'}, 'cross': {'layers': 2, 'heads': 12}}
STEPS = (20_000, 40_000)


def schedule(rate, steps):
  """Linear warm-up over a tenth of the steps, linear decay after it."""
  linear, warm = {'name': 'linear_schedule'}, steps // 10
  return {'name': 'join_schedules', 'boundaries': (warm,), 'schedules': (
      {**linear, 'init_value': 0.0, 'end_value': rate, 'transition_steps': warm},
      {**linear, 'init_value': rate, 'end_value': 0.0, 'transition_steps': steps - warm})}


def adamw(rate, steps):
  """AdamW of the spec's weight decay."""
  return {'name': 'adamw', 'learning_rate': schedule(rate, steps), 'weight_decay': 0.01}


def get_config(variant='hybrid'):
  """Returns the experiment; `variant` is 'hybrid', 'cross' or 'mind'."""
  config = demo.base('hybrid' if variant == 'mind' else variant, RANKERS, {
      'folder': 'bert-base-uncased', 'dropout': 0.1, 'dtype': 'bfloat16', 'remat': True})
  config.data = {'name': 'mind_small' if variant == 'mind' else 'log', 'history_length': 50,
                 'title_length': 32, 'corpus_ranks': False}
  groups = {**adamw(1e-4, STEPS[0]), 'groups': (
      {'match': 'text/.*', 'learning_rate': schedule(2e-5, STEPS[0])}, {'match': 'siamese/.*'})}
  demo.phases(config, steps=STEPS, optimizers=(groups, adamw(1e-4, STEPS[1])), joint=False,
              refresh_every=STEPS[1] // 10)
  config.batch_size = 256
  config.log_every = 100
  config.eval_every = config.save_every = 2_000
  config.steps_per_call = 1
  return config
