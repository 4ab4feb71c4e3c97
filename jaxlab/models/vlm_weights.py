"""Weights of transformers' Qwen3VLModel in and out."""
import re

import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.models import vjepa2_weights
from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.models.decoder_lm import checkpoint_name
from jaxlab.models.vlm import QwenVL, QwenVLConfig, VisionConfig

_TEXT = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
         'num_key_value_heads', 'head_dim', 'intermediate_size', 'rms_norm_eps')
_VISION = ('depth', 'hidden_size', 'num_heads', 'intermediate_size', 'patch_size',
           'out_hidden_size', 'temporal_patch_size', 'spatial_merge_size',
           'num_position_embeddings', 'deepstack_visual_indexes')


def config_from_checkpoint(config, *, readout='pre_norm', **options):
  """The QwenVLConfig of a checkpoint's config.json.

  Args:
    config: mapping with 'text_config', 'vision_config' and 'image_token_id'.
    readout: see QwenVLConfig.
    **options: `dtype` and `remat` of the DecoderConfig.

  Raises:
    ConfigError: another model_type, or a key that is missing.
  """
  where = 'config.json'
  config_lib.require(config.get('model_type') == 'qwen3_vl', f'{where}: model_type', 'qwen3_vl',
                     config.get('model_type'))
  for part, keys in (('text_config', _TEXT), ('vision_config', _VISION)):
    config_lib.require(part in config, f'{where}: {part}', 'an object', None)
    for key in keys:
      config_lib.require(key in config[part], f'{where}: {part}.{key}', 'a value', None)
  config_lib.require('image_token_id' in config, f'{where}: image_token_id', 'a number', None)
  text, vision = config['text_config'], config['vision_config']
  rope = text.get('rope_parameters') or text.get('rope_scaling') or {}
  config_lib.require('mrope_section' in rope, f'{where}: text_config.rope_scaling.mrope_section',
                     'three numbers', None)
  bias = text.get('attention_bias', False)
  return QwenVLConfig(
      DecoderConfig(**{key: text[key] for key in _TEXT}, attention_bias=bias, output_bias=bias,
                    qk_norm=True, scan_layers=False,
                    rope_theta=rope.get('rope_theta', text.get('rope_theta', 5e6)), **options),
      VisionConfig(**{key: tuple(vision[key]) if isinstance(vision[key], list) else vision[key]
                      for key in _VISION}),
      tuple(rope['mrope_section']), config['image_token_id'], readout)


def init_params(config, key):
  """Random parameters of a QwenVL."""
  vision = config.vision
  side = vision.patch_size * vision.spatial_merge_size
  return QwenVL(config).init(key, jnp.zeros((1, 1, side, side, 3)), jnp.zeros((1, 1), jnp.int32),
                             jnp.ones((1, 1), bool))['params']


def params_from_torch(state_dict, config):
  """Our parameters from transformers' tensors.

  Args:
    state_dict: {'language_model.layers.0.input_layernorm.weight': array, ...}, also with 'model.'
      before each. 'lm_head.weight' is ignored: a trunk has no logits.
    config: QwenVLConfig.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  state_dict = {name.removeprefix('model.'): value for name, value in state_dict.items()}
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return vjepa2_weights.read_tensors(state_dict, shapes, _spell, _layout(config),
                                     ignored=('lm_head.weight',))


def params_to_torch(params, config):
  """The inverse of `params_from_torch`: {transformers' name: NumPy array}."""
  return vjepa2_weights.write_tensors(params, _spell, _layout(config))


_MODULES = ((r'/blocks_(\d+)/', r'.blocks.\1.'), (r'\.(qkv|proj)$', r'.attn.\1'),
            (r'(blocks\.\d+)\.(linear_fc\d)$', r'\1.mlp.\2'), (r'/patch_embed$',
                                                               '.patch_embed.proj'),
            (r'/deepstack_(\d+)/', r'.deepstack_merger_list.\1.'))


def _spell(path):
  if path == 'visual/pos_embed':
    return 'visual.pos_embed.weight'
  if not path.startswith('visual/'):
    return checkpoint_name(path).replace('model.', 'language_model.', 1)
  where, _, leaf = path.rpartition('/')
  for pattern, replacement in _MODULES:
    where = re.sub(pattern, replacement, where)
  return f'{where.replace("/", ".")}.{vjepa2_weights.torch_leaf(leaf)}'


def _layout(config):
  vision = config.vision
  sizes = (vision.hidden_size, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)

  def layout(path, array):
    if path == 'visual/patch_embed/kernel':  # [3 t p p, D] and [D, 3, t, p, p]
      return array.T.reshape(sizes), lambda x: x.reshape(sizes[0], -1).T
    return vjepa2_weights.linear_layout(path, array)
  return layout
