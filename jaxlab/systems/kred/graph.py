"""The knowledge graph behind the news: three sources, and the neighbours of their entities.

A graph is that of Wikidata ids. Only the entities of the news and their neighbours are kept.
"""
import logging
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import mind
from jaxlab.systems.kred import transe

# The files of the official bundle; vectors have a line an id.
OFFICIAL = {'entities': 'entity2id.txt', 'triples': 'triple2id.txt',
            'entity': 'entity2vecd100.vec', 'relation': 'relation2vecd100.vec'}


class Knowledge(NamedTuple):
  """A knowledge graph.

  Attributes:
    names: {Wikidata id: row} of the entities.
    entity: float32 [n, De].
    relation: float32 [r, De].
    triples: int32 [T, 3], (head, relation, tail) by rows.
  """
  names: dict[str, int]
  entity: np.ndarray
  relation: np.ndarray
  triples: np.ndarray


class Graph(NamedTuple):
  """What the model looks up; rows 0 are zero.

  Attributes:
    heads: {Wikidata id: number from 1} of the entities of the news that the graph knows.
    tables: {'entity' [1 + n, De], 'relation' [1 + r, De], 'tails' and 'relations' int32
      [1 + h, S]}; entities 1..h are the heads.
    names: n Wikidata ids, of entity 1 and so on.
  """
  heads: dict[str, int]
  tables: dict[str, np.ndarray]
  names: list[str]


def make_graph(knowledge, wanted, neighbours, seed):
  """The Graph of the entities of the news.

  The graph is undirected: a triple gives each of its ends the other, with the same relation.
  `neighbours` of them are drawn with replacement; an entity without any has pairs (0, 0).

  Args:
    knowledge: Knowledge.
    wanted: Wikidata ids of the news, in the order of their numbers; unknown ones are left out.
    neighbours: S.
    seed: of the draw.
  """
  known = [name for name in wanted if name in knowledge.names]
  rows = np.array([knowledge.names[name] for name in known], np.int64)
  triples = np.asarray(knowledge.triples).reshape(-1, 3)
  edges = np.concatenate([triples, triples[:, ::-1]])
  edges = edges[np.argsort(edges[:, 0], kind='stable')]
  start = np.searchsorted(edges[:, 0], rows)
  degree = np.searchsorted(edges[:, 0], rows, side='right') - start
  rng = np.random.default_rng([seed, 5])
  drawn = start[:, None] + (rng.random((len(rows), neighbours)) * degree[:, None]).astype(np.int64)
  real = np.broadcast_to(degree[:, None] > 0, drawn.shape)
  taken = edges[np.where(real, drawn, 0)] if len(edges) else np.zeros((*drawn.shape, 3), np.int64)
  order = {row: number for number, row in enumerate(rows.tolist(), 1)}
  for row in taken[..., 2][real].tolist():
    order.setdefault(row, len(order) + 1)
  numbers = np.zeros(len(knowledge.entity) + 1, np.int32)
  numbers[list(order)] = list(order.values())
  above = lambda x: np.concatenate([np.zeros_like(x[:1]), x])
  tables = {
      'entity': np.concatenate([np.zeros((1, knowledge.entity.shape[1]), np.float32),
                                knowledge.entity[list(order)]]),
      'relation': np.concatenate([np.zeros((1, knowledge.relation.shape[1]), np.float32),
                                  knowledge.relation]),
      'tails': above(np.where(real, numbers[taken[..., 2]], 0).astype(np.int32)),
      'relations': above(np.where(real, taken[..., 1] + 1, 0).astype(np.int32)),
  }
  if not len(rows):
    tables.update({name: np.zeros((1, neighbours), np.int32) for name in ('tails', 'relations')})
  by_row = {row: name for name, row in knowledge.names.items()}
  return Graph({name: number for number, name in enumerate(known, 1)}, tables,
               [by_row[row] for row in order])


def read_rows(path):
  """Yields (place, columns) of a tab-separated file; empty lines are left out."""
  for where, columns in mind.read_columns(pathlib.Path(path).expanduser()):
    if any(column.strip() for column in columns):
      yield where, columns


def _integers(where, columns, count, what):
  if len(columns) != count or not all(column.strip().isdecimal() for column in columns):
    raise ValueError(f'{where}: expected {what}, tab separated, got {columns!r}')
  return [int(column) for column in columns]


def _counted(path):
  """Yields the rows after a first line with their number."""
  rows = read_rows(path)
  where, columns = next(rows, (f'{path}:1', ['']))
  _integers(where, columns, 1, 'the number of rows')
  yield from rows


def parse_triple(where, columns):
  """(head, relation, tail) of a line of names; ValueError names place and expectation."""
  if len(columns) != 3 or not all(columns):
    raise ValueError(f'{where}: expected head, relation and tail, tab separated, got {columns!r}')
  return tuple(columns)


