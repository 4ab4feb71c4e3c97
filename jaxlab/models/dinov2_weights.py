"""Weights of the official DINOv2 code and of transformers' Dinov2 models, in and out."""
import re

import jax
import jax.numpy as jnp
import numpy as np

_TOP = ('cls_token', 'pos_embed', 'register_tokens', 'mask_token')
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'taps': 'weight'}
# transformers' names of our modules; those of one of our matrices are stacked.
_TRANSFORMERS = {
    'cls_token': 'embeddings.cls_token', 'pos_embed': 'embeddings.position_embeddings',
    'register_tokens': 'embeddings.register_tokens', 'mask_token': 'embeddings.mask_token',
    'patch_embed.proj': 'embeddings.patch_embeddings.projection', 'norm': 'layernorm',
    'attn.qkv': tuple(f'attention.attention.{part}' for part in ('query', 'key', 'value')),
    'attn.proj': 'attention.output.dense', 'ls1.gamma': 'layer_scale1.lambda1',
    'ls2.gamma': 'layer_scale2.lambda1', 'mlp.w12': 'mlp.weights_in', 'mlp.w3': 'mlp.weights_out',
}
# Names that later versions have instead.
_LATER = {'attn.qkv': tuple(f'attention.{part}_proj' for part in 'qkv'),
          'attn.proj': 'attention.o_proj'}


def torch_name(path):
  """The official name of our parameter 'blocks_0/attn/qkv/kernel'."""
  *module, leaf = path.split('/')
  if leaf in _TOP:
    return leaf
  if module and module[0].startswith('blocks_'):
    module[0] = module[0].replace('_', '.')
  if leaf in ('ls1', 'ls2'):
    return '.'.join([*module, leaf, 'gamma'])
  if module == ['patch_embed']:
    module = ['patch_embed', 'proj']
  return '.'.join([*module, _LEAVES[leaf]])


def to_torch_layout(path, leaf):
  """A parameter as PyTorch lays it out: kernels [out, in], [out, in, h, w]; `taps` are kept."""
  leaf = np.asarray(leaf)
  if path.endswith('kernel'):
    leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
  return np.ascontiguousarray(leaf)


def from_torch_layout(path, value):
  """The inverse of `to_torch_layout`."""
  value = np.asarray(value)
  if path.endswith('kernel'):
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
  return value


def take(state_dict, shapes, name_of, *, free=()):
  """Our parameters from PyTorch's tensors.

  Args:
    state_dict: {PyTorch's name: array}.
    shapes: pytree of our parameters' shapes.
    name_of: our path 'a/b/kernel' -> PyTorch's name.
    free: names whose shape the checkpoint decides.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  spell = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  leaves = {spell(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]}
  wanted = {name_of(path): (path, leaf) for path, leaf in leaves.items()}
  wrong = [f'{name} is missing' for name in wanted if name not in state_dict]
  wrong += [f'{name} is left over' for name in state_dict if name not in wanted]
  for name in wanted.keys() & state_dict.keys():
    path, leaf = wanted[name]
    shape = from_torch_layout(path, state_dict[name]).shape
    if name not in free and shape != leaf.shape:
      expected = to_torch_layout(path, np.zeros(leaf.shape, np.int8)).shape
      wrong.append(f'{name} has shape {np.shape(state_dict[name])}, expected {expected}')
  if wrong:
    raise ValueError('the checkpoint is not of this model: ' + '; '.join(sorted(wrong)))
  return jax.tree_util.tree_map_with_path(
      lambda path, _: from_torch_layout(spell(path), state_dict[name_of(spell(path))]), shapes)


def give(params, name_of):
  """The inverse of `take`: {PyTorch's name: array}."""
  spell = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {name_of(spell(path)): to_torch_layout(spell(path), leaf)
          for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def official_names(state_dict):
  """The state dict under the official names of a released checkpoint.

  Blocks of training checkpoints, 'blocks.<chunk>.<i>.', lose their chunk; names of transformers
  are translated.
  """
  state_dict = {re.sub(r'^blocks\.\d+\.(\d+\.)', r'blocks.\1', name): value
                for name, value in state_dict.items()}
  if not any(name.startswith('embeddings.') for name in state_dict):
    return state_dict
  state_dict, renamed = dict(state_dict), {}
  blocks = {match[0] for match in (re.match(r'encoder\.layer\.\d+\.', name) for name in state_dict)
            if match}
  for prefix in ('', *blocks):
    ours = prefix.replace('encoder.layer.', 'blocks.')
    for name, theirs in (*_TRANSFORMERS.items(), *_LATER.items()):
      parts = theirs if isinstance(theirs, tuple) else (theirs,)
      for ending in ('', '.weight', '.bias'):
        found = [f'{prefix}{part}{ending}' for part in parts]
        if all(part in state_dict for part in found):
          values = [np.asarray(state_dict.pop(part)) for part in found]
          renamed[f'{ours}{name}{ending}'] = (
              np.concatenate(values) if len(values) > 1 else values[0])
  for name, value in state_dict.items():
    renamed[name.replace('encoder.layer.', 'blocks.')] = value
  return renamed


def params_from_torch(state_dict, config):
  """Our parameters from a checkpoint.

  Args:
    state_dict: {name: array} of the official code or of transformers.
    config: the DINOv2; a checkpoint of another native grid keeps its positions.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  return take(official_names(state_dict), param_shapes(config), torch_name, free=('pos_embed',))


def params_to_torch(params, config):
  """{official name: array} of our parameters; the inverse of `params_from_torch`."""
  del config
  return give(params, torch_name)


def param_shapes(model):
  """Shapes of the parameters, without computing them."""
  image = jnp.zeros((1, model.patch, model.patch, 3))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), image))['params']
