"""Agatha (arXiv 2105.04919): one disputed inference of a small network on the contract.

  python -m launch.dispute --config=configs/agatha/dispute.py:cnn

Variants: 'mlp', 'cnn' (default), 'mobilenet', 'resnet50', 'vgg16': random weights, small inputs.
The submitter flips the last bit of one operation of line 1; the challenger must find it and win.
About ten seconds on two cores and 1.5 million gas. `--config.cheat.who=nobody` is the undisputed
path, `--config.cheat.who=challenger` a false alarm.
"""
import ml_collections

MODELS = {
    'mlp': ({'name': 'mlp', 'features': (32,)}, (1, 8, 8)),
    'cnn': ({'name': 'cnn', 'features': (4, 8)}, (1, 8, 8, 3)),
    'mobilenet': ({'name': 'mobilenet', 'width': 0.0625}, (1, 16, 16, 3)),
    'resnet50': ({'name': 'resnet50', 'width': 2}, (1, 16, 16, 3)),
    'vgg16': ({'name': 'vgg16', 'width': 1 / 64}, (1, 32, 32, 3)),
}


def get_config(variant='cnn'):
  """Returns the experiment; `variant` is a model's name."""
  model, shape = MODELS[variant]
  config = ml_collections.ConfigDict()
  config.system = 'agatha'
  config.seed = 0
  config.mode = 'ordered'
  config.arbiter = 'evm'
  config.model = model
  config.shape = shape
  config.cheat = {'who': 'submitter', 'line': 1}
  config.money = {'submitter_deposit': 1000, 'challenger_deposit': 1000, 'burn_percent': 50,
                  'challenge_window': 100, 'move_timeout': 20}
  config.fee = 100
  config.sizes = tuple({'model': model, 'shape': shape} for model, shape in MODELS.values())
  return config
