"""The models of an experiment from its config: their shapes, and where their weights come from."""
import functools
import pathlib

import jax

from jaxlab import config as config_lib
from jaxlab.data import text
from jaxlab.models import decoder_checkpoint, decoder_lm, pretrained
from jaxlab.systems.effopd.rollout import Models
from jaxlab.train.checkpoints import load_collection


def model_specs(config):
  """{dotted name: mapping} of the models of an experiment."""
  specs = {'student': config_lib.section(config, 'student')}
  teachers = config.get('teachers', ())
  config_lib.check_type(teachers, tuple, 'config.teachers')
  specs.update({f'teachers[{i}]': spec for i, spec in enumerate(teachers)})
  if config.get('reference') is not None:
    specs['reference'] = config_lib.section(config, 'reference')
  return specs


def load_model(spec, where):
  """A model of the config.

  Args:
    spec: mapping. 'weights' is a folder: of a public checkpoint (config.json with a 'model_type'),
      beside which only dtype, scan_layers and remat may be given, or a run of ours; without it the
      weights are drawn. Other keys are the fields of DecoderConfig.
    where: dotted name, for errors.

  Returns:
    (DecoderLM, key -> params, traceable).

  Raises:
    ConfigError: unknown or impossible fields, or a folder without weights.
  """
  weights = spec.get('weights')
  public = weights is not None and _is_public(weights, where)
  # A run of ours has no config.json of the shape: its fields stand in the mapping.
  config = decoder_checkpoint.decoder_config(
      spec if public else {key: value for key, value in spec.items() if key != 'weights'}, where)
  read = None
  if public:
    read = functools.partial(decoder_checkpoint.read_params, weights, config)
  elif weights is not None:
    read = lambda: load_collection(weights, decoder_checkpoint.shapes_of(config))
  return decoder_lm.DecoderLM(config), decoder_checkpoint.initializer(config, read)


def official_weights(config, template):
  """(tensors -> params, params -> tensors) of the student by the public names, for
  `launch.convert`.

  Args:
    config: of the experiment.
    template: its parameters, or their shapes.
  """
  del template
  model, _ = load_model(config_lib.section(config, 'student'), 'student')
  return (functools.partial(decoder_lm.params_from_torch, config=model.config),
          decoder_lm.params_to_torch)


def _is_public(weights, where):
  """Whether a folder is a public checkpoint and not a run of ours."""
  path = pathlib.Path(weights)
  config_lib.require(path.is_dir(), f'{where}.weights', 'a folder', str(weights))
  path = path / pretrained.CONFIG
  return path.exists() and 'model_type' in pretrained.read_json(path)


def check_tokenizers(config):
  """Raises ConfigError unless all folders that have a tokenizer.json have the same vocabulary.

  The frozen models score the ids that the student samples, so an id must mean the same to all.
  """
  folders = {f'config.{where}.weights': spec['weights']
             for where, spec in model_specs(config).items() if spec.get('weights') is not None}
  if 'tokenizer' in config['data']:
    folders['config.data.tokenizer'] = config['data']['tokenizer']
  first = None
  for where, folder in folders.items():
    path = pathlib.Path(folder)
    path = path if path.is_file() else path / 'tokenizer.json'
    if path.is_file():
      found = path, text.load_tokenizer(path).get_vocab()
      first = first or found
      config_lib.require(found[1] == first[1], where, f'the vocabulary of {first[0]}', str(path))


def load_models(config):
  """The `Models` of an experiment: config.student, config.teachers (a sequence), config.reference.

  Raises:
    ConfigError: see `load_model` and `check_tokenizers`.
  """
  loaded = {where: load_model(spec, where) for where, spec in model_specs(config).items()}
  check_tokenizers(config)
  bound = lambda init: lambda: init(jax.random.key(0))
  student, init_student = loaded.pop('student')
  reference, init_reference = loaded.pop('reference', (None, None))
  return Models(student, init_student, [model for model, _ in loaded.values()],
                [bound(init) for _, init in loaded.values()], reference,
                bound(init_reference) if reference is not None else None)
