"""Pairs of nodes with their neighbours as padded token ids."""
import array
from typing import Literal, NamedTuple

import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import builders, pipeline, text
from jaxlab.data.graph import TextPairs, sample_neighbors
from jaxlab.systems.graphformers.pollution import Vocabulary

SIDES = ('query', 'key')
_SPECIAL = ('[PAD]', '[CLS]', '[SEP]', '<pad>', '<s>', '</s>')


class Lengths(NamedTuple):
  """How texts are cut.

  Attributes:
    neighbors: K, neighbours of a node that are read; the first ones.
    tokens: S, most tokens of a text, special ones too.
    center: most tokens of the centre's text; `tokens` by default.
  """
  neighbors: int
  tokens: int
  center: int


class Texts(NamedTuple):
  """Distinct texts and the pairs of nodes that they are in.

  Attributes:
    texts: distinct strings, '' first.
    numbers: split -> int32 [n, 2, 1 + K] into `texts`: query and key, the node and its neighbours;
      0 for an absent neighbour.
  """
  texts: list[str]
  numbers: dict[str, np.ndarray]


def load_pairs(*, name: Literal['demo', 'pairs', 'graph'], train: str = 'train',
               validation: str = 'validation', test: str = 'test', manual_dir: str | None = None,
               neighbors: int = 5):
  """Reads the three splits of a set of pairs.

  Args:
    name: a config of the builder `data.graph.TextPairs`.
    train: TFDS split of the training part.
    validation: likewise.
    test: likewise.
    manual_dir: folder of the official files.
    neighbors: K; at most what the builder draws where it splits a graph.

  Returns:
    Texts.

  Raises:
    ConfigError: more neighbours than the data hold, or no such split.
  """
  check_neighbors(name, neighbors)
  builder = builders.load('text_pairs', config=name, manual_dir=manual_dir)
  splits = {}
  for split, part in (('train', train), ('validation', validation), ('test', test)):
    try:
      splits[split] = _decoded(builder.as_data_source(part))
    except ValueError as error:
      raise config_lib.ConfigError(f'data.{split}: no split {part!r} of {name}: {error}') from error
  return number_texts(splits, neighbors)


def check_neighbors(name, neighbors):
  """Raises ConfigError unless a config of the builder holds so many neighbours of a node."""
  config_lib.at_least(0, {'neighbors': neighbors}, where='data')
  source = TextPairs.builder_configs[name]
  config_lib.require(
      not source.from_graph or neighbors <= source.neighbors, 'data.neighbors',
      f'at most the {source.neighbors} that the split of {name!r} draws (data.graph.write_split '
      "writes 'pairs' with more)", neighbors)


def _decoded(source, block=8192):
  """Yields the pairs of a data source, read a block at a time."""
  for start in range(0, len(source), block):
    for row in source.__getitems__(range(start, min(start + block, len(source)))):
      yield {side: [part.decode('utf-8') for part in row[side]] for side in SIDES}


def number_texts(splits, neighbors):
  """Texts of split -> iterable of {'query', 'key'}: lists of texts, the node's own first."""
  index, numbers = {'': 0}, {}
  for split, pairs in splits.items():
    cells = array.array('i')  # a list of integers would not hold millions of pairs
    for text_lists in (pair[side] for pair in pairs for side in SIDES):
      found = [index.setdefault(one, len(index)) for one in text_lists[:1 + neighbors]]
      cells.extend(found + [0] * (1 + neighbors - len(found)))
    numbers[split] = np.array(cells, np.int32).reshape(-1, 2, 1 + neighbors)
  return Texts(list(index), numbers)


def learn_tokenizer(texts, vocab_size):
  """A WordPiece tokenizer of the texts in the training pairs."""
  seen = np.unique(texts.numbers['train'])
  return text.train_wordpiece([texts.texts[i] for i in seen], vocab_size)


def vocabulary(tokenizer):
  """The Vocabulary of a tokenizer; ConfigError if it has no token for masking."""
  mask = next((i for i in map(tokenizer.token_to_id, ('[MASK]', '<mask>')) if i is not None), None)
  config_lib.require(mask is not None, 'data.tokenizer', 'a vocabulary with [MASK] or <mask>', None)
  special = tuple(i for i in map(tokenizer.token_to_id, _SPECIAL) if i is not None)
  return Vocabulary(tokenizer.get_vocab_size(), mask, special)


def tokenize(tokenizer, texts, length):
  """{'ids', 'mask'} [N, length] of texts."""
  tokens = text.encode(tokenizer, texts, max_length=length, length=length)
  narrow = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32
  return {'ids': tokens.ids.astype(narrow), 'mask': tokens.mask.astype(np.uint8)}


def columns(tokenizer, texts, lengths):
  """split -> {f'{side}_ids', f'{side}_mask' [n, 1 + K, S], f'{side}_nodes' [n, 1 + K]}.

  A neighbour without a word of its own is absent ('nodes' is 0); the centre never is.
  """
  whole = tokenize(tokenizer, texts.texts, lengths.tokens)
  short = tokenize(tokenizer, texts.texts, lengths.center)
  empty = whole['mask'].sum(1) <= 2  # nothing but the two special tokens
  result = {}
  for split, numbers in texts.numbers.items():
    result[split] = {}
    for number, side in enumerate(SIDES):
      rows = numbers[:, number]
      here = ~empty[rows]
      here[:, 0] = True
      for name in ('ids', 'mask'):
        found = whole[name][rows]
        pad = text.pad_id(tokenizer) if name == 'ids' else 0
        found[~here] = pad
        found[:, 0] = pad
        found[:, 0, :lengths.center] = short[name][rows[:, 0]]
        result[split][f'{side}_{name}'] = found
      result[split][f'{side}_nodes'] = here.astype(np.uint8)
  return result


def datasets(tokenizer, texts, lengths):
  """split -> grain.MapDataset of the rows of `columns`."""
  made = columns(tokenizer, texts, lengths)
  return {split: pipeline.from_arrays(found) for split, found in made.items()}


def graph_tokens(tokenizer, graph, adjacency, lengths, seed=0):
  """What `encode_graph` takes of a `data.graph.TextGraph`.

  Args:
    tokenizer: of the model.
    graph: TextGraph.
    adjacency: its neighbours, as by `data.graph.adjacency`.
    lengths: Lengths.
    seed: of the draw where a node has more than K neighbours.

  Returns:
    (tokens {'ids', 'mask'} [N, S] of the nodes as neighbours, those as centres, neighbours int32
    [N, K], -1 where there is none or one without a word).
  """
  tokens = tokenize(tokenizer, graph.texts, lengths.tokens)
  centers = tokenize(tokenizer, graph.texts, lengths.center)
  neighbors = sample_neighbors(adjacency, lengths.neighbors, seed)
  empty = tokens['mask'].sum(1) <= 2
  neighbors = np.where((neighbors >= 0) & empty[neighbors], -1, neighbors)
  return tokens, centers, neighbors
