"""Weights of BERT-like encoders in public PyTorch checkpoints, in and out."""
import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models import pretrained
from jaxlab.models.bert import Bert, MaskedLM, SequenceClassifier
from jaxlab.models.bert_config import checkpoint_config, from_checkpoint_config

_MODULES = {
    'embeddings/word': 'embeddings.word_embeddings',
    'embeddings/position': 'embeddings.position_embeddings',
    'embeddings/token_type': 'embeddings.token_type_embeddings',
    'embeddings/norm': 'embeddings.LayerNorm',
    'attention/query': 'attention.self.query', 'attention/key': 'attention.self.key',
    'attention/value': 'attention.self.value', 'attention/out': 'attention.output.dense',
    'attention_norm': 'attention.output.LayerNorm', 'intermediate': 'intermediate.dense',
    'output': 'output.dense', 'output_norm': 'output.LayerNorm',
    'pooler': 'pooler.dense', 'rel_pos_bias': 'rel_pos_bias',
}
_HEADS = {
    'bert': {'mlm_dense': 'cls.predictions.transform.dense',
             'mlm_norm': 'cls.predictions.transform.LayerNorm',
             'mlm_bias': 'cls.predictions.bias', 'head_out': 'classifier'},
    'roberta': {'mlm_dense': 'lm_head.dense', 'mlm_norm': 'lm_head.layer_norm',
                'mlm_bias': 'lm_head.bias', 'head_dense': 'classifier.dense',
                'head_out': 'classifier.out_proj'},
}
_HEAD_NAMES = r'(cls|lm_head|classifier|qa_outputs|dropout)\.'
# Buffers, and copies of the tied word table, that some writers leave in.
_NEVER_READ = (r'embeddings\.(position_ids|token_type_ids)|cls\.seq_relationship\..*|'
               r'(cls\.predictions|lm_head)\.decoder\.(weight|bias)')
_ARCHITECTURES = {
    'bert': {Bert: 'BertModel', MaskedLM: 'BertForMaskedLM',
             SequenceClassifier: 'BertForSequenceClassification'},
    'roberta': {Bert: 'RobertaModel', MaskedLM: 'RobertaForMaskedLM',
                SequenceClassifier: 'RobertaForSequenceClassification'},
}


def params_from_torch(state_dict, model):
  """Our parameters from a public checkpoint's tensors.

  Args:
    state_dict: {'embeddings.word_embeddings.weight': array, ...}, linear weights [out, in]. The
      prefixes 'bert.', 'roberta.' and '0.auto_model.' and old norms' 'gamma' and 'beta' are
      understood. An encoder is also read from the checkpoint of a model with a head.
    model: Bert, MaskedLM or SequenceClassifier.

  Returns:
    Flax params as NumPy arrays of the dtypes given, layers stacked if the config says so.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  state_dict = {_canonical(name): array for name, array in state_dict.items()}
  config = model.config
  if config.rel_pos_bins:
    state_dict = _with_positions(state_dict, config.max_position_embeddings)
  shapes = _unstacked(_shapes(model))
  leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
  names = {_path(path): checkpoint_name(_path(path), config) for path, _ in leaves}
  wanted = {names[_path(path)]: leaf.shape[::-1] if _is_transposed(_path(path)) else leaf.shape
            for path, leaf in leaves}
  has_head = not isinstance(model, Bert)
  ignored = {name for name in state_dict if re.fullmatch(_NEVER_READ, name) or
             (not has_head and re.match(_HEAD_NAMES, name)) or
             (not config.add_pooler and name.startswith('pooler.'))}
  found = pretrained.checked_mapping(state_dict, wanted, ignored=ignored)

  def leaf(path, _):
    value = np.asarray(found[names[_path(path)]])
    return value.T if _is_transposed(_path(path)) else value

  params = jax.tree_util.tree_map_with_path(leaf, shapes)
  return _stacked(params) if config.scan_layers else params


def params_to_torch(params, model):
  """The inverse of `params_from_torch`: {checkpoint name: NumPy array}.

  The encoder of a model with a head has the prefix that transformers wants.
  """
  prefix = '' if isinstance(model, Bert) else _family(model.config) + '.'
  state_dict = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(_unstacked(params))[0]:
    path, leaf = _path(path), np.asarray(leaf)
    name = checkpoint_name(path, model.config)
    name = name if re.match(_HEAD_NAMES, name) else prefix + name
    state_dict[name] = np.ascontiguousarray(leaf.T if _is_transposed(path) else leaf)
  return state_dict


def checkpoint_name(path, config):
  """The public checkpoints' name, without prefix, of a parameter of unstacked layers.

  >>> from jaxlab.models.bert_config import PRESETS
  >>> checkpoint_name('layers_3/attention/query/kernel', PRESETS['bert-tiny'])
  'encoder.layer.3.attention.self.query.weight'
  >>> checkpoint_name('bert/embeddings/norm/scale', PRESETS['bert-tiny'])
  'embeddings.LayerNorm.weight'
  """
  *module, leaf = path.removeprefix('bert/').split('/')
  heads = _HEADS[_family(config)]
  if leaf in heads:  # a bare parameter
    return heads[leaf]
  layer = re.fullmatch(r'layers_(\d+)', module[0])
  prefix = f'encoder.layer.{layer[1]}.' if layer else ''
  name = '/'.join(module[1:] if layer else module)
  return f'{prefix}{({**_MODULES, **heads})[name]}.{"bias" if leaf == "bias" else "weight"}'


def load(folder, *, model=Bert, **options):
  """Reads a folder of config.json and safetensors.

  Args:
    folder: local folder of a published or an exported model.
    model: Bert or MaskedLM.
    **options: fields of BertConfig to set otherwise, such as dtype, scan_layers or remat;
      add_pooler=None takes a pooler where there is one.

  Returns:
    (the Flax module, its params as NumPy arrays).

  Raises:
    ConfigError: no such folder or file, or another architecture.
    ValueError: broken files; missing or left-over names and wrong shapes, all listed.
  """
  state_dict = pretrained.read_safetensors_folder(folder)
  if options.get('add_pooler', False) is None:
    has_pooler = any(_canonical(name).startswith('pooler.') for name in state_dict)
    options = {**options, 'add_pooler': has_pooler}
  config = read_config(folder, **options)
  module = model(config)
  try:
    return module, params_from_torch(state_dict, module)
  except ValueError as error:
    raise ValueError(f'{folder}: {error}') from error


def read_config(folder, **options):
  """The BertConfig of a folder's config.json; see `bert_config.from_checkpoint_config`."""
  path = pathlib.Path(folder) / pretrained.CONFIG
  return from_checkpoint_config(pretrained.read_json(path), **options)


