"""Samples from a diffusion transformer with reference tokens, and prunes them with --prune (ToPi).

  python -m launch.generate --workdir=/tmp/jaxlab/topi --prune
  python -m launch.generate --config=configs/topi/flux.py --weights=DIR --inputs=in.npz --prune

The first form samples held-out digits from a trained fixture; with --study it compares the pruning
policies at equal numbers of kept tokens. The second reads weights (a folder of safetensors files
with diffusers' names) and latents and text-encoder outputs (an .npz file; the README of the system
lists the arrays); without --weights the network is random. Both write samples.npz and a
side-by-side grid, pictures.png, to --output.
"""
import json
import os
import pathlib

from absl import flags

from jaxlab import cli
from jaxlab.config import ConfigError, require
from jaxlab.systems import topi

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_AVERAGE = cli.define_average()
_WEIGHTS = flags.DEFINE_string('weights', None, 'Folder of safetensors files.')
_INPUTS = flags.DEFINE_string('inputs', None, '.npz file of latents and text-encoder outputs.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to (default: WORKDIR/generated).')
_COUNT = flags.DEFINE_integer('count', 8, 'Digits to sample, of a fixture.', lower_bound=1)
_PRUNE = flags.DEFINE_bool('prune', False, 'Prune reference tokens as config.prune says.')
_TAU = flags.DEFINE_float('tau', None, 'Share of the influence that stays.')
_PRUNED = flags.DEFINE_float('pruned', None, 'Share of the reference tokens that goes.')
_STUDY = flags.DEFINE_bool('study', False, 'Compare the pruning policies on a fixture.')


def main():
  require((_WORKDIR.value is None) != (_INPUTS.value is None), '--workdir, --inputs', 'one of them',
          [_WORKDIR.value, _INPUTS.value])
  fixture = _WORKDIR.value is not None
  config = cli.workdir_config(_WORKDIR) if fixture else cli.experiment(_CONFIG)
  output = pathlib.Path(_OUTPUT.value or os.path.join(_WORKDIR.value or '.', 'generated'))
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'--output={output}: cannot be made ({error.strerror})') from error
  if _STUDY.value:
    require(fixture, '--study', 'a fixture (--workdir)', _INPUTS.value)
    print(topi.generate.study_table(config, _WORKDIR.value, _AVERAGE.value))
    return
  if fixture:
    job, profile = topi.generate.fixture_job(config, _WORKDIR.value, _COUNT.value,
                                              _AVERAGE.value)
  else:
    job, profile = topi.generate.files_job(config, _INPUTS.value, _WEIGHTS.value), None
  pruning = None
  if _PRUNE.value:
    settings = topi.generate.with_budget(config.get('prune', {}), _TAU.value, _PRUNED.value)
    pruning = topi.calibration.pruning_of(settings, job.model, len(job.sigmas) - 1, profile)
  files = output / 'samples.npz', output / 'pictures.png'
  print(json.dumps(topi.generate.run(job, pruning, *files)))
  print(*files)


if __name__ == '__main__':
  cli.run(main, __doc__)
