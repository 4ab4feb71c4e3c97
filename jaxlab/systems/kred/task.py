"""The Task of KRED: five tasks as arms over one news encoder."""
import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.data import pipeline
from jaxlab.metrics import accuracy, binary, ranking
from jaxlab.metrics.glue import f1
from jaxlab.systems.kred import data as data_lib
from jaxlab.systems.kred import losses
from jaxlab.systems.kred import model as model_lib
from jaxlab.task import Arm, Loss, Task
from jaxlab.tasks.news import sample_negatives
from jaxlab.train import evaluation
from jaxlab.train import outputs as outputs_lib

CONFIG_KEYS = ('model', 'data', 'target', 'predict')
LOCAL_THRESHOLD = 0.2  # probability from which the official metric calls a news local
OFFICIAL_TABLES = {'positions': 1000, 'frequencies': 100, 'types': 100}


@dataclasses.dataclass(frozen=True, eq=False)
class KredTask(Task):
  """A Task with the losses of its arms given the vectors of news.

  Attributes:
    losses: {task: (variables, vectors_of, batch) -> Loss}, where `vectors_of(ids, clicked=False)`
      gives vectors [*ids.shape, D] of candidates or of a history.
  """
  losses: Mapping[str, Callable[..., Loss]] = dataclasses.field(default_factory=dict)


def make_model(*, categories: int, features: int = 100, hidden: int = 128,
               official_compat: bool = False, share_news_encoder: bool | None = None,
               entity_layer: bool = True, types: int = 100):
  """(KRED, whether it is to be trained by the official losses).

  Args:
    categories: K.
    features: width of the vector of a news.
    hidden: width of attentions and hidden layers.
    official_compat: replays the official code: sums of neighbours, softmax over the batch, ReLU on
      attention scores, no masks, two news encoders, its losses and table sizes.
    share_news_encoder: whether candidates and history have one encoder; by default where not
      `official_compat`.
    entity_layer: False leaves the neighbours out.
    types: rows of the table of entity types.
  """
  config_lib.at_least(1, {'features': features, 'hidden': hidden, 'types': types}, where='model')
  shared = not official_compat if share_news_encoder is None else share_news_encoder
  sizes = OFFICIAL_TABLES if official_compat else {'types': types}
  variant = model_lib.OFFICIAL if official_compat else model_lib.STRICT
  return model_lib.KRED(categories, features, hidden, share_news_encoder=shared,
                        entity_layer=entity_layer, variant=variant, parent=None, **sizes)


def check(config):
  """Checks `config.model`, `config.data`, `config.target` and `config.predict` without data.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type or value.
  """
  data_lib.check(config_lib.section(config, 'data'))
  config_lib.call(make_model, config_lib.section(config, 'model'), 'model', drop=(), categories=1)
  _target(config)
  page_news(**config_lib.check_arguments(page_news, config.get('predict', {}), 'predict', drop=()))


def _target(config):
  target = config.get('target', 'user2item')
  config_lib.check_type(target, str, 'config.target')
  config_lib.choose(target, dict.fromkeys(data_lib.TASKS), 'config.target')
  return target


def page_news(*, news: int = 20):
  """The arguments of `config.predict`: how many news a page of entities shows."""
  config_lib.require(news >= 1, 'predict.news', 'at least 1', news)
  return news


def make_task(config):
  """Makes the KredTask of a config.

  Args:
    config: 'model' the arguments of `make_model`, 'data' those of `data.load`, 'target' the task
      that phases without arms train and `predict` and the split names without a task mean
      ('user2item' by default).
  """
  check(config)
  data = load_data(config)
  model = config_lib.call(make_model, config['model'], 'model', drop=(),
                          categories=data.categories)
  return from_model(model, data, target=_target(config),
                    official=config['model'].get('official_compat', False))


def load_data(config):
  """The Data of `config.data`."""
  return config_lib.call(data_lib.load, config['data'], 'data', drop=())


def file_dataset(config, path):
  """The impressions of a file in MIND's format as a data set that the Task predicts."""
  return _impressions(config, path, load_data(config))


def _impressions(config, path, data):
  config_lib.require(pathlib.Path(path).is_file(), '--input', 'a file of impressions', str(path))
  options = config['data']
  return pipeline.from_arrays(data_lib.read_impressions(
      path, data.text.news, history_length=options.get('history_length', 20),
      history_keep=options.get('history_keep', 'last')))


