"""Turns a run's newest checkpoint into a file of parameters, or such a file into a checkpoint.

  python -m launch.convert --config=CONFIG --workdir=RUN --output=params.safetensors
  python -m launch.convert --config=CONFIG --input=params.npz --workdir=NEW_FOLDER
  python -m launch.convert --config=CONFIG --official --input=FOLDER --workdir=NEW_FOLDER

Arrays are named by their path ('Dense_0/kernel'), with --official by the authors' code; --input may
be a folder with model.safetensors or its shards, too. A .pt file must be saved as safetensors or
npz first. Missing or left-over names and wrong shapes are errors that list them. A converted folder
serves as `init_from` of a config, and --checkpoint of launch.predict.
"""
import jax
import numpy as np
from absl import flags

from jaxlab import cli, config, systems
from jaxlab.models import pretrained
from jaxlab.train import checkpoints, export, outputs

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_AVERAGE = cli.define_average()
_INPUT = flags.DEFINE_string(
    'input', None, 'Parameters to read: a .npz or .safetensors file, or a folder of safetensors.')
_OUTPUT = flags.DEFINE_string('output', None, 'File of parameters to write: .npz or .safetensors.')
_OFFICIAL = flags.DEFINE_bool('official', False, 'The names are those of the authors\' code.')


def names_of(experiment, template):
  """(tensors -> params, params -> tensors) by the names that the flags ask for."""
  if not _OFFICIAL.value:
    return lambda tensors: tensors, export.named
  module = systems.task_module(experiment)
  config.require(hasattr(module, 'official_weights'), '--official',
                 'a task whose authors\' names are known', experiment['task'])
  return module.official_weights(experiment, template)


def read_params(to_params):
  """The parameters of --input; ConfigError if its tensors cannot be read or do not fit."""
  try:
    return to_params(pretrained.read_tensors(_INPUT.value))
  except config.ConfigError:
    raise
  except ValueError as error:
    raise config.ConfigError(f'--input={_INPUT.value}: {error}') from error


def main():
  experiment, workdir = cli.experiment(_CONFIG), cli.require_flag(_WORKDIR)
  config.require((_INPUT.value is None) != (_OUTPUT.value is None), '--input, --output',
                 'one of them', [_INPUT.value, _OUTPUT.value])
  if _OUTPUT.value is not None:
    outputs.check_path(_OUTPUT.value, pretrained.FORMATS)
  template = jax.eval_shape(systems.make_task(experiment).init, jax.random.key(0))['params']
  to_params, to_tensors = names_of(experiment, template)
  if _OUTPUT.value is not None:
    tensors = to_tensors(checkpoints.load_collection(
        workdir, template, average=_AVERAGE.value))
    pretrained.write_tensors(_OUTPUT.value, {name: np.asarray(x) for name, x in tensors.items()})
    print(f'{len(tensors)} arrays in {_OUTPUT.value}: {", ".join(sorted(tensors))}')
  else:
    tensors = export.named(read_params(to_params))
    export.save_params(export.unnamed(tensors, template, f'--input={_INPUT.value}'), workdir)
    print(f'checkpoint in {workdir}')


if __name__ == '__main__':
  cli.run(main, __doc__)
