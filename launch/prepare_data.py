"""Prepares a data set as TFDS array_record files, without TensorFlow.

  python -m launch.prepare_data --dataset=digits [--data_dir=DIR]
  [--builder_config=NAME] [--manual_dir=DIR_OF_OFFICIAL_FILES]
"""
from absl import flags

from jaxlab import cli, systems
from jaxlab.data import builders

_DATASET = flags.DEFINE_string(
    'dataset', None, f'One of: {", ".join(sorted(builders.BUILDERS))}; or one of a system\'s own.')
_VARIANT = flags.DEFINE_string(
    'builder_config', None, 'Which of the set\'s configs, such as demo (default: its first).')
_MANUAL_DIR = flags.DEFINE_string('manual_dir', None,
                                  'Folder of the official files, for sets that are not embedded.')


def main():
  if _DATASET.value not in builders.BUILDERS:
    for name in systems.names():  # each names the data sets that are its own
      systems.load(name)
  builder = builders.load(cli.require_flag(_DATASET), config=_VARIANT.value,
                          manual_dir=_MANUAL_DIR.value)
  sizes = ', '.join(f'{name} {split.num_examples}' for name, split in builder.info.splits.items())
  print(f'{_DATASET.value}: {sizes} examples in {builder.data_dir}')


if __name__ == '__main__':
  cli.run(main, __doc__)