def predict_input(config, params, path, output):
  """Scores the impressions of a file, or shows the entities of the first news that it names.

  Args:
    config: of the run.
    params: of the model.
    path: behaviors.tsv or like it, labels not needed.
    output: .npz, .tsv or .jsonl for scores, .html for the page of `page.write`.
  """
  from jaxlab.systems.kred import page
  is_page = pathlib.Path(output).suffix == '.html'
  if not is_page:
    outputs_lib.check_path(output)
  data = load_data(config)
  rows = _impressions(config, path, data)
  model = config_lib.call(make_model, config['model'], 'model', drop=(),
                          categories=data.categories)
  if is_page:
    shown = dict.fromkeys(rows.arrays['candidates'].ravel().tolist())
    chosen = [news for news in shown if news][:page_news(**config.get('predict', {}))]
    page.write(output, page.read_attention(model, params, data.tables, chosen), data.text)
    print(f'{len(chosen)} news in {output}')
    return
  task = from_model(model, data)
  snapshot = parallel.place(evaluation.Snapshot(params, {}, jax.random.key(0), 0))
  pairs = evaluation.Evaluator(task).predict(snapshot, parallel.place(data.tables), rows)
  found = [outputs for outputs, _ in pairs]
  outputs_lib.write(output, {name: np.concatenate([one[name] for one in found])
                             for name in found[0]})
  print(f'{len(rows)} impressions in {output}')


def from_model(model, data, *, target='user2item', official=False):
  """Makes the KredTask of a KRED module; the tables are its 'constants'.

  Splits are named 'train', 'dev', ... for the target, and 'dev_category' and so on for any task.
  The outputs of `predict` are {'score' [B, C], 'impression', 'count'} for impressions, {'score'}
  for pairs and {'category', 'popularity', 'local'} logits for news.

  Args:
    model: model.KRED.
    data: data.Data.
    target: the task of `loss`, `act` and plain split names.
    official: whether to train by the official losses.
  """
  config_lib.require(target in data.tasks, 'config.target', f'a task that the data serve '
                     f'({", ".join(data.tasks)})', target)
  limits = {'position': model.positions, 'frequency': model.frequencies, 'type': model.types}
  for name, rows in limits.items():
    largest = int(data.tables['news'][name].max(initial=0))
    config_lib.require(largest < rows, f'model.{name}s' if name == 'type' else 'model',
                       f'more than {largest} rows of the table of {name}s', rows)
  tables = jax.tree.map(jnp.asarray, data.tables)

  def init(key):
    one = jnp.zeros((1, 1), jnp.int32)
    return {'params': model.init(key, tables, one, one)['params'], 'constants': tables}

  def run(variables, method, *args):
    return model.apply({'params': variables['params']}, *args, method=method)

  def users_of(variables, vectors_of, batch):
    history = batch['history']
    return run(variables, 'users', vectors_of(history, clicked=True), history > 0)

  def user2item(variables, vectors_of, batch):
    candidates = vectors_of(batch['candidates'])
    logits = run(variables, 'click_logits', users_of(variables, vectors_of, batch), candidates)
    return ranked(jax.nn.sigmoid(logits), batch)

  def item2item(variables, vectors_of, batch):
    del variables
    scores = model_lib.cosine(vectors_of(batch['first'])[:, None], vectors_of(batch['candidates']))
    return ranked(scores, batch)

  def ranked(scores, batch):
    target = jnp.zeros(len(scores), jnp.int32)
    return Loss(losses.choose_one(scores, target, official), batch['weight'],
                {'accuracy': (hits(scores, target), batch['weight'])})

  def hits(logits, labels):
    return (logits.argmax(-1) == labels).astype(jnp.float32)

  def classified(name):
    def loss(variables, vectors_of, batch):
      logits = run(variables, 'classify', vectors_of(batch['news']))[name]
      labels = batch[name]
      if name == 'local':
        values = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
        correct = ((logits > 0) == (labels > 0)).astype(jnp.float32)
      else:
        values, correct = losses.classify(logits, labels, official), hits(logits, labels)
      return Loss(values, batch['weight'], {'accuracy': (correct, batch['weight'])})
    return loss

  given = {'user2item': user2item, 'item2item': item2item,
           **{name: classified(name) for name in data_lib.CLASSES}}
  given = {name: given[name] for name in data.tasks}

  def act_clicks(variables, batch, key):
    del variables
    drawn = sample_negatives(row_keys(batch, key), batch['pool'], batch['pool_size'],
                             data.negatives)
    return {**batch, 'candidates': jnp.concatenate([batch['click'][:, None], drawn], axis=1)}

  def act_pairs(variables, batch, key):
    del variables
    pool = jnp.asarray(data.pool)
    draw = lambda key: pool[jax.random.randint(key, (data.negatives,), 0, len(pool))]
    drawn = jax.vmap(draw)(row_keys(batch, key))
    return {**batch, 'candidates': jnp.concatenate([batch['second'][:, None], drawn], axis=1)}

  def row_keys(batch, key):
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch['row'])

  acts = {'user2item': act_clicks, 'item2item': act_pairs}

  def whole(name):
    def loss(variables, batch, key):
      del key
      lookup = lambda ids, clicked=False: model_lib.vectors_of(model, variables, ids, clicked)
      return given[name](variables, lookup, batch)
    return loss

  def predict(variables, batch, key):
    del key
    lookup = lambda ids, clicked=False: model_lib.vectors_of(model, variables, ids, clicked)
    if 'news' in batch:
      return run(variables, 'classify', lookup(batch['news']))
    candidates = lookup(batch['candidates'])
    if 'first' in batch:
      return {'score': model_lib.cosine(lookup(batch['first'])[:, None], candidates)}
    logits = run(variables, 'click_logits', users_of(variables, lookup, batch), candidates)
    return {'score': jax.nn.sigmoid(logits), 'impression': batch['impression'],
            'count': batch['count']}

  def dataset(split):
    name, _, task = split.partition('_')
    columns = data.tasks.get(task or target, {})
    if name not in columns or (task and task not in data.tasks):
      known = [f'{one}_{task}' for task, splits in data.tasks.items() for one in splits]
      raise config_lib.unknown('name', split, [*data.tasks[target], *known], 'split')
    return pipeline.from_arrays(columns[name])

  arms = {name: Arm(whole(name), lambda name=name: dataset(f'train_{name}'), acts.get(name))
          for name in data.tasks}
  return KredTask(init, whole(target), predict, evaluate, dataset, acts.get(target), arms=arms,
                  losses=given)


