"""Pages with a query: the TFDS builder, and the rows of ids that the models read."""
import dataclasses
import logging
import pathlib
import tempfile
import zlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxlab import config as config_lib
from jaxlab.data import builders, text
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.systems.deepqse import demo, formats

FILES = {'train': 'train.tsv', 'validation': 'dev.tsv', 'test': 'test.tsv'}
MAX_SENTENCES = 160


@dataclasses.dataclass(eq=False, kw_only=True)
class PagesConfig(tfds.core.BuilderConfig):
  """A folder of pages.

  Attributes:
    folder: with the files of `FILES` in the format of 8 columns; '' for the demo.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  folder: str = ''
  on_bad_row: str = 'raise'


class Snippets(ArrayRecordBuilder, skip_registration=True):
  """Queries, the sentences of a page each, and the sentence that a snippet should start with.

  The config 'demo' is made of docstrings of installed packages; `configure` makes that of a folder.
  """

  BUILDER_CONFIGS = [PagesConfig(name='demo', description='Docstrings of installed packages.')]

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self, description=self.__doc__, disable_shuffling=True,
        features=tfds.features.FeaturesDict({
            'query': tfds.features.Text(), 'title': tfds.features.Text(),
            'sentences': tfds.features.Sequence(tfds.features.Text()),
            'label': np.int32, 'lang': tfds.features.Text()}))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(file) for split, file in FILES.items()}

  def _generate_examples(self, file):
    config = self.builder_config
    with tempfile.TemporaryDirectory() as made:
      if not config.folder:
        demo.write(made)
      examples, dropped = formats.read_pages(
          pathlib.Path(config.folder or made, file), max_sentences=MAX_SENTENCES,
          on_bad_row=config.on_bad_row)
    if any(dropped.values()):
      logging.warning('%s: dropped %s', file, ', '.join(f'{count} with {reason}'
                                                         for reason, count in dropped.items()))
    for number, example in enumerate(examples):
      columns = example._asdict()
      del columns['url']
      yield number, columns


builders.BUILDERS['snippets'] = f'{__name__}:Snippets'


def configure(folder):
  """Name of the builder's config of a folder as it is now; files that change are another config."""
  folder = pathlib.Path(folder).expanduser().absolute()
  status = []
  for file in FILES.values():
    config_lib.require((folder / file).is_file(), 'data.folder',
                       f'a folder with {", ".join(FILES.values())}', str(folder))
    found = (folder / file).stat()
    status.append(f'{found.st_size} {found.st_mtime_ns}')
  version = zlib.crc32(f'{folder} {status}'.encode())
  config = PagesConfig(name=f'{folder.name}-{version:08x}', folder=str(folder),
                       description=str(folder))
  Snippets.builder_configs.setdefault(config.name, config)
  return config.name


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The mapping `config.data`.

  Attributes:
    folder: of train.tsv, dev.tsv and test.tsv; '' for the demo of docstrings.
    train: TFDS split, such as 'train' or 'train[:1000]'.
    validation: likewise.
    test: likewise.
    max_sentences: n, sentences of a page, at most 160; longer pages are predicted in windows.
    max_query: tokens of a query that are read.
    max_title: of a title.
    max_sentence: of a sentence.
    vocab_size: of the WordPiece vocabulary that is learned from the training part where there is
      neither a `tokenizer` nor a folder of a model.
    tokenizer: file or folder for `text.load_tokenizer`.
  """
  folder: str = ''
  train: str = 'train'
  validation: str = 'validation'
  test: str = 'test'
  max_sentences: int = MAX_SENTENCES
  max_query: int = 32
  max_title: int = 32
  max_sentence: int = 64
  vocab_size: int = 4000
  tokenizer: str | None = None

  def __post_init__(self):
    config_lib.at_least(1, self, ('max_query', 'max_title', 'max_sentence'), 'data')
    config_lib.require(1 <= self.max_sentences <= MAX_SENTENCES, 'data.max_sentences',
                       f'1 to {MAX_SENTENCES}', self.max_sentences)
    config_lib.require(self.vocab_size >= 8, 'data.vocab_size', 'at least 8', self.vocab_size)

  @property
  def longest(self):
    """Tokens of the longest row, the special ones too."""
    return 4 + self.max_query + self.max_title + self.max_sentence


class Pieces(NamedTuple):
  """Texts as ids, each with a separator at its end; see `model.compose`.

  Attributes:
    query: int32 [N, Sq].
    title: int32 [N, St].
    sentences: int32 [N, n, Ss]; a row without tokens is no sentence.
  """
  query: np.ndarray
  title: np.ndarray
  sentences: np.ndarray


def read(config):
  """split -> [formats.Example, ...] of a DataConfig; ConfigError for a split that is not there.

  Pages are cut to max_sentences; where that leaves the gold sentence out, the example goes too.
  """
  name = configure(config.folder) if config.folder else 'demo'
  builder = builders.load('snippets', config=name)
  return {split: _examples(builder, getattr(config, split), config.max_sentences)
          for split in FILES}


def _examples(builder, split, max_sentences):
  try:
    source = builder.as_data_source(split)
    rows = source.__getitems__(range(len(source)))
  except ValueError as error:
    raise config_lib.ConfigError(f'data: no split {split!r}: {error}') from error
  decode = lambda value: value.decode('utf-8')
  kept = [formats.Example(decode(r['query']), decode(r['title']),
                          tuple(map(decode, r['sentences'][:max_sentences])), int(r['label']),
                          decode(r['lang']))
          for r in rows if r['label'] < max_sentences]
  config_lib.require(kept, f'data: {split}', 'examples with a gold sentence among the first '
                     f'{max_sentences}', len(rows))
  if len(kept) < len(rows):
    logging.warning('%s: dropped %d with late label', split, len(rows) - len(kept))
  return kept


def make_tokenizer(config, folder, examples):
  """The tokenizer of a DataConfig, of a model's folder, or learned from Examples."""
  if config.tokenizer or folder:
    return text.load_tokenizer(config.tokenizer or folder)
  texts = dict.fromkeys(t for e in examples for t in (e.query, e.title, *e.sentences))
  return text.train_wordpiece(list(texts), config.vocab_size)


