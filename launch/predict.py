"""Writes the outputs of a run's newest checkpoint for a whole split or for files of one's own.

  python -m launch.predict --workdir=/tmp/jaxlab/adasam --split=test --output=/tmp/predictions.npz
  python -m launch.predict --workdir=/tmp/jaxlab/xdeepfm --input=rows.tsv --output=/tmp/scores.tsv
  python -m launch.predict --config=configs/moge2/vitl.py --checkpoint=DIR --input=A --output=B

The file to write holds each output of the Task, in the order of the examples: arrays [N, ...] in
.npz, a line an example in .tsv and .jsonl. Which files --input reads is the system's matter (its
README says); labels are not needed. Some systems read whole folders, pages or pictures and write
files of their own. The config is the workdir's own; --config with --checkpoint, the folder of a
checkpoint (one of `launch.convert` too), stands for a workdir.
"""
from absl import flags

from jaxlab import cli, config, systems
from jaxlab.train import evaluation
from jaxlab.train import outputs as outputs_lib

_WORKDIR = cli.define_workdir()
_CONFIG = cli.define_config()
_AVERAGE = cli.define_average()
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'With --config: folder of a checkpoint.')
_SPLIT = flags.DEFINE_string('split', 'test', 'Split of the task\'s data set.')
_INPUT = flags.DEFINE_string('input', None, 'What to predict instead of a split: a file of '
                             'examples, or what the system reads.')
_OUTPUT = flags.DEFINE_string('output', None, 'The .npz, .tsv or .jsonl file to write, or what the '
                              'system writes.')


def examples(experiment):
  """The split, or the data set of the file, that the flags name."""
  if _INPUT.value is None:
    return _SPLIT.value
  module = systems.task_module(experiment)
  config.require(hasattr(module, 'file_dataset'), '--input',
                 f'no file: task {experiment["task"]} reads none', _INPUT.value)
  try:
    return module.file_dataset(experiment, _INPUT.value)
  except ValueError as error:
    raise config.ConfigError(f'--input: {error}') from error


def main():
  path = cli.require_flag(_OUTPUT)
  if _CHECKPOINT.value is None:
    experiment, run = cli.workdir_config(_WORKDIR), _WORKDIR.value
  else:
    experiment, run = cli.experiment(_CONFIG), _CHECKPOINT.value
  module = systems.task_module(experiment)
  if _INPUT.value is not None and hasattr(module, 'predict_input'):
    snapshot, _ = evaluation.restored(systems.make_task(experiment), experiment, run,
                                      _AVERAGE.value)
    module.predict_input(experiment, snapshot.params, _INPUT.value, path)
    return
  outputs_lib.check_path(path)
  outputs = evaluation.predict_workdir(
      systems.make_task(experiment), experiment, run, examples(experiment), _AVERAGE.value)
  outputs_lib.write(path, outputs)
  print(', '.join(f'{name} {list(x.shape)}' for name, x in outputs.items()), 'in', path)


if __name__ == '__main__':
  cli.run(main, __doc__)
