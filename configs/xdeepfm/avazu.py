"""xDeepFM (arXiv 1803.05170) and its baselines on Avazu's click-through challenge.

  python -m launch.train --config=configs/xdeepfm/avazu.py --workdir=/tmp/jaxlab/xdeepfm-avazu

Variants are those of configs/xdeepfm/criteo.py without 'official' and 'rows'. It wants the
unpacked train in downloads/manual/avazu of the data sets (or --config.data.file=FILE), and an
accelerator; no run of it has been made here. Expected: AUC .7933, log loss .3718 in the tuned open
benchmark (Avazu_x4_001, of which widths and D are taken; a minimum count of 2 is unverified).
"""
from configs.xdeepfm import criteo

EPOCH = 32_343_172 // 4096


def get_config(variant='xdeepfm'):
  """Returns the experiment; `variant` is a model."""
  config = criteo.base(variant, dim=16, cin=(276,), dnn=(500, 500, 500), dropout=0.0, cross=3,
                       scale=0.01)
  config.data = {'name': 'avazu', 'file': '', 'train': 'train', 'validation': 'validation',
                 'test': 'test', 'min_count': 2, 'buckets': 0, 'stream': True}
  config.rows = False
  config.penalty = {'l2': (('.*', 1e-5),), 'l1': (), 'l2_rows': 0.0}
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-3}
  config.batch_size = 4096
  criteo.schedule(config, variant, steps=10 * EPOCH)
  config.early_stop = {'metric': 'validation/auc', 'patience': 2}
  config.log_every = 100
  config.eval_every = config.save_every = EPOCH
  config.steps_per_call = 1
  return config
