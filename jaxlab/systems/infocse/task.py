"""The Task of contrastive sentence embeddings whose positives the model picks itself.

Two steps take turns, as in hard expectation maximisation: `refresh` picks each sentence's positive,
the latent variable, by the parameters as they are; training raises the contrastive likelihood of
the positives as they are.
"""
import dataclasses
import inspect
import logging
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.data import documents, pipeline, sts, text
from jaxlab.losses import contrastive
from jaxlab.models import bert, bert_weights
from jaxlab.systems.infocse import corpus as corpus_lib
from jaxlab.systems.infocse import evaluation
from jaxlab.systems.infocse.model import TransformerEncoder, WordAverage
from jaxlab.systems.infocse.positives import Picker, Positives
from jaxlab.systems.infocse.views import view
from jaxlab.task import Loss, Task, row_keys
from jaxlab.tasks import text_classification
from jaxlab.train.evaluation import Evaluator, Snapshot

_log = logging.getLogger(__name__)
CONFIG_KEYS = ('model', 'data', 'positives', 'loss')
_OWN = ('pooler', 'head')  # of the transformer; the rest of config.model is its encoder's


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """The mapping `config.loss`.

  Attributes:
    temperature: of the cosines.
    symmetric: whether positives are also scored against anchors.
    mask_documents: whether sentences of one document are no negatives of each other.
    hard_weight: what is added to the logit of an anchor's own hard negative.
    self_weight: weight of a sentence that is its own positive.
  """
  temperature: float = 0.05
  symmetric: bool = False
  mask_documents: bool = True
  hard_weight: float = 0.0
  self_weight: float = 1.0

  def __post_init__(self):
    config_lib.require(self.temperature > 0, 'temperature', 'more than 0', self.temperature)
    config_lib.require(self.self_weight >= 0, 'self_weight', 'at least 0', self.self_weight)


class Texts(NamedTuple):
  """What `load_texts` reads.

  Attributes:
    documents: [documents.Document, ...].
    pairs: split -> (first sentences, second sentences, further columns [N]).
  """
  documents: list
  pairs: Mapping[str, tuple[list[str], list[str], Mapping[str, np.ndarray]]]


def load_texts(*, name: Literal['docstrings', 'files'] = 'docstrings', train: str | None = None,
               sts_pairs: str | None = None, retrieval_pairs: str | None = None,
               max_length: int = 64, max_sentences: int = 32, vocab_size: int = 4000,
               tokenizer: str | None = None, on_bad_row: Literal['raise', 'skip'] = 'raise'):
  """Reads a corpus and what it is evaluated on.

  Args:
    name: 'docstrings' of installed packages, whose split 'test' are descriptions of one function by
      two packages, to be retrieved; or 'files'.
    train: the file of documents, see `documents.read_documents`.
    sts_pairs: file or folder of the split 'sts', see `sts.read`.
    retrieval_pairs: file of the split 'retrieval': query, tab, relevant sentence.
    max_length: tokens after which a sentence is cut off.
    max_sentences: of a window in which positives are looked for.
    vocab_size: of the WordPiece vocabulary that is learned from the corpus where there is neither a
      `tokenizer` nor a folder of a model.
    tokenizer: file or folder for `text.load_tokenizer`.
    on_bad_row: of a corpus in JSON lines: 'raise', or 'skip' and report.

  Returns:
    Texts. The split 'test' is 'sts' where it is there, or else 'retrieval'.
  """
  del max_length, max_sentences, vocab_size, tokenizer  # of `make_task`
  if name == 'docstrings':
    return Texts(corpus_lib.demo_documents(),
                 {'test': (*map(list, zip(*corpus_lib.demo_pairs())), {})})
  pairs = {}
  if sts_pairs is not None:
    found = sts.read(sts_pairs)
    pairs['sts'] = found.first, found.second, {'score': found.score, 'subset': found.subset}
  if retrieval_pairs is not None:
    pairs['retrieval'] = (*_read_pairs(retrieval_pairs), {})
  pairs['test'] = pairs.get('sts') or pairs.get('retrieval')
  return Texts(documents.read_documents(train, on_bad_row=on_bad_row),
               {split: part for split, part in pairs.items() if part})


