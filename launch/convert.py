"""Turns a run's newest checkpoint into one file of parameters, or such a file into a checkpoint.

  python -m launch.convert --config=CONFIG --workdir=RUN --output=params.safetensors
  python -m launch.convert --config=CONFIG --input=params.npz --workdir=NEW_FOLDER

Arrays are named by their path ('Dense_0/kernel'). Missing or left-over names and wrong shapes are
errors that list them. A converted folder serves --config.init_from.
"""
import jax
from absl import flags

from jaxlab import cli, systems
from jaxlab.config import require
from jaxlab.train import export

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_INPUT = flags.DEFINE_string('input', None, 'File of parameters to read: .npz or .safetensors.')
_OUTPUT = flags.DEFINE_string('output', None, 'File of parameters to write: .npz or .safetensors.')


def main():
  task = systems.make_task(cli.experiment(_CONFIG))
  workdir = cli.require_flag(_WORKDIR)
  template = jax.eval_shape(task.init, jax.random.key(0))['params']
  require((_INPUT.value is None) != (_OUTPUT.value is None), '--input, --output', 'one of them',
          [_INPUT.value, _OUTPUT.value])
  if _OUTPUT.value is not None:
    names = export.export_params(workdir, template, _OUTPUT.value)
    print(f'{len(names)} arrays in {_OUTPUT.value}: {", ".join(names)}')
  else:
    export.import_params(_INPUT.value, template, workdir)
    print(f'checkpoint in {workdir}')


if __name__ == '__main__':
  cli.run(main, __doc__)
