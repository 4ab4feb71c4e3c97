"""Image or vector classification with a softmax cross-entropy."""
import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab import models
from jaxlab.data import builders, pipeline
from jaxlab.metrics import accuracy, cross_entropy
from jaxlab.task import Loss, Task

CONFIG_KEYS = ('model', 'data')
MODELS = {'mlp': models.MLP, 'cnn': models.CNN}


class DataSpec(NamedTuple):
  """A data set's number of classes, shape of an example, and factor to about [0, 1]."""
  num_classes: int
  shape: tuple[int, ...]
  scale: float


DATASETS = {'digits': DataSpec(num_classes=10, shape=(8, 8), scale=1 / 16)}


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
  builder = builders.load(name)
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


def make_task(config):
  """Makes the Task from `config.model` ({name, ...fields}) and `config.data` (`load_arrays`)."""
  model = check(config)
  spec, splits = config_lib.call(load_arrays, config['data'], 'data', drop=())
  return from_model(model, spec,
                    {name: pipeline.from_arrays(columns) for name, columns in splits.items()})


def check(config):
  """Checks `config.model` and `config.data` without loading data.

  Returns:
    The Flax module.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  data = config_lib.section(config, 'data')
  config_lib.check_arguments(load_arrays, data, 'data', drop=())
  spec = config_lib.choose(data['name'], DATASETS, 'data.name')
  model = config_lib.section(config, 'model')
  module = config_lib.choose_named(model, MODELS, 'model')
  return config_lib.call(functools.partial(module, parent=None), model, 'model',
                         num_classes=spec.num_classes)


def from_model(model, spec, datasets):
  """Makes the Task of a Flax classifier.

  Args:
    model: module called as (x [B, ...], train) -> logits [B, K], with rng 'dropout' when training.
    spec: DataSpec.
    datasets: split -> grain.MapDataset of {'image', 'label'}.
  """
  def inputs(batch):
    return batch['image'].astype(jnp.float32) * spec.scale

  def init(key):
    return model.init(key, jnp.zeros((1, *spec.shape)))

  def loss(variables, batch, key):
    logits = model.apply(variables, inputs(batch), train=True, rngs={'dropout': key})
    labels, weights = batch['label'].astype(jnp.int32), batch['weight']
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Loss(values, weights, {'accuracy': (correct, weights)})

  def predict(variables, batch, key):
    del key
    return model.apply(variables, inputs(batch))

  def evaluate(pairs):
    logits, labels = zip(*((outputs, batch['label']) for outputs, batch in pairs))
    logits, labels = np.concatenate(logits), np.concatenate(labels)
    return {'accuracy': accuracy(logits, labels), 'loss': cross_entropy(logits, labels)}

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset)
