"""Weights by their official PyTorch names, in and out, and from checkpoints of plain encoders."""
import jax.numpy as jnp
import numpy as np

from jaxlab.models import bert_weights, pretrained
from jaxlab.models.bert import Bert
from jaxlab.systems.graphformers.model import Cascade, GraphFormer

_BIAS_TABLE = 'bert.rel_pos_bias.weight'


def params_from_torch(state_dict, model):
  """Parameters of an encoder from the official names.

  Args:
    state_dict: {'bert.embeddings.word_embeddings.weight': array, ...}, linear weights [out, in].
      GraphFormer: 'bert.encoder.graph_attention.{query,key,value}.*' and, with R bins,
      'bert.rel_pos_bias.weight' [H, R + 2]. Cascade: 'pooling_transform.*' and 'graph_transform.*';
      'gat', which has no official code, 'transform.weight' and 'scorers'.
    model: GraphFormer, Cascade or TextOnly.

  Returns:
    Flax params as NumPy arrays of the dtypes given.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  own = _own_names(model)
  state_dict, params = dict(state_dict), {}
  if isinstance(model, GraphFormer) and model.config.rel_pos_bins:
    heads, bins = model.config.num_attention_heads, model.config.rel_pos_bins
    table = pretrained.checked_mapping(
        {name: x for name, x in state_dict.items() if name == _BIAS_TABLE},
        {_BIAS_TABLE: (heads, bins + 2)})[_BIAS_TABLE]
    state_dict[_BIAS_TABLE] = table[:, :bins]
    params['graph_bias'] = np.ascontiguousarray(np.asarray(table)[:, bins:].T)
  head = {name: state_dict.pop(name) for name in list(state_dict) if name in own}
  found = pretrained.checked_mapping(head, {name: shape for name, (_, shape) in own.items()})
  for name, (path, _) in own.items():
    *modules, leaf = path
    node = params
    for module in modules:
      node = node.setdefault(module, {})
    node[leaf] = np.asarray(found[name]).T if leaf == 'kernel' else np.asarray(found[name])
  return {**params, 'bert': bert_weights.params_from_torch(state_dict, Bert(model.config))}


def params_to_torch(params, model):
  """The inverse of `params_from_torch`: {name: NumPy array}."""
  encoder = bert_weights.params_to_torch(params['bert'], Bert(model.config))
  state_dict = {f'bert.{name}': tensor for name, tensor in encoder.items()}
  if 'graph_bias' in params:
    state_dict[_BIAS_TABLE] = np.concatenate(
        [state_dict[_BIAS_TABLE], np.asarray(params['graph_bias']).T], axis=1)
  for name, (path, _) in _own_names(model).items():
    leaf = params
    for key in path:
      leaf = leaf[key]
    state_dict[name] = np.ascontiguousarray(leaf.T if path[-1] == 'kernel' else leaf)
  return state_dict


def with_encoder(params, encoder):
  """Initial parameters with those of a pretrained plain encoder (BERT, UniLM).

  The two rows of biases that a plain encoder has not become copies of its last one; the rest of
  what is new stays as it is.

  Args:
    params: of a GraphFormer, Cascade or TextOnly.
    encoder: of `Bert`.
  """
  params = {**params, 'bert': encoder}
  if 'graph_bias' in params:
    params['graph_bias'] = jnp.tile(encoder['rel_pos_bias']['kernel'][-1:], (2, 1))
  return params


def _own_names(model):
  """{official name: (our path, official shape)} of what comes on top of the text encoder."""
  width, heads = model.config.hidden_size, model.config.num_attention_heads

  def dense(name, path, inputs, bias=True):
    found = {f'{name}.weight': ((*path, 'kernel'), (width, inputs))}
    return {**found, **({f'{name}.bias': ((*path, 'bias'), (width,))} if bias else {})}

  if isinstance(model, GraphFormer):
    return {key: value for part in ('query', 'key', 'value') for key, value in dense(
        f'bert.encoder.graph_attention.{part}', ('graph_attention', part), width).items()}
  if not isinstance(model, Cascade):
    return {}
  if model.aggregator == 'gat':
    return {**dense('transform', ('transform',), width, bias=False),
            'scorers': (('scorers',), (2, heads, width // heads))}
  return {**dense('pooling_transform', ('pooling_transform',), width),
          **dense('graph_transform', ('graph_transform',), 2 * width, bias=False)}
