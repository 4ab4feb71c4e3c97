"""VLA-JEPA (arXiv 2602.10098), small, on demonstrations of Meta-World's scripted experts.

  python -m launch.train --config=configs/vla_jepa/metaworld.py --workdir=/tmp/jaxlab/metaworld \\
      --config.data.folders='("DEMOS",)'
  python -m launch.rollout --workdir=/tmp/jaxlab/metaworld --conditions=reach-v3 --episodes=50

DEMOS is a folder with tasks.json and demos.npz (README of the system). The closed loop needs the
extra [sim] and, without a display, EGL. Robot data alone: there is no video without actions.
"""
import ml_collections

_WORDS = ('reach', 'the', 'red', 'goal', 'push', 'puck', 'to', 'close', 'drawer', 'press', 'button',
          'from', 'above')


def get_config():
  """Returns the experiment."""
  config = ml_collections.ConfigDict()
  config.task = 'vla_jepa'
  config.seed = 0
  config.data = {'name': 'metaworld', 'folders': ('DEMOS',), 'cameras': ('corner2',),
                 'action_dim': 4, 'state_dim': 4, 'frames': 4, 'horizon': 8, 'size': 64,
                 'drop_pauses': False}
  config.prompt = {'length': 16, 'per_transition': 2, 'num_embodied': 4,
                   'robot': '{instruction}{actions}{e_actions}',
                   'video': '{instruction}{actions}', 'words': _WORDS}
  config.trunk = {'name': 'keypoints', 'keypoints': 16, 'pixel_width': 32, 'hidden_size': 64,
                  'num_hidden_layers': 2, 'num_attention_heads': 4}
  config.encoder = {'crop_size': 32, 'patch_size': 8, 'tubelet_size': 1, 'hidden_size': 48,
                    'num_attention_heads': 4, 'num_hidden_layers': 2, 'init_std': 0.0}
  config.predictor = {'width': 64, 'num_layers': 1, 'num_heads': 4, 'residual': True}
  config.head = {'name': 'flow', 'width': 64, 'num_heads': 4, 'num_layers': 3, 'hidden': 64,
                 'out_width': 64, 'future_tokens': 4, 'max_positions': 8, 'dropout': 0.0}
  config.world_model = {'beta': 0.1, 'context_encoding': 'causal_prefix', 'repeats': 4,
                        'cache': True}
  config.rollout = {'executed': 4}
  config.batch_size = 32
  steps = 800
  config.optimizer = {
      'name': 'adamw',
      'learning_rate': {'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0,
                        'peak_value': 2e-3, 'warmup_steps': 30, 'decay_steps': steps},
      'b1': 0.9, 'b2': 0.95, 'weight_decay': 1e-8, 'clip_norm': 1.0}
  config.phases = ({'steps': steps, 'arms': ('robot',)},)
  config.log_every = 50
  config.eval_splits = ()  # all demonstrations train; launch.rollout is the test
  return config
