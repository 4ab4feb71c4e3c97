"""Parameters of the official PyTorch news recommenders, to Flax and back.

Names are those of the releases of UA-FedRec (`text_encoder.` and `user_encoder.` with word
vectors, attention or convolution, pooling, GRU) and of Efficient-FedRec's user model.
"""
import numpy as np

from jaxlab.config import ConfigError

_ATTENTION = {
    f'attention/{flax}/{leaf}': f'multihead_attention.W_{torch}.{name}'
    for flax, torch in (('query', 'Q'), ('key', 'K'), ('value', 'V'))
    for leaf, name in (('kernel', 'weight'), ('bias', 'bias'))
}
POOLING = {
    f'pooling/{flax}/{leaf}': f'additive_attention.{torch}.{name}'
    for flax, torch in (('hidden', 'att_fc1'), ('score', 'att_fc2'))
    for leaf, name in (('kernel', 'weight'), ('bias', 'bias'))
}
_WORDS = {'words/embedding': 'word_embedding.weight'}
_GRU = ('gru.weight_ih_l0', 'gru.weight_hh_l0', 'gru.bias_ih_l0', 'gru.bias_hh_l0')
ENCODERS = {
    'nrms_news': {**_WORDS, **_ATTENTION, **POOLING},
    'nrms_user': {**_ATTENTION, **POOLING},
    'lstur_news': {**_WORDS, 'title/conv/kernel': 'conv1d.weight', 'title/conv/bias': 'conv1d.bias',
                   **{f'title/{flax}': name for flax, name in POOLING.items()}},
}


def _check(state_dict, expected):
  missing, left = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
  if missing or left:
    raise ConfigError(f'expected the official names; missing: {missing}, left over: {left}')


def _to_flax(path, array):
  """Linear weights [out, in] and Conv1d weights [out, in, width] to kernels."""
  if array.ndim == 3:
    return np.transpose(array, (2, 1, 0))[:, None]
  return array.T if path.endswith('kernel') else array


def _to_torch(path, array):
  if array.ndim == 4:
    return np.transpose(array[:, 0], (2, 1, 0))
  return array.T if path.endswith('kernel') else array


def _nest(flat):
  tree = {}
  for path, leaf in flat.items():
    *parents, last = path.split('/')
    node = tree
    for name in parents:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree


def _at(tree, path):
  for name in path.split('/'):
    tree = tree[name]
  return np.asarray(tree)


def params_from_torch(state_dict, encoder):
  """Flax parameters of one encoder.

  Args:
    state_dict: official name (without the prefix of the encoder) -> array.
    encoder: 'nrms_news', 'nrms_user', 'lstur_news' or 'lstur_user'.

  Raises:
    ConfigError: missing or left-over names, all listed.
  """
  if encoder == 'lstur_user':
    return _gru_from_torch(state_dict)
  names = ENCODERS[encoder]
  _check(state_dict, set(names.values()))
  return _nest({path: _to_flax(path, np.asarray(state_dict[name])) for path, name in names.items()})


def params_to_torch(params, encoder):
  """The inverse of `params_from_torch`: {official name: array}.

  PyTorch's GRU has two biases a gate where Flax has their sum; the second becomes 0.
  """
  if encoder == 'lstur_user':
    return _gru_to_torch(params)
  return {name: _to_torch(path, _at(params, path)) for path, name in ENCODERS[encoder].items()}


def _gru_from_torch(state_dict):
  _check(state_dict, set(_GRU))
  inputs, hidden, input_bias, hidden_bias = (
      np.split(np.asarray(state_dict[name]), 3) for name in _GRU)  # in the order r, z, n
  cell = {}
  for i, gate in enumerate('rzn'):
    both = gate != 'n'  # the new gate's hidden bias is multiplied by r and stands alone
    cell[f'i{gate}'] = {'kernel': inputs[i].T,
                        'bias': input_bias[i] + hidden_bias[i] if both else input_bias[i]}
    cell[f'h{gate}'] = {'kernel': hidden[i].T, **({} if both else {'bias': hidden_bias[i]})}
  return {'gru': cell}


def _gru_to_torch(params):
  cell = params['gru']
  join = lambda side, leaf: np.concatenate(
      [np.asarray(cell[f'{side}{gate}'][leaf]).T for gate in 'rzn'])
  zero = np.zeros_like(np.asarray(cell['hn']['bias']))
  return dict(zip(_GRU, (join('i', 'kernel'), join('h', 'kernel'), join('i', 'bias'),
                         np.concatenate([zero, zero, np.asarray(cell['hn']['bias'])]))))