def save(folder, params, model, *, tokenizer_from=None, **config):
  """Writes a folder that `load` and transformers open.

  Args:
    folder: to write to.
    params: Flax params of the model.
    model: Bert, MaskedLM or SequenceClassifier.
    tokenizer_from: folder whose tokenizer files are copied, a `tokenizers.Tokenizer`, or None.
    **config: more entries of config.json.
  """
  family = _family(model.config)
  architecture = _ARCHITECTURES[family][type(model)]
  if model.config.model_type == 'xlm-roberta':
    architecture = f'XLM{architecture}'
  tensors = params_to_torch(params, model)
  described = {**checkpoint_config(model.config, architecture), **config}
  if isinstance(model, SequenceClassifier):
    names = {str(i): f'LABEL_{i}' for i in range(model.num_classes)}
    described |= {'id2label': names, 'label2id': {name: int(i) for i, name in names.items()}}
  pretrained.write_safetensors_folder(folder, tensors, described, tokenizer_from=tokenizer_from)


def resize_positions(table, rows):
  """A position table [P, D] with another number of rows: cut off, or repeated from its start."""
  return np.resize(table, (rows, table.shape[1]))


def with_scan(model, params, scan_layers):
  """(the module, its params) in the other layout of the layers, or in the same."""
  config = dataclasses.replace(model.config, scan_layers=scan_layers)
  params = _stacked(_unstacked(params)) if scan_layers else _unstacked(params)
  return model.clone(config=config), params


def _canonical(name):
  name = re.sub(r'^(bert|roberta|0\.auto_model|module)\.', '', name)
  return re.sub(r'gamma$', 'weight', re.sub(r'beta$', 'bias', name))


def _family(config):
  return 'roberta' if config.is_roberta else 'bert'


def _with_positions(state_dict, rows):
  name = 'embeddings.position_embeddings.weight'
  if name not in state_dict:
    return state_dict
  return {**state_dict, name: resize_positions(np.asarray(state_dict[name]), rows)}


def _on_encoder(function, params):
  return {**params, 'bert': function(params['bert'])} if 'bert' in params else function(params)


def _unstacked(params):
  return _on_encoder(pretrained.unstack_layers, params)


def _stacked(params):
  return _on_encoder(pretrained.stack_layers, params)


def _path(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _is_transposed(path):
  return path.endswith('/kernel')


def _shapes(model):
  if isinstance(model, Bert) and not model.config.vocab_size:
    words = {'inputs_embeds': jnp.zeros((1, 1, model.config.hidden_size)), 'ids': None}
  else:
    words = {'ids': jnp.zeros((1, 1), jnp.int32)}
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **words))
  return _layer_shapes(variables['params'], model)


def _layer_shapes(params, model):
  """Stacked ShapeDtypeStructs cannot be indexed: cuts them into layers by shape."""
  def cut(encoder):
    if 'layers' not in encoder:
      return encoder
    rest = {name: tree for name, tree in encoder.items() if name != 'layers'}
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), encoder['layers'])
    return {**rest, **{f'layers_{i}': one for i in range(model.config.num_hidden_layers)}}
  return _on_encoder(cut, params)
