"""MoGe-2 (arXiv 2507.02546) as released: ViT-L, and the released training code's recipe.

  python -m launch.train --config=configs/moge2/vitl.py --config.data.folder=DIR --workdir=RUN
  python -m launch.predict --config=configs/moge2/vitl.py --checkpoint=DIR --input=photo.jpg \
      --output=out/

DIR of the data holds a folder for each data set of the mixture, in MoGe's format, and `test`. The
tokens are drawn from [1200, 3600] only after 50000 steps there; here they are fixed at 1200. Batch
size, steps and hardware of the paper were not read. The time was not measured; no run on the
official data has been made here. Variants: 'vitl' (331 M parameters), 'vitb', 'vits' (inner widths
of the last two are ours).
"""
import ml_collections

_SIZES = {'vitl': ('vitl14', (5, 11, 17, 23), 1024), 'vitb': ('vitb14', (2, 5, 8, 11), 768),
          'vits': ('vits14', (2, 5, 8, 11), 384)}


def get_config(variant='vitl'):
  """Returns the experiment; `variant` is one of 'vitl', 'vitb', 'vits'."""
  if variant not in _SIZES:
    raise ValueError(f'variant: expected one of {", ".join(_SIZES)}, got {variant!r}')
  encoder, layers, width = _SIZES[variant]
  config = ml_collections.ConfigDict()
  config.task = 'moge2'
  config.seed = 0
  config.data = {'name': 'folders', 'folder': 'moge_data', 'size': (518, 686), 'sources': ()}
  config.model = {
      'encoder': {'name': encoder, 'remat': True}, 'layers': layers,
      'dims': (width, 256, 128, 64, 32), 'neck_blocks': (0, 2, 2, 2, 0),
      'head_blocks': (0, 1, 1, 1, 0),
      'resamplers': ('conv_transpose', 'conv_transpose', 'conv_transpose', 'bilinear'),
      'scale_widths': (width, width)
  }
  config.loss = {'resolution': 48, 'anchor_step': 1, 'num_tokens': 1200}
  config.predict = {
      'num_tokens': 0, 'resolution_level': 9, 'fov_x': 0.0, 'batch_size': 1, 'edge_rtol': 0.04,
      'align_size': 64
  }
  halving = lambda peak: {
      'name': 'exponential_decay', 'init_value': peak, 'transition_steps': 25_000,
      'decay_rate': 0.5, 'staircase': True
  }
  config.optimizer = {
      'name': 'adamw', 'b1': 0.9, 'b2': 0.999, 'weight_decay': 0.01, 'clip_norm': 1.0,
      'ema_decay': 0.999, 'learning_rate': halving(1e-4), 'groups': (
          {'match': 'backbone/.*', 'learning_rate': {
              # Each part counts anew from its boundary; the last one's is a halving of the heads.
              'name': 'join_schedules', 'boundaries': (1000, 2000, 25_000), 'schedules': (
                  {'name': 'constant_schedule', 'value': 0.0},
                  {'name': 'linear_schedule', 'init_value': 0.0, 'end_value': 1e-5,
                   'transition_steps': 1000},
                  {'name': 'constant_schedule', 'value': 1e-5}, halving(5e-6))}},
          {'match': '(?!backbone/).*'})
  }
  config.batch_size = 32
  config.accumulate = 1
  config.steps = 120_000
  config.log_every = 100
  config.eval_every = 10_000
  config.save_every = 5000
  return config
