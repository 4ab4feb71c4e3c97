"""CIFAR-10 and CIFAR-100: the python version's pickled batches, extracted or inside the archive."""
import contextlib
import dataclasses
import io
import pathlib
import pickle
import tarfile
import tempfile
import zlib

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.config import ConfigError
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.data.rows import parse_rows

PIXELS = 3 * 32 * 32
DEMO_TRAIN, DEMO_TEST = 2000, 500


@dataclasses.dataclass(eq=False, kw_only=True)
class CifarConfig(tfds.core.BuilderConfig):
  """A published form of the data.

  Attributes:
    archive: name of the official archive.
    folder: folder in it.
    files: split -> names of pickled batches.
    label_key: key of the labels in a batch.
    num_classes: K.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  archive: str
  folder: str
  files: dict[str, tuple[str, ...]]
  label_key: bytes
  num_classes: int
  on_bad_row: str = 'raise'


_CIFAR10 = {
    'archive': 'cifar-10-python.tar.gz',
    'folder': 'cifar-10-batches-py',
    'files': {'train': tuple(f'data_batch_{i}' for i in range(1, 6)), 'test': ('test_batch',)},
    'label_key': b'labels',
    'num_classes': 10,
}
_CIFAR100 = {
    'archive': 'cifar-100-python.tar.gz',
    'folder': 'cifar-100-python',
    'files': {'train': ('train',), 'test': ('test',)},
    'label_key': b'fine_labels',
    'num_classes': 100,
}


class Cifar(ArrayRecordBuilder):
  """Small colour images of 10 or 100 classes, in the order of the official files.

  'image' is uint8 [32, 32, 3] and 'label' the class (of CIFAR-100 the fine one). 'demo' is made by
  `write_demo` in CIFAR-10's format.
  """

  BUILDER_CONFIGS = [
      CifarConfig(name='cifar10', description='50000 + 10000 images of 10 classes.', **_CIFAR10),
      CifarConfig(name='cifar100', description='50000 + 10000 images of 100 classes.', **_CIFAR100),
      CifarConfig(name='demo', description='Synthetic, in the format of CIFAR-10.', **_CIFAR10),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'Fetch cifar-10-python.tar.gz or cifar-100-python.tar.gz from '
      'https://www.cs.toronto.edu/~kriz/cifar.html; extracting it is not needed.')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description=self.__doc__,
        homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8),
            'label': tfds.features.ClassLabel(num_classes=self.builder_config.num_classes),
        }),
        supervised_keys=('image', 'label'),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    manual_dir = None if self.builder_config.name == 'demo' else dl_manager.manual_dir
    return {split: self._generate_examples(manual_dir, split)
            for split in self.builder_config.files}

  def _generate_examples(self, manual_dir, split):
    with contextlib.ExitStack() as stack:
      if manual_dir is None:
        manual_dir = stack.enter_context(tempfile.TemporaryDirectory())
        write_demo(pathlib.Path(manual_dir))
      yield from enumerate(read(manual_dir, self.builder_config, split))


def read(manual_dir, config, split):
  """Yields {'image': uint8 [32, 32, 3], 'label': int} of a split.

  Args:
    manual_dir: has the extracted folder or, where it has none, the archive.
    config: CifarConfig.
    split: 'train' or 'test'.

  Raises:
    ConfigError: neither is there.
    ValueError: a batch is missing or malformed, or the archive damaged; the message names file,
      key or row, and what was expected.
  """
  def parse(where, pixels, label):
    if type(label) is not int or not 0 <= label < config.num_classes:
      raise ValueError(f'{where}: {config.label_key.decode()}: expected an integer '
                       f'0..{config.num_classes - 1}, got {label!r}')
    # Planes of red, green and blue.
    return {'image': pixels.reshape(3, 32, 32).transpose(1, 2, 0), 'label': label}

  rows = (row for where, content in _batches(manual_dir, config, config.files[split])
          for row in _rows(where, content, config.label_key))
  return parse_rows(rows, parse, on_bad_row=config.on_bad_row, where=f'{config.name}/{split}')


def _batches(manual_dir, config, names):
  """Yields (path for messages, bytes) of pickled batches."""
  folder = pathlib.Path(manual_dir, config.folder)
  archive = pathlib.Path(manual_dir, config.archive)
  if folder.is_dir():
    for name in names:
      if not (folder / name).is_file():
        raise ValueError(f'{folder / name}: missing')
      yield folder / name, (folder / name).read_bytes()
  elif archive.is_file():
    try:
      with tarfile.open(archive) as tar:
        for name in names:
          yield f'{archive}:{config.folder}/{name}', tar.extractfile(
              f'{config.folder}/{name}').read()
    except KeyError as error:
      raise ValueError(f'{archive}: {config.folder}/{name}: missing') from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
      raise ValueError(f'{archive}: expected a whole .tar.gz archive: {error}') from error
  else:
    raise ConfigError(f'{manual_dir}: expected {config.archive} or the folder {config.folder}')


def _rows(where, content, label_key):
  """Yields (where, pixels [3072], label) of a pickled batch."""
  batch = _unpickle(where, content)
  for key in (b'data', label_key):
    if key not in batch:
      raise ValueError(f'{where}: {key.decode()}: missing (keys: {sorted(batch)})')
  data, labels = batch[b'data'], batch[label_key]
  if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and
          data.shape[1] == PIXELS):
    got = f'{data.dtype} {data.shape}' if isinstance(data, np.ndarray) else type(data).__name__
    raise ValueError(f'{where}: data: expected uint8 [N, {PIXELS}], got {got}')
  if not isinstance(labels, list) or len(labels) != len(data):
    got = f'{len(labels)}' if isinstance(labels, list) else type(labels).__name__
    raise ValueError(f'{where}: {label_key.decode()}: expected a list of {len(data)}, got {got}')
  for row, (pixels, label) in enumerate(zip(data, labels)):
    yield f'{where}: row {row}', pixels, label


class _Unpickler(pickle.Unpickler):
  """Loads arrays and plain values; a pickle that would call anything else is refused."""

  def find_class(self, module, name):
    if (module, name) in (('numpy', 'ndarray'), ('numpy', 'dtype')):
      return getattr(np, name)
    if name == '_reconstruct' and module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
      return np.empty(0).__reduce__()[0]
    raise pickle.UnpicklingError(f'it asks for {module}.{name}')


def _unpickle(where, content):
  try:
    batch = _Unpickler(io.BytesIO(content), encoding='bytes').load()
  except Exception as error:  # a damaged pickle may raise anything
    raise ValueError(f'{where}: expected a pickled batch of arrays, lists and strings: '
                     f'{error}') from error
  if not isinstance(batch, dict):
    raise ValueError(f'{where}: expected a pickled dict, got {type(batch).__name__}')
  return batch


def write_demo(folder):
  """Writes synthetic images as the official files of CIFAR-10.

  The planted signal: each class has a tile of 4 x 4 random colours, 2 pixels each, that repeats
  over the image. An image begins anywhere in its class's tile, mirrored or not, under noise: so
  crops and mirror images are of the same class, which convolutions find by its texture and hue.
  """
  rng = np.random.default_rng(0)
  tiles = rng.normal(size=(10, 4, 4, 3))
  tiles = np.kron(tiles, np.ones((1, 2, 2, 1)))
  (folder / _CIFAR10['folder']).mkdir(parents=True)
  for split, size in (('train', DEMO_TRAIN), ('test', DEMO_TEST)):
    names = _CIFAR10['files'][split]
    for name in names:
      labels = rng.integers(0, 10, size // len(names))
      images = np.stack([_demo_image(tiles[label], rng) for label in labels])
      batch = {b'data': images.transpose(0, 3, 1, 2).reshape(-1, PIXELS),
               b'labels': labels.tolist(), b'batch_label': name.encode()}
      (folder / _CIFAR10['folder'] / name).write_bytes(pickle.dumps(batch, protocol=4))


def _demo_image(tile, rng):
  image = np.tile(np.roll(tile, rng.integers(0, 8, 2), (0, 1)), (4, 4, 1))
  image = image[:, ::-1] if rng.random() < 0.5 else image
  return (128 + 60 * image + 40 * rng.normal(size=image.shape)).clip(0, 255).astype(np.uint8)
