"""Weights of diffusers' FluxTransformer2DModel and QwenImageTransformer2DModel, in and out."""
import jax
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models.dit import DiT, init_params

_TOP = {
    'flux': {'img_in': 'x_embedder', 'txt_in': 'context_embedder',
             'time_embed': 'time_text_embed.timestep_embedder',
             'guidance_embed': 'time_text_embed.guidance_embedder',
             'pooled_embed': 'time_text_embed.text_embedder',
             'final_mod/linear': 'norm_out.linear', 'final': 'proj_out'},
    'qwen': {'img_in': 'img_in', 'txt_norm': 'txt_norm', 'txt_in': 'txt_in',
             'time_embed': 'time_text_embed.timestep_embedder',
             'final_mod/linear': 'norm_out.linear', 'final': 'proj_out'},
}
# Our matrices that are several of theirs side by side have several names.
_ATTENTION = {
    'img_qkv': ('attn.to_q', 'attn.to_k', 'attn.to_v'),
    'txt_qkv': ('attn.add_q_proj', 'attn.add_k_proj', 'attn.add_v_proj'),
    'img_q_norm': 'attn.norm_q', 'img_k_norm': 'attn.norm_k',
    'txt_q_norm': 'attn.norm_added_q', 'txt_k_norm': 'attn.norm_added_k',
    'img_out': 'attn.to_out.0', 'txt_out': 'attn.to_add_out',
}
_DOUBLE = {
    'flux': {**_ATTENTION, 'img_mod/linear': 'norm1.linear',
             'txt_mod/linear': 'norm1_context.linear',
             'img_mlp_in': 'ff.net.0.proj', 'img_mlp_out': 'ff.net.2',
             'txt_mlp_in': 'ff_context.net.0.proj', 'txt_mlp_out': 'ff_context.net.2'},
    'qwen': {**_ATTENTION, 'img_mod/linear': 'img_mod.1', 'txt_mod/linear': 'txt_mod.1',
             'img_mlp_in': 'img_mlp.net.0.proj', 'img_mlp_out': 'img_mlp.net.2',
             'txt_mlp_in': 'txt_mlp.net.0.proj', 'txt_mlp_out': 'txt_mlp.net.2'},
}
_SINGLE = {
    'mod/linear': 'norm.linear', 'qkv_mlp': ('attn.to_q', 'attn.to_k', 'attn.to_v', 'proj_mlp'),
    'q_norm': 'attn.norm_q', 'k_norm': 'attn.norm_k', 'out': 'proj_out',
}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}


def model_from_config(config, **options):
  """The network of a diffusers config.json.

  Args:
    config: mapping with '_class_name' FluxTransformer2DModel or QwenImageTransformer2DModel.
    **options: `dtype` and `remat` of DiT.

  Raises:
    ConfigError: another class, or a key that is missing or does not fit.
  """
  families = {'FluxTransformer2DModel': 'flux', 'QwenImageTransformer2DModel': 'qwen'}
  family = config_lib.choose(config.get('_class_name'), families, 'config.json: _class_name')
  keys = {'in_channels': 'in_channels', 'text_dim': 'joint_attention_dim',
          'num_double': 'num_layers', 'num_heads': 'num_attention_heads',
          'head_dim': 'attention_head_dim', 'axes': 'axes_dims_rope'}
  if family == 'flux':
    keys |= {'num_single': 'num_single_layers', 'pooled_dim': 'pooled_projection_dim',
             'guidance': 'guidance_embeds'}
  for key in keys.values():
    config_lib.require(key in config, f'config.json: {key}', 'a value', None)
  fields = {'num_single': 0, **{name: config[key] for name, key in keys.items()}}
  patch = config.get('patch_size', 1)
  out = (config.get('out_channels') or config['in_channels']) * patch**2
  if out == config['in_channels']:
    out = 0  # as DiT has it by default, so that equal networks are equal
  return config_lib.call(DiT, {**fields, 'axes': tuple(fields['axes']), 'out_channels': out,
                               'family': family, **options}, 'config.json', drop=(), parent=None)


def params_from_torch(state_dict, config):
  """Our parameters from diffusers' tensors.

  Args:
    state_dict: {'transformer_blocks.0.attn.to_q.weight': array, ...}; weights are [out, in].
    config: the DiT.

  Returns:
    Flax params as NumPy arrays of the dtypes given.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  wanted = {}

  def names_of(path, leaf):
    names = _torch_names(path, config)
    sizes = _part_sizes(names, leaf.shape, config)
    wanted.update({name: (*leaf.shape[:-1], size)[::-1] for name, size in zip(names, sizes)})
    return names

  names = jax.tree_util.tree_map_with_path(names_of, shapes)
  wrong = [f'{name} is missing' for name in wanted if name not in state_dict]
  wrong += [f'{name} is left over' for name in state_dict if name not in wanted]
  wrong += [f'{name} has shape {tuple(state_dict[name].shape)}, expected {shape}'
            for name, shape in wanted.items()
            if name in state_dict and tuple(state_dict[name].shape) != shape]
  if wrong:
    raise ValueError('the checkpoint is not of this model: ' + '; '.join(sorted(wrong)))
  return jax.tree.map(lambda parts: np.concatenate([np.asarray(state_dict[name]).T
                                                    for name in parts], axis=-1),
                      names, is_leaf=lambda x: isinstance(x, tuple))


def params_to_torch(params, config):
  """The inverse of `params_from_torch`: {diffusers' name: NumPy array}, C-contiguous."""
  state_dict = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    names = _torch_names(path, config)
    cuts = np.cumsum(_part_sizes(names, leaf.shape, config))[:-1]
    for name, part in zip(names, np.split(np.asarray(leaf), cuts, axis=-1)):
      state_dict[name] = np.ascontiguousarray(part.T)
  return state_dict


def _torch_names(path, model):
  """diffusers' names of the parts of one of our leaves, in order."""
  block, *module, leaf = (key.key for key in path)
  kind = block.rstrip('0123456789')
  number = block[len(kind):]
  if number:
    prefix = f'{"single_transformer" if kind == "single" else "transformer"}_blocks.{number}.'
    theirs = (_SINGLE if kind == 'single' else _DOUBLE[model.family])['/'.join(module)]
  else:
    prefix, where = '', [block, *module]
    inner = f'.{where.pop()}' if where[-1].startswith('linear_') else ''  # of an EmbedMLP
    theirs = _TOP[model.family]['/'.join(where)] + inner
  theirs = (theirs,) if isinstance(theirs, str) else theirs
  return tuple(f'{prefix}{name}.{_LEAVES[leaf]}' for name in theirs)


def _part_sizes(names, shape, model):
  """Output widths of the parts: queries, keys and values are H D wide, the MLP is the rest."""
  if len(names) == 1:
    return [shape[-1]]
  return [model.width] * 3 + [shape[-1] - 3 * model.width] * (len(names) - 3)
