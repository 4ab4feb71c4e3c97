"""Sampling from FLUX.1-Kontext with ToPi (arXiv 2602.01609), on an accelerator with 40 GB or more.

  python -m launch.generate --config=configs/topi/flux.py --weights=DIR --inputs=in.npz \
      --output=OUT --prune

DIR is the folder 'transformer' of the public checkpoint in diffusers' format. in.npz holds what the
text encoders and the autoencoder give; the README of the system lists the arrays. The pivotal
layers, the first pruned layer and the interval (10 of 28 or more steps, fewer of fewer) are the
paper's; tau is not (it could not be read).
Variant 'qwen' is Qwen-Image-Edit, 'small' a random network of a few megabytes to try the command
with. No run with the public weights has been made here.
"""
import ml_collections


def get_config(variant='flux'):
  """Returns the experiment; `variant` is one of 'flux', 'qwen', 'small'."""
  if variant not in ('flux', 'qwen', 'small'):
    raise ValueError(f"variant: expected 'flux', 'qwen' or 'small', got {variant!r}")
  config = ml_collections.ConfigDict()
  config.system = 'topi'
  config.model = {
      'in_channels': 64, 'text_dim': 4096, 'num_double': 19, 'num_single': 38, 'num_heads': 24,
      'head_dim': 128, 'axes': (16, 56, 56), 'pooled_dim': 768, 'guidance': True,
      'dtype': 'bfloat16'
  }
  config.sampling = {'steps': 28, 'guidance': 2.5, 'latent_shift': 0.1159, 'latent_scale': 0.3611}
  config.prune = {
      'pivotal': (13, 18, 31), 'first_layer': 10, 'tau': 0.8, 'bucket': 64,
      'interval': ml_collections.config_dict.placeholder(int)  # scaled by the number of steps
  }
  if variant == 'qwen':
    config.model = {
        'in_channels': 64, 'text_dim': 3584, 'num_double': 60, 'num_single': 0, 'num_heads': 24,
        'head_dim': 128, 'axes': (16, 56, 56), 'family': 'qwen', 'dtype': 'bfloat16'
    }
    config.sampling = {'steps': 40, 'cfg_scale': 4.0}
    config.prune.pivotal = (35, 37, 42)
  if variant == 'small':
    config.model.update({
        'text_dim': 32, 'num_double': 1, 'num_single': 3, 'num_heads': 2, 'head_dim': 16,
        'axes': (4, 6, 6), 'pooled_dim': 16, 'in_channels': 16, 'dtype': 'float32'
    })
    config.sampling.steps = 6
    config.prune.update({'pivotal': (2, 3), 'first_layer': 1, 'bucket': 4})
  return config
