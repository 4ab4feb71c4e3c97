"""Writes the outputs of a run's newest checkpoint for a whole split or for a file of examples.

  python -m launch.predict --workdir=/tmp/jaxlab/adasam --split=test --output=/tmp/predictions.npz
  python -m launch.predict --workdir=/tmp/jaxlab/xdeepfm --input=rows.tsv --output=/tmp/scores.tsv

The file to write holds each output of the Task, in the order of the examples: arrays [N, ...] in
.npz, a line an example in .tsv and .jsonl. Which files --input reads is the system's matter (its
README says); labels are not needed. The config is the workdir's own.
"""
from absl import flags

from jaxlab import cli, config, systems
from jaxlab.train import evaluation
from jaxlab.train import outputs as outputs_lib

_WORKDIR = cli.define_workdir()
_SPLIT = flags.DEFINE_string('split', 'test', 'Split of the task\'s data set.')
_INPUT = flags.DEFINE_string('input', None, 'A file of examples to predict instead of a split.')
_OUTPUT = flags.DEFINE_string('output', None, 'The .npz, .tsv or .jsonl file to write.')


def examples(experiment):
  """The split, or the data set of the file, that the flags name."""
  if _INPUT.value is None:
    return _SPLIT.value
  module = systems.task_module(experiment)
  config.require(hasattr(module, 'file_dataset'), '--input',
                 f'no file: task {experiment["task"]} reads none', _INPUT.value)
  return module.file_dataset(experiment, _INPUT.value)


def main():
  experiment, path = cli.workdir_config(_WORKDIR), cli.require_flag(_OUTPUT)
  outputs_lib.check_path(path)
  outputs = evaluation.predict_workdir(
      systems.make_task(experiment), experiment, _WORKDIR.value, examples(experiment))
  outputs_lib.write(path, outputs)
  print(', '.join(f'{name} {list(x.shape)}' for name, x in outputs.items()), 'in', path)


if __name__ == '__main__':
  cli.run(main, __doc__)
