"""MoGe-2 (arXiv 2507.02546) at the size of a CPU, on ray-traced rooms with exact geometry.

  python -m launch.train --config=configs/moge2/scenes.py --workdir=/tmp/jaxlab/moge2
  python -m launch.predict --workdir=/tmp/jaxlab/moge2 --input=photo.png --output=/tmp/out

Variants: 'decoupled' (the default: a scale head) and 'entangled' (points in meters up to a shift).
"""
import ml_collections


def get_config(variant='decoupled'):
  """Returns the experiment; `variant` is 'decoupled' or 'entangled'."""
  if variant not in ('decoupled', 'entangled'):
    raise ValueError(f"variant: expected 'decoupled' or 'entangled', got {variant!r}")
  config = ml_collections.ConfigDict()
  config.task = 'moge2'
  config.seed = 0
  config.data = {'name': 'scenes', 'builder_config': 'demo', 'train': 'train', 'test': 'test'}
  config.model = {
      'encoder': {'width': 96, 'depth': 4, 'num_heads': 4, 'patch': 8, 'grid': 8,
                  'init_std': 0.1},
      'layers': (0, 1, 2, 3), 'dims': (96, 32, 16, 8), 'neck_blocks': (0, 1, 0, 0),
      'head_blocks': None, 'resamplers': ('bilinear',) * 3, 'scale_widths': (96,), 'plane': True,
      'gain': 1.0
  }
  config.loss = {
      'weights': {'normal_map': 0.1, 'metric_scale': 0.3, 'mask': 0.1}, 'resolution': 8,
      'anchor_step': 2, 'local': (), 'entangled': variant == 'entangled'
  }
  # A pixel of a picture this coarse may slope by 15 % and be no edge.
  config.predict = {'num_tokens': 64, 'align_size': 16, 'max_side': 512, 'edge_rtol': 0.15}
  config.optimizer = {
      'name': 'adamw', 'weight_decay': 0.01, 'clip_norm': 1.0,
      'learning_rate': {
          'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0, 'peak_value': 2e-3,
          'warmup_steps': 50, 'decay_steps': 2000, 'end_value': 2e-5
      }
  }
  config.batch_size = 8
  config.steps = 2000
  config.log_every = 50
  config.eval_every = 0
  config.save_every = 500
  return config