def read_official(folder, wanted):
  """Knowledge of the official bundle, as far as it touches the wanted entities.

  The bundle is the authors' WikidataGraph: entity2id.txt ('name TAB id' after a line with their
  number), triple2id.txt ('head TAB tail TAB relation', ids), and a line of floats an id in
  entity2vecd100.vec and relation2vecd100.vec.

  Args:
    folder: with the files of `OFFICIAL`.
    wanted: Wikidata ids of the news.
  """
  paths = {key: pathlib.Path(folder).expanduser() / name for key, name in OFFICIAL.items()}
  wanted, ids = set(wanted), {}
  for where, columns in _counted(paths['entities']):
    _integers(where, columns[1:], 1, 'a name and an id')
    if columns[0] in wanted:
      ids[columns[0]] = int(columns[1])
  heads, triples = set(ids.values()), []
  for where, columns in read_rows(paths['triples']):
    if len(columns) == 1:  # the number of triples, which some copies begin with
      continue
    head, tail, relation = _integers(where, columns, 3, 'ids of head, tail and relation')
    if head in heads or tail in heads:
      triples.append((head, relation, tail))
  rows = {number: row for row, number in enumerate(dict.fromkeys(
      [*ids.values(), *(end for triple in triples for end in (triple[0], triple[2]))]))}
  names = {name: rows[number] for name, number in ids.items()}
  others = {}
  if len(rows) > len(names):  # the names of neighbours, for who looks at them
    others = {columns[0]: rows[int(columns[1])] for _, columns in _counted(paths['entities'])
              if int(columns[1]) in rows and columns[0] not in names}
  entity = _vectors(paths['entity'], rows)
  relation = _vectors(paths['relation'])
  triples = np.array([(rows[h], r, rows[t]) for h, r, t in triples], np.int32).reshape(-1, 3)
  if triples.size and triples[:, 1].max() >= len(relation):
    raise ValueError(f'{paths["triples"]}: relation {triples[:, 1].max()}: expected ids below '
                     f'{len(relation)}, the lines of {paths["relation"]}')
  return Knowledge({**names, **others}, entity, relation, triples)


def _vectors(path, rows=None):
  """float32 [., D] of a file of floats a line; of the lines in {line from 0: row}, if given."""
  found, width = {}, None
  for number, (where, columns) in enumerate(read_rows(path)):
    if rows is None or number in rows:
      try:
        vector = np.array([column for column in columns if column.strip()], np.float32)
      except ValueError as error:
        raise ValueError(f'{where}: expected floats, tab separated: {error}') from error
      width = width or len(vector)
      if len(vector) != width or not np.isfinite(vector).all():
        raise ValueError(f'{where}: expected {width} finite floats, got {columns}')
      found[number if rows is None else rows[number]] = vector
  missing = set() if rows is None else rows.keys() - {n for n, r in rows.items() if r in found}
  if missing:
    raise ValueError(f'{path}: expected a line of id {min(missing)}, got fewer lines')
  return np.stack([found[row] for row in range(len(found))]) if found else np.zeros((0, 1),
                                                                                      np.float32)


def from_vectors(entity, relation, triples):
  """Knowledge of vectors by name; triples with a name that has no vector are counted and left out.

  Args:
    entity: {Wikidata id: [De]}.
    relation: {property id: [De]}.
    triples: sequence of (head, relation, tail) names.
  """
  names = {name: row for row, name in enumerate(entity)}
  relations = {name: row for row, name in enumerate(relation)}
  kept = [(names[h], relations[r], names[t]) for h, r, t in triples
          if h in names and t in names and r in relations]
  if len(kept) < len(triples):
    logging.warning('%d of %d triples name an entity or relation without a vector',
                    len(triples) - len(kept), len(triples))
  if not names:
    raise config_lib.ConfigError('data.graph: expected vectors of entities, got none')
  stack = lambda vectors, width: np.array(list(vectors.values()), np.float32).reshape(-1, width)
  width = len(next(iter(entity.values())))
  return Knowledge(names, stack(entity, width), stack(relation, width),
                   np.array(kept, np.int32).reshape(-1, 3))


def from_transe(triples, **settings):
  """Knowledge of triples of names by `transe.train`, whose settings they are."""
  if not triples:
    raise config_lib.ConfigError('data.graph: expected triples to train TransE on, got none')
  names = {name: row for row, name in enumerate(dict.fromkeys(
      name for head, _, tail in triples for name in (head, tail)))}
  relations = {name: row for row, name in enumerate(dict.fromkeys(r for _, r, _ in triples))}
  rows = np.array([(names[h], relations[r], names[t]) for h, r, t in triples], np.int32)
  entity, relation, _ = transe.train(rows + 1, **settings)
  return Knowledge(names, entity[1:], relation[1:], rows)


def write_vectors(path, names, vectors):
  """Writes vectors as MIND's .vec files are: a name and floats, tab separated."""
  with open(path, 'w', encoding='utf-8', newline='') as file:
    for name, vector in zip(names, vectors):
      file.write('\t'.join([name, *(repr(float(x)) for x in vector)]) + '\n')


def options(config: Any):
  """The checked `config.data.graph`: {'source', ...}, see `data.load`."""
  settings = config_lib.section({'data.graph': config}, 'data.graph')
  checks = {'official': _official_options, 'mind': _mind_options, 'transe': _transe_options}
  config_lib.require('source' in settings, 'data.graph.source', f'one of {sorted(checks)}', None)
  check = config_lib.choose(settings['source'], checks, 'data.graph.source')
  return config_lib.call(check, settings, 'data.graph', drop=('source',))


def _official_options(*, folder: str):
  return {'folder': folder}


def _mind_options(*, triples: str = '', entity: str = '', relation: str = ''):
  return {'triples': triples, 'entity': entity, 'relation': relation}


def _transe_options(*, triples: str = '', seed: int = 0, dim: int = 100, steps: int = 2000,
                    batch_size: int = 1024, learning_rate: float = 0.01, margin: float = 1.0,
                    norm: int = 1):
  config_lib.require(norm in (1, 2), 'data.graph.norm', '1 or 2', norm)
  config_lib.at_least(1, {'dim': dim, 'steps': steps, 'batch_size': batch_size}, where='data.graph')
  return {'triples': triples, 'settings': {
      'seed': seed, 'dim': dim, 'steps': steps, 'batch_size': batch_size,
      'learning_rate': learning_rate, 'margin': margin, 'norm': norm}}