def cls_id(tokenizer):
  """Id of the token that rows start with."""
  return int(text.encode(tokenizer, [''], max_length=2).ids[0, 0])


def piece(tokenizer, texts, limit):
  """int32 [N, limit + 1]: at most `limit` tokens of each text and a separator."""
  return text.encode(tokenizer, texts, max_length=limit + 2, length=limit + 2).ids[:, 1:]


def pieces(tokenizer, config, queries, titles, pages):
  """The Pieces of N queries, titles and pages (sequences of at most max_sentences sentences)."""
  flat = [sentence for page in pages for sentence in page]
  rows = piece(tokenizer, flat, config.max_sentence)
  sentences = np.full((len(pages), config.max_sentences, rows.shape[1]), text.pad_id(tokenizer),
                      np.int32)
  start = 0
  for i, page in enumerate(pages):
    sentences[i, :len(page)] = rows[start:start + len(page)]
    start += len(page)
  return Pieces(piece(tokenizer, queries, config.max_query),
                piece(tokenizer, titles, config.max_title), sentences)


def columns(tokenizer, config, examples, languages):
  """{'query', 'title', 'sentences', 'label', 'lang': [N, ...]} of Examples.

  Args:
    tokenizer: a `tokenizers.Tokenizer`.
    config: DataConfig.
    examples: [formats.Example, ...].
    languages: names; 'lang' is an index into them.
  """
  made = pieces(tokenizer, config, [e.query for e in examples], [e.title for e in examples],
                [e.sentences for e in examples])
  return {**made._asdict(), 'label': np.array([e.label for e in examples], np.int32),
          'lang': np.array([languages.index(e.lang) for e in examples], np.int32)}
