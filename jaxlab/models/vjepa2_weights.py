"""Weights of transformers' VJEPA2Model in and out, and the helpers for other one-to-one layouts."""
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models import pretrained
from jaxlab.models.vjepa2 import Encoder, MaskedPredictor, VJEPA2Config

_CONFIG_KEYS = ('crop_size', 'patch_size', 'tubelet_size', 'hidden_size', 'num_attention_heads',
                'num_hidden_layers', 'mlp_ratio', 'pred_hidden_size', 'pred_num_attention_heads',
                'pred_num_hidden_layers', 'pred_num_mask_tokens', 'pred_mlp_ratio',
                'layer_norm_eps')


def config_from_checkpoint(config, **options):
  """The VJEPA2Config of a checkpoint's config.json.

  Args:
    config: mapping.
    **options: dtype, scan_layers and remat; `pred_hidden_size=0` leaves the predictor out.

  Raises:
    ConfigError: another model_type, or a key that is missing.
  """
  config_lib.require(config.get('model_type') == 'vjepa2', 'config.json: model_type', 'vjepa2',
                     config.get('model_type'))
  for name in _CONFIG_KEYS:
    config_lib.require(name in config, f'config.json: {name}', 'a number', None)
  return VJEPA2Config(**{**{name: config[name] for name in _CONFIG_KEYS}, **options})


def init_params(config, key):
  """Random parameters {'encoder': ..., 'predictor': ...}; no predictor where its width is 0."""
  encoder_key, predictor_key = jax.random.split(key)
  frames = jnp.zeros((1, config.tubelet_size, config.crop_size, config.crop_size, 3))
  params = {'encoder': Encoder(config).init(encoder_key, frames)['params']}
  if config.pred_hidden_size:
    numbers = jnp.zeros((1, 1), jnp.int32)
    params['predictor'] = MaskedPredictor(config).init(
        predictor_key, jnp.zeros((1, 1, config.hidden_size)), numbers, numbers)['params']
  return params


def params_from_torch(state_dict, config):
  """Our parameters from transformers' tensors.

  Args:
    state_dict: {'encoder.layer.0.norm1.weight': array, ...}, also with 'vjepa2.' before each.
    config: VJEPA2Config; without a predictor, the checkpoint's is ignored.

  Returns:
    {'encoder': ..., 'predictor': ...} as NumPy arrays.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  state_dict = {name.removeprefix('vjepa2.'): value for name, value in state_dict.items()}
  ignored = () if config.pred_hidden_size else [
      name for name in state_dict if name.startswith('predictor.')]
  params = read_tensors(state_dict, _shapes(config), _spell, _layout(config), ignored=ignored)
  if config.scan_layers:
    params['encoder'] = pretrained.stack_layers(params['encoder'])
  return params


def params_to_torch(params, config):
  """The inverse of `params_from_torch`: {transformers' name: NumPy array}."""
  params = {**params, 'encoder': pretrained.unstack_layers(params['encoder'])}
  return write_tensors(params, _spell, _layout(config))


def read_tensors(state_dict, shapes, spell, layout, *, ignored=()):
  """Parameters from a mapping of tensors, one each.

  Args:
    state_dict: {name: array}.
    shapes: pytree of things with `shape`, as the parameters shall be.
    spell: path 'a/b/kernel' -> the tensor's name.
    layout: (path, array in our layout) -> (array in theirs, function back).
    ignored: names that may be left over.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  paths = {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]}
  empty = {path: layout(path, np.broadcast_to(np.float32(0), leaf.shape))
           for path, leaf in paths.items()}
  tensors = pretrained.checked_mapping(
      state_dict, {spell(path): theirs.shape for path, (theirs, _) in empty.items()},
      ignored=ignored)
  return jax.tree_util.tree_map_with_path(
      lambda path, _: empty[_path(path)][1](np.asarray(tensors[spell(_path(path))])), shapes)


def write_tensors(params, spell, layout):
  """The inverse of `read_tensors`: {name: NumPy array}, C-contiguous."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {spell(_path(path)): np.ascontiguousarray(layout(_path(path), np.asarray(leaf))[0])
          for path, leaf in leaves}


def linear_layout(path, array):
  """A `layout`: kernels [in, out] are stored as [out, in], all else as it is."""
  if path.endswith('/kernel'):
    return array.T, lambda x: x.T
  return array, lambda x: x


def torch_leaf(leaf):
  """'weight' for kernel, scale and embedding; 'bias' for bias."""
  return 'bias' if leaf == 'bias' else 'weight'


def _path(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _shapes(config):
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return {**params, 'encoder': _unstacked(params['encoder'], config)}


def _unstacked(tree, config):
  if not config.scan_layers:
    return tree
  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree['layers'])
  rest = {name: value for name, value in tree.items() if name != 'layers'}
  return {**rest, **{f'layers_{i}': one for i in range(config.num_hidden_layers)}}


_NAMES = {'encoder/patch': 'encoder.embeddings.patch_embeddings.proj',
          'encoder/norm': 'encoder.layernorm', 'predictor/norm': 'predictor.layernorm',
          'predictor/embed': 'predictor.embeddings.predictor_embeddings',
          'predictor/proj': 'predictor.proj'}


def _spell(path):
  if path == 'predictor/mask_tokens':
    return 'predictor.embeddings.mask_tokens'
  where, _, leaf = path.rpartition('/')
  name = _NAMES.get(where)
  if name is None:
    name = re.sub(r'/layers_(\d+)/', r'.layer.\1.', where).replace('/', '.')
    name = re.sub(r'\.(fc[12])$', r'.mlp.\1', name)
  return f'{name}.{torch_leaf(leaf)}'


def _layout(config):
  def layout(path, array):
    if path == 'encoder/patch/kernel':  # [u p p 3, D] and [D, 3, u, p, p]
      sizes = (config.tubelet_size, config.patch_size, config.patch_size, 3, config.hidden_size)
      return (array.reshape(sizes).transpose(4, 3, 0, 1, 2),
              lambda x: x.transpose(2, 3, 4, 1, 0).reshape(array.shape))
    if path == 'predictor/mask_tokens':
      return array[:, None, None], lambda x: x[:, 0, 0]
    return linear_layout(path, array)
  return layout
