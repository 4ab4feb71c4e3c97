"""Image or vector classification with a softmax cross-entropy."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab import models
from jaxlab.data import builders, pipeline
from jaxlab.metrics import accuracy, cross_entropy
from jaxlab.task import Loss, Task

CONFIG_KEYS = ('model', 'data', 'augment')
MODELS = {'mlp': models.MLP, 'cnn': models.CNN, 'resnet_gn': models.ResNetGN}


class DataSpec(NamedTuple):
  """A data set of images or vectors.

  Attributes:
    num_classes: K.
    shape: of an example.
    scale: factor to about [0, 1].
    mean: of each channel after that, to be subtracted; empty for none.
    std: of each channel, to be divided by; empty with `mean`.
    builder: its TFDS builder; the data set's own name where empty.
    builder_config: the config of that, by default its first.
  """
  num_classes: int
  shape: tuple[int, ...]
  scale: float
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  builder: str = ''
  builder_config: str | None = None


_CIFAR = {'shape': (32, 32, 3), 'scale': 1 / 255, 'builder': 'cifar'}
# Statistics of the training images.
_CIFAR10 = DataSpec(num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
                    builder_config='cifar10', **_CIFAR)
_FEMNIST = DataSpec(num_classes=62, shape=(28, 28), scale=1.0, builder='femnist',
                    builder_config='leaf')
DATASETS = {
    'digits': DataSpec(num_classes=10, shape=(8, 8), scale=1 / 16),
    'cifar10': _CIFAR10,
    'cifar100': DataSpec(num_classes=100, mean=(0.5071, 0.4865, 0.4409),
                         std=(0.2673, 0.2564, 0.2762), builder_config='cifar100', **_CIFAR),
    'cifar_demo': _CIFAR10._replace(builder_config='demo'),
    'femnist': _FEMNIST,
    'femnist_tff': _FEMNIST._replace(builder_config='tff'),
    'femnist_demo': _FEMNIST._replace(builder_config='demo'),
}


def corrupt(train, *, num_classes, label_noise=0.0, seed=0):
  """Replaces a share of the labels by uniform random classes (which may be the right one).

  Args:
    train: columns with 'label' [N].
    num_classes: number of classes.
    label_noise: probability, in [0, 1], that a label is redrawn.
    seed: of the draw.

  Returns:
    The columns with a new 'label'.
  """
  config_lib.require(0 <= label_noise <= 1, 'data.label_noise', 'a probability', label_noise)
  rng = np.random.default_rng([seed, 1])
  label = train['label']
  noisy = np.where(
      rng.random(len(label)) < label_noise, rng.integers(0, num_classes, len(label)), label)
  return {**train, 'label': noisy.astype(label.dtype)}


def unlike_units(columns, *, decades, seed=0):
  """Multiplies each feature by its own 10^u, u uniform in [-decades, decades]."""
  factors = 10**np.random.default_rng([seed, 2]).uniform(-decades, decades,
                                                         columns['image'].shape[1:])
  return {**columns, 'image': (columns['image'] * factors).astype(np.float32)}


def load_arrays(*, name: str, train: str, test: str, label_noise: float = 0.0, units: float = 0.0,
                seed: int = 0):
  """Loads the two splits of a data set into memory.

  Args:
    name: a data set of `DATASETS`.
    train: TFDS split of the training part, such as 'train[:1297]'.
    test: likewise.
    label_noise: share of training labels that are redrawn, see `corrupt`.
    units: decades of spread of the features' units, see `unlike_units`.
    seed: of the noise and the units.

  Returns:
    (DataSpec, {'train': columns, 'test': columns}).
  """
  spec = config_lib.choose(name, DATASETS, 'data.name')
  builder = builders.load(spec.builder or name, config=spec.builder_config)
  splits = {
      'train': dict(builders.arrays(builder, train)), 'test': dict(builders.arrays(builder, test))
  }
  if label_noise:
    splits['train'] = corrupt(splits['train'], num_classes=spec.num_classes,
                              label_noise=label_noise, seed=seed)
  if units:
    splits = {
        split: unlike_units(columns, decades=units, seed=seed) for split, columns in splits.items()
    }
  return spec, splits


def are_first(logits, labels):
  """Whether each label has the highest logit, the first of equal ones: argmax(logits) == labels.

  XLA's argmax takes five times as long on the CPU, a tenth of a small model's step. A label whose
  logit is NaN is not first.

  Args:
    logits: [..., K].
    labels: int [...].

  Returns:
    bool [...].
  """
  own = jnp.take_along_axis(logits, labels[..., None], -1)
  before = jnp.arange(logits.shape[-1]) < labels[..., None]
  return jnp.where(before, logits < own, logits <= own).all(-1)


def make_task(config):
  """Makes the Task of a config.

  Args:
    config: 'model' is {name, ...fields}, 'data' the arguments of `load_arrays`, and 'augment',
      where it is given, those of `crop_and_flip`.
  """
  model = check(config)
  spec, splits = config_lib.call(load_arrays, config['data'], 'data', drop=())
  augment = functools.partial(crop_and_flip, **config['augment']) if 'augment' in config else None
  return from_model(model, spec,
                    {name: pipeline.from_arrays(columns) for name, columns in splits.items()},
                    augment=augment)


def crop_and_flip(images, key, *, padding: int = 4, flip: bool = True):
  """Shifts each image at random, with zeros from beyond its edge, and mirrors half of them.

  Args:
    images: [B, H, W, ...].
    key: PRNG key.
    padding: largest shift in pixels, in each direction.
    flip: whether to mirror.
  """
  shift_key, flip_key = jax.random.split(key)
  shifts = jax.random.randint(shift_key, (len(images), 2), 0, 2 * padding + 1)
  edges = ((0, 0), (padding, padding), (padding, padding), *((0, 0),) * (images.ndim - 3))

  def crop(image, shift):
    start = (*shift, *(0,) * (image.ndim - 2))
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  images = jax.vmap(crop)(jnp.pad(images, edges), shifts)
  if flip:
    mirrored = jax.random.bernoulli(flip_key, shape=(len(images), *(1,) * (images.ndim - 1)))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  return images


def check(config):
  """Checks `config.model`, `config.data` and `config.augment` without loading data.

  Returns:
    The Flax module.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  data = config_lib.section(config, 'data')
  config_lib.check_arguments(load_arrays, data, 'data', drop=())
  spec = config_lib.choose(data['name'], DATASETS, 'data.name')
  if 'augment' in config:
    augment = config_lib.check_arguments(crop_and_flip, config_lib.section(config, 'augment'),
                                         'augment', drop=(), injected=('images', 'key'))
    config_lib.require(augment.get('padding', 0) >= 0, 'augment.padding', 'at least 0',
                       augment.get('padding'))
  model = config_lib.section(config, 'model')
  module = config_lib.choose_named(model, MODELS, 'model')
  return config_lib.call(functools.partial(module, parent=None), model, 'model',
                         num_classes=spec.num_classes)


