"""GLUE (arXiv 1804.07461) from its official tab-separated files, and small sets in their forms."""
import contextlib
import dataclasses
import functools
import pathlib
import tempfile

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.config import ConfigError
from jaxlab.data import docstrings
from jaxlab.data.array_record import ArrayRecordBuilder
from jaxlab.data.rows import parse_rows

_BINARY = ('0', '1')
_ENTAILS = ('entailment', 'not_entailment')
_DEV = {'train': 'train.tsv', 'validation': 'dev.tsv'}
_MNLI = {'train': 'train.tsv', 'validation_matched': 'dev_matched.tsv',
         'validation_mismatched': 'dev_mismatched.tsv'}


@dataclasses.dataclass(eq=False, kw_only=True)
class GlueConfig(tfds.core.BuilderConfig):
  """The form of one task's files; a column is a header's name, or a number where there is none.

  Attributes:
    folder: in the folder of official files.
    columns: of the one or two sentences.
    label: column of the label.
    labels: its values in the order of the classes; empty for scores 0 to 5.
    files: split -> file.
    on_bad_row: 'raise' or 'skip', see `rows.parse_rows`.
  """
  folder: str
  columns: tuple[str | int, ...]
  label: str | int
  labels: tuple[str, ...]
  files: dict[str, str]
  on_bad_row: str = 'raise'


def _config(name, folder, columns, label, labels, files=None):
  return GlueConfig(name=name, folder=folder, columns=columns, label=label, labels=labels,
                    files=files or _DEV, description=f'{folder} of GLUE.')


CONFIGS = {config.name: config for config in (
    _config('cola', 'CoLA', (3,), 1, _BINARY),
    _config('sst2', 'SST-2', ('sentence',), 'label', _BINARY),
    _config('mrpc', 'MRPC', ('#1 String', '#2 String'), 'Quality', _BINARY),
    _config('stsb', 'STS-B', ('sentence1', 'sentence2'), 'score', ()),
    _config('qqp', 'QQP', ('question1', 'question2'), 'is_duplicate', _BINARY),
    _config('mnli', 'MNLI', ('sentence1', 'sentence2'), 'gold_label',
            ('entailment', 'neutral', 'contradiction'), _MNLI),
    _config('qnli', 'QNLI', ('question', 'sentence'), 'label', _ENTAILS),
    _config('rte', 'RTE', ('sentence1', 'sentence2'), 'label', _ENTAILS),
    # The SMS Spam Collection as id, ham or spam, message, without a header.
    _config('sms', '.', (2,), 1, ('ham', 'spam'), {'train': 'train.tsv', 'validation': 'test.tsv'}),
    _config('demo', 'SST-2', ('sentence',), 'label', _BINARY),
)}


class Glue(ArrayRecordBuilder, skip_registration=True):
  """Sentences or pairs of sentences with a label; a config a task.

  'sentence1' and 'sentence2' are text, the second empty in tasks of single sentences; 'label' is
  float32: the class, or the score of STS-B. 'demo' is real text that is at hand, in the form of
  SST-2: is a sentence from the docstrings of array packages (0) or of statistics and learning (1)?
  """

  BUILDER_CONFIGS = list(CONFIGS.values())
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'The folders CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI and RTE of https://gluebenchmark.com, '
      "each with its train.tsv and dev.tsv. Config 'sms': train.tsv and test.tsv of id, ham or "
      'spam, and message.')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self, description=self.__doc__, disable_shuffling=True,
        features=tfds.features.FeaturesDict({
            'sentence1': tfds.features.Text(), 'sentence2': tfds.features.Text(),
            'label': np.float32}))

  def _split_generators(self, dl_manager):
    manual_dir = None if self.builder_config.name == 'demo' else dl_manager.manual_dir
    return {split: self._generate_examples(manual_dir, file)
            for split, file in self.builder_config.files.items()}

  def _generate_examples(self, manual_dir, file):
    config = self.builder_config
    with contextlib.ExitStack() as stack:
      if manual_dir is None:
        manual_dir = stack.enter_context(tempfile.TemporaryDirectory())
        write_demo(pathlib.Path(manual_dir, config.folder))
      path = pathlib.Path(manual_dir, config.folder, file)
      lines, header = read_tsv(path), None
      if isinstance(config.label, str):
        where, header = next(lines, (f'{path}: line 1', ()))
        for column in (*config.columns, config.label):
          if column not in header:
            raise ValueError(f'{where}: expected a header with {column!r}, got {list(header)}')
      rows = parse_rows(lines, functools.partial(parse_row, config, header),
                        on_bad_row=config.on_bad_row, where=self.name)
      yield from enumerate(rows)


def read_tsv(path):
  """Yields (where, cells) of every line of a tab-separated file; quotes are letters.

  Raises:
    ConfigError: there is no such file.
    ValueError: bytes that are no UTF-8, with file, line and column.
  """
  if not path.is_file():
    raise ConfigError(f'{path}: no such file')
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      where = f'{path}: line {number}'
      try:
        yield where, line.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n').split('\t')
      except UnicodeDecodeError as error:
        raise ValueError(f'{where}, column {error.start + 1}: expected UTF-8, got byte '
                         f'{line[error.start]:#04x}') from error


def parse_row(config, header, where, cells):
  """The example of a line.

  Args:
    config: GlueConfig.
    header: names of the columns, or None where the config numbers them.
    where: file and line.
    cells: of the line.

  Raises:
    ValueError: naming file, line, column and what was expected.
  """
  def cell(column):
    position = header.index(column) if header else column
    if position >= len(cells):
      raise ValueError(f'{where}: column {column!r}: expected at least {position + 1} cells, got '
                       f'{len(cells)}')
    return cells[position]

  label = cell(config.label)
  if config.labels:
    if label not in config.labels:
      raise ValueError(f'{where}: column {config.label!r}: expected one of '
                       f'{", ".join(config.labels)}, got {label!r}')
    value = config.labels.index(label)
  else:
    try:
      value = float(label)
    except ValueError:
      value = np.nan
    if not 0 <= value <= 5:
      raise ValueError(f'{where}: column {config.label!r}: expected a number 0 to 5, got {label!r}')
  sentences = [cell(column) for column in config.columns] + ['']
  return {'sentence1': sentences[0], 'sentence2': sentences[1], 'label': np.float32(value)}


DEMO_MODULES = (('numpy', 'jax.numpy', 'jax.lax', 'scipy.linalg', 'scipy.sparse', 'scipy.ndimage',
                 'scipy.signal'),
                ('scipy.stats', 'sklearn.cluster', 'sklearn.ensemble', 'sklearn.linear_model',
                 'sklearn.metrics', 'sklearn.model_selection', 'sklearn.preprocessing'))
DEMO_VALIDATION = 5  # every fifth docstring is for validation


def write_demo(folder):
  """Writes the demo as SST-2's train.tsv and dev.tsv; no sentence stands in both or twice."""
  folder.mkdir(parents=True, exist_ok=True)
  rows, seen = {'train.tsv': [], 'dev.tsv': []}, set()
  for label, modules in enumerate(DEMO_MODULES):
    documents = [document for module in modules for document in docstrings.sentences(module)]
    for number, document in enumerate(documents):
      for sentence in document:
        if sentence not in seen:
          seen.add(sentence)
          name = 'train.tsv' if number % DEMO_VALIDATION else 'dev.tsv'
          rows[name].append(f'{sentence}\t{label}\n')
  for name, lines in rows.items():
    order = np.random.default_rng(0).permutation(len(lines))
    (folder / name).write_text('sentence\tlabel\n' + ''.join(lines[i] for i in order),
                               encoding='utf-8')
