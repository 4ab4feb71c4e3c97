"""Official names of a whole model's parameters: those of each part, behind the part's name.

'trunk.' stands before transformers' Qwen3VLModel names, 'predictor.' and 'head.' before those of
the release's world model and action head.
"""
from jaxlab.config import require
from jaxlab.models import vlm, vlm_weights
from jaxlab.systems.vla_jepa import flow_head, world_model
from jaxlab.systems.vla_jepa.task import check


def official_weights(config, template):
  """(tensors -> params, params -> tensors) by the official names, for launch.convert.

  Args:
    config: of the experiment.
    template: its parameters, or their shapes.

  Raises:
    ConfigError: a trunk or head without official names.
  """
  experiment = check(config)
  require(isinstance(experiment.trunk, vlm.QwenVL), 'trunk.name', 'qwen3_vl', config['trunk'])
  require(isinstance(experiment.head, flow_head.FlowHead), 'head.name', 'flow', config['head'])
  shape = experiment.trunk.config
  action_dim = template['predictor']['action_encoder']['kernel'].shape[0]
  context_dim = template['head']['blocks_0']['attn']['to_k']['kernel'].shape[0]

  def read(tensors):
    parts = {name: {} for name in ('trunk', 'predictor', 'head')}
    for name, value in tensors.items():
      part, _, rest = name.partition('.')
      parts.setdefault(part, {})[rest] = value
    require(len(parts) == 3, '--input', 'names that begin with trunk., predictor. or head.',
            sorted(parts))
    return {'trunk': vlm_weights.params_from_torch(parts['trunk'], shape),
            'predictor': world_model.params_from_torch(parts['predictor'], experiment.predictor,
                                                       action_dim),
            'head': flow_head.params_from_torch(parts['head'], experiment.head, context_dim)}

  def write(params):
    parts = {'trunk': vlm_weights.params_to_torch(params['trunk'], shape),
             'predictor': world_model.params_to_torch(params['predictor']),
             'head': flow_head.params_to_torch(params['head'])}
    return {f'{part}.{name}': value for part, tensors in parts.items()
            for name, value in tensors.items()}

  return read, write