def from_model(model, spec, datasets, *, augment=None):
  """Makes the Task of a Flax classifier.

  Args:
    model: module called as (x [B, ...], train) -> logits [B, K], with rng 'dropout' when training.
    spec: DataSpec.
    datasets: split -> grain.MapDataset of {'image', 'label'}, and other columns that the loss does
      not look at.
    augment: (images [B, ...], key) -> images, applied to the raw training images; None for none.
  """
  def normalise(images):
    x = images.astype(jnp.float32) * spec.scale
    return (x - jnp.array(spec.mean)) / jnp.array(spec.std) if spec.mean else x

  def init(key):
    return model.init(key, jnp.zeros((1, *spec.shape)))

  def loss(variables, batch, key):
    images = batch['image']
    if augment is not None:
      key, augment_key = jax.random.split(key)
      images = augment(images, augment_key)
    logits = model.apply(variables, normalise(images), train=True, rngs={'dropout': key})
    labels, weights = batch['label'].astype(jnp.int32), batch['weight']
    correct = are_first(logits, labels).astype(jnp.float32)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Loss(values, weights, {'accuracy': (correct, weights)})

  def predict(variables, batch, key):
    del key
    return model.apply(variables, normalise(batch['image']))

  def evaluate(pairs):
    logits, labels = zip(*((outputs, batch['label']) for outputs, batch in pairs))
    logits, labels = np.concatenate(logits), np.concatenate(labels)
    return {'accuracy': accuracy(logits, labels), 'loss': cross_entropy(logits, labels)}

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset)
