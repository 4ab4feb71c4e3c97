"""The Task of a config: DeepQSE, or the two stages of Efficient-DeepQSE (arXiv 2210.08809)."""
import dataclasses
import inspect
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import pipeline, text
from jaxlab.models import bert, bert_weights
from jaxlab.systems.deepqse import data as data_lib
from jaxlab.systems.deepqse import metrics
from jaxlab.systems.deepqse.model import (
    CrossDeepQSE,
    DeepQSE,
    candidate_positions,
    compose,
    listwise_loss,
    scatter_scores,
    top_k,
)
from jaxlab.task import Arm, Loss, Task
from jaxlab.tasks import text_classification

CONFIG_KEYS = ('model', 'data', 'predict')
COARSE_BATCH = 16  # pages a call where coarse scores are refreshed


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The mapping `config.model`, beside the encoder's keys (`text_classification.encoder_config`).

  Attributes:
    kind: 'joint' is DeepQSE, 'efficient' the two stages.
    context: see `model.Ranker`.
    layers: L, the lowest layers of a folder's encoder that are used; 0 for all.
    candidates: K, sentences that the coarse stage keeps.
  """
  kind: Literal['joint', 'efficient'] = 'joint'
  context: Literal['query', 'sentences', 'none'] = 'query'
  layers: int = 0
  candidates: int = 20

  def __post_init__(self):
    config_lib.require(self.layers >= 0, 'model.layers', 'at least 0', self.layers)
    config_lib.require(self.candidates >= 1, 'model.candidates', 'at least 1', self.candidates)
    config_lib.require(self.kind == 'joint' or self.context != 'none', 'model.context',
                       "'query' or 'sentences': the coarse stage sees the query nowhere else",
                       self.context)


@dataclasses.dataclass(frozen=True)
class PredictConfig:
  """The mapping `config.predict`, for `launch.predict` on pages.

  Attributes:
    query: what was searched for.
    sentences: of a snippet, at least 1: the best ones, in the order of the page.
  """
  query: str = ''
  sentences: int = 1

  def __post_init__(self):
    config_lib.require(self.sentences >= 1, 'predict.sentences', 'at least 1', self.sentences)


class Networks(NamedTuple):
  """The networks of a config and what rows start with.

  Attributes:
    coarse: DeepQSE; the only network of kind 'joint'.
    fine: CrossDeepQSE, or None.
    cls_id: id of [CLS].
    candidates: K.
  """
  coarse: DeepQSE
  fine: CrossDeepQSE | None
  cls_id: int
  candidates: int


def check(config):
  """Checks `config.model`, `config.data` and `config.predict` without reading data or weights.

  Returns:
    (ModelConfig, DataConfig, PredictConfig, what `text_classification.encoder_config` gives).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type or value.
  """
  model = config_lib.section(config, 'model')
  own = [field.name for field in dataclasses.fields(ModelConfig)]
  encoder_keys = inspect.signature(text_classification.encoder_config).parameters
  config_lib.check_keys(model, (*encoder_keys, *own), 'model')
  settings = config_lib.call(ModelConfig, {k: v for k, v in model.items() if k in own}, 'model',
                             drop=())
  encoder = config_lib.call(text_classification.encoder_config, model, 'model', drop=own)
  config_lib.require(not settings.layers or encoder[0] is not None, 'model.layers',
                     'model.folder, whose lowest layers they are', settings.layers)
  data = config_lib.call(data_lib.DataConfig, config_lib.section(config, 'data'), 'data', drop=())
  config_lib.require(settings.candidates <= data.max_sentences or settings.kind == 'joint',
                     'model.candidates', f'at most data.max_sentences={data.max_sentences}',
                     settings.candidates)
  predict = config_lib.call(PredictConfig, config.get('predict', {}), 'predict', drop=())
  return settings, data, predict, encoder


def load_encoder(folder, layers, **options):
  """(BertConfig, params as NumPy) of the lowest layers of a folder's encoder; 0 for all.

  Raises:
    ConfigError: no such folder or weights, or fewer layers than wanted.
    ValueError: broken files, or another model's weights.
  """
  module, params = bert_weights.load(folder, **{**options, 'scan_layers': False,
                                                'add_pooler': False})
  have = module.config.num_hidden_layers
  config_lib.require(layers <= have, 'model.layers', f'at most {have}, those of {folder}', layers)
  kept = layers or have
  params = {name: part for name, part in params.items()
            if not name.startswith('layers_') or int(name.removeprefix('layers_')) < kept}
  return dataclasses.replace(module.config, num_hidden_layers=kept), params


def prepare(config, examples=None):
  """(Networks, tokenizer, the pretrained encoder's params or None) of a config.

  Args:
    config: as for `make_task`.
    examples: of the training part, for a vocabulary that is learned; read where needed.
  """
  settings, data, _, (folder, bert_config, options) = check(config)
  if examples is None and not (data.tokenizer or folder):
    examples = data_lib.read(data)['train']
  tokenizer = data_lib.make_tokenizer(data, folder, examples)
  encoder = None
  if folder is not None:
    bert_config, encoder = load_encoder(folder, settings.layers, **options)
  else:
    # Layers that export keys and values are not scanned; [CLS] is used as it is.
    bert_config = dataclasses.replace(bert_config, scan_layers=False, add_pooler=False)
    if not data.tokenizer:
      bert_config = dataclasses.replace(bert_config, vocab_size=tokenizer.get_vocab_size(),
                                        pad_token_id=text.pad_id(tokenizer))
  text.check_vocabulary(tokenizer, bert_config.vocab_size, bert_config.pad_token_id)
  config_lib.require(data.longest <= bert_config.max_length, 'data.max_sentence',
                     f'rows of at most {bert_config.max_length} tokens, as the model has positions,'
                     ' with max_query, max_title and 4 special tokens', data.max_sentence)
  config_lib.require(data.max_sentences < bert_config.max_position_embeddings,
                     'data.max_sentences', 'fewer than the model has positions, '
                     f'{bert_config.max_position_embeddings}', data.max_sentences)
  return make_networks(settings, bert_config, data_lib.cls_id(tokenizer)), tokenizer, encoder


def make_networks(settings, config, cls):
  """Networks of a ModelConfig, the BertConfig of the text encoder and the id of [CLS]."""
  # The document encoder counts positions as BERT does, whatever the text encoder does.
  document = dataclasses.replace(config, vocab_size=0, model_type='bert')
  fine = settings.kind == 'efficient'
  return Networks(DeepQSE(config, document, settings.context),
                  CrossDeepQSE(config, document, settings.context) if fine else None, cls,
                  settings.candidates)


def query_row(networks, batch):
  """`[CLS] query [SEP] title [SEP]`, the Row of the queries."""
  return compose(networks.coarse.config, networks.cls_id, batch['query'], batch['title'])


def joint_row(networks, batch):
  """`[CLS] query [SEP] title [SEP] sentence [SEP]`, the Row of DeepQSE's sentences."""
  return compose(networks.coarse.config, networks.cls_id, batch['query'][:, None],
                 batch['title'][:, None], batch['sentences'])


def coarse_row(networks, batch):
  """`[CLS] sentence [SEP] title [SEP]`, the Row of the first stage's sentences."""
  return compose(networks.coarse.config, networks.cls_id, batch['sentences'],
                 batch['title'][:, None])


def fine_row(networks, sentences):
  """`[CLS] sentence [SEP]`, the Row of the second stage's sentences."""
  return compose(networks.coarse.config, networks.cls_id, sentences)


def sentence_mask(networks, sentences):
  """bool [B, n]: which rows of ids [B, n, S] are sentences."""
  return sentences[..., 0] != networks.coarse.config.pad_token_id


def fine_scores(networks, params, batch, candidates, **options):
  """Scores [B, K] of the second stage.

  Args:
    networks: Networks with a fine one.
    params: of the fine network.
    batch: 'query', 'title', 'sentences'.
    candidates: int [B, K], sentences of the page.
    **options: deterministic, and `rngs` when it is False.
  """
  sentences = jnp.take_along_axis(batch['sentences'], candidates[..., None], axis=1)
  mask = sentence_mask(networks, sentences)
  last = networks.fine.document.max_position_embeddings - 1
  return networks.fine.apply({'params': params}, query_row(networks, batch),
                             fine_row(networks, sentences), mask,
                             candidate_positions(candidates, mask, last), **_apply(options))


def coarse_scores(networks, params, batch, **options):
  """Scores [B, n] of the first stage, which does not see the query in the sentences."""
  return _one_encoder(networks, params, batch, coarse_row, options)


def joint_scores(networks, params, batch, **options):
  """Scores [B, n] of DeepQSE."""
  return _one_encoder(networks, params, batch, joint_row, options)


def _one_encoder(networks, params, batch, row, options):
  return networks.coarse.apply({'params': params}, query_row(networks, batch),
                               row(networks, batch), sentence_mask(networks, batch['sentences']),
                               **_apply(options))


def _apply(options):
  """What `apply` wants of an optional key of dropout."""
  key = options.get('key')
  return {} if key is None else {'deterministic': False, 'rngs': {'dropout': key}}


def two_stage_scores(networks, params, batch):
  """(scores [B, n] of both stages, those of the first): what is no candidate has PADDING.

  Args:
    networks: Networks with a fine one.
    params: {'coarse', 'fine'}.
    batch: 'query', 'title', 'sentences'.
  """
  coarse = coarse_scores(networks, params['coarse'], batch)
  mask = sentence_mask(networks, batch['sentences'])
  chosen = top_k(coarse, mask, networks.candidates)
  fine = fine_scores(networks, params['fine'], batch, chosen)
  return scatter_scores(fine, chosen, mask.shape[1]), coarse


def make_task(config):
  """Makes the Task of `config.model` (`ModelConfig`) and `config.data` (`data.DataConfig`)."""
  _, data, _, _ = check(config)
  examples = data_lib.read(data)
  networks, tokenizer, encoder = prepare(config, examples['train'])
  languages = tuple(sorted({e.lang for part in examples.values() for e in part}))
  columns = {split: data_lib.columns(tokenizer, data, part, languages)
             for split, part in examples.items()}
  return from_networks(networks, columns, languages, encoder=encoder)


def from_networks(networks, columns, languages=('en',), *, encoder=None):
  """Makes the Task.

  Of kind 'efficient' the arm 'coarse' is the first stage and the Task's own loss the second: a
  phase with arms ('coarse',) and trainable 'coarse/.*', then one with trainable 'fine/.*'. With
  `refresh_every` the latter trains on the candidates of the coarse model as it then is, gold first;
  without, on all sentences of a page.

  Args:
    networks: Networks.
    columns: split -> {'query', 'title', 'sentences', 'label', 'lang'}.
    languages: names of what 'lang' numbers.
    encoder: pretrained params of the text encoder as NumPy arrays, or None. All towers and the
      document encoder start from them.
  """
  efficient = networks.fine is not None
  datasets = {split: pipeline.from_arrays(part) for split, part in columns.items()}

  def init(key):
    example = {name: jnp.asarray(column[:1]) for name, column in columns['train'].items()}
    mask = sentence_mask(networks, example['sentences'])
    first, second = jax.random.split(key)

    def start(net, row, key):
      params = net.init(key, query_row(networks, example), row, mask)['params']
      return params if encoder is None else _pretrained(params, encoder)

    coarse = start(networks.coarse, coarse_row(networks, example), first)
    if not efficient:
      return {'params': coarse}
    fine = start(networks.fine, fine_row(networks, example['sentences']), second)
    return {'params': {'coarse': coarse, 'fine': fine}}

  def arm_loss(scores):
    def loss(variables, batch, key):
      found, labels = scores(variables['params'], batch, key)
      best, weights = (found.argmax(-1) == labels).astype(jnp.float32), batch['weight']
      return Loss(listwise_loss(found, labels), weights, {'prec@1': (best, weights)})
    return loss

  def joint(params, batch, key):
    return joint_scores(networks, params, batch, key=key), batch['label']

  def coarse(params, batch, key):
    return coarse_scores(networks, params['coarse'], batch, key=key), batch['label']

  def fine(params, batch, key):
    chosen, labels = batch.get('candidates'), batch['label']
    if chosen is None:
      mask = sentence_mask(networks, batch['sentences'])
      chosen = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
    else:
      labels = jnp.zeros_like(labels)
    return fine_scores(networks, params['fine'], batch, chosen, key=key), labels

  def predict(variables, batch, key):
    del key
    if not efficient:
      return {'scores': joint_scores(networks, variables['params'], batch)}
    scores, first = two_stage_scores(networks, variables['params'], batch)
    return {'scores': scores, 'coarse': first}

  @jax.jit
  def choose(params, batch):
    return top_k(coarse_scores(networks, params, batch),
                 sentence_mask(networks, batch['sentences']), networks.candidates,
                 first=batch['label'])

  def refresh(variables, key, round):
    del key, round
    batches = pipeline.eval_batches(datasets['train'], batch_size=COARSE_BATCH)
    found = [np.asarray(choose(variables['params']['coarse'], batch))[batch['weight'] > 0]
             for batch in batches]
    return {'candidates': np.concatenate(found)}

  def evaluate(pairs):
    return _evaluate(networks, languages, pairs)

  def dataset(split, aux=None):
    config_lib.choose(split, datasets, 'split')
    return datasets[split] if aux is None else pipeline.from_arrays({**columns[split], **aux})

  if not efficient:
    return Task(init, arm_loss(joint), predict, evaluate, dataset)
  arms = {'coarse': Arm(arm_loss(coarse), lambda: datasets['train'])}
  return Task(init, arm_loss(fine), predict, evaluate, dataset, arms=arms, refresh=refresh)


def _pretrained(params, encoder):
  """`params` with all encoders started from `encoder`, read on the host when the program runs."""
  def start(tree):
    given = {name: encoder[name] for name in tree if name in encoder}
    # The position table is the pretrained one too; a document encoder has no word table.
    given['embeddings'] = {name: encoder['embeddings'][name] for name in tree['embeddings']}
    return bert.from_host(given, tree)

  started = {name: start(tree) for name, tree in params.items() if name.endswith('encoder')}
  ranker = params['ranker']
  if 'document' in ranker:
    ranker = {**ranker, 'document': start(ranker['document'])}
  return {**started, 'ranker': ranker}


def _evaluate(networks, languages, pairs):
  outputs, batches = zip(*pairs)
  join = lambda parts: np.concatenate([np.asarray(part) for part in parts])
  mask = join([sentence_mask(networks, b['sentences']) for b in batches])
  labels, lang = (join([b[name] for b in batches]) for name in ('label', 'lang'))
  scores = join([o['scores'] for o in outputs])
  found = metrics.precision_at(scores, labels, mask)
  if len(languages) > 1:
    for i, name in enumerate(languages):
      if (lang == i).any():
        rows = metrics.precision_at(scores[lang == i], labels[lang == i], mask[lang == i])
        found |= {f'{name}/{metric}': value for metric, value in rows.items()}
  if networks.fine is not None:
    coarse, k = join([o['coarse'] for o in outputs]), networks.candidates
    first = metrics.precision_at(coarse, labels, mask, (1, k))
    found |= {'coarse/prec@1': first['prec@1'], f'coarse/hit@{k}': first[f'prec@{k}']}
  return found
