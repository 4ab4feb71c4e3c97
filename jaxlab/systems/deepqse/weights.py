"""Parameters of the official PyTorch code, in and out."""
import functools

import jax
import numpy as np

from jaxlab.config import require
from jaxlab.models import bert_weights, pretrained
from jaxlab.models.bert import Bert
from jaxlab.systems.deepqse.model import CrossDeepQSE
from jaxlab.systems.deepqse.task import check, prepare

_TOWERS = {
    False: {'encoder': 'sents_encoder.unicoder.'},
    True: {'query_encoder': 'text_encoder.query_unicoder.',
           'sentence_encoder': 'text_encoder.sent_unicoder.'},
}
_DOCUMENT = 'sents_agg.unicoder.'
_SCORER = {'scorer_hidden': 'pred_linear.0', 'scorer_out': 'pred_linear.2'}


def _towers(model):
  return _TOWERS[isinstance(model, CrossDeepQSE)]


def params_from_torch(state_dict, model):
  """Flax params from the tensors of the official code.

  Args:
    state_dict: {'sents_encoder.unicoder.embeddings...': array, ...} for DeepQSE, with
      'text_encoder.query_unicoder.' and 'text_encoder.sent_unicoder.' for CrossDeepQSE. The
      document encoder's word table and poolers are not used and may be there.
    model: DeepQSE or CrossDeepQSE with context 'query'.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  prefixes = (*_towers(model).values(), _DOCUMENT, *(f'{name}.' for name in _SCORER.values()))
  left = [name for name in state_dict if not name.startswith(prefixes)]
  if left:
    raise ValueError(f'the checkpoint is not of this model: {", ".join(left)} is left over')
  part = lambda prefix: {name.removeprefix(prefix): array for name, array in state_dict.items()
                         if name.startswith(prefix)}
  params = {tower: bert_weights.params_from_torch(part(prefix), Bert(model.config))
            for tower, prefix in _towers(model).items()}
  document = {name: array for name, array in part(_DOCUMENT).items()
              if name != 'embeddings.word_embeddings.weight'}
  ranker = {'document': bert_weights.params_from_torch(document, Bert(model.document))}
  width = model.document.hidden_size
  for layer, shape in (('scorer_hidden', (width // 2, width)), ('scorer_out', (1, width // 2))):
    found = pretrained.checked_mapping(part(_SCORER[layer] + '.'),
                                       {'weight': shape, 'bias': shape[:1]})
    ranker[layer] = {'kernel': np.asarray(found['weight']).T, 'bias': np.asarray(found['bias'])}
  return {**params, 'ranker': ranker}


def params_to_torch(params, model):
  """The inverse of `params_from_torch`, without what is not used."""
  state_dict = {}
  parts = {**{prefix: (params[tower], model.config) for tower, prefix in _towers(model).items()},
           _DOCUMENT: (params['ranker']['document'], model.document)}
  for prefix, (part, config) in parts.items():
    tensors = bert_weights.params_to_torch(part, Bert(config))
    state_dict.update({prefix + name: tensor for name, tensor in tensors.items()})
  for layer, name in _SCORER.items():
    leaf = jax.tree.map(np.asarray, params['ranker'][layer])
    state_dict |= {f'{name}.weight': np.ascontiguousarray(leaf['kernel'].T),
                   f'{name}.bias': leaf['bias']}
  return state_dict


def official_weights(config, template):
  """(state dict -> params, params -> state dict) by the official names, for `launch.convert`.

  The authors' code keeps the two stages in two files: of kind 'efficient' the names of the first
  stand behind 'coarse.', those of the second behind 'fine.'.

  Args:
    config: of the experiment.
    template: its parameters, or their shapes.

  Raises:
    ConfigError: a context without official names.
  """
  settings, *_ = check(config)
  require(settings.context == 'query', 'model.context', "'query', for the official names",
          settings.context)
  networks, *_ = prepare(config)
  if networks.fine is None:
    return (functools.partial(params_from_torch, model=networks.coarse),
            functools.partial(params_to_torch, model=networks.coarse))
  stages = {name: getattr(networks, name) for name in template}

  def read(state_dict):
    parts = {stage: {} for stage in stages}
    for name, array in state_dict.items():
      stage, _, rest = name.partition('.')
      parts.setdefault(stage, {})[rest] = array
    require(parts.keys() == stages.keys(), '--input', 'names that begin with coarse. or fine.',
            sorted(parts))
    return {stage: params_from_torch(parts[stage], net) for stage, net in stages.items()}

  def write(params):
    return {f'{stage}.{name}': array for stage, net in stages.items()
            for name, array in params_to_torch(params[stage], net).items()}

  return read, write
