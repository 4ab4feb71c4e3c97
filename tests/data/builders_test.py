import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import builders
from jaxlab.data.array_record import ArrayRecordBuilder

ROOT = pathlib.Path(__file__).parents[2]

# Loads digits with four rows that take their time, as soon as `processes` of these are ready.
SLOW = '''
import pathlib, random, sys, time
import numpy as np
from jaxlab.data import builders, digits
data_dir, me = pathlib.Path(sys.argv[1]), sys.argv[2]
processes, seconds = int(sys.argv[3]), float(sys.argv[4])
def rows(self):
  for key in range(4):
    print('row', flush=True)
    time.sleep(seconds)
    yield key, {'image': np.full((8, 8), key, np.uint8), 'label': key}
digits.Digits._generate_examples = rows
(data_dir / f'ready{me}').touch()
while len(list(data_dir.glob('ready*'))) < processes:
  time.sleep(.01)
random.seed(0)  # TFDS names its temporary folder by this generator: let all of them choose alike
columns = builders.arrays(builders.load('digits', data_dir=data_dir), 'train')
print(columns['label'].tolist(), flush=True)
'''


def start(data_dir, me, processes, seconds):
  command = [sys.executable, '-c', SLOW, data_dir, *map(str, (me, processes, seconds))]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


class Toy(ArrayRecordBuilder):
  """Numbers from a file that the user must fetch, or from nowhere."""

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ('real', 'demo')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Fetch numbers.txt from the moon.'

  def _info(self):
    features = tfds.features.FeaturesDict({'x': np.int64})
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    numbers = [1, 2, 3]
    if self.builder_config.name == 'real':
      numbers = (dl_manager.manual_dir / 'numbers.txt').read_text().split()
    return {'train': self._generate_examples(numbers)}

  def _generate_examples(self, numbers):
    for key, x in enumerate(numbers):
      yield key, {'x': int(x)}


class BuildersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data_dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(mock.patch.dict(builders.BUILDERS, toy=f'{__name__}:Toy'))

  def folders(self):
    return sorted(path.name for path in (self.data_dir / 'digits').iterdir() if path.is_dir())

  def test_prepares_once_and_then_writes_nothing(self):
    builders.load('digits', data_dir=self.data_dir)
    with mock.patch.object(builders, 'prepare', side_effect=AssertionError):
      builder = builders.load('digits', data_dir=self.data_dir)
    self.assertLen(builder.as_data_source('train'), 1797)

  def test_default_folder_is_that_of_tfds(self):
    with mock.patch.object(tfds.core.constants, 'DATA_DIR', str(self.data_dir)):
      builder = builders.load('toy', config='demo')
    self.assertEqual(pathlib.Path(builder.data_dir), self.data_dir / 'toy' / 'demo' / '1.0.0')

  def test_folder_in_the_home_folder(self):
    with mock.patch.dict(os.environ, HOME=str(self.data_dir)):
      builder = builders.load('toy', data_dir='~/mine', config='demo')
    self.assertEqual(builder.data_dir, str(self.data_dir / 'mine' / 'toy' / 'demo' / '1.0.0'))

  def test_configs_and_manual_files(self):
    demo = builders.load('toy', data_dir=self.data_dir, config='demo')
    self.assertEqual(builders.arrays(demo, 'train')['x'].tolist(), [1, 2, 3])
    with self.assertRaisesRegex(ConfigError, '(?s)toy: .*Fetch numbers.txt from the moon'):
      builders.load('toy', data_dir=self.data_dir)
    manual_dir = self.data_dir / 'mine'
    manual_dir.mkdir()
    (manual_dir / 'numbers.txt').write_text('7 8')
    real = builders.load('toy', data_dir=self.data_dir, manual_dir=manual_dir)
    self.assertEqual(builders.arrays(real, 'train')['x'].tolist(), [7, 8])
    self.assertEqual(builders.arrays(demo, 'train')['x'].tolist(), [1, 2, 3])

  def test_files_of_another_folder_are_not_ignored(self):
    first, second = self.data_dir / 'first', self.data_dir / 'second'
    for folder, numbers in ((first, '7 8'), (second, '9')):
      folder.mkdir()
      (folder / 'numbers.txt').write_text(numbers)
    builders.load('toy', data_dir=self.data_dir, manual_dir=first)
    again = builders.load('toy', data_dir=self.data_dir, manual_dir=f'{second}/../first')
    self.assertEqual(builders.arrays(again, 'train')['x'].tolist(), [7, 8])
    builders.load('toy', data_dir=self.data_dir)  # as it is on disk
    with self.assertRaisesRegex(
        ConfigError, f'^toy: manual_dir: expected {first}, from which .*, got .{second}.$'):
      builders.load('toy', data_dir=self.data_dir, manual_dir=second)
    other = builders.load('toy', data_dir=self.data_dir / 'other', manual_dir=second)
    self.assertEqual(builders.arrays(other, 'train')['x'].tolist(), [9])

  def test_arrays_are_read_once_and_cannot_be_changed(self):
    builder = builders.load('digits', data_dir=self.data_dir)
    first = builders.arrays(builder, 'train')
    first['more'] = 1
    again = builders.arrays(builders.load('digits', data_dir=self.data_dir), 'train')
    self.assertEqual(set(again), {'image', 'label'})
    self.assertIs(again['image'], first['image'])
    with self.assertRaisesRegex(ValueError, 'read-only'):
      again['image'][0] = 0

  def test_unknown_names(self):
    with self.assertRaisesRegex(ConfigError, "'digts'; did you mean 'digits'"):
      builders.load('digts', data_dir=self.data_dir)
    with self.assertRaisesRegex(ConfigError, "toy: unknown config 'dem'; did you mean 'demo'"):
      builders.load('toy', data_dir=self.data_dir, config='dem')

  @parameterized.parameters('test', 'train[', 'train[5]', 'train[:1798]', 'train[1797:]',
                            'train[20:10]', '')
  def test_bad_splits(self, split):
    builder = builders.load('digits', data_dir=self.data_dir)
    with self.assertRaises(ConfigError) as caught:
      builders.arrays(builder, split)
    self.assertIn(repr(split), str(caught.exception))
    self.assertIn('train (1797 examples)', str(caught.exception))

  def test_folder_that_cannot_be_written(self):
    file = self.data_dir / 'file'
    file.touch()
    with self.assertRaisesRegex(ConfigError, f'digits: cannot write to data_dir {file}'):
      builders.load('digits', data_dir=file)

  @parameterized.parameters('lost', 'truncated', 'emptied', 'no_info')
  def test_half_prepared_folder_is_rebuilt(self, damage):
    folder = pathlib.Path(builders.load('digits', data_dir=self.data_dir).data_dir)
    shard, = folder.glob('*array_record*')
    content = shard.read_bytes()
    if damage == 'lost':
      shard.unlink()
    elif damage == 'no_info':
      (folder / 'dataset_info.json').unlink()
    else:
      shard.write_bytes(content[:len(content) // 2] if damage == 'truncated' else b'')
    builder = builders.load('digits', data_dir=self.data_dir)
    self.assertLen(builder.as_data_source('train').__getitems__(range(1797)), 1797)
    self.assertEqual(self.folders(), ['1.0.0'])

  def test_race(self):
    processes = [start(self.data_dir, me, 3, 0.3) for me in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    self.assertEqual([process.returncode for process in processes], [0, 0, 0])
    self.assertEqual([output.splitlines()[-1] for output in outputs], ['[0, 1, 2, 3]'] * 3)
    self.assertEqual(sum('row' in output for output in outputs), 1)
    self.assertEqual(self.folders(), ['1.0.0'])

  def test_kill_in_the_middle_while_another_waits(self):
    writer = start(self.data_dir, 0, 1, 60)
    while writer.stdout.readline() != 'row\n':
      self.assertIsNone(writer.poll())
    waiter = start(self.data_dir, 1, 1, 0)
    while not (self.data_dir / 'ready1').exists():
      time.sleep(0.01)
    time.sleep(0.3)
    self.assertIsNone(waiter.poll())
    self.assertRegex(' '.join(self.folders()), r'^incomplete\.\w+_1\.0\.0$')
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    output = waiter.communicate(timeout=60)[0]
    self.assertEqual(output.splitlines()[-1], '[0, 1, 2, 3]')
    self.assertEqual(self.folders(), ['1.0.0'])

  def test_remains_of_a_killed_process_are_removed(self):
    remains = self.data_dir / 'digits' / 'incomplete.ABC123_1.0.0'
    remains.mkdir(parents=True)
    builders.load('digits', data_dir=self.data_dir)
    self.assertEqual(self.folders(), ['1.0.0'])

  def test_importing_is_light(self):
    code = ('import sys; from jaxlab.data import builders, partition; '
            'print({"tensorflow", "tensorflow_datasets", "sklearn", "jax"} & set(sys.modules))')
    output = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, text=True,
                            capture_output=True).stdout
    self.assertEqual(output.strip(), 'set()')


if __name__ == '__main__':
  absltest.main()
