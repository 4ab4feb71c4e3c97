"""CIFAR: the official pickles, extracted and archived, malformed batches, the demo."""
import io
import pathlib
import pickle
import tarfile
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import builders, cifar

CONFIGS = {config.name: config for config in cifar.Cifar.BUILDER_CONFIGS}
TEST = 'cifar-10-batches-py/test_batch'


def images(rows, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (rows, 3072)).astype(np.uint8)


def short(text):
  """Opcodes of a Python 2 string."""
  return b'U' + bytes([len(text)]) + text


def official(data, **labels):
  """A batch as Python 2 pickled it, protocol 2: strings of bytes, arrays of numpy.core."""
  rows, columns = data.shape
  dtype = (b'cnumpy\ndtype\n' + short(b'u1') + b'K\x00K\x01\x87R(K\x03' + short(b'|') +
           b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb')
  array = (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' + short(b'b') +
           b'\x87R(K\x01' + b'K' + bytes([rows]) + b'M' + columns.to_bytes(2, 'little') + b'\x86' +
           dtype + b'\x89T' + data.nbytes.to_bytes(4, 'little') + data.tobytes() + b'tb')
  content = b'\x80\x02}(' + short(b'data') + array
  for key, values in labels.items():
    content += short(key.encode()) + b'](' + b''.join(b'K' + bytes([v]) for v in values) + b'e'
  return content + b'u.'


def batch(data, labels):
  return pickle.dumps({b'data': data, b'labels': labels})


class CifarTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.manual = self.folder / 'manual'
    self.manual.mkdir()

  def write(self, files, archive=None):
    """Writes {path: content} as files or into an archive."""
    if archive:
      with tarfile.open(self.manual / archive, 'w:gz') as tar:
        for path, content in files.items():
          info = tarfile.TarInfo(path)
          info.size = len(content)
          tar.addfile(info, io.BytesIO(content))
    else:
      for path, content in files.items():
        (self.manual / path).parent.mkdir(exist_ok=True)
        (self.manual / path).write_bytes(content)

  @parameterized.parameters(None, 'cifar-10-python.tar.gz')
  def test_cifar10(self, archive):
    parts = [images(3, seed) for seed in range(6)]
    names = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
    self.write({f'cifar-10-batches-py/{name}': official(part, labels=[9, i, 0])
                for i, (name, part) in enumerate(zip(names, parts))}, archive)
    builder = builders.load('cifar', config='cifar10', data_dir=self.folder, manual_dir=self.manual)
    train, test = (builders.arrays(builder, split) for split in ('train', 'test'))
    self.assertEqual(train['label'].tolist(), [9, 0, 0, 9, 1, 0, 9, 2, 0, 9, 3, 0, 9, 4, 0])
    self.assertEqual(test['label'].tolist(), [9, 5, 0])
    # Planes of red, green, blue; rows of 32.
    for c, y, x in ((0, 0, 0), (1, 3, 5), (2, 31, 30)):
      np.testing.assert_array_equal(train['image'][:, y, x, c],
                                    np.concatenate(parts[:5])[:, 1024 * c + 32 * y + x])
      np.testing.assert_array_equal(test['image'][:, y, x, c], parts[5][:, 1024 * c + 32 * y + x])
    self.assertEqual((train['image'].shape, train['image'].dtype), ((15, 32, 32, 3), np.uint8))

  def test_cifar100_has_the_fine_labels(self):
    self.write({f'cifar-100-python/{name}': official(
        images(2), fine_labels=fine, coarse_labels=[1, 2]) for name, fine in (
            ('train', [99, 3]), ('test', [0, 7]))}, 'cifar-100-python.tar.gz')
    builder = builders.load('cifar', config='cifar100', data_dir=self.folder,
                            manual_dir=self.manual)
    self.assertEqual(builders.arrays(builder, 'train')['label'].tolist(), [99, 3])
    self.assertEqual(builders.arrays(builder, 'test')['label'].tolist(), [0, 7])
    self.assertEqual(builder.info.features['label'].num_classes, 100)

  def read(self, content, **changes):
    """The test split of a folder with this one batch."""
    self.write({TEST: content})
    config = cifar.CifarConfig(**{**cifar._CIFAR10, 'name': 'cifar10', **changes})
    return list(cifar.read(self.manual, config, 'test'))

  @parameterized.parameters(
      (b'junk', 'expected a pickled batch'),
      (official(images(2), labels=[1, 2])[:500], 'expected a pickled batch'),
      (pickle.dumps([1]), 'expected a pickled dict, got list'),
      (pickle.dumps({b'data': images(2)}), r"labels: missing \(keys: \[b'data'\]\)"),
      (pickle.dumps({b'labels': [1]}), 'data: missing'),
      (batch(images(2)[:, 1:], [1, 2]), r'data: expected uint8 \[N, 3072\], got uint8 \(2, 3071\)'),
      (batch(images(2).astype(float), [1, 2]), r'data: expected uint8 .*got float64'),
      (batch([[1] * 3072], [1]), r'data: expected uint8 .*got list'),
      (batch(images(2), [1]), 'labels: expected a list of 2, got 1'),
      (batch(images(2), 'ab'), 'labels: expected a list of 2, got str'),
      (batch(images(2), [1, 10]), 'row 1: labels: expected an integer 0..9, got 10'),
      (batch(images(2), [-1, 1]), 'row 0: labels: expected an integer 0..9, got -1'),
      (batch(images(2), [1, 1.0]), 'row 1: labels: expected an integer 0..9, got 1.0'),
  )
  def test_malformed_batches(self, content, message):
    with self.assertRaisesRegex(ValueError, f'{TEST}: {message}'):
      self.read(content)

  def test_a_pickle_calls_nothing(self):
    mark = self.folder / 'mark'

    class Evil:

      def __reduce__(self):
        return pathlib.Path.touch, (mark,)

    with self.assertRaisesRegex(ValueError, f'{TEST}: expected a pickled batch.*it asks for'):
      self.read(pickle.dumps({b'data': images(1), b'labels': [Evil()]}))
    self.assertFalse(mark.exists())

  def test_skipping(self):
    with self.assertLogs() as logs:
      rows = self.read(batch(images(3), [1, 10, 2]), on_bad_row='skip')
    self.assertEqual([row['label'] for row in rows], [1, 2])
    self.assertRegex(logs.output[0], f'cifar10/test: skipped 1 of 3 rows; the first: .*{TEST}')

  def test_missing_files(self):
    with self.assertRaisesRegex(ConfigError, '(?s)cifar: .*cs.toronto.edu'):
      builders.load('cifar', data_dir=self.folder, manual_dir=self.manual)
    (self.manual / 'other').touch()
    with self.assertRaisesRegex(
        ConfigError, 'expected cifar-10-python.tar.gz or the folder cifar-10-batches-py'):
      builders.load('cifar', data_dir=self.folder, manual_dir=self.manual)
    archive = 'cifar-10-python.tar.gz'
    self.write({TEST: official(images(1), labels=[1])}, archive)
    with self.assertRaisesRegex(ValueError, f'{archive}: .*/data_batch_1: missing'):
      list(cifar.read(self.manual, CONFIGS['cifar10'], 'train'))
    content = (self.manual / archive).read_bytes()
    for damaged in (content[:len(content) // 2], b'junk'):
      (self.manual / archive).write_bytes(damaged)
      with self.assertRaisesRegex(ValueError, f'{archive}: expected a whole .tar.gz archive'):
        list(cifar.read(self.manual, CONFIGS['cifar10'], 'test'))
    self.write({TEST: official(images(1), labels=[1])})
    with self.assertRaisesRegex(ValueError, 'cifar-10-batches-py/data_batch_1: missing'):
      list(cifar.read(self.manual, CONFIGS['cifar10'], 'train'))

  def test_demo(self):
    builder = builders.load('cifar', config='demo', data_dir=self.folder)
    train, test = (builders.arrays(builder, split) for split in ('train', 'test'))
    self.assertEqual((train['image'].shape, test['image'].shape),
                     ((2000, 32, 32, 3), (500, 32, 32, 3)))
    self.assertEqual(set(test['label']), set(range(10)))
    # What repeats every 8 pixels tells the class, wherever the image begins.
    tiles = lambda x: x['image'].reshape(-1, 4, 8, 4, 8, 3).mean((1, 3)) - 128
    spectrum = lambda x: np.abs(np.fft.fft2(tiles(x), axes=(1, 2))) / 64
    both = lambda x: spectrum(x) + spectrum(x)[:, :, -np.arange(8)]  # mirrored or not
    centres = np.stack([both(train)[train['label'] == k].mean(0) for k in range(10)])
    nearest = ((both(test)[:, None] - centres)**2).sum((2, 3, 4)).argmin(1)
    self.assertGreater((nearest == test['label']).mean(), 0.9)


if __name__ == '__main__':
  absltest.main()