def _read_pairs(path):
  rows = []
  for where, line in documents.read_lines(path):
    cells = line.split('\t')
    if len(cells) != 2 or not all(cell.strip() for cell in cells):
      raise ValueError(f'{where}: expected a query, a tab and its sentence, got {line!r}')
    rows.append(cells)
  if not rows:
    raise ValueError(f'{path}: expected at least one pair')
  return map(list, zip(*rows))


def check(config):
  """Checks `config.model`, `config.data`, `config.positives` and `config.loss` without reading.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type, an impossible value.
  """
  data = config_lib.section(config, 'data')
  config_lib.check_arguments(load_texts, data, 'data', drop=())
  for key, least in (('max_length', 8), ('max_sentences', 2), ('vocab_size', 8)):
    config_lib.require(data.get(key, least) >= least, f'data.{key}', f'at least {least}',
                       data.get(key))
  files = data.get('name') == 'files'
  config_lib.require(files == (data.get('train') is not None), 'data.train',
                     "a file of documents with name='files', and only there", data.get('train'))
  for key in ('sts_pairs', 'retrieval_pairs'):
    config_lib.require(files or data.get(key) is None, f'data.{key}', "none without name='files'",
                       data.get(key))
  there = {'sts': data.get('sts_pairs'), 'retrieval': data.get('retrieval_pairs')}
  there = {name for name, path in there.items() if path}
  for split in config.get('eval_splits', ('test',)):
    config_lib.require(split in (there | {'test'} if there or not files else ()), 'eval_splits',
                       'sts with data.sts_pairs, retrieval with data.retrieval_pairs, test with '
                       'either or docstrings', split)
  config_lib.call(Positives, config.get('positives', {}), 'positives', drop=())
  config_lib.call(LossSettings, config.get('loss', {}), 'loss', drop=())
  model = config_lib.section(config, 'model')
  if model.get('name') == 'word_average':
    config_lib.check_arguments(WordAverage, model, 'model', drop=('name',),
                               injected=('vocab_size', 'parent', 'name'))
    config_lib.require(model['dim'] >= 1, 'model.dim', 'at least 1', model['dim'])
    return
  encoder_keys = inspect.signature(text_classification.encoder_config).parameters
  config_lib.check_keys(model, (*encoder_keys, *_OWN), 'model')
  poolers = [name for name in bert.POOLERS if name != 'pooler']
  config_lib.require(model.get('pooler', 'mean') in poolers, 'model.pooler',
                     f'one of {", ".join(poolers)}', model.get('pooler'))
  config_lib.check_type(model.get('head', False), bool, 'model.head')
  config_lib.call(text_classification.encoder_config, model, 'model', drop=_OWN)


def make_tokenizer(config, found):
  """The tokenizer of a config: its file, that of the model's folder, or one learned from the texts.

  Args:
    config: the experiment.
    found: Texts.
  """
  source = config['data'].get('tokenizer') or config['model'].get('folder')
  if source is not None:
    return text.load_tokenizer(source)
  return text.train_wordpiece((s for d in found.documents for s in d.sentences),
                              config['data'].get('vocab_size', 4000))


def make_encoder(config, tokenizer):
  """(the module, its encoder's published parameters or None) of `config.model`."""
  model = config['model']
  if model.get('name') == 'word_average':
    return WordAverage(tokenizer.get_vocab_size(), model['dim']), None
  own = {key: model[key] for key in _OWN if key in model}
  folder, shape, options = config_lib.call(text_classification.encoder_config, model, 'model',
                                           drop=_OWN)
  pretrained = None
  if folder is not None:
    module, pretrained = bert_weights.load(folder, **options, add_pooler=False)
    shape = module.config
  else:
    shape = dataclasses.replace(shape, add_pooler=False)
    if not config['data'].get('tokenizer'):
      shape = dataclasses.replace(shape, vocab_size=tokenizer.get_vocab_size(),
                                  pad_token_id=text.pad_id(tokenizer))
  text.check_vocabulary(tokenizer, shape.vocab_size, shape.pad_token_id)
  longest = config['data'].get('max_length', 64)
  config_lib.require(longest <= shape.max_length, 'data.max_length',
                     f"at most the model's {shape.max_length}", longest)
  return TransformerEncoder(shape, **own), pretrained


