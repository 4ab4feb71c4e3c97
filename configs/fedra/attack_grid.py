"""Attacks x aggregators on scikit-learn's handwritten digits: one table and one heat map.

  python -m launch.sweep --config=configs/fedra/attack_grid.py --workdir=/tmp/jaxlab/attack-grid

50 clients of log-normal size, 25 a round, 10 % malicious, softmax regression, 40 rounds a cell. The
heat map is figures/digits.png in the workdir. Cells take about 10 seconds each on two cores, most
of it compilation; killed, the same command goes on. Variant 'small' has four attacks and four
aggregators.
"""
import ml_collections

from configs.fedra import digits

MOMENTS, TENFOLD = {'name': 'moments', 'scale': 3.0}, {'name': 'max', 'factor': 10.0}
ATTACKS = (
    {},
    {'name': 'sign_std', 'scale': 3.0, 'quantity': MOMENTS},
    {'name': 'stat_opt', 'target': 'generic', 'quantity': TENFOLD},
    {'name': 'lie', 'z': 1.5, 'quantity': MOMENTS},
    {'name': 'dyn_opt', 'quantity': MOMENTS},
    {'name': 'label_flip', 'num_classes': 10, 'quantity': MOMENTS},
    {'name': 'gaussian', 'std': 1.0, 'quantity': MOMENTS},
    {'name': 'sign_flip', 'quantity': MOMENTS},
)
AGGREGATORS = (
    {'name': 'mean'},
    {'name': 'fedra', 'm_max': 8},
    {'name': 'median'},
    {'name': 'multi_krum', 'num_malicious': 2, 'weighted': True},
    {'name': 'multi_krum', 'num_malicious': 2},
    {'name': 'krum', 'num_malicious': 2},
    {'name': 'trimmed_mean', 'beta': 2},
    {'name': 'truncated', 'alpha': 0.1, 'alpha_star': 0.5,
     'rule': {'name': 'trimmed_mean', 'beta': 2, 'weighted': True}},
    {'name': 'bulyan', 'num_malicious': 2},
    {'name': 'norm_bound', 'bound': 1.0},
    {'name': 'rfa', 'weighted': False},
    {'name': 'centered_clip', 'tau': 1.0},
    {'name': 'residual'},
    {'name': 'dnc', 'num_malicious': 2},
    {'name': 'foolsgold'},
    {'name': 'fltrust', 'root_examples': 100},
)


def get_config(variant='all'):
  """Returns the experiment; `variant` is 'all' or 'small'."""
  if variant not in ('all', 'small'):
    raise ValueError(f"variant: expected 'all' or 'small', got {variant!r}")
  few = 4 if variant == 'small' else None
  config = ml_collections.ConfigDict(digits.get_config('clean'))
  config.federated.update(rounds_per_call=5, log_every=5, save_every=0)
  config.sweep = {
      'arms': {'digits': {'grid': (('federated.attack', ATTACKS[:few]),
                                   ('federated.aggregator', AGGREGATORS[:few]))}},
      'seeds': (0,),
      'metric': 'test/accuracy',
      'last': 1,
  }
  return config
