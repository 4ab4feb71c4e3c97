"""Examples of training: ray-traced scenes as a TFDS builder, and folders in MoGe's format."""
import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
import tensorflow_datasets as tfds

from jaxlab import config as config_lib
from jaxlab.data import builders, pipeline
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.systems.moge2 import files, scenes

LABELS = ('A', 'B', 'C', 'invalid')  # kinds of ground truth: synthetic, reconstructed, LiDAR, none
# Weights of the official training configuration by label; B and C are completed depth there.
_NOT_METRIC = ('MegaDepth', 'BlendedMVS', 'ObjaverseV1', 'KenBurns', 'EDEN')
_ONLY_KNOWN = ('Hypersim', 'IRS', 'Structured3D', 'Taskonomy')
_WEIGHTS = {
    'A': {'ObjaverseV1': 4.8, 'GTA-SfM': 2.8, 'Hypersim': 5, 'IRS': 5.6, 'KenBurns': 1.6,
          'MatrixCity': 1.3, 'MidAir': 4, 'MVS-Synth': 1.2, 'Structured3D': 4.8, 'Synthia': 1.2,
          'TartanAir': 5, 'UrbanSyn': 2.1, 'ApolloSynthetic': 4, 'Synscapes': 2,
          'UnrealStereo4K': 1.7, 'EDEN': 1.2},
    'B': {'ARKitScenes': 8.6, 'Taskonomy': 10, 'ScanNet++': 4.8, 'BlendedMVS': 12},
    'C': {'A2D2': .8, 'Argoverse2': 7.4, 'MegaDepth': 5.6, 'Waymo': 6.4},
}


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set of the mixture.

  Attributes:
    label: a letter of `LABELS`, which losses its ground truth serves.
    weight: relative share of the examples.
    metric: whether depth is in meters.
    only_known: whether unknown pixels say nothing about the mask.
  """
  label: str
  weight: float
  metric: bool
  only_known: bool


MIXTURE = {name: Source(label, weight, name not in _NOT_METRIC, name in _ONLY_KNOWN)
           for label, names in _WEIGHTS.items() for name, weight in names.items()}


@dataclasses.dataclass
class _Config(tfds.core.BuilderConfig):
  """How many scenes of which size."""
  train: int = 2048
  test: int = 96
  size: int = 64


class MogeScenes(ArrayRecordBuilder):
  """Ray-traced rooms (`scenes`): image, depth, intrinsics and segments; 'train' has seed 0 and
  'test' seed 1."""

  BUILDER_CONFIGS = [_Config(name='demo'), _Config(name='tiny', train=8, test=4, size=16)]

  def _info(self):
    side = self.builder_config.size
    return tfds.core.DatasetInfo(
        builder=self, description=self.__doc__,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Tensor(shape=(side, side, 3), dtype=np.uint8),
            'depth': tfds.features.Tensor(shape=(side, side), dtype=np.float32),
            'intrinsics': tfds.features.Tensor(shape=(3, 3), dtype=np.float32),
            'segments': tfds.features.Tensor(shape=(side, side), dtype=np.uint8),
        }),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to fetch
    return {'train': self._generate_examples(self.builder_config.train, 0),
            'test': self._generate_examples(self.builder_config.test, 1)}

  def _generate_examples(self, count, seed):
    side = self.builder_config.size
    for key in range(count):
      scene = scenes.make(1, (seed << 32) + key, side, side)
      yield key, {name: getattr(scene, name)[0]
                  for name in ('image', 'depth', 'intrinsics', 'segments')}


builders.BUILDERS.setdefault('moge_scenes', f'{__name__}:MogeScenes')


def columns_of(scene, label='A'):
  """The columns of examples of a stacked `scenes.Scene` or of a builder's columns."""
  scene = scene._asdict() if hasattr(scene, '_asdict') else scene
  count = len(scene['image'])
  return {**{name: scene[name] for name in ('image', 'depth', 'intrinsics', 'segments')},
          'label': np.full(count, LABELS.index(label), np.int32),
          'metric': np.ones(count, bool), 'only_known': np.zeros(count, bool)}


def check(*, name: str = 'scenes', builder_config: str = 'demo', folder: str = '',
          size: Sequence[int] = (64, 64), sources: Sequence[str] = (), **_):
  """Raises ConfigError for arguments of `load` that cannot be."""
  config_lib.require(name in ('scenes', 'folders'), 'data.name', 'scenes or folders', name)
  config_lib.choose(builder_config, MogeScenes.builder_configs, 'data.builder_config')
  for source in sources:
    config_lib.choose(source, MIXTURE, 'data.sources')
  config_lib.require(name == 'scenes' or folder, 'data.folder',
                     "a folder of data sets in MoGe's format", folder)
  config_lib.require(len(size) == 2 and min(size) >= 2, 'data.size',
                     'a height and a width of at least 2', tuple(size))


def load(*, name: str = 'scenes', builder_config: str = 'demo', train: str = 'train',
         test: str = 'test', folder: str = '', size: Sequence[int] = (64, 64),
         sources: Sequence[str] = ()):
  """The data sets 'train' and 'test'.

  Args:
    name: 'scenes' (ray-traced, nothing to fetch) or 'folders' (MoGe's format).
    builder_config: of the scenes: 'demo' or 'tiny'.
    train: TFDS split of the training scenes.
    test: likewise.
    folder: of 'folders': holds a folder for each of the sources, and 'test'.
    size: (height, width) of the examples of 'folders'.
    sources: names of `MIXTURE`; by default all.

  Returns:
    {'train': grain.MapDataset, 'test': ...}.
  """
  if name == 'scenes':
    builder = builders.load('moge_scenes', config=builder_config)
    return {'train': pipeline.from_arrays(columns_of(builders.arrays(builder, train))),
            'test': pipeline.from_arrays(columns_of(builders.arrays(builder, test)))}
  chosen = {source: MIXTURE[source] for source in sources or MIXTURE}
  parts = [read_folder(f'{folder}/{part}', size, source) for part, source in chosen.items()]
  weights = [source.weight for source in chosen.values()]
  test_source = Source('A', 1.0, True, False)
  return {'train': grain.MapDataset.mix(parts, [w / sum(weights) for w in weights]),
          'test': read_folder(f'{folder}/test', size, test_source)}


def read_folder(folder, size, source):
  """The instances of a folder with an index as a grain.MapDataset of examples of one size.

  Args:
    folder: see `files`.
    size: (height, width).
    source: Source.
  """
  def example(path):
    instance = files.center_view(files.read_instance(path), *size)
    known = instance.depth[np.isfinite(instance.depth)]
    # What is a thousand times as far as the nearest percent is taken as unknown.
    limit = 1000 * np.quantile(known, 0.01) if known.size else np.inf
    depth = np.where(np.isfinite(instance.depth) & (instance.depth > limit), np.nan, instance.depth)
    segments = np.zeros(depth.shape, np.int32) if instance.segments is None else instance.segments
    return {'image': instance.image, 'depth': depth.astype(np.float32),
            'intrinsics': instance.intrinsics, 'segments': segments,
            'label': np.int32(LABELS.index(source.label if known.size else 'invalid')),
            'metric': np.bool_(source.metric), 'only_known': np.bool_(source.only_known)}

  return grain.MapDataset.source(files.read_index(folder)).map(example)