def evaluate(pairs):
  """Metrics of the outputs of a whole split, of whichever task its rows are.

  user2item: 'global_auc' over all rows, and 'auc', 'mrr', 'ndcg@5', 'ndcg@10' as means over
  impressions. item2item: the same, 'auc' being global. category and popularity: 'accuracy' and
  'macro_f1'. local: 'auc', and 'accuracy' and 'f1' from a probability of .2.
  """
  pairs = list(pairs)
  batch = pairs[0][1]
  if 'news' in batch:
    return _evaluate_classes(pairs, next(name for name in data_lib.CLASSES if name in batch))
  rows = [(batch['labels'], np.asarray(outputs['score'], np.float64)) for outputs, batch in pairs]
  real = [labels >= 0 for labels, _ in rows]
  flat = [np.concatenate([row[i][mask] for row, mask in zip(rows, real)]) for i in (0, 1)]
  ordered = (ranking.clicks_first(*row) for row in rows)
  means = ranking.mean_metrics((labels, scores, labels >= 0) for labels, scores in ordered)
  whole = binary.auc(*flat)
  if 'first' in batch:
    return {**means, 'auc': whole}
  return {'global_auc': whole, **means}


def _evaluate_classes(pairs, name):
  from sklearn.metrics import f1_score
  logits = np.concatenate([outputs[name] for outputs, _ in pairs])
  labels = np.concatenate([batch[name] for _, batch in pairs])
  if name != 'local':
    return {'accuracy': accuracy(logits, labels),
            'macro_f1': float(f1_score(labels, logits.argmax(-1), average='macro',
                                       zero_division=0))}
  chosen = (1 / (1 + np.exp(-logits.astype(np.float64))) > LOCAL_THRESHOLD).astype(int)
  return {'auc': binary.auc(labels, logits), 'accuracy': float((chosen == labels).mean()),
          'f1': f1(chosen, labels)}
