"""Graphs whose nodes carry text: pairs of linked nodes with their neighbours, and their builder.

The pairs are in GraphFormers' format (arXiv 2105.02605): a line `text|'|nbr|'|... TAB
text|'|nbr|'|...` a pair of linked nodes, the node's own text first, then those of its neighbours.
"""
import dataclasses
import functools
import logging
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.config import require
from jaxlab.data import docstrings
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.data.glue import read_tsv
from jaxlab.data.rows import parse_rows

SEPARATOR = "|'|"
FILES = {'train': 'train.tsv', 'validation': 'valid.tsv', 'test': 'test.tsv'}
NODES, EDGES = 'nodes.tsv', 'edges.tsv'

_log = logging.getLogger(__name__)


class TextGraph(NamedTuple):
  """A graph with texts.

  Attributes:
    ids: N names of the nodes.
    texts: N strings, which may be empty.
    edges: int [E, 2], undirected: each once, i < j, sorted.
  """
  ids: list[str]
  texts: list[str]
  edges: np.ndarray


def read_pairs(path, *, on_bad_row='raise'):
  """Yields {'query', 'key'}: lists of texts, the node's own first, of every line of a file.

  Raises:
    ConfigError: there is no such file.
    ValueError: a line that is no UTF-8 or has not two columns, with file, line and column.
  """
  path = pathlib.Path(path)
  yield from parse_rows(read_tsv(path), _parse_pair, on_bad_row=on_bad_row, where=path)


def write_pairs(path, pairs):
  """Writes what `read_pairs` reads.

  Args:
    path: file to write.
    pairs: iterable of {'query', 'key'}: lists of texts, the node's own first.

  Raises:
    ValueError: a text that holds a tab, a line break or the separator.
  """
  with open(path, 'w', encoding='utf-8', newline='\n') as file:
    for number, pair in enumerate(pairs, 1):
      for text in (*pair['query'], *pair['key']):
        _check_text(text, f'{path}: line {number}')
      file.write('\t'.join(SEPARATOR.join(pair[side]) for side in ('query', 'key')) + '\n')


def read_graph(folder, *, on_bad_row='raise'):
  """The TextGraph of a folder's nodes.tsv (id TAB ... TAB text) and edges.tsv (id TAB id).

  Of a line of nodes.tsv the first column is the id and the last the text. Edges are undirected;
  repeated ones and those of a node to itself are left out and counted in the log.

  Args:
    folder: with the two files, without headers.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.

  Raises:
    ConfigError: a file is missing.
    ValueError: a bad line, with file, line, column and what was expected; no node.
  """
  folder = pathlib.Path(folder)
  index = {}
  texts = list(parse_rows(read_tsv(folder / NODES), functools.partial(_parse_node, index),
                          on_bad_row=on_bad_row, where=folder / NODES))
  if not texts:
    raise ValueError(f'{folder / NODES}: expected nodes, found none')
  found = list(parse_rows(read_tsv(folder / EDGES), functools.partial(_parse_edge, index),
                          on_bad_row=on_bad_row, where=folder / EDGES))
  edges = np.unique(np.sort(np.array(found, np.int64).reshape(-1, 2), axis=1), axis=0)
  edges = edges[edges[:, 0] != edges[:, 1]]
  if len(edges) < len(found):
    _log.info('%s: %d of %d edges are repeated or loops', folder / EDGES, len(found) - len(edges),
              len(found))
  return TextGraph(list(index), texts, edges)


def write_graph(folder, graph):
  """Writes what `read_graph` reads."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for text in (*graph.ids, *graph.texts):
    _check_text(text, folder / NODES)
  rows = {NODES: zip(graph.ids, graph.texts),
          EDGES: ((graph.ids[i], graph.ids[j]) for i, j in graph.edges)}
  for name, lines in rows.items():
    with open(folder / name, 'w', encoding='utf-8', newline='\n') as file:
      file.writelines('\t'.join(line) + '\n' for line in lines)


def adjacency(num_nodes, edges):
  """The neighbours of each node, list of N sorted int arrays, of undirected edges [E, 2]."""
  both = np.concatenate([edges, edges[:, ::-1]]).reshape(-1, 2)
  both = both[np.lexsort(both.T[::-1])]
  return np.split(both[:, 1], np.searchsorted(both[:, 0], np.arange(1, num_nodes)))


def sample_neighbors(neighbors, most, seed=0):
  """int32 [N, most], -1 where there are no more: all neighbours, or `most` drawn at random.

  Args:
    neighbors: N int arrays, as by `adjacency`.
    most: columns.
    seed: of the draw.
  """
  rng = np.random.default_rng(seed)
  table = np.full((len(neighbors), most), -1, np.int32)
  for row, found in zip(table, neighbors):
    chosen = _draw(rng, found, most)
    row[:len(chosen)] = chosen
  return table


def split_pairs(graph, *, neighbors=5, validation, test, seed=0):
  """Splits the edges of a graph into pairs without leakage.

  The neighbours of all pairs are drawn from the training edges alone, and the other node of a pair
  is never among them, so that no list holds an answer. The direction of a pair is random.

  Args:
    graph: TextGraph.
    neighbors: most neighbours of a node.
    validation: number of edges, or a share below 1.
    test: likewise.
    seed: of split, direction and neighbours.

  Returns:
    {'train', 'validation', 'test': list of ((u, its neighbours), (v, its neighbours)), integers}.

  Raises:
    ConfigError: a part would be without an edge.
  """
  size = lambda share: int(share * len(graph.edges)) if share < 1 else int(share)
  counts = {'validation': size(validation), 'test': size(test)}
  left = len(graph.edges) - sum(counts.values())
  require(left > 0 and min(counts.values()) > 0, 'validation, test',
          f'at least 1 each and together fewer than the {len(graph.edges)} edges', counts)
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(graph.edges))
  bounds = np.cumsum([left, counts['validation']])
  parts = dict(zip(('train', 'validation', 'test'), np.split(order, bounds)))
  known = adjacency(len(graph.ids), graph.edges[np.sort(parts['train'])])

  def side(node, other):
    others = known[node]
    return int(node), [int(n) for n in _draw(rng, others[others != other], neighbors)]

  pairs = {}
  for split, rows in parts.items():
    flip = rng.random(len(rows)) < 0.5
    ends = np.where(flip[:, None], graph.edges[rows][:, ::-1], graph.edges[rows])
    pairs[split] = [(side(u, v), side(v, u)) for u, v in ends]
  return pairs


def write_split(folder, graph, **options):
  """Writes the pairs of `split_pairs` (`options` are its) as train.tsv, valid.tsv and test.tsv."""
  texts = lambda node, around: [graph.texts[n] for n in (node, *around)]
  for split, pairs in split_pairs(graph, **options).items():
    write_pairs(pathlib.Path(folder) / FILES[split],
                ({'query': texts(*u), 'key': texts(*v)} for u, v in pairs))


def see_also_graph():
  """The TextGraph of the "See Also" links between docstrings of installed packages."""
  links = docstrings.see_also()
  texts = [' '.join(text.replace(SEPARATOR, ' ').split()) for text in links.texts]
  return TextGraph(links.names, texts, np.array(links.edges, np.int64))


@dataclasses.dataclass(eq=False, kw_only=True)
class TextPairsConfig(tfds.core.BuilderConfig):
  """A form of the data.

  Attributes:
    folder: of the files, in the folder of official files; '' for the demo.
    from_graph: whether these are nodes.tsv and edges.tsv, to be split.
    neighbors: most neighbours that the split draws.
    validation: share of the edges, or their number, see `split_pairs`.
    test: likewise.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  folder: str
  from_graph: bool = False
  neighbors: int = 5
  validation: float = 0.05
  test: float = 0.1
  on_bad_row: str = 'raise'


