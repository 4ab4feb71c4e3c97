"""Weights in the names of the official PyTorch module `KREDModel`."""
import functools

import numpy as np

from jaxlab.config import ConfigError

_ENCODER = {
    'entity/att1': 'kgat.attention_layer1', 'entity/att2': 'kgat.attention_layer2',
    'entity/agg': 'kgat.convolve_layer', 'distill/att1': 'attention_embedding_layer1',
    'distill/att2': 'attention_embedding_layer2', 'distill/final1': 'final_embedding1',
    'distill/final2': 'final_embedding2'
}
_CONTEXT = {'position': 'title_embeddings', 'type': 'type_embeddings',
            'frequency': 'entity_num_embeddings'}
_HEADS = {'user2item': 'mlp', 'category': 'vert_mlp', 'popularity': 'pop_mlp', 'local': 'local_mlp'}
_CLICKED = 'user_modeling.news_embedding.'


def _leaves(tree, path=''):
  for key, value in tree.items():
    if hasattr(value, 'items'):
      yield from _leaves(value, f'{path}{key}/')
    else:
      yield f'{path}{key}', value


def _names(template):
  """{official name: (path of ours, whether the official array is transposed)}."""
  found = {}

  def dense(official, path):
    found[f'{official}.weight'] = f'{path}/kernel', True
    found[f'{official}.bias'] = f'{path}/bias', False

  shared = 'history' not in template
  for tower, prefix in (('news', 'news_embedding.'),
                        ('news' if shared else 'history', _CLICKED)):
    for path, official in _ENCODER.items():
      dense(prefix + official, f'{tower}/{path}')
    for table, official in _CONTEXT.items():
      found[f'{prefix}{official}.weight'] = f'{tower}/context/{table}', False
  for layer in (1, 2):
    dense(f'user_modeling.user_attention_layer{layer}', f'user/att{layer}')
    for head, official in _HEADS.items():
      dense(f'{official}_layer{layer}', f'{head}/{("hidden", "out")[layer - 1]}')
  return found


def params_from_torch(state_dict, template):
  """Parameters of `model.KRED` from a state dict of the official module.

  Args:
    state_dict: {official name: NumPy array}.
    template: params of the model (arrays or shapes). One encoder for candidates and history wants
      the two of the official module to be equal.

  Returns:
    Params of NumPy float32 arrays.

  Raises:
    ConfigError: missing or left-over names, wrong shapes, unlike encoders, all listed.
  """
  names, shapes = _names(template), dict(_leaves(template))
  wrong = [f'{name} is missing' for name in sorted(names.keys() - state_dict.keys())]
  wrong += [f'{name} is left over' for name in sorted(state_dict.keys() - names.keys())]
  found = {}
  for name, (path, transposed) in names.items():
    if name not in state_dict:
      continue
    array = np.asarray(state_dict[name], np.float32)
    array = array.T if transposed else array
    if array.shape != shapes[path].shape:
      wrong.append(f'{path} has shape {array.shape}, expected {shapes[path].shape}')
    elif path in found and not np.array_equal(found[path], array):
      wrong.append(f'{name} differs from that of the candidates: share_news_encoder=False keeps '
                   'both')
    found[path] = array
  if wrong:
    raise ConfigError(f'state_dict: {"; ".join(wrong)}')
  params = {}
  for path, array in found.items():
    *parents, last = path.split('/')
    node = params
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = array
  return params


def params_to_torch(params):
  """The inverse of `params_from_torch`; a shared encoder is written as both."""
  leaves = dict(_leaves(params))
  return {name: np.asarray(leaves[path]).T if transposed else np.asarray(leaves[path])
          for name, (path, transposed) in _names(params).items()}


def official_weights(config, template):
  """(state dict -> params, params -> state dict) of a model with parameters like `template`."""
  del config
  return functools.partial(params_from_torch, template=template), params_to_torch
