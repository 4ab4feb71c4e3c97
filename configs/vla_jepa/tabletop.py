"""VLA-JEPA (arXiv 2602.10098), small, on the embedded 2-D tabletop: reach the named block.

  python -m launch.train --config=configs/vla_jepa/tabletop.py --workdir=/tmp/jaxlab/vla_jepa
  python -m launch.rollout --workdir=/tmp/jaxlab/vla_jepa --episodes=100 --movies=1

Stage 1 learns from 4096 action-free clips, stage 2 from 200 demonstrations. The README of the
system has times and success rates. Variants: 'alternating' takes both arms in turn in stage 1, as
the paper does; 'no_video' drops stage 1; 'no_world_model' drops it and the world model's loss;
'shared' has the release's leaky context encoding; 'regression' an L1 head in place of the flow;
'all_tokens' a head that sees the whole prompt.
"""
import ml_collections

VARIANTS = ('default', 'alternating', 'no_video', 'no_world_model', 'shared', 'regression',
            'all_tokens')


def _optimizer(steps):
  return {
      'name': 'adamw',
      'learning_rate': {'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0,
                        'peak_value': 2e-3, 'warmup_steps': 30, 'decay_steps': steps},
      'b1': 0.9, 'b2': 0.95, 'weight_decay': 1e-8, 'clip_norm': 1.0,
  }


def get_config(variant='default'):
  """Returns the experiment; `variant` is one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f'variant: expected one of {VARIANTS}, got {variant!r}')
  config = ml_collections.ConfigDict()
  config.task = 'vla_jepa'
  config.seed = 0
  config.data = {'name': 'tabletop', 'train': 'train', 'test': 'test', 'video': 'train',
                 'horizon': 4, 'frames': 4}
  config.prompt = {'length': 12, 'per_transition': 2, 'num_embodied': 4,
                   'robot': '{instruction}{actions}{e_actions}',
                   'video': '{instruction}{actions}', 'words': ('red', 'green', 'blue', 'block')}
  config.trunk = {'name': 'keypoints', 'keypoints': 12, 'pixel_width': 32, 'hidden_size': 64,
                  'num_hidden_layers': 2, 'num_attention_heads': 4}
  config.encoder = {'crop_size': 16, 'patch_size': 4, 'tubelet_size': 1, 'hidden_size': 48,
                    'num_attention_heads': 4, 'num_hidden_layers': 2, 'init_std': 0.0}
  config.predictor = {'width': 64, 'num_layers': 1, 'num_heads': 4, 'residual': True}
  config.head = {'name': 'flow', 'width': 64, 'num_heads': 4, 'num_layers': 3, 'hidden': 64,
                 'out_width': 64, 'future_tokens': 4, 'max_positions': 4, 'dropout': 0.0}
  config.world_model = {'beta': 0.1, 'context_encoding': 'causal_prefix', 'repeats': 4,
                        'cache': True}
  config.rollout = {'executed': 2}
  config.batch_size = 48
  config.optimizer = _optimizer(1500)
  robot = {'steps': 1500, 'arms': ('robot',)}
  config.phases = ({'steps': 1500, 'arms': ('video',), 'trainable': '(trunk|predictor)/.*'}, robot)
  config.log_every = 50
  if variant == 'alternating':
    config.phases = ({'steps': 1500, 'arms': ('robot', 'video')}, robot)
  if variant in ('no_video', 'no_world_model'):
    config.phases = (robot,)
  if variant == 'no_world_model':
    config.world_model.beta = 0.0
  if variant == 'shared':
    config.world_model.context_encoding = 'shared'
  if variant == 'regression':
    config.head = {'name': 'regression', 'hidden': 64}
  if variant == 'all_tokens':
    config.world_model.head_sees = 'all'
  return config
