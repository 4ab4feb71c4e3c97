"""The Task of a config: the linked node among all keys of the batch."""
import dataclasses
import functools
import inspect
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.data import graph as graph_lib
from jaxlab.data import pipeline, text
from jaxlab.losses import contrastive
from jaxlab.models import bert, bert_weights
from jaxlab.systems.graphformers import data as data_lib
from jaxlab.systems.graphformers import metrics, pollution, weights
from jaxlab.systems.graphformers.inference import encode_graph
from jaxlab.systems.graphformers.model import AGGREGATORS, Cascade, GraphFormer, TextOnly
from jaxlab.task import Arm, Loss, Task, row_keys
from jaxlab.tasks import text_classification
from jaxlab.train import evaluation
from jaxlab.train import outputs as outputs_lib

CONFIG_KEYS = ('model', 'data', 'predict')
ARCHITECTURES = {'graphformers': GraphFormer, 'plm': TextOnly,
                 **{name: functools.partial(Cascade, aggregator=name) for name in AGGREGATORS}}


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The mapping `config.data` beside the arguments of `data.load_pairs`.

  Attributes:
    token_length: most tokens of a text, special ones too.
    center_length: likewise of the centre's text; None for `token_length`.
    vocab_size: of the WordPiece vocabulary that is learned from the training pairs where there is
      neither a `tokenizer` nor a folder of a model.
    tokenizer: file or folder for `text.load_tokenizer`.
    candidates: pairs that are ranked among each other in evaluation.
    pollute_rate: share of the centre's tokens that the arm 'polluted' selects.
  """
  token_length: int = 32
  center_length: int | None = None
  vocab_size: int = 4000
  tokenizer: str | None = None
  candidates: int = 300
  pollute_rate: float = 0.15

  def __post_init__(self):
    require = config_lib.require
    require(self.token_length >= 3, 'data.token_length', 'at least 3', self.token_length)
    if self.center_length is not None:
      require(3 <= self.center_length <= self.token_length, 'data.center_length',
              f'3 to token_length={self.token_length}', self.center_length)
    require(self.vocab_size >= 8, 'data.vocab_size', 'at least 8', self.vocab_size)
    require(self.candidates >= 2, 'data.candidates', 'at least 2', self.candidates)
    require(0 < self.pollute_rate <= 1, 'data.pollute_rate', 'a share in (0, 1]',
            self.pollute_rate)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The mapping `config.model` beside the arguments of `text_classification.encoder_config`.

  Attributes:
    architecture: 'graphformers', 'plm' (the text alone), or one of `model.AGGREGATORS`.
    score_scale: what inner products are multiplied by.
    initializer_range: standard deviation of random parameters; None for the encoder's.
  """
  architecture: Literal['graphformers', 'plm', 'max', 'mean', 'att', 'gat'] = 'graphformers'
  score_scale: float = 1.0
  initializer_range: float | None = None

  def __post_init__(self):
    config_lib.choose(self.architecture, ARCHITECTURES, 'model.architecture')
    config_lib.require(self.score_scale > 0, 'model.score_scale', 'above 0', self.score_scale)
    spread = self.initializer_range
    config_lib.require(spread is None or spread > 0, 'model.initializer_range', 'above 0', spread)


@dataclasses.dataclass(frozen=True)
class PredictConfig:
  """The mapping `config.predict`, of `predict_input`.

  Attributes:
    batch_size: nodes a device and call.
    seed: of the draw where a node has more neighbours than the model reads.
  """
  batch_size: int = 256
  seed: int = 0

  def __post_init__(self):
    config_lib.require(self.batch_size >= 1, 'predict.batch_size', 'at least 1', self.batch_size)
    config_lib.require(self.seed >= 0, 'predict.seed', 'at least 0', self.seed)


def _cut(config, key, own):
  """(the dataclass `own` of its part of config[key], the other entries)."""
  part = config_lib.section(config, key) if key in config or key != 'predict' else {}
  names = [field.name for field in dataclasses.fields(own)]
  mine = {name: part[name] for name in names if name in part}
  return config_lib.call(own, mine, key, drop=()), {k: part[k] for k in part if k not in mine}


