"""The fixture of ToPi (arXiv 2602.01609): a small diffusion transformer that copies or inverts a
handwritten digit out of a reference canvas.

  python -m launch.train --config=configs/topi/digits.py --workdir=/tmp/jaxlab/topi
  python -m launch.generate --workdir=/tmp/jaxlab/topi --prune
  python -m launch.generate --workdir=/tmp/jaxlab/topi --study

Variants: 'aligned' (the default; the target's positions say where the digit is; a grating around
it), 'search' (the digit has to be found by content; 1200 steps), 'whole' (the canvas is the digit:
nothing to prune), 'blind' ('aligned' without the reference).
"""
import ml_collections


def get_config(variant='aligned'):
  """Returns the experiment; `variant` is one of 'aligned', 'search', 'whole', 'blind'."""
  if variant not in ('aligned', 'search', 'whole', 'blind'):
    raise ValueError(f"variant: expected 'aligned', 'search', 'whole' or 'blind', got {variant!r}")
  steps = 1200 if variant == 'search' else 800
  config = ml_collections.ConfigDict()
  config.task = 'topi'
  config.seed = 0
  config.data = {
      'variant': 'aligned' if variant == 'blind' else variant, 'train': 'train[:1500]',
      'test': 'train[1500:]', 'instructions': ('copy', 'invert'), 'reference': variant != 'blind'
  }
  config.model = {
      'num_double': 1, 'num_single': 4, 'num_heads': 4, 'head_dim': 16, 'axes': (4, 6, 6),
      'theta': 100.0, 'mlp_ratio': 2
  }
  config.sampling = {'steps': 12}
  config.prune = {'first_layer': 1, 'interval': 4, 'tau': 0.9, 'bucket': 8}
  config.optimizer = {
      'name': 'adam', 'b1': 0.9, 'b2': 0.99, 'clip_norm': 1.0, 'ema_decay': 0.99,
      'learning_rate': {
          'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0, 'peak_value': 4e-3,
          'warmup_steps': 50, 'decay_steps': steps, 'end_value': 2e-4
      }
  }
  config.batch_size = 32
  config.steps = steps
  config.steps_per_call = 10
  config.accumulate = 1
  config.log_every = 50
  config.eval_every = 0
  config.save_every = 0
  return config
