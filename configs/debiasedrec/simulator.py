"""DebiasedRec (arXiv 2104.07360), its ablations and baselines on the simulated homepage.

  python -m launch.train --config=configs/debiasedrec/simulator.py --workdir=/tmp/jaxlab/debiasedrec
  python -m launch.train --config=configs/debiasedrec/simulator.py:plain --workdir=/tmp/jaxlab/plain

Variants: debiased, plain, user_only, click_only, no_interactions, table, pal, ipw, feature. The
split `test` is the biased log, `random` has random slots and the true interest as labels: on the
first the score with the slot (slot/auc) looks best, on the second auc is what counts. Figures of
more worlds are in the README of the system. `launch.federate` takes the same file: a client a user.
"""
import ml_collections

VARIANTS = {  # parts of the model, and the loss
    'debiased': ({}, {}),
    'plain': ({'user': {'bias': False}, 'click': {'head': 'none'}}, {}),
    'user_only': ({'click': {'head': 'none'}}, {}),
    'click_only': ({'user': {'bias': False}}, {}),
    'no_interactions': ({'bias': {'interaction': 'none'}}, {}),
    'table': ({'bias': {'interaction': 'table'}}, {}),
    'pal': ({'user': {'bias': False}, 'click': {'head': 'pal'}}, {'name': 'bce'}),
    'ipw': ({'user': {'bias': False}, 'click': {'head': 'none'}}, {'weighting': 'ipw'}),
    'feature': ({'user': {'bias': False}, 'click': {'head': 'feature', 'serve_slot': (1, 3)}}, {}),
}


def base(variant, *, news, queries, bias, hidden):
  """The model and the loss of a variant at some sizes."""
  if variant not in VARIANTS:
    raise ValueError(f'variant: expected one of {", ".join(sorted(VARIANTS))}, got {variant!r}')
  parts, loss = VARIANTS[variant]
  config = ml_collections.ConfigDict()
  config.task = 'debiasedrec'
  config.seed = 0
  config.model = {
      'news': news,
      'bias': {**bias, 'interaction': 'product', **parts.get('bias', {})},
      'user': {'queries': queries, 'bias': True, 'heads': 0, **parts.get('user', {})},
      'click': {'head': 'additive', 'hidden': hidden,
                'serve_slot': ml_collections.config_dict.placeholder(tuple),
                **parts.get('click', {})}
  }
  config.loss = {'name': 'softmax', 'weighting': 'none', 'bias_dropout': 0.1, **loss}
  return config


def get_config(variant='debiased'):
  """Returns the experiment; `variant` is a key of `VARIANTS`."""
  config = base(variant, queries=16, bias={'dim': 8, 'features': 16}, hidden=16, news={
      'name': 'cnn', 'embed': 16, 'features': 16, 'queries': 16, 'window': 3, 'dropout': 0.0})
  config.data = {'name': 'simulator', 'history_length': 12, 'negatives': 4, 'title_length': 8,
                 'min_count': 1, 'kinds': ('position', 'size'), 'positions': 10, 'sizes': 3,
                 'measured_sizes': False}
  config.optimizer = {'name': 'adam', 'learning_rate': 5e-3}
  config.batch_size = 128
  config.steps = 600
  config.log_every = config.eval_every = 100
  config.eval_splits = ('test', 'random')
  config.save_every = 300
  config.steps_per_call = 10
  config.federated = {
      'num_clients': 600, 'cohort_size': 50, 'rounds': 200, 'partition': {'name': 'by_user'},
      'partition_by': 'user', 'algorithm': {'name': 'fedadam', 'server_learning_rate': 3e-3},
      'client_optimizer': {'name': 'sgd', 'learning_rate': 0.1}, 'aggregator': {'name': 'mean'},
      'batch_size': 8, 'epochs': 1, 'log_every': 20, 'eval_every': 50,
      'eval_splits': ('test', 'random'), 'save_every': 100}
  return config
