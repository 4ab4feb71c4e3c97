"""BIPIA (arXiv 2312.14197) in small: key-value questions whose facts may hold a command.

  python -m launch.train --config=configs/bipia/toy.py:train --workdir=/tmp/jaxlab/bipia-toy
  python -m launch.train --config=configs/bipia/toy.py:base --workdir=/tmp/jaxlab/bipia-base
  python -m launch.inject --config=configs/bipia/toy.py:inject --workdir=/tmp/jaxlab/bipia-report

The first trains an instruction follower, 800 steps on questions alone and 1600 with commands, grows
its vocabulary by the two boundary tokens and hardens it for 500; the second stops before. The third
compares them under the black-box defences. reproduce.py has the same recipe.
'paper' leaves the user's own commands out of the mix, as the paper does.
"""
import ml_collections

MODEL = {'vocab_size': 36, 'hidden_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4,
         'intermediate_size': 128, 'init': 'scaled'}


def _adamw(peak, steps, decay):
  return {'name': 'adamw', 'weight_decay': decay, 'clip_norm': 1.0, 'learning_rate': {
      'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0, 'peak_value': peak,
      'warmup_steps': steps // 20, 'decay_steps': steps, 'end_value': peak / 20}}


def get_config(variant='train'):
  """Returns the experiment; `variant` is one of 'train', 'paper', 'base', 'inject'."""
  config = ml_collections.ConfigDict()
  if variant == 'inject':
    config.system = 'bipia'
    config.data = {'name': 'toy', 'contexts': 100, 'max_attacks': 12, 'seed': 0}
    local = {'name': 'local', 'max_new': 4, 'batch_size': 256}
    black_box = ('none', 'border', 'in_context', 'multi_turn', 'reminder', 'datamark', 'delimit',
                 'encode')
    config.models = ({**local, 'label': 'base', 'checkpoint': '/tmp/jaxlab/bipia-base',
                      'defences': black_box},
                     {**local, 'label': 'hardened', 'checkpoint': '/tmp/jaxlab/bipia-toy',
                      'defences': ('markers',)})
    config.defences = ({'name': 'none'}, {'name': 'border', 'border': '='},
                       {'name': 'in_context', 'shots': 1, 'reminder': False},
                       {'name': 'multi_turn', 'form': 'three'},
                       {'name': 'none', 'reminder': True, 'label': 'reminder'},
                       {'name': 'datamark'}, {'name': 'delimit'}, {'name': 'encode'},
                       {'name': 'markers', 'reminder': False})
    config.clean = True
    return config
  config.task = 'bipia'
  config.seed = 0
  config.model = MODEL
  config.data = {'name': 'toy', 'user_commands': 0.0 if variant == 'paper' else 0.3, 'seed': 0}
  questions = {'steps': 800, 'arms': ('questions',), 'optimizer': _adamw(1e-3, 800, 0.2)}
  base = {'steps': 1600, 'arms': ('base',), 'optimizer': _adamw(2e-3, 1600, 0.2)}
  hardening = {'steps': 500, 'arms': ('whitebox',), 'optimizer': _adamw(3e-4, 500, 0.01),
               'surgery': 'jaxlab.systems.bipia.whitebox:grow'}
  config.phases = (questions, base) if variant == 'base' else (questions, base, hardening)
  config.batch_size = 64
  config.log_every = 50
  config.eval_splits = () if variant == 'base' else ('test',)
  config.save_every = 400 if variant == 'base' else 50
  return config
