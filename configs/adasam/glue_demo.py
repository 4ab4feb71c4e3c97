"""AdaSAM (arXiv 2303.00565) on sentences in GLUE's form: a small encoder from random weights.

  python -m launch.train --config=configs/adasam/glue_demo.py --workdir=/tmp/jaxlab/glue-demo
  python -m launch.sweep --config=configs/adasam/glue_demo.py --workdir=/tmp/jaxlab/glue-sweep

The text is that of docstrings: is a sentence from an array package, or from one of statistics and
learning? The second command compares SGD, SAM, AMSGrad (rho = 0), AdaSAM and AdaSAM without
momentum (b1 = 0), each at the best of its grid. Variant 'sms' reads the SMS Spam Collection from
--config.data.manual_dir.
"""
import ml_collections


def get_config(variant='demo'):
  """Returns the experiment; `variant` is 'demo' or 'sms'."""
  if variant not in ('demo', 'sms'):
    raise ValueError(f"variant: expected 'demo' or 'sms', got {variant!r}")
  config = ml_collections.ConfigDict()
  config.task = 'text_classification'
  config.seed = 0
  config.data = {'name': variant, 'train': 'train', 'test': 'validation', 'max_length': 32,
                 'vocab_size': 2000, 'manual_dir': ml_collections.config_dict.placeholder(str)}
  config.model = {'name': 'bert-tiny', 'hidden_size': 64, 'intermediate_size': 256, 'dropout': 0.1}
  config.optimizer = {'name': 'adasam', 'learning_rate': 3e-4, 'rho': 0.05, 'b1': 0.9, 'b2': 0.98,
                      'eps': 1e-6}
  config.batch_size = 32
  config.steps = 400
  config.steps_per_call = 20
  config.accumulate = 1
  config.log_every = 100
  config.eval_every = 200
  config.save_every = 400
  rate, rho = 'optimizer.learning_rate', 'optimizer.rho'
  sgd = {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}
  rates, rhos = (1e-4, 3e-4, 1e-3), (0.02, 0.05)
  config.sweep = {
      'arms': {
          'SGD': {'set': (('optimizer', sgd),), 'grid': ((rate, (0.03, 0.1, 0.3)),)},
          'SAM': {
              'set': (('optimizer', {'name': 'sam', 'rho': 0.05, 'base': sgd}),),
              'grid': (('optimizer.base.learning_rate', (0.03, 0.1, 0.3)), (rho, rhos))},
          'AMSGrad': {'set': ((rho, 0.0),), 'grid': ((rate, rates),)},
          'AdaSAM': {'grid': ((rate, rates), (rho, rhos))},
          'AdaSAM without momentum': {'set': (('optimizer.b1', 0.0),),
                                      'grid': ((rate, rates), (rho, rhos))},
      },
      'seeds': (0,),
      'metric': 'test/accuracy',
      'target': 0.8,
      'last': 1,
  }
  return config
