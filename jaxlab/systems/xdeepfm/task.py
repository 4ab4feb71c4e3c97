"""The Task of click prediction, for xDeepFM and its baselines."""
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab.metrics import binary
from jaxlab.systems.xdeepfm import data as data_lib
from jaxlab.systems.xdeepfm.model import STAGE, make_model
from jaxlab.task import Loss, Task

CONFIG_KEYS = ('model', 'data', 'penalty', 'rows')
TABLES = ('embedding/table/embedding', 'linear/table/weight', 'fnn/linear/table/weight')


def check(config):
  """Checks `config.model`, `config.data`, `config.penalty` and `config.rows` without loading data.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type, a penalty on whole tables
      with row-wise updates.
  """
  data = config_lib.section(config, 'data')
  config_lib.check_arguments(data_lib.load, data, 'data', drop=())
  config_lib.choose(data['name'], data_lib.SOURCES, 'data.name')
  for key, least in (('min_count', 1), ('buckets', 0)):
    config_lib.require(data.get(key, least) >= least, f'data.{key}', f'at least {least}',
                       data.get(key))
  make_model(config_lib.section(config, 'model'), 1, 1)
  rows = config.get('rows', False)
  config_lib.check_type(rows, bool, 'config.rows')
  penalty = config_lib.call(_penalty, config.get('penalty', {}), 'penalty', drop=())
  for kind in ('l2', 'l1'):
    for pattern, strength in penalty[kind]:
      found = [table for table in TABLES if pattern.fullmatch(table)]
      config_lib.require(
          not (rows and strength and found), f'penalty.{kind}',
          'nothing on a whole table with rows=True, which leaves its other rows alone (l2_rows is '
          'of the rows of a batch)', pattern.pattern)


def make_task(config):
  """Makes the Task of a config.

  Args:
    config: 'model' as `model.make_model` takes it, 'data' the arguments of `data.load`, and
      penalty: {'l2', 'l1': pairs (regex of parameter paths, strength), 'l2_rows': strength}. l2 is
        half the sum of squares of the whole parameter, l1 the sum of absolute values; l2_rows half
        the squares of the rows that an example looks up, in the mean over examples.
      rows: True updates only the rows of the tables that a batch touches.
  """
  check(config)
  layout, datasets, _ = config_lib.call(data_lib.load, config['data'], 'data', drop=())
  model = make_model(config['model'], layout.num_features, layout.num_fields)
  penalty = config_lib.call(_penalty, config.get('penalty', {}), 'penalty', drop=())
  return from_model(model, layout, datasets, rows=config.get('rows', False), **penalty)


def file_dataset(config, path):
  """The rows of a file as a data set that the Task of `config` predicts; see `data.read_file`."""
  layout, _, encode = config_lib.call(data_lib.load, config['data'], 'data', drop=())
  return data_lib.read_file(config['data']['name'], path, layout, encode)


def _penalty(*, l2: Sequence = (), l1: Sequence = (), l2_rows: float = 0.0):
  """Checks `config.penalty` and compiles its patterns."""
  def compiled(strengths, where):
    pairs = []
    for pair in strengths:
      config_lib.check_type(pair, Sequence, where)
      config_lib.require(len(pair) == 2, where, 'pairs (regex, strength)', pair)
      pattern, strength = pair
      config_lib.check_type(pattern, str, where)
      config_lib.check_type(strength, float, f'{where}.{pattern}')
      config_lib.require(strength >= 0, f'{where}.{pattern}', 'at least 0', strength)
      try:
        pairs.append((re.compile(pattern), strength))
      except re.error as error:
        raise config_lib.ConfigError(f'{where}: {pattern!r} is no regex: {error}') from error
    return tuple(pairs)
  config_lib.require(l2_rows >= 0, 'penalty.l2_rows', 'at least 0', l2_rows)
  return {'l2': compiled(l2, 'penalty.l2'), 'l1': compiled(l1, 'penalty.l1'), 'l2_rows': l2_rows}


