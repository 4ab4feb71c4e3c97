"""DebiasedRec (arXiv 2104.07360) on a news log with slots, at the usual size of such models.

  python -m launch.train --config=configs/debiasedrec/news_log.py --workdir=/tmp/jaxlab/debiasedrec
  python -m launch.train --config=configs/debiasedrec/news_log.py:mind --workdir=/tmp/jaxlab/mind

Variants: those of simulator.py, and 'mind', the plain model on MIND small, whose slots are all
unknown. It wants news_log/train, dev and test (README of the system) in downloads/manual of the
data sets; `word_vectors` is a file of GloVe vectors. Sizes, rate and batch are the usual ones of
this family of models, not the paper's, which could not be read; no such log is public and none has
been trained on here. Expected: not available.
"""
from configs.debiasedrec import simulator


def get_config(variant='debiased'):
  """Returns the experiment; `variant` is one of simulator.py, or 'mind'."""
  config = simulator.base(
      'plain' if variant == 'mind' else variant, queries=200, bias={'dim': 32, 'features': 64},
      hidden=64, news={'name': 'cnn', 'embed': 300, 'features': 400, 'queries': 200, 'window': 3,
                       'dropout': 0.2})
  config.data = {'name': 'mind_small' if variant == 'mind' else 'log', 'history_length': 50,
                 'negatives': 4, 'title_length': 30, 'min_count': 3, 'positions': 64, 'sizes': 4,
                 'kinds': ('position', 'size'), 'measured_sizes': False}
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-4}
  config.batch_size = 64
  config.steps = 18_000  # about 5 epochs of 236,344 clicks, MIND small's number, at most
  config.early_stop = {'metric': 'dev/auc', 'patience': 1}
  config.log_every = 100
  config.eval_every = config.save_every = 3_600
  config.eval_splits = ('dev',)
  return config