def make_task(config):
  """Makes the Task of a config.

  Args:
    config: 'model': an encoder (`text_classification.encoder_config`) with 'pooler' and 'head' of
      `TransformerEncoder`, or {'name': 'word_average', 'dim'}; 'data' as `load_texts` takes it;
      'positives' (`Positives`) and 'loss' (`LossSettings`).
  """
  check(config)
  found = config_lib.call(load_texts, config['data'], 'data', drop=())
  tokenizer = make_tokenizer(config, found)
  model, pretrained = make_encoder(config, tokenizer)
  length = config['data'].get('max_length', 64)
  corpus = corpus_lib.make_corpus(found.documents, tokenizer, max_length=length,
                                  max_sentences=config['data'].get('max_sentences', 32))
  splits = {}
  for split, (first, second, columns) in found.pairs.items():
    one, other = (text.encode(tokenizer, part, max_length=length) for part in (first, second))
    splits[split] = pipeline.from_arrays({
        'ids': one.ids, 'mask': one.mask.astype(np.uint8), 'positive_ids': other.ids,
        'positive_mask': other.mask.astype(np.uint8), **columns})
  return from_model(
      model, corpus, splits, pretrained=pretrained,
      positives=config_lib.call(Positives, config.get('positives', {}), 'positives', drop=()),
      settings=config_lib.call(LossSettings, config.get('loss', {}), 'loss', drop=()))


def file_dataset(config, path):
  """The data set of a file with a sentence a line, for `launch.predict`."""
  check(config)
  found = config_lib.call(load_texts, config['data'], 'data', drop=())
  tokens = text.encode(make_tokenizer(config, found),
                       [line for _, line in documents.read_lines(path)],
                       max_length=config['data'].get('max_length', 64))
  return pipeline.from_arrays({'ids': tokens.ids, 'mask': tokens.mask.astype(np.uint8)})


