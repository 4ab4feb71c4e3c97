"""From impressions and news to what a news recommender reads: words, padded histories, samples."""
import itertools
import re
from typing import Literal, NamedTuple

import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import builders, glove, mind

_WORDS = re.compile(r'[\w]+|[.,!?;|]')
POPULAR_SHARE, UNPOPULAR_SHARE = 0.1, 0.55
COLUMNS = ('category', 'subcategory', 'title', 'abstract', 'split')


class Ragged(NamedTuple):
  """Lists of unlike lengths in two arrays.

  Attributes:
    values: [V], list after list.
    offsets: int64 [N + 1]; list i is values[offsets[i]:offsets[i + 1]].
  """
  values: np.ndarray
  offsets: np.ndarray

  @classmethod
  def of(cls, lists, dtype):
    """From a sequence of arrays."""
    sizes = [len(one) for one in lists]
    values = np.concatenate([np.zeros(0, dtype), *lists]).astype(dtype)
    return cls(values, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

  @property
  def sizes(self):
    """int64 [N]."""
    return np.diff(self.offsets)

  def padded(self, length, *, side='back', keep='first', value=0):
    """[N, length]: the first or the last entries of each list, and `value` on one side.

    Args:
      length: L.
      side: 'front' or 'back', where the padding goes.
      keep: 'first' or 'last' of a longer list.
      value: of the padding.
    """
    sizes = np.minimum(self.sizes, length)
    start = self.offsets[:-1] if keep == 'first' else self.offsets[1:] - sizes
    place = np.arange(length) - (0 if side == 'back' else (length - sizes)[:, None])
    real = (place >= 0) & (place < sizes[:, None])
    rows = np.where(real, start[:, None] + place, 0)
    taken = self.values[rows] if len(self.values) else np.zeros(rows.shape, self.values.dtype)
    return np.where(real, taken, value).astype(self.values.dtype)


class Impressions(NamedTuple):
  """A split as columns; see `mind.Mind` for the meaning."""
  impression: np.ndarray
  user: np.ndarray
  time: np.ndarray
  history: Ragged
  candidates: Ragged
  labels: Ragged


def collect(examples):
  """The Impressions of examples as `mind.numbered` or the builders give them."""
  examples = list(examples)
  column = lambda name, dtype: np.array([one[name] for one in examples], dtype)
  ragged = lambda name, dtype: Ragged.of([np.asarray(one[name]) for one in examples], dtype)
  return Impressions(column('impression', np.int32), column('user', np.int32),
                     column('time', np.int64), ragged('history', np.int32),
                     ragged('candidates', np.int32), ragged('labels', np.int8))


def load(name, config, columns=COLUMNS):
  """(news columns, {split: Impressions}) of a builder of `mind` or `adressa`.

  Args:
    name: 'mind', 'adressa' or another whose news are those of `name`_news.
    config: of the builder.
    columns: of the news.
  """
  builder = builders.load(name, config=config)
  splits = {}
  for split, info in builder.info.splits.items():
    splits[split] = collect(builder.as_data_source(split).__getitems__(range(info.num_examples)))
  table = builders.load(f'{name}_news', config=config)
  rows = table.as_data_source('news').__getitems__(range(table.info.splits['news'].num_examples))
  return {text: [row[text].decode() for row in rows] for text in columns}, splits


def read_folder(folder, splits):
  """(news columns, {split: Impressions}) of a folder in MIND's format.

  Args:
    folder: with a folder a split, see `mind.read_behaviors`.
    splits: {split: its folder's name}.
  """
  rows = mind.all_news(folder)
  numbers, users = {row.news: i for i, row in enumerate(rows, 1)}, {}
  read = lambda name: mind.read_behaviors(folder / name / 'behaviors.tsv')
  made = {split: collect(mind.numbered(read(name), numbers, users))
          for split, name in splits.items()}
  return {text: [getattr(row, text) for row in rows] for text in COLUMNS}, made


def tokenize(text):
  """Words and the signs . , ! ? ; | of a lower-cased text; other punctuation is dropped.

  >>> tokenize("It's 7:30, |now|")
  ['it', 's', '7', '30', ',', '|', 'now', '|']
  """
  return _WORDS.findall(text.lower())


def make_vocabulary(texts, min_count):
  """{word: id from 1} of the words that occur at least `min_count` times, in first-seen order.

  Id 0 is left for padding and all other words.
  """
  counts = {}
  for text in texts:
    for word in tokenize(text):
      counts[word] = counts.get(word, 0) + 1
  return {word: i for i, word in enumerate((w for w, n in counts.items() if n >= min_count), 1)}


def encode(texts, vocabulary, length):
  """Word ids int32 [N, length], cut and filled up with 0 at the back."""
  ids = [np.array([vocabulary.get(word, 0) for word in tokenize(text)], np.int32) for text in texts]
  return Ragged.of(ids, np.int32).padded(length)


def encode_pieces(texts, tokenizer, length):
  """(ids, mask) int32 [N, length] of word pieces with the tokenizer's own special tokens.

  Args:
    texts: N strings.
    tokenizer: path of a tokenizer.json.
    length: tokens with the special ones; longer texts are cut.
  """
  try:
    import tokenizers
  except ImportError as error:
    raise config_lib.ConfigError("data.tokenizer needs: pip install 'jaxlab[text]'") from error
  coder = tokenizers.Tokenizer.from_file(tokenizer)
  coder.enable_truncation(length)
  coder.enable_padding(length=length)
  coded = coder.encode_batch(list(texts))
  return (np.array([one.ids for one in coded], np.int32).reshape(-1, length),
          np.array([one.attention_mask for one in coded], np.int32).reshape(-1, length))


class NewsTable(NamedTuple):
  """What is known of the news.

  Attributes:
    features: {name: [N + 1, ...]}, row 0 (the unknown news) all zero: 'title' and 'abstract' word
      ids int32 [., T], 'category' and 'subcategory' ids int32, 'title_mask' with word pieces.
    vocabulary: {word: id}; empty with word pieces.
    num_categories: of the ids, the unknown 0 among them.
    num_subcategories: likewise.
    vectors: float32 [V, E] for the word table, or None.
  """
  features: dict
  vocabulary: dict
  num_categories: int
  num_subcategories: int
  vectors: np.ndarray | None = None

  @property
  def vocab_size(self):
    """Word ids, 0 among them."""
    return len(self.vocabulary) + 1


def make_table(news, *, title_length: int = 30, abstract_length: int = 0, min_count: int = 3,
               word_vectors: str | None = None, tokenizer: str | None = None):
  """Makes the NewsTable of news columns.

  Args:
    news: {'title', 'abstract', 'category', 'subcategory': N texts, and perhaps 'split'}.
    title_length: words of a title, at most.
    abstract_length: words of an abstract, at most; 0 leaves the abstracts out.
    min_count: occurrences in titles (and abstracts, where they are used) that make a word known;
      news of the split 'test' alone do not count.
    word_vectors: a file of GloVe vectors to start the word table from.
    tokenizer: a tokenizer.json; titles then are word pieces with a mask.
  """
  features, vocabulary = {}, {}
  if tokenizer:
    features['title'], features['title_mask'] = encode_pieces(news['title'], tokenizer,
                                                              title_length)
  else:
    counted = [split != 'test' for split in news.get('split', [''] * len(news['title']))]
    fields = ('title', 'abstract') if abstract_length else ('title',)
    texts = [text for name in fields for text in itertools.compress(news[name], counted)]
    vocabulary = make_vocabulary(texts, min_count)
    features['title'] = encode(news['title'], vocabulary, title_length)
    if abstract_length:
      features['abstract'] = encode(news['abstract'], vocabulary, abstract_length)
  sizes = {}
  for name in ('category', 'subcategory'):
    ids = {value: i for i, value in enumerate(dict.fromkeys(filter(None, news[name])), 1)}
    features[name] = np.array([ids.get(value, 0) for value in news[name]], np.int32)
    sizes[name] = len(ids) + 1
  vectors = glove.read_table(word_vectors, vocabulary) if word_vectors else None
  first = lambda x: np.concatenate([np.zeros_like(x[:1]), x])
  return NewsTable({name: first(x) for name, x in features.items()}, vocabulary,
                   sizes['category'], sizes['subcategory'], vectors)


def click_samples(split, *, history_length, pad_side: Literal['front', 'back'], min_pool):
  """One training sample a click: the click and the impression's news that were not clicked.

  Args:
    split: Impressions with labels.
    history_length: H; the last clicks are kept.
    pad_side: where shorter histories are filled up with news 0.
    min_pool: smallest width of 'pool'.

  Returns:
    Columns int32: 'row' [S] 0..S-1, 'user' [S], 'click' [S], 'pool' [S, P] filled up with 0,
    'pool_size' [S], 'history' [S, H].
  """
  owner = np.repeat(np.arange(len(split.user)), split.candidates.sizes)
  clicked = split.labels.values == 1
  others = split.labels.values == 0
  sizes = np.bincount(owner[others], minlength=len(split.user))
  pools = Ragged(split.candidates.values[others], np.concatenate([[0], np.cumsum(sizes)]))
  pool = pools.padded(max(min_pool, sizes.max(initial=0)))
  history = split.history.padded(history_length, side=pad_side, keep='last')
  impression = owner[clicked]
  return {'row': np.arange(len(impression), dtype=np.int32), 'user': split.user[impression],
          'click': split.candidates.values[clicked], 'pool': pool[impression],
          'pool_size': sizes[impression].astype(np.int32), 'history': history[impression]}


def impression_rows(split, *, history_length, pad_side: Literal['front', 'back']):
  """Whole impressions for evaluation.

  Returns:
    Columns: 'impression' and 'user' int32 [R], 'history' [R, H], 'candidates' int32 [R, L] in the
    order of the file, 'labels' int8 [R, L] (-1 for padding and where unknown), 'count' int32 [R].
  """
  length = max(1, split.candidates.sizes.max(initial=0))
  return {'impression': split.impression, 'user': split.user,
          'history': split.history.padded(history_length, side=pad_side, keep='last'),
          'candidates': split.candidates.padded(length),
          'labels': split.labels.padded(length, value=-1),
          'count': split.candidates.sizes.astype(np.int32)}


def popularity(split, num_news):
  """(click-through rate [N + 1], class int [N + 1]) of news over the impressions of a split.

  News are sorted by falling rate: the first tenth is popular (0), the last .55 unpopular (2), the
  rest between (1). News that were never clicked have rate 0 and class -1.

  Args:
    split: Impressions with labels.
    num_news: N; news are numbered from 1.
  """
  count = lambda chosen: np.bincount(split.candidates.values[chosen], minlength=num_news + 1)
  clicks, shown = count(split.labels.values == 1), count(split.labels.values >= 0)
  rate = clicks / np.maximum(shown, 1)
  known = 1 + np.flatnonzero(clicks[1:])
  order = known[np.argsort(-rate[known], kind='stable')]
  classes = np.full(num_news + 1, -1)
  classes[order] = 1
  classes[order[:int(POPULAR_SHARE * len(order))]] = 0
  last = int(UNPOPULAR_SHARE * len(order))
  classes[order[len(order) - last:]] = 2
  return rate, classes
