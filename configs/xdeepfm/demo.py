"""xDeepFM (arXiv 1803.05170) and its baselines on a made-up world with a planted cross.

  python -m launch.train --config=configs/xdeepfm/demo.py --workdir=/tmp/jaxlab/xdeepfm
  python -m launch.train --config=configs/xdeepfm/demo.py:fm --workdir=/tmp/jaxlab/xdeepfm-fm

Variants: xdeepfm, cin, deepfm, dnn, fm, lr, fnn, pnn, wide_deep, dcn, dcnv2. The product of three
hidden signs decides a click: the linear part and FM cannot see it.
"""
from configs.xdeepfm import criteo


def get_config(variant='xdeepfm'):
  """Returns the experiment; `variant` is a model."""
  config = criteo.base(variant, dim=8, cin=(16, 16), dnn=(32, 32), dropout=0.0, cross=2)
  config.data = {'name': 'ctr_demo', 'train': 'train', 'validation': 'validation', 'test': 'test',
                 'stream': False}
  config.rows = True
  config.penalty = {'l2': (), 'l1': (), 'l2_rows': 0.0}
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-2}
  config.batch_size = 512
  criteo.schedule(config, variant, steps=600)
  config.log_every = config.eval_every = 100
  config.save_every = 300
  config.steps_per_call = 20
  return config
