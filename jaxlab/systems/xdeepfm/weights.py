"""Weights of DeepCTR-Torch's xDeepFM (0.3) as parameters of ours, and back.

The tables of its sparse fields stand one after the other in ours, so feature id i of field f
becomes i + the sizes of the fields before. Its filters are [h, i m + j] where ours are [h, i, j].
It has one bias at the output, which is that of our linear part; those of our other parts are 0.
"""
import functools

import numpy as np

from jaxlab.config import ConfigError, call, require
from jaxlab.systems.xdeepfm import data as data_lib
from jaxlab.systems.xdeepfm import formats


def _names(params, fields):
  """{official name: (path of ours, to the official array, back)}, the tables aside."""
  same = lambda x: x
  row, column = lambda x: np.reshape(x, (1, -1)), lambda x: np.reshape(x, (-1, 1))
  flat, transposed = np.ravel, np.transpose
  names = {'out.bias': (('linear', 'bias'), lambda x: np.reshape(x, 1), lambda x: x.reshape(()))}
  if 'numeric' in params['linear']:
    names['linear_model.weight'] = ('linear', 'numeric'), column, flat
  for part in ('cin', 'dnn'):
    names[f'{part}_linear.weight'] = (part, 'out', 'kernel'), row, column
  for k in range(len(params['dnn']) - 1):
    names[f'dnn.linears.{k}.weight'] = ('dnn', f'Dense_{k}', 'kernel'), transposed, transposed
    names[f'dnn.linears.{k}.bias'] = ('dnn', f'Dense_{k}', 'bias'), same, same
  for k in range(sum(name.startswith('W') for name in params['cin'])):
    names[f'cin.conv1ds.{k}.weight'] = (
        ('cin', f'W{k + 1}'), lambda x: np.reshape(x, (len(x), -1, 1)),
        lambda x: x.reshape(len(x), -1, len(fields)))
    names[f'cin.conv1ds.{k}.bias'] = ('cin', f'b{k + 1}'), same, same
  return names


def _tables(fields):
  """{path of our table: (prefix of its parts, official names)}."""
  return {
      ('embedding', 'table', 'embedding'): [f'embedding_dict.{name}.weight' for name in fields],
      ('linear', 'table', 'weight'):
          [f'linear_model.embedding_dict.{name}.weight' for name in fields]
  }


def params_from_torch(state_dict, template, fields):
  """Parameters of a CTRModel with parts linear, cin and dnn.

  Args:
    state_dict: {official name: NumPy array}.
    template: params of the model (arrays or shapes): a CIN with use_bias, and the sizes of theirs.
    fields: names of the sparse features, in the order of the columns.

  Returns:
    Params of NumPy float32 arrays.

  Raises:
    ConfigError: missing or left-over names and wrong shapes, all listed.
  """
  names, tables = _names(template, fields), _tables(fields)
  wanted = {*names, *(name for parts in tables.values() for name in parts)}
  wrong = [f'{name} is missing' for name in sorted(wanted - state_dict.keys())]
  wrong += [f'{name} is left over' for name in sorted(state_dict.keys() - wanted)]
  if wrong:
    raise ConfigError(f'state_dict: {"; ".join(wrong)}')
  params = {}
  found = {path: back(np.asarray(state_dict[name])) for name, (path, _, back) in names.items()}
  for path, parts in tables.items():
    found[path] = np.concatenate([np.asarray(state_dict[name]) for name in parts])
  found[('linear', 'table', 'weight')] = found[('linear', 'table', 'weight')][:, 0]
  for part in ('cin', 'dnn'):
    found[part, 'out', 'bias'] = np.zeros(1)
  for path, array in found.items():
    node, like = params, template
    for key in path[:-1]:
      node, like = node.setdefault(key, {}), like[key]
    node[path[-1]] = array.astype(np.float32)
    if like[path[-1]].shape != array.shape:
      wrong.append(f'{"/".join(path)} has shape {array.shape}, expected {like[path[-1]].shape}')
  if wrong:
    raise ConfigError(f'state_dict: {"; ".join(wrong)}')
  return params


def params_to_torch(params, fields, sizes):
  """The inverse of `params_from_torch`; the biases of our three parts become its single one.

  Args:
    params: as by `params_from_torch`.
    fields: names of the sparse features.
    sizes: features of each field.
  """
  def leaf(path):
    node = params
    for key in path:
      node = node[key]
    return np.asarray(node)

  state = {name: to(leaf(path)) for name, (path, to, _) in _names(params, fields).items()}
  for part in ('cin', 'dnn'):
    state['out.bias'] = state['out.bias'] + leaf((part, 'out', 'bias'))
  for path, names in _tables(fields).items():
    rows = leaf(path)
    rows = rows[:, None] if rows.ndim == 1 else rows
    state.update(zip(names, np.split(rows, np.cumsum(sizes)[:-1])))
  return state


def official_weights(config, template):
  """(state dict -> params, params -> state dict) by DeepCTR-Torch's names, for `launch.convert`.

  Its sparse features are our fields by the names of the columns, with as many rows as the
  vocabulary of the run's data has ids; numbers beside the fields are its dense features.

  Args:
    config: of the experiment.
    template: its parameters, or their shapes.

  Raises:
    ConfigError: data without named columns, a model without one of the parts linear, cin, dnn, or a
      CIN without biases.
  """
  data = config['data']
  names = {'criteo': formats.CRITEO, 'avazu': formats.AVAZU}
  require(data['name'] in names, 'data.name', 'criteo or avazu, whose columns have names',
          data['name'])
  require(data.get('integers', 'bucket') != 'vector', 'data.integers', "'bucket' or 'dense'",
          'vector')
  parts = sorted({'embedding', 'linear', 'cin', 'dnn'})
  require(sorted(template) == parts, 'model.parts', 'linear, cin and dnn', sorted(template))
  require('b1' in template['cin'], 'model.cin.use_bias', 'True', False)
  fields = names[data['name']]
  if data.get('integers') == 'dense' and data['name'] == 'criteo':
    fields = formats.CATEGORIES
  layout, _, encode = call(data_lib.load, data, 'data', drop=())
  # The id of an empty value is the first of its field.
  tokens = np.full(len(names[data['name']]), formats.ABSENT)
  sizes = np.diff(encode({'tokens': tokens, 'label': 0})['ids'], append=layout.num_features)
  return (functools.partial(params_from_torch, template=template, fields=fields),
          functools.partial(params_to_torch, fields=fields, sizes=sizes))
