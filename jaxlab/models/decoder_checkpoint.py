"""A decoder from a mapping of a config: its shape, and its weights drawn or read from a folder."""
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models import decoder_lm, pretrained
from jaxlab.models.decoder_config import (
    DecoderConfig,
    checkpoint_config,
    from_checkpoint_config,
)

OPTIONS = ('dtype', 'scan_layers', 'remat')  # what may stand beside a public checkpoint


def check_spec(spec, where):
  """Checks the fields of DecoderConfig and 'weights', a folder, without looking at the folder.

  Args:
    spec: mapping.
    where: dotted name, for errors.

  Raises:
    ConfigError: an unknown key, a wrong type, or an impossible shape.
  """
  fields = {field.name: field.type for field in dataclasses.fields(DecoderConfig)}
  config_lib.check_keys(spec, (*fields, 'weights'), where)
  for name, value in spec.items():
    config_lib.check_type(value, fields.get(name, str), f'{where}.{name}')
  if 'weights' not in spec:
    config_lib.call(DecoderConfig, spec, where, drop=())


def decoder_config(spec, where):
  """The DecoderConfig of a mapping's fields, or of the public checkpoint in its folder 'weights'.

  Args:
    spec: as `check_spec` takes it.
    where: dotted name, for errors.

  Raises:
    ConfigError: an impossible shape, a folder without a public config.json, or other fields than
      `OPTIONS` beside it.
  """
  fields = {key: value for key, value in spec.items() if key != 'weights'}
  if spec.get('weights') is None:
    return config_lib.call(DecoderConfig, fields, where, drop=())
  config_lib.check_keys(fields, OPTIONS, where)
  return from_checkpoint_config(
      pretrained.read_json(pathlib.Path(spec['weights']) / pretrained.CONFIG), **fields)


def shapes_of(config):
  """Shapes and dtypes of the parameters of a DecoderConfig."""
  return jax.eval_shape(initializer(config), jax.random.key(0))


def read_params(folder, config):
  """Parameters of a public checkpoint's folder, float32 NumPy arrays.

  Tensors are converted as they are read: beside the result the host holds one of them, or all
  layers of one where layers are scanned.
  """
  return decoder_lm.params_from_torch(
      pretrained.open_safetensors_folder(folder, np.float32), config)


def write_params(folder, params, config, *, tokenizer_from=None):
  """Writes a folder that `read_params` and transformers read.

  Args:
    folder: to write to; it is made.
    params: of the decoder, in either layout.
    config: DecoderConfig.
    tokenizer_from: see `pretrained.write_safetensors_folder`.

  Raises:
    ConfigError: a shape that is of no public family.
  """
  pretrained.write_safetensors_folder(folder, decoder_lm.params_to_torch(params),
                                      checkpoint_config(config), tokenizer_from=tokenizer_from)


def initializer(config, read=None):
  """The traceable function key -> params of a decoder.

  Args:
    config: DecoderConfig.
    read: () -> params; None draws them.
  """
  if read is not None:
    # A callback, so that weights are no constants of the program that asks for them.
    return lambda key: jax.pure_callback(read, shapes_of(config))
  model = decoder_lm.DecoderLM(config)
  return lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