def whole_penalty(params, l2, l1):
  """Sum of strength / 2 * theta^2 (l2) and strength * |theta| (l1) over the matched parameters.

  The stage of an FNN, which says where its training is, is never among them.
  """
  total = jnp.zeros(())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for measure, pairs in ((lambda x: 0.5 * jnp.sum(x * x), l2), (lambda x: jnp.abs(x).sum(), l1)):
      for pattern, strength in pairs:
        if strength and name != STAGE and pattern.fullmatch(name):
          total += strength * measure(leaf)
  return total


def from_model(model, layout, datasets, *, rows=False, l2=(), l1=(), l2_rows=0.0):
  """Makes the Task of a CTRModel.

  The outputs of `predict` are 'logit' and 'probability' [B].

  Args:
    model: CTRModel.
    layout: data.Layout.
    datasets: split -> grain.MapDataset of {'label', 'ids', ...}.
    rows: whether training touches only the rows of a batch.
    l2: pairs (compiled regex of parameter paths, strength), see `make_task`.
    l1: likewise.
    l2_rows: strength.
  """
  absent = layout.num_features  # beyond the table: the lookup of padding, which touches nothing

  def inputs(batch):
    return (batch.get(name) for name in ('values', 'field', 'numeric'))

  def looked_up(batch):
    """Ids [B, K] with those of padded slots and of padded examples beyond the table."""
    real = batch['weight'][:, None] > 0
    if 'values' in batch:
      real = real & (batch['values'] != 0)
    return jnp.where(real, batch['ids'], absent)

  def init(key):
    one = lambda name, *shape: jnp.zeros((1, *shape)) if name else None
    pairs = not layout.univalent
    return model.init(
        key, jnp.zeros((1, layout.slots), jnp.int32), one(pairs, layout.slots),
        jnp.zeros((1, layout.slots), jnp.int32) if pairs else None,
        one(layout.numeric, layout.numeric))

  def tables(params):
    for name in TABLES:
      node: Any = params
      for key in name.split('/'):
        node = node.get(key) if isinstance(node, Mapping) else None
      if node is not None:
        yield name, node

  def loss(variables, batch, key):
    params, ids = variables['params'], looked_up(batch)
    values, field, numeric = inputs(batch)
    logits = model.apply(variables, ids, values, field, numeric, train=True,
                         rngs={'dropout': key})
    losses = optax.sigmoid_binary_cross_entropy(logits, batch['label'])
    total = losses
    if l2 or l1:
      total += whole_penalty(params, l2, l1)
    if l2_rows:
      seen = ids < absent
      squares = lambda table: jnp.where(
          seen, jnp.square(table[ids]).reshape(*ids.shape, -1).sum(-1), 0).sum(-1)
      total += 0.5 * l2_rows * sum(squares(table) for _, table in tables(params))
    return Loss(total, batch['weight'], {'logloss': (losses, batch['weight'])})

  def predict(variables, batch, key):
    del key
    logits = model.apply(variables, batch['ids'], *inputs(batch))
    return {'logit': logits, 'probability': jax.nn.sigmoid(logits)}

  def evaluate(pairs):
    columns = [(outputs['logit'], batch['label'], batch.get('group', 0 * batch['label']))
               for outputs, batch in pairs]
    logits, labels, groups = (np.concatenate(column) for column in zip(*columns))
    metrics = {'auc': binary.auc(labels, logits), 'logloss': binary.log_loss(labels, logits)}
    if groups.any():
      metrics['group_auc'] = binary.group_auc(labels, logits, groups)
    return metrics

  def name_rows(batch):
    params = jax.eval_shape(init, jax.random.key(0))['params']
    ids = looked_up(batch)
    return {name: ids for name, _ in tables(params)}

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset, rows=name_rows if rows else None)