def check(config):
  """Checks `config.model`, `config.data` and `config.predict` without reading data or weights.

  Returns:
    ((folder or None, BertConfig or None, options) of `text_classification.encoder_config`,
    ModelConfig, DataConfig).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type; microbatches.
  """
  config_lib.require(config.get('accumulate', 1) == 1, 'config.accumulate',
                     '1, since the other pairs of the batch are the negatives',
                     config.get('accumulate'))
  config_lib.require(config.get('batch_size', 2) >= 2, 'config.batch_size',
                     'at least 2, since the other pairs of the batch are the negatives',
                     config.get('batch_size'))
  settings, rest = _cut(config, 'data', DataConfig)
  _check_rest(data_lib.load_pairs, rest, DataConfig, 'data')
  config_lib.check_arguments(data_lib.load_pairs, rest, 'data', drop=())
  data_lib.check_neighbors(rest['name'], rest.get('neighbors', 0))
  own, rest = _cut(config, 'model', ModelConfig)
  _check_rest(text_classification.encoder_config, rest, ModelConfig, 'model')
  if own.architecture == 'graphformers':
    config_lib.require(not rest.get('scan_layers'), 'model.scan_layers',
                       'false, since there is something between the layers', True)
    rest = {**rest, 'scan_layers': False}
  _, unknown = _cut(config, 'predict', PredictConfig)
  config_lib.check_keys(unknown, [f.name for f in dataclasses.fields(PredictConfig)], 'predict')
  encoder = config_lib.call(text_classification.encoder_config, rest, 'model', drop=())
  return encoder, own, settings


def _check_rest(function, rest, own, where):
  """ConfigError with the nearest key of both, for a key that belongs to neither."""
  keys = inspect.signature(function).parameters
  config_lib.check_keys(rest, (*keys, *(field.name for field in dataclasses.fields(own))), where)


def make_task(config):
  """Makes the Task from `config.model` (`ModelConfig` and `encoder_config`) and `config.data`
  (`DataConfig` and `data.load_pairs`)."""
  _, own, settings = check(config)
  model, tokenizer, lengths, encoder, texts = _parts(config)
  return from_model(model, data_lib.datasets(tokenizer, texts, lengths),
                    data_lib.vocabulary(tokenizer), score_scale=own.score_scale,
                    candidates=settings.candidates, pollute_rate=settings.pollute_rate,
                    encoder=encoder)


def _parts(config):
  """(model, tokenizer, Lengths, parameters of a pretrained encoder or None, Texts)."""
  (folder, bert_config, options), own, settings = check(config)
  _, rest = _cut(config, 'data', DataConfig)
  texts = config_lib.call(data_lib.load_pairs, rest, 'data', drop=())
  source, encoder = settings.tokenizer or folder, None
  tokenizer = (text.load_tokenizer(source) if source
               else data_lib.learn_tokenizer(texts, settings.vocab_size))
  if folder is not None:
    module, encoder = bert_weights.load(folder, **options, add_pooler=False)
    bert_config = module.config
  elif not source:
    bert_config = dataclasses.replace(bert_config, vocab_size=tokenizer.get_vocab_size(),
                                      pad_token_id=text.pad_id(tokenizer))
  changes: dict = {'add_pooler': False}
  if own.initializer_range is not None:
    changes['initializer_range'] = own.initializer_range
  bert_config = dataclasses.replace(bert_config, **changes)
  config_lib.require(own.architecture != 'graphformers' or bert_config.num_hidden_layers >= 2,
                     'model.num_hidden_layers', 'at least 2, for graph attention is between layers',
                     bert_config.num_hidden_layers)
  text.check_vocabulary(tokenizer, bert_config.vocab_size, bert_config.pad_token_id)
  config_lib.require(settings.token_length <= bert_config.max_length, 'data.token_length',
                     f"at most the model's {bert_config.max_length}", settings.token_length)
  neighbors = rest.get('neighbors', inspect.signature(
      data_lib.load_pairs).parameters['neighbors'].default)
  lengths = data_lib.Lengths(neighbors, settings.token_length,
                             settings.center_length or settings.token_length)
  return ARCHITECTURES[own.architecture](bert_config), tokenizer, lengths, encoder, texts


def official_weights(config, template):
  """(state dict -> params, params -> state dict) by the official names, for `launch.convert`.

  Args:
    config: of the experiment, whose data give the vocabulary where no folder does.
    template: its parameters, or their shapes.

  Raises:
    ConfigError: an architecture without official names.
  """
  del template
  _, own, _ = check(config)
  config_lib.require(own.architecture != 'gat', 'model.architecture',
                     'one that the official code has', own.architecture)
  model, *_ = _parts(config)
  return (functools.partial(weights.params_from_torch, model=model),
          functools.partial(weights.params_to_torch, model=model))


