"""AdaSAM (arXiv 2303.00565) on scikit-learn's handwritten digits with 30 % label noise.

  python -m launch.train --config=configs/adasam/digits.py --workdir=/tmp/jaxlab/adasam
  python -m launch.sweep --config=configs/adasam/digits.py --workdir=/tmp/jaxlab/adasam-sweep

The first command takes 10 seconds on two cores and ends at a clean test accuracy of about .94. The
second compares AdaSAM, AMSGrad (rho = 0), SAM and SGD, each at the best of its grid. Variant
'units' gives each input its own unit.
"""
import ml_collections


def get_config(variant=''):
  """Returns the experiment; `variant` is '' or 'units'."""
  if variant not in ('', 'units'):
    raise ValueError(f"variant: expected '' or 'units', got {variant!r}")
  config = ml_collections.ConfigDict()
  config.task = 'classification'
  config.seed = 0
  config.data = {
      'name': 'digits', 'train': 'train[:1000]', 'test': 'train[1000:]', 'label_noise': 0.3,
      'units': 0.7 if variant == 'units' else 0.0
  }
  config.model = {'name': 'mlp', 'features': (128,)}
  config.optimizer = {
      'name': 'adasam', 'learning_rate': 1e-3, 'rho': 0.5, 'b1': 0.9, 'b2': 0.999, 'eps': 1e-8
  }
  config.batch_size = 50
  config.steps = 1200
  config.steps_per_call = 20
  config.accumulate = 1
  config.log_every = 100
  config.eval_every = 100
  config.save_every = 400
  rate, rho = 'optimizer.learning_rate', 'optimizer.rho'
  sgd = {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}
  config.sweep = {
      'arms': {
          'AdaSAM': {'grid': ((rate, (3e-4, 1e-3, 3e-3)), (rho, (0.1, 0.2, 0.5)))},
          'AMSGrad': {'set': ((rho, 0.0),), 'grid': ((rate, (3e-4, 1e-3, 3e-3)),)},
          'SAM': {
              'set': (('optimizer', {'name': 'sam', 'rho': 0.1, 'base': sgd}),),
              'grid': (('optimizer.base.learning_rate', (0.01, 0.03, 0.1)), (rho, (0.1, 0.2, 0.5)))
          },
          'SGD': {'set': (('optimizer', sgd),), 'grid': ((rate, (0.01, 0.03, 0.1)),)},
      },
      'seeds': (0,),
      'metric': 'test/accuracy',
      'target': 0.9,
      'last': 1,
  }
  return config