def from_model(model, corpus, splits, *, positives, settings, pretrained=None):
  """Makes the Task of a module and a corpus.

  `dataset('train')` has every sentence as its own positive (SimCSE's twins, the warm-up);
  `dataset('train', aux)` the positives that `refresh` picked. `predict` gives 'embeddings' [B, D],
  and 'positive_embeddings' of pairs. In-batch negatives are those of a microbatch, so accumulation
  changes the objective.

  Args:
    model: a module as those in `model`.
    corpus: corpus.Corpus.
    splits: split -> grain.MapDataset of {'ids', 'mask', 'positive_ids', 'positive_mask' [T], and
      for STS 'score' and 'subset'}.
    positives: Positives.
    settings: LossSettings.
    pretrained: parameters of the transformer as NumPy arrays, or None.
  """
  picker = None  # made when asked for: the surfaces of a large corpus take time
  last = -1, None  # the round before and its positives

  def init(key):
    params = model.init(key, jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8)), train=True)['params']
    if pretrained is not None:
      params = {**params, 'bert': bert.from_host(pretrained, params['bert'])}
    return {'params': params}

  def act(variables, batch, key):
    del variables
    keys = row_keys(key, len(batch['ids']))
    change = jax.vmap(lambda *row: view(positives.view, *row, corpus.ends))
    ids, mask = change(keys, batch['positive_ids'], batch['positive_mask'])
    return {**batch, 'positive_ids': ids, 'positive_mask': mask}

  def loss(variables, batch, key):
    names = ['', 'positive_'] + (['hard_'] if 'hard_ids' in batch else [])
    rows = {part: jnp.concatenate([batch[f'{name}{part}'] for name in names])
            for part in ('ids', 'mask')}
    # One call with one key: each of the rows has a dropout mask of its own.
    vectors = model.apply({'params': variables['params']}, rows['ids'], rows['mask'], train=True,
                          rngs={'dropout': key})
    anchors, own, *hard = jnp.split(vectors, len(names))
    values = contrastive.info_nce(
        anchors, own, temperature=settings.temperature, symmetric=settings.symmetric,
        groups=batch['document'] if settings.mask_documents else None, real=batch['weight'],
        hard=hard[0] if hard else None, has_hard=batch['has_hard'] if hard else None,
        hard_weight=settings.hard_weight)
    cosines = jnp.sum(anchors * own, -1)
    return Loss(values, batch['weight'], {'cosine': (cosines, batch['weight'])})

  def predict(variables, batch, key):
    del key
    embed = lambda name: model.apply({'params': variables['params']}, batch[f'{name}ids'],
                                     batch[f'{name}mask'])
    if 'positive_ids' not in batch:
      return {'embeddings': embed('')}
    return {'embeddings': embed(''), 'positive_embeddings': embed('positive_')}

  def evaluate(pairs):
    outputs, rows = zip(*pairs)
    first, second = (np.concatenate([out[name] for out in outputs])
                     for name in ('embeddings', 'positive_embeddings'))
    if 'score' not in rows[0]:
      return evaluation.pair_retrieval(first, second)
    score, subset = (np.concatenate([batch[name] for batch in rows])
                     for name in ('score', 'subset'))
    return evaluation.similarity(first, second, score, subset)

  def dataset(split, aux=None):
    if split != 'train':
      return config_lib.choose(split, splits, 'split')
    rows = np.arange(len(corpus.ids))
    positive = np.full(len(rows), -1) if aux is None else aux['positive']
    if aux is not None and positives.no_positive == 'skip':
      rows = rows[positive >= 0]
      if not len(rows):
        raise ValueError('positives: not one sentence has a candidate; lower '
                         "positives.min_cosine, or set positives.no_positive='twin'")
    own = positive[rows] < 0
    positive = np.where(own, rows, positive[rows])
    columns = {
        'ids': corpus.ids[rows], 'mask': corpus.mask[rows], 'positive_ids': corpus.ids[positive],
        'positive_mask': corpus.mask[positive], 'document': corpus.document[rows],
        'weight': np.where(own, settings.self_weight, 1).astype(np.float32)}
    if aux is not None and 'hard' in aux:
      hard = aux['hard'][rows]
      columns |= {'hard_ids': corpus.ids[hard], 'hard_mask': corpus.mask[hard],
                  'has_hard': hard >= 0}
    return pipeline.from_arrays(columns)

  task = Task(init, loss, predict, evaluate, dataset, act=None if positives.view == 'none' else act)
  evaluator = Evaluator(task)

  def embed_corpus(variables):
    state = parallel.place(Snapshot(variables['params'], {}, jax.random.key(0), 0))
    rows = pipeline.from_arrays({'ids': corpus.ids, 'mask': corpus.mask})
    return np.concatenate([out['embeddings'] for out, _ in evaluator.predict(state, {}, rows)])

  def refresh(variables, key, number):
    nonlocal picker, last
    picker = picker or Picker(positives, corpus)
    # The rules look at no vectors.
    vectors = embed_corpus(variables) if positives.name == 'annotated' else None
    aux, cosine = picker(vectors, key)
    previous = last[1] if last[0] == number - 1 else None  # a resumed run does not have them
    quality = evaluation.annotation_quality(aux['positive'], cosine, previous)
    last = number, aux['positive']
    nearness = '' if vectors is None else f', mean cosine {quality["cosine"]:.3f}'
    same = '' if previous is None else f', {100 * quality["agreement"]:.1f} % the one of before'
    _log.info('round %d: %.1f %% of %d sentences have a positive%s%s', number,
              100 * quality['share'], len(cosine), nearness, same)
    return aux

  return dataclasses.replace(task, refresh=refresh)