def from_model(model, datasets, vocabulary, *, score_scale=1.0, candidates=300, pollute_rate=0.15,
               encoder=None):
  """Makes the Task of an encoder of nodes: softmax cross-entropy of the linked node's key among the
  keys of the batch of all devices, by inner product.

  A phase may train its arms: 'clean', which is the Task's own loss, and 'polluted', whose centres
  are polluted so that the neighbours must be used (progressive learning).

  Args:
    model: GraphFormer, Cascade or TextOnly.
    datasets: split -> grain.MapDataset of `data.columns`.
    vocabulary: pollution.Vocabulary.
    score_scale: what inner products are multiplied by; the official code has 1.
    candidates: see `metrics.over_batches`.
    pollute_rate: see `pollution.pollute`.
    encoder: pretrained parameters of the text encoder as NumPy arrays, or None.
  """
  def init(key):
    ids = jnp.zeros((1, 2, 4), jnp.int32)
    params = model.init(key, ids, jnp.ones_like(ids), jnp.ones((1, 2)))['params']
    if encoder is not None:
      params = weights.with_encoder(params, bert.from_host(encoder, params['bert']))
    return {'params': params}

  def encode(variables, batch, side, **options):
    return model.apply({'params': variables['params']}, batch[f'{side}_ids'].astype(jnp.int32),
                       batch[f'{side}_mask'], batch[f'{side}_nodes'], **options)

  def loss(variables, batch, key):
    vectors = [encode(variables, batch, side, deterministic=False,
                      rngs={'dropout': jax.random.fold_in(key, number)})
               for number, side in enumerate(data_lib.SIDES)]
    logits, own = contrastive.in_batch_logits(*vectors, temperature=1 / score_scale)
    real = parallel.all_gather(batch['weight']) > 0  # padding is nobody's negative
    values = contrastive.cross_entropy(logits, own, jnp.broadcast_to(real, logits.shape))
    best = jnp.where(real, logits, -jnp.inf).argmax(1)
    return Loss(values, batch['weight'],
                {'accuracy': ((best == own).astype(jnp.float32), batch['weight'])})

  def pollute(variables, batch, key):
    del variables
    changed = {}
    for number, side in enumerate(data_lib.SIDES):
      ids = batch[f'{side}_ids']
      keys = row_keys(jax.random.fold_in(key, number), len(ids))
      centers = pollution.pollute(keys, ids[:, 0], vocabulary, pollute_rate)
      changed[f'{side}_ids'] = ids.at[:, 0].set(centers)
    return {**batch, **changed}

  def predict(variables, batch, key):
    del key
    return {side: encode(variables, batch, side).astype(jnp.float32) for side in data_lib.SIDES}

  def evaluate(pairs):
    found = [[outputs[side] for outputs, _ in pairs] for side in data_lib.SIDES]
    return metrics.over_batches(*(np.concatenate(side) for side in found), candidates)

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  train = functools.partial(dataset, 'train')
  return Task(init, loss, predict, evaluate, dataset,
              arms={'clean': Arm(loss, train), 'polluted': Arm(loss, train, pollute)})


def predict_input(config, params, path, output):
  """Writes the vectors of all nodes of a graph, or of the pairs of a file, for `launch.predict`.

  Args:
    config: of the run; `config.predict` is a `PredictConfig`.
    params: of the model.
    path: a folder of nodes.tsv and edges.tsv (`data.graph.read_graph`), whose vectors become
      'id' and 'vector'; or a file of pairs (`data.graph.read_pairs`): 'query', 'key', 'score'.
    output: file for `train.outputs.write`.
  """
  outputs_lib.check_path(output)
  settings, _ = _cut(config, 'predict', PredictConfig)
  _, own, _ = check(config)
  model, tokenizer, lengths, _, _ = _parts(config)
  if pathlib.Path(path).is_dir():
    graph = graph_lib.read_graph(path)
    around = graph_lib.adjacency(len(graph.ids), graph.edges)
    tokens, centers, neighbors = data_lib.graph_tokens(tokenizer, graph, around, lengths,
                                                       settings.seed)
    written = {'id': np.array(graph.ids), 'vector': encode_graph(
        model, params, tokens, neighbors, centers=centers, batch_size=settings.batch_size)}
  else:
    texts = data_lib.number_texts({'file': graph_lib.read_pairs(path)}, lengths.neighbors)
    task = from_model(model, {}, data_lib.vocabulary(tokenizer))
    pairs = evaluation.Evaluator(task, batch_size=settings.batch_size).predict(
        evaluation.Snapshot(params, {}, jax.random.key(0), 0), {},
        pipeline.from_arrays(data_lib.columns(tokenizer, texts, lengths)['file']))
    written = jax.tree.map(lambda *x: np.concatenate(x), *(outputs for outputs, _ in pairs))
    written['score'] = own.score_scale * (written['query'] * written['key']).sum(1)
  outputs_lib.write(output, written)
  print(', '.join(f'{name} {list(x.shape)}' for name, x in written.items()), 'in', output)