class TextPairs(ArrayRecordBuilder, skip_registration=True):
  """Pairs of linked nodes, each with its text and those of its neighbours.

  'query' and 'key' are sequences of texts, the node's own first. 'demo' is real: functions and
  classes of installed packages that name each other under "See Also", their text the first sentence
  of the docstring.
  """

  BUILDER_CONFIGS = [
      TextPairsConfig(name='pairs', folder='text_pairs', description="GraphFormers' files."),
      TextPairsConfig(name='graph', folder='text_graph', from_graph=True,
                      description='nodes.tsv and edges.tsv, split without leakage.'),
      TextPairsConfig(name='demo', folder='', from_graph=True, validation=300, test=600,
                      description='"See Also" links of docstrings.'),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Config 'pairs': train.tsv, valid.tsv and test.tsv in the format of GraphFormers "
      '(https://github.com/microsoft/GraphFormers says where its DBLP and Wikidata files are) in '
      "the folder text_pairs. Config 'graph': nodes.tsv (id, text) and edges.tsv (id, id), "
      'tab-separated without headers, in text_graph.')

  def _info(self):
    texts = tfds.features.Sequence(tfds.features.Text())
    return tfds.core.DatasetInfo(
        builder=self, description=self.__doc__, disable_shuffling=True,
        features=tfds.features.FeaturesDict({'query': texts, 'key': texts}))

  def _split_generators(self, dl_manager):
    config = self.builder_config
    source = dl_manager.manual_dir / config.folder if config.folder else None
    made = tempfile.TemporaryDirectory()  # removed with the last generator that refers to it
    if config.from_graph:
      graph = (see_also_graph() if source is None
               else read_graph(source, on_bad_row=config.on_bad_row))
      write_split(made.name, graph, neighbors=config.neighbors, validation=config.validation,
                  test=config.test)
      source = made.name
    return {split: self._generate_examples(pathlib.Path(source, file), made)
            for split, file in FILES.items()}

  def _generate_examples(self, path, made):
    yield from enumerate(read_pairs(path, on_bad_row=self.builder_config.on_bad_row))
    del made


def _draw(rng, found, most):
  return found if len(found) <= most else rng.choice(found, most, replace=False)


def _check_text(text, where):
  for bad, name in (('\t', 'tab'), ('\n', 'line break'), ('\r', 'line break'),
                    (SEPARATOR, f'separator {SEPARATOR}')):
    if bad in text:
      raise ValueError(f'{where}: expected texts without a {name}, got {text!r}')


def _parse_pair(where, cells):
  if len(cells) != 2:
    raise ValueError(f'{where}: expected 2 columns, query TAB key, got {len(cells)}')
  return dict(zip(('query', 'key'), (cell.split(SEPARATOR) for cell in cells)))


def _parse_node(index, where, cells):
  if len(cells) < 2:
    raise ValueError(f'{where}: expected at least 2 columns, id TAB text, got {len(cells)}')
  if cells[0] in index:
    raise ValueError(f'{where}: column 1: expected each id once, got {cells[0]!r} again')
  if SEPARATOR in cells[-1]:
    raise ValueError(f'{where}: column {len(cells)}: expected a text without {SEPARATOR}, got '
                     f'{cells[-1]!r}')
  index[cells[0]] = len(index)
  return cells[-1]


def _parse_edge(index, where, cells):
  if len(cells) != 2:
    raise ValueError(f'{where}: expected 2 columns, id TAB id, got {len(cells)}')
  for column, cell in enumerate(cells, 1):
    if cell not in index:
      raise ValueError(f'{where}: column {column}: expected the id of a node, got {cell!r}')
  return index[cells[0]], index[cells[1]]
