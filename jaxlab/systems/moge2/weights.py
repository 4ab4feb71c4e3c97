"""Weights of the official MoGe-2 checkpoints, in and out."""
import functools
import re

import jax
import jax.numpy as jnp

from jaxlab.models import dinov2, dinov2_weights
from jaxlab.systems.moge2 import task
from jaxlab.systems.moge2.network import MoGe

_CONSTANTS = ('encoder.image_mean', 'encoder.image_std')
_BLOCK = {'norm_in': 'layers.0', 'conv_in': 'layers.2', 'norm_hidden': 'layers.3',
          'conv_out': 'layers.5'}
_RESAMPLER = {'up': '0', 'conv': '1'}
_LEAVES = {'kernel': 'weight', 'taps': 'weight', 'scale': 'weight', 'bias': 'bias'}


def torch_name(path):
  """The official name of our parameter 'neck/block_1_0/conv_in/kernel'."""
  first, *rest = path.split('/')
  if first == 'backbone':
    return 'encoder.backbone.' + dinov2_weights.torch_name('/'.join(rest))
  leaf = _LEAVES[rest[-1]]
  if first.startswith('projection_'):
    return f'encoder.output_projections.{first.removeprefix("projection_")}.{leaf}'
  if first.startswith('scale_head_'):
    return f'scale_head.{2 * int(first.removeprefix("scale_head_"))}.{leaf}'
  kind, *numbers = rest[0].split('_')
  place = '.'.join(numbers)
  middle = {
      'input': lambda: f'input_blocks.{place}',
      'block': lambda: f'res_blocks.{place}.{_BLOCK[rest[1]]}',
      'resampler': lambda: f'resamplers.{place}.{_RESAMPLER[rest[1]]}',
  }[kind]()
  return f'{first}.{middle}.{leaf}'


def _name_of(model):
  """`torch_name` with the level of the heads' output layers, which is the last."""
  last = len(model.dims) - 1

  def name(path):
    first, *rest = path.split('/')
    if rest and rest[0] == 'output':
      return f'{first}.output_blocks.{last}.{_LEAVES[rest[1]]}'
    return torch_name(path)

  return name


def param_shapes(model):
  """Shapes of the parameters, without computing them."""
  side = model.encoder.patch
  image = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), image, num_tokens=1))['params']


def params_from_torch(state_dict, config):
  """Our parameters from the entry 'model' of an official checkpoint.

  Args:
    state_dict: {official name: array}.
    config: the MoGe; a checkpoint of another native grid keeps its positions.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  prefix = 'encoder.backbone.'
  backbone = {name.removeprefix(prefix): value for name, value in state_dict.items()
              if name.startswith(prefix)}
  state_dict = {
      **{name: value for name, value in state_dict.items()
         if not name.startswith(prefix) and name not in _CONSTANTS},
      **{prefix + name: value
         for name, value in dinov2_weights.official_names(backbone).items()}
  }
  return dinov2_weights.take(state_dict, param_shapes(config), _name_of(config),
                             free=(prefix + 'pos_embed',))


def params_to_torch(params, config):
  """{official name: array} of our parameters; the inverse of `params_from_torch`."""
  shape = lambda values: jnp.array(values, jnp.float32).reshape(1, 3, 1, 1)
  constants = dict(zip(_CONSTANTS, (shape(dinov2.MEAN), shape(dinov2.STD))))
  return {**constants, **dinov2_weights.give(params, _name_of(config))}


def official_weights(config, template):
  """(state dict -> params, params -> state dict) of the model of an experiment's config."""
  del template
  model = task.check(config)[0]
  return (functools.partial(params_from_torch, config=model),
          functools.partial(params_to_torch, config=model))


def model_from_config(config, **options):
  """The MoGe of the entry 'model_config' of an official checkpoint.

  Args:
    config: mapping with encoder, neck, points_head, ... as the official code has them.
    **options: other fields of MoGe, such as `dtype`.
  """
  encoder, neck, head = config['encoder'], config['neck'], config['points_head']
  size = re.sub('^dinov2_', '', encoder['backbone'])
  norms = neck.get('res_block_in_norm', 'layer_norm') != 'none'
  blocks = lambda stack: _levels(stack['num_res_blocks'], len(dims))
  dims = tuple(neck['dim_res_blocks'])
  kinds = neck['resamplers']
  kinds = (kinds,) * (len(dims) - 1) if isinstance(kinds, str) else tuple(kinds)
  layers = encoder['intermediate_layers']
  vit = dinov2.make_encoder(size)
  layers = tuple(range(vit.depth - layers, vit.depth)) if isinstance(layers, int) else tuple(layers)
  return MoGe(
      **{'encoder': vit, 'layers': layers, 'dims': dims, 'neck_blocks': blocks(neck),
         'head_blocks': blocks(head), 'resamplers': kinds, 'fused': encoder['dim_out'],
         'scale_widths': tuple(config['scale_head']['dims'][1:-1]) if config.get('scale_head')
         else (), 'normal': bool(config.get('normal_head')),
         'metric': bool(config.get('scale_head')), 'remap': config.get('remap_output', 'linear'),
         'norms': norms, 'parent': None, **options})


def _levels(value, count):
  return (value,) * count if isinstance(value, int) else tuple(value)
