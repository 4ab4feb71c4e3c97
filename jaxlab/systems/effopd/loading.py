"""The models of an experiment from its config: their shapes, and where their weights come from."""
import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.models import decoder_lm, pretrained
from jaxlab.models.decoder_config import DecoderConfig, from_checkpoint_config
from jaxlab.systems.effopd.rollout import Models
from jaxlab.train.checkpoints import load_collection

CHECKPOINT_OPTIONS = ('dtype', 'scan_layers', 'remat')


def check_model(spec, where):
  """Checks what `load_model` takes, without looking at folders; raises ConfigError."""
  fields = {field.name: field.type for field in dataclasses.fields(DecoderConfig)}
  config_lib.check_keys(spec, (*fields, 'weights'), where)
  for name, value in spec.items():
    config_lib.check_type(value, fields.get(name, str), f'{where}.{name}')
  if 'weights' not in spec:
    config_lib.call(DecoderConfig, spec, where, drop=())


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
  fields = {key: value for key, value in spec.items() if key != 'weights'}
  weights = spec.get('weights')
  public = _public_config(weights, where)
  if public is not None:
    config_lib.check_keys(fields, CHECKPOINT_OPTIONS, where)
    config = from_checkpoint_config(public, **fields)
  else:
    config = config_lib.call(DecoderConfig, fields, where, drop=())
  model = decoder_lm.DecoderLM(config)
  draw = lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  if weights is None:
    return model, draw
  shapes = jax.eval_shape(draw, jax.random.key(0))

  def read():
    if public is None:
      return load_collection(weights, shapes)
    params = decoder_lm.params_from_torch(pretrained.read_safetensors_folder(weights),
                                          config)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), params, shapes)

  # A callback, so that weights are no constants of the program that asks for them.
  return model, lambda key: jax.pure_callback(read, shapes)


def _public_config(weights, where):
  """config.json of a public checkpoint; None for a run of ours or no folder at all."""
  if weights is None:
    return None
  path = pathlib.Path(weights)
  config_lib.require(path.is_dir(), f'{where}.weights', 'a folder', str(weights))
  path = path / pretrained.CONFIG
  public = pretrained.read_json(path) if path.exists() else {}
  return public if 'model_type' in public else None


def load_models(config):
  """The `Models` of an experiment: config.student, config.teachers (a sequence), config.reference.
  """
  loaded = {where: load_model(spec, where) for where, spec in model_specs(config).items()}
  bound = lambda init: lambda: init(jax.random.key(0))
  student, init_student = loaded.pop('student')
  reference, init_reference = loaded.pop('reference', (None, None))
  return Models(student, init_student, [model for model, _ in loaded.values()],
                [bound(init) for _, init in loaded.values()], reference,
                bound(init_reference) if reference is not None else None)
