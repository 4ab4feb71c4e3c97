"""From news with entities, impressions and a knowledge graph to the rows of KRED's five tasks."""
import inspect
import json
import logging
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
import tensorflow_datasets as tfds

from jaxlab import config as config_lib
from jaxlab.data import builders, mind
from jaxlab.data import news as news_data
from jaxlab.systems.kred import demo, model
from jaxlab.systems.kred import documents as documents_lib
from jaxlab.systems.kred import graph as graph_lib

TASKS = ('user2item', 'item2item', 'category', 'popularity', 'local')
CLASSES = ('category', 'popularity', 'local')
SOURCES = {'mind_small': ('mind', 'small'), 'mind_large': ('mind', 'large'),
           'kred_demo': ('kred_demo', 'demo')}
MAX_FREQUENCY = 20
_COLUMNS = ('news', 'category', 'title', 'abstract', 'title_entities', 'abstract_entities')
_SHOWN, _CLICKS, _COCLICK = 20, 10, 0.05  # thresholds of popularity and of pairs
_HELD_OUT = 0.2


class _Demo:
  """What makes a builder of MIND's files one of `demo`."""
  BUILDER_CONFIGS = [mind.MindConfig(name='demo', source='demo', test_labels=True,
                                     description='Made by `jaxlab.systems.kred.demo`.')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = None

  def _write_demo(self, folder):
    demo.write(folder, demo.make(0, dim=100))


class KredDemo(_Demo, mind.Mind):
  """Impressions of a made-up world in which entities matter; the features are those of `Mind`."""


class KredDemoNews(_Demo, mind.MindNews):
  """Its news."""


class KredDemoEntities(_Demo, mind.MindEntities):
  """Its vectors."""


class KredDemoTables(_Demo, mind.MindFiles):
  """Lines of its other files: triples.tsv, local.tsv and popularity.tsv, a split each."""

  def _features(self):
    return {'line': tfds.features.Text()}

  def _split_names(self, folder):
    return ['triples', 'local', 'popularity']

  def _examples(self, folder, split):
    for line in (folder / f'{split}.tsv').read_text(encoding='utf-8').splitlines():
      yield {'line': line}


builders.BUILDERS.update({
    'kred_demo': f'{__name__}:KredDemo', 'kred_demo_news': f'{__name__}:KredDemoNews',
    'kred_demo_entities': f'{__name__}:KredDemoEntities',
    'kred_demo_tables': f'{__name__}:KredDemoTables'
})


class Text(NamedTuple):
  """What a reader sees of the news, for pages.

  Attributes:
    news: N ids.
    titles: N texts.
    names: [n] Wikidata ids of the entities of the graph.
    labels: {Wikidata id: label}.
  """
  news: list[str]
  titles: list[str]
  names: list[str]
  labels: dict[str, str]


class Data(NamedTuple):
  """A data set in memory.

  Attributes:
    tables: the tables of `model`.
    tasks: {task: {split: columns}}, see `TASKS`; those that the data can serve.
    categories: number of classes of the category task.
    pool: int32 [P], the frequent news that item2item draws its negatives from.
    negatives: drawn for each click and each pair.
    text: Text, or None.
  """
  tables: dict
  tasks: dict
  categories: int
  pool: np.ndarray
  negatives: int
  text: Text | None = None


def slots(entities, known, length):
  """Entity slots of news.

  Position 1 is the title (also where the abstract has the entity too), 2 the abstract alone; the
  frequency counts occurrences in both, up to `MAX_FREQUENCY`; types are numbered as they first
  appear, unknown entities included.

  Args:
    entities: N pairs (title's, abstract's), lists of mappings with 'WikidataId', 'Type' and
      'OccurrenceOffsets'.
    known: {Wikidata id: number from 1}; others are skipped and counted.
    length: L; further entities are cut.

  Returns:
    ({'entities', 'frequency', 'position', 'type': int32 [1 + N, L]}, row 0 and free slots 0; the
    number of skipped entities).
  """
  names = ('entities', 'frequency', 'position', 'type')
  columns = {name: np.zeros((len(entities) + 1, length), np.int32) for name in names}
  types, skipped = {}, 0
  for number, parts in enumerate(entities, 1):
    found = {}
    for position, part in enumerate(parts, 1):
      for one in part:
        kind = types.setdefault(one.get('Type', ''), len(types) + 1)
        key, count = one['WikidataId'], len(one.get('OccurrenceOffsets', ()))
        before = found.get(key, (0, position, kind))
        found[key] = (before[0] + count, *before[1:])
    skipped += len(found) - sum(key in known for key in found)
    kept = [(known[key], min(count, MAX_FREQUENCY), position, kind)
            for key, (count, position, kind) in found.items() if key in known][:length]
    for name, values in zip(names, zip(*kept)):
      columns[name][number, :len(kept)] = values
  return columns, skipped


def quartiles(split, num_news):
  """Class 0..3 of news by rising click-through rate, [1 + N]; -1 where shown less than 20 times.

  Args:
    split: Impressions with labels.
    num_news: N.
  """
  count = lambda chosen: np.bincount(split.candidates.values[chosen], minlength=num_news + 1)
  clicks, shown = count(split.labels.values == 1), count(split.labels.values >= 0)
  known = 1 + np.flatnonzero(shown[1:] >= _SHOWN)
  order = known[np.argsort(clicks[known] / shown[known], kind='stable')]
  classes = np.full(num_news + 1, -1)
  classes[order] = 4 * np.arange(len(order)) // max(len(order), 1)
  return classes


def coclicked(split, num_news):
  """(pairs [P, 2] of news that the same users clicked, the frequent news [F]).

  A pair counts if users(both) / sqrt(users(a) users(b)) > 0.05 and both have more than 10 users. A
  user's clicks are the history and the clicks of the split, each news once.

  Args:
    split: Impressions with labels.
    num_news: N.
  """
  clicked = split.labels.values == 1
  users = [np.repeat(split.user, split.history.sizes),
           np.repeat(split.user, split.candidates.sizes)[clicked]]
  news = np.concatenate([split.history.values, split.candidates.values[clicked]])
  users = np.concatenate(users)
  shape = (int(split.user.max(initial=0)) + 1, num_news + 1)
  matrix = scipy.sparse.csr_matrix((np.ones(len(news), np.float32), (users, news)), shape)
  matrix.data[:] = 1  # a news counts once a user
  counts = np.asarray(matrix.sum(0)).ravel()
  counts[0] = 0
  frequent = np.flatnonzero(counts > _CLICKS)
  chosen = matrix[:, frequent]
  both = scipy.sparse.triu(chosen.T @ chosen, 1).tocoo()
  close = both.data / np.sqrt(counts[frequent[both.row]] * counts[frequent[both.col]]) > _COCLICK
  pairs = np.stack([frequent[both.row[close]], frequent[both.col[close]]], 1)
  return pairs.astype(np.int32), frequent.astype(np.int32)


def pair_rows(pairs, pool, negatives, rng):
  """Columns of pairs to be ranked: 'first' [R], 'candidates' [R, 1 + n] and 'labels' of the pair's
  other news, then news drawn from the pool."""
  drawn = rng.choice(pool, (len(pairs), negatives))
  candidates = np.concatenate([pairs[:, 1:], drawn], 1).astype(np.int32)
  labels = np.zeros(candidates.shape, np.int8)
  labels[:, 0] = 1
  return {'first': pairs[:, 0].astype(np.int32), 'candidates': candidates, 'labels': labels}


def pair_samples(pairs):
  """Columns of pairs to be trained on: 'row', 'first', 'second' [S]."""
  return {'row': np.arange(len(pairs), dtype=np.int32), 'first': pairs[:, 0].astype(np.int32),
          'second': pairs[:, 1].astype(np.int32)}


def class_rows(task, news, labels):
  """Columns of news to be classified: 'news' [R] and one of the task's name."""
  return {'news': news.astype(np.int32), task: labels[news].astype(np.int32)}


def first_clicks(split, length):
  """The Impressions with the first clicks of each history in place of the last."""
  sizes = np.minimum(split.history.sizes, length)
  first = split.history.padded(length, keep='first')
  offsets = np.concatenate([[0], np.cumsum(sizes)])
  return split._replace(history=news_data.Ragged(first[np.arange(length) < sizes[:, None]],
                                                 offsets))


def read_labels(rows, task, news):
  """Labels [1 + N] of rows (where, [news id, class]); -1 where there is none.

  Raises:
    ValueError: a bad row, by file, line and expectation.
  """
  classes = {'local': 2, 'popularity': model.POPULARITIES}[task]
  number, labels = {name: i for i, name in enumerate(news, 1)}, np.full(len(news) + 1, -1)
  for where, columns in rows:
    if len(columns) != 2 or columns[1] not in map(str, range(classes)):
      raise ValueError(f'{where}: expected a news id and a class 0..{classes - 1}, tab separated, '
                       f'got {columns!r}')
    if columns[0] in number:
      labels[number[columns[0]]] = int(columns[1])
  return labels


def load(*, name: str, graph: Mapping, documents: Mapping, history_length: int = 20,
         history_keep: Literal['first', 'last'] = 'last', negatives: int = 4, slots: int = 20,
         neighbours: int = 20, entities: bool = True, local: str = '', popularity: str = '',
         seed: int = 0):
  """Loads a data set of `SOURCES` into memory.

  Args:
    name: the data set.
    graph: the knowledge graph: {'source': 'official', 'folder'}, see `graph.read_official`;
      {'source': 'mind', 'triples', 'entity', 'relation'}, the vectors of MIND or .vec files, and an
      optional file of triples of names; {'source': 'transe', 'triples', ...settings of
      `transe.train`}. The demo has triples of its own.
    documents: the document vectors, see `documents.encode`.
    history_length: clicks of a history, H.
    history_keep: which of them.
    negatives: drawn for each click and each pair.
    slots: entities of a news, L.
    neighbours: of an entity, S.
    entities: False empties all slots: the document vector alone.
    local: file of 'news id TAB 0 or 1' for the local task; without one there is no such task.
    popularity: file of 'news id TAB 0..3'; quartiles of click-through rates without one.
    seed: of neighbours, splits and drawn negatives.
  """
  news, splits = news_data.load(*SOURCES[name], columns=_COLUMNS)
  labels = {task: read_labels(rows, task, news['news'])
            for task, file in (('local', local), ('popularity', popularity))
            if (rows := _rows_of(name, task, file)) is not None}
  pairs = [(json.loads(a or '[]'), json.loads(b or '[]'))
           for a, b in zip(news['title_entities'], news['abstract_entities'])]
  wanted = list(dict.fromkeys(one['WikidataId'] for pair in pairs for part in pair for one in part))
  made = graph_lib.make_graph(read_knowledge(name, graph, wanted), wanted if entities else (),
                              neighbours, seed)
  return assemble(news, splits, pairs, made, documents, labels, history_length=history_length,
                  history_keep=history_keep, negatives=negatives, length=slots, seed=seed)


def check(config):
  """Raises ConfigError unless `config` can be the arguments of `load`."""
  given = config_lib.check_arguments(load, config, 'data', drop=())
  call = inspect.signature(load).bind(**given)
  call.apply_defaults()
  values = call.arguments
  name, graph = values['name'], values['graph']
  config_lib.choose(name, SOURCES, 'data.name')
  config_lib.at_least(1, values, ('history_length', 'negatives', 'slots', 'neighbours'), 'data')
  settings = graph_lib.options(graph)
  own = name == 'kred_demo'
  config_lib.require(graph['source'] != 'transe' or bool(settings['triples']) or own,
                     'data.graph.triples', f'a file of triples, for {name} has none',
                     settings.get('triples'))
  documents_lib.options(values['documents'])
  for key in ('local', 'popularity'):
    config_lib.require(not (values[key] and own), f'data.{key}',
                       'nothing, for the demo has labels of its own', values[key])


def _rows_of(name, table, file):
  """Rows (where, columns) of a file, or of the demo's; None where there is neither."""
  if file:
    return graph_lib.read_rows(file)
  if name != 'kred_demo':
    return None
  builder = builders.load('kred_demo_tables')
  lines = builder.as_data_source(table)
  return [(f'{table}.tsv:{i + 1}', lines[i]['line'].decode().split('\t'))
          for i in range(len(lines))]


def read_knowledge(name, graph, wanted):
  """The Knowledge that `graph` of `load` names, for the entities of the news."""
  settings = graph_lib.options(graph)
  if graph['source'] == 'official':
    return graph_lib.read_official(settings['folder'], wanted)
  rows = _rows_of(name, 'triples', settings['triples'])
  triples = [graph_lib.parse_triple(*row) for row in rows or ()]
  if graph['source'] == 'transe':
    return graph_lib.from_transe(triples, **settings['settings'])
  vectors = {}
  for side in ('entity', 'relation'):
    if settings[side]:
      vectors[side] = dict(mind.read_vectors(settings[side]))
      continue
    prefix, config = SOURCES[name]
    source = builders.load(f'{prefix}_entities', config=config).as_data_source(side)
    vectors[side] = {row['key'].decode(): row['vector']
                     for row in source.__getitems__(range(len(source)))}
  return graph_lib.from_vectors(vectors['entity'], vectors['relation'], triples)


def assemble(news, splits, entities, made, document_config, labels, *, history_length, history_keep,
             negatives, length, seed):
  """The Data of what `load` has read.

  Args:
    news: {'news', 'category', 'title', 'abstract': N texts}.
    splits: {split: Impressions}.
    entities: N pairs of lists, see `slots`.
    made: graph.Graph.
    document_config: see `documents.encode`.
    labels: {'local', 'popularity': [1 + N]}, what there is.
    history_length: see `load`, as all that follow.
    history_keep: 'first' or 'last'.
    negatives: number.
    length: slots.
    seed: of splits and negatives.
  """
  columns, skipped = slots(entities, made.heads, length)
  if skipped and made.heads:
    logging.warning('%d entities of the news are not in the knowledge graph', skipped)
  texts = [f'{title} {abstract}' for title, abstract in zip(news['title'], news['abstract'])]
  vectors = documents_lib.encode(document_config, news['news'], texts)
  columns['document'] = np.concatenate([np.zeros_like(vectors[:1]), vectors]).astype(np.float32)
  if history_keep == 'first':
    splits = {name: first_clicks(split, history_length) for name, split in splits.items()}
  history = {'history_length': history_length, 'pad_side': 'back'}
  tasks = {'user2item': {
      name: news_data.click_samples(split, min_pool=negatives, **history) if name == 'train'
      else news_data.impression_rows(split, **history) for name, split in splits.items()}}
  count = len(news['news'])
  rng = np.random.default_rng([seed, 6])
  pairs, pool = coclicked(splits['train'], count)
  train, held = _divide(pairs, rng)
  if len(train) and len(held):
    tasks['item2item'] = {'train': pair_samples(train),
                          'dev': pair_rows(held, pool, negatives, rng)}
  classes = {name: i for i, name in enumerate(dict.fromkeys(filter(None, news['category'])))}
  labels = {'popularity': quartiles(splits['train'], count), **labels,
            'category': np.array([-1] + [classes.get(name, -1) for name in news['category']])}
  for task in CLASSES:
    if task in labels:
      train, held = _divide(np.flatnonzero(labels[task] >= 0), rng)
      if len(train) and len(held):
        tasks[task] = {'train': class_rows(task, train, labels[task]),
                       'dev': class_rows(task, held, labels[task])}
  text = Text(news['news'], news['title'], made.names, {
      one['WikidataId']: one.get('Label', one['WikidataId'])
      for pair in entities for part in pair for one in part})
  return Data({'graph': made.tables, 'news': columns}, tasks, max(len(classes), 1), pool, negatives,
              text)


def _divide(rows, rng):
  """80 % and 20 % of the rows at random, each in order."""
  held = rng.random(len(rows)) < _HELD_OUT
  return rows[~held], rows[held]


def read_impressions(path, news, *, history_length, history_keep='last'):
  """A file of impressions in MIND's format, with or without labels, as rows to be scored.

  Args:
    path: behaviors.tsv or like it.
    news: N ids; others become news 0 and are counted in a warning.
    history_length: H.
    history_keep: 'first' or 'last'.
  """
  with open(path, encoding='utf-8') as file:
    items = file.readline().rstrip('\r\n').split('\t')[-1].split()
  labelled = bool(items) and all(re.fullmatch(r'.+-[01]', item) for item in items)
  rows = mind.read_behaviors(path, labelled=labelled)
  split = news_data.collect(mind.numbered(
      rows, {name: i for i, name in enumerate(news, 1)}, {}))
  if history_keep == 'first':
    split = first_clicks(split, history_length)
  return news_data.impression_rows(split, history_length=history_length, pad_side='back')
