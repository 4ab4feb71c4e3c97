"""Language modelling: the next token of a sequence, with a softmax cross-entropy per token."""
import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab import models
from jaxlab.data import builders, characters, pipeline
from jaxlab.task import Loss, Task

CONFIG_KEYS = ('model', 'data')
MODELS = {'lstm': models.LSTMLM}


class TextSpec(NamedTuple):
  """A data set of sequences.

  Attributes:
    vocab_size: number of token ids, V: PAD 0, BOS 1, EOS 2, ..., and V - 1 for unknown symbols.
    length: tokens of a sequence, T.
    builder: its TFDS builder.
    builder_config: and the config of that.
    positions: 'all' tokens count, or only the 'last' of a sequence: LEAF's own objective, whose
      windows overlap.
  """
  vocab_size: int
  length: int
  builder: str
  builder_config: str
  positions: Literal['all', 'last'] = 'all'


DATASETS = {
    'shakespeare': TextSpec(characters.vocab_size(characters.LEAF), 80, 'shakespeare', 'leaf'),
    'shakespeare_tff': TextSpec(characters.vocab_size(characters.TFF), 80, 'shakespeare', 'tff'),
    'shakespeare_demo': TextSpec(characters.vocab_size(characters.LEAF), 80, 'shakespeare', 'demo'),
}


def load_arrays(*, name: str, train: str = 'train', test: str = 'test',
                positions: Literal['all', 'last'] = 'all'):
  """Loads the two splits of a data set into memory.

  Args:
    name: a data set of `DATASETS`.
    train: TFDS split of the training part, such as 'train[:80%]'.
    test: likewise.
    positions: which tokens count, see TextSpec.

  Returns:
    (TextSpec, {'train': columns, 'test': columns}). Columns are 'input' and 'target' [N, T], and
    'user' [N], by which federated clients can be made.
  """
  spec = config_lib.choose(name, DATASETS, 'data.name')._replace(positions=positions)
  builder = builders.load(spec.builder, config=spec.builder_config)
  return spec, {'train': builders.arrays(builder, train), 'test': builders.arrays(builder, test)}


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
                         vocab_size=spec.vocab_size)


def from_model(model, spec, datasets):
  """Makes the Task of a Flax language model.

  The loss is that of every token but PAD. The accuracy leaves out EOS too, and compares with the
  likeliest symbol: PAD, BOS, EOS and the unknown symbol are never predicted.

  Args:
    model: module called as (tokens [B, T], train) -> logits [B, T, V], with rng 'dropout' when
      training.
    spec: TextSpec.
    datasets: split -> grain.MapDataset of {'input', 'target'} [T], and other columns that the loss
      does not look at.
  """
  def token_weights(target):
    """(of the loss, of the accuracy) [B, T], for jax and NumPy arrays alike."""
    counted = (target != characters.PAD) * (np.arange(spec.length) >= first)
    return counted, counted * (target != characters.EOS)

  first = spec.length - 1 if spec.positions == 'last' else 0
  special = np.zeros(spec.vocab_size, bool)
  special[[characters.PAD, characters.BOS, characters.EOS, -1]] = True

  def losses(logits, target):
    """Cross-entropy float32 and correctness float32 [B, T]."""
    symbol = jnp.where(special, -jnp.inf, logits).argmax(-1)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, target.astype(jnp.int32))
    return values, (symbol == target).astype(jnp.float32)

  def init(key):
    return model.init(key, jnp.zeros((1, spec.length), jnp.int32))

  def loss(variables, batch, key):
    logits = model.apply(variables, batch['input'], train=True, rngs={'dropout': key})
    values, correct = losses(logits, batch['target'])
    weights, scored = (batch['weight'][:, None] * w for w in token_weights(batch['target']))
    return Loss(values, weights, {'accuracy': (correct, scored)})

  def predict(variables, batch, key):
    del key
    # Two numbers a token: the logits of a whole split would not fit the host.
    values, correct = losses(model.apply(variables, batch['input']), batch['target'])
    return {'loss': values, 'correct': correct}

  def evaluate(pairs):
    sums = np.zeros((2, 2))
    for outputs, batch in pairs:
      for row, name, weights in zip(sums, ('loss', 'correct'), token_weights(batch['target'])):
        row += np.sum(outputs[name] * weights, dtype=np.float64), weights.sum()
    (nats, tokens), (correct, scored) = sums
    return {'loss': float(nats / tokens), 'accuracy': float(correct / scored)}

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset)
