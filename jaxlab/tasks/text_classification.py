"""Classification of sentences and pairs of sentences: GLUE (arXiv 1804.07461) and its like."""
import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab.data import builders, pipeline, text
from jaxlab.data.glue import CONFIGS
from jaxlab.metrics import accuracy, cross_entropy, glue
from jaxlab.models import bert, bert_weights
from jaxlab.models.bert_config import PRESETS
from jaxlab.task import Loss, Task

CONFIG_KEYS = ('model', 'data')
SCORES = {'cola': ('matthews',), 'mrpc': ('accuracy', 'f1'), 'qqp': ('accuracy', 'f1'),
          'stsb': ('pearson', 'spearman')}  # of each task; 'accuracy' of the others


class TextSpec(NamedTuple):
  """A task on texts.

  Attributes:
    name: of a GLUE task.
    num_classes: K, 1 for regression.
  """
  name: str
  num_classes: int


def load_texts(*, name: str, train: str = 'train', test: str = 'validation',
               max_length: int = 128, vocab_size: int = 4000, tokenizer: str | None = None,
               manual_dir: str | None = None):
  """Reads the two splits of a task.

  Args:
    name: a config of `data.glue`: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, sms, demo.
    train: TFDS split of the training part.
    test: likewise; 'validation_matched+validation_mismatched' of MNLI.
    max_length: tokens after which a row is cut off.
    vocab_size: of the WordPiece vocabulary that is learned from the training part where there is
      neither a `tokenizer` nor a folder of a model.
    tokenizer: file or folder for `text.load_tokenizer`.
    manual_dir: folder of the official files.

  Returns:
    (TextSpec, {'train': rows, 'test': rows}), rows being (texts, second texts or None, labels).
  """
  del max_length, vocab_size, tokenizer  # of `tokenize`
  builder = builders.load('glue', config=name, manual_dir=manual_dir)
  return _spec(name), {'train': _rows(builder, train, name), 'test': _rows(builder, test, name)}


def _spec(name):
  return TextSpec(name, len(config_lib.choose(name, CONFIGS, 'data.name').labels) or 1)


def _rows(builder, split, name):
  try:
    source = builder.as_data_source(split)
    examples = source.__getitems__(range(len(source)))
  except ValueError as error:
    raise config_lib.ConfigError(f'data: no split {split!r} of {name}: {error}') from error
  column = lambda key: [example[key].decode('utf-8') for example in examples]
  pairs = column('sentence2') if len(CONFIGS[name].columns) == 2 else None
  return column('sentence1'), pairs, np.array([example['label'] for example in examples])


def encoder_config(*, name: str | None = None, folder: str | None = None,
                   num_hidden_layers: int | None = None, hidden_size: int | None = None,
                   num_attention_heads: int | None = None, intermediate_size: int | None = None,
                   dropout: float | None = None,
                   dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32',
                   remat: bool = False, scan_layers: bool | None = None):
  """(the folder or None, the BertConfig or None where the folder says it, options).

  Args:
    name: a preset of `bert_config.PRESETS`, to train from random weights.
    folder: local folder of a published encoder in place of `name`: config.json,
      model.safetensors, tokenizer.json.
    num_hidden_layers: in place of the preset's, as the next three.
    hidden_size: D.
    num_attention_heads: H.
    intermediate_size: width of the feed-forward layers.
    dropout: all dropout rates.
    dtype: compute dtype.
    remat: see BertConfig, as the next.
    scan_layers: None for L >= 12.
  """
  config_lib.require((name is None) != (folder is None), 'model.name, model.folder', 'one of them',
                     [name, folder])
  options = {'dtype': dtype, 'remat': remat, 'scan_layers': scan_layers}
  if dropout is not None:
    options |= {'hidden_dropout_prob': dropout, 'attention_probs_dropout_prob': dropout}
  sizes = {'num_hidden_layers': num_hidden_layers, 'hidden_size': hidden_size,
           'num_attention_heads': num_attention_heads, 'intermediate_size': intermediate_size}
  sizes = {key: value for key, value in sizes.items() if value is not None}
  if folder is not None:
    config_lib.require(not sizes, 'model.folder', f'alone, without {", ".join(sizes)}', folder)
    return folder, None, options
  preset = config_lib.choose(name, PRESETS, 'model.name')
  return None, dataclasses.replace(preset, **sizes, **options), options


def check(config):
  """Checks `config.model` and `config.data` without reading data or weights.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  data = config_lib.section(config, 'data')
  arguments = config_lib.check_arguments(load_texts, data, 'data', drop=())
  _spec(data['name'])
  for key in ('max_length', 'vocab_size'):
    config_lib.require(arguments.get(key, 8) >= 8, f'data.{key}', 'at least 8', arguments.get(key))
  return config_lib.call(encoder_config, config_lib.section(config, 'model'), 'model', drop=())


def make_task(config):
  """Makes the Task from `config.model` (`encoder_config`) and `config.data` (`load_texts`)."""
  folder, bert_config, options = check(config)
  data = config['data']
  spec, rows = config_lib.call(load_texts, data, 'data', drop=())
  source = data.get('tokenizer') or folder
  if source is None:
    texts = [t for part in rows['train'][:2] for t in part or ()]
    tokenizer = text.train_wordpiece(texts, data.get('vocab_size', 4000))
    bert_config = dataclasses.replace(bert_config, vocab_size=tokenizer.get_vocab_size(),
                                      pad_token_id=0)
  else:
    tokenizer = text.load_tokenizer(source)
  encoder = None
  if folder is not None:
    # Its weights stay on the host until `init` asks for them: as constants of a program they would
    # be compiled into it.
    has_pooler = not bert_weights.read_config(folder).is_roberta
    encoder = bert_weights.load(folder, **options, add_pooler=has_pooler)
    bert_config = encoder[0].config
  elif bert_config.is_roberta:
    bert_config = dataclasses.replace(bert_config, add_pooler=False)
  text.check_vocabulary(tokenizer, bert_config.vocab_size, bert_config.pad_token_id)
  max_length = data.get('max_length', 128)
  config_lib.require(max_length <= bert_config.max_length, 'data.max_length',
                     f"at most the model's {bert_config.max_length}", max_length)
  datasets = {split: pipeline.from_arrays(tokenize(tokenizer, *part, max_length))
              for split, part in rows.items()}
  return from_model(bert.SequenceClassifier(bert_config, spec.num_classes), spec, datasets,
                    encoder=encoder and encoder[1])


def tokenize(tokenizer, texts, pairs, labels, max_length):
  """Columns 'ids', 'mask', 'token_type' [N, T] and 'label' [N]; T is the longest row's length."""
  tokens = text.encode(tokenizer, texts, pairs, max_length=max_length)
  return {'ids': tokens.ids, 'mask': tokens.mask.astype(np.uint8),
          'token_type': tokens.token_type.astype(np.uint8), 'label': labels.astype(np.float32)}


def from_model(model, spec, datasets, *, encoder=None):
  """Makes the Task of a classifier: cross-entropy, or the squared error of a score.

  Args:
    model: bert.SequenceClassifier.
    spec: TextSpec.
    datasets: split -> grain.MapDataset of {'ids', 'mask', 'token_type' [T], 'label'}.
    encoder: pretrained parameters of the encoder as NumPy arrays, or None.
  """
  def apply(variables, batch, **kwargs):
    # RoBERTa's table of token types has one row.
    types = None if model.config.is_roberta else batch['token_type'].astype(jnp.int32)
    return model.apply(variables, batch['ids'], batch['mask'], types, **kwargs)

  def init(key):
    params = model.init(key, jnp.zeros((1, 8), jnp.int32))['params']
    if encoder is not None:
      params = {**params, 'bert': bert.from_host(encoder, params['bert'])}
    return {'params': params}

  def loss(variables, batch, key):
    logits = apply(variables, batch, deterministic=False, rngs={'dropout': key})
    weights = batch['weight']
    if spec.num_classes == 1:
      return Loss((logits[:, 0] - batch['label'])**2, weights)
    labels = batch['label'].astype(jnp.int32)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Loss(values, weights, {'accuracy': (correct, weights)})

  def predict(variables, batch, key):
    del key
    return apply(variables, batch)

  def evaluate(pairs):
    logits, labels = zip(*((outputs, batch['label']) for outputs, batch in pairs))
    return scores(spec, np.concatenate(logits), np.concatenate(labels))

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset)


def scores(spec, logits, labels):
  """{'loss', the metrics of the task, 'score': their mean x 100, as GLUE reports it}.

  Args:
    spec: TextSpec.
    logits: [N, K].
    labels: [N], classes or scores.
  """
  if spec.num_classes == 1:
    found = {'pearson': glue.pearson(logits[:, 0], labels),
             'spearman': glue.spearman(logits[:, 0], labels),
             'loss': float(np.mean((logits[:, 0].astype(np.float64) - labels)**2))}
  else:
    classes, predicted = labels.astype(np.int64), logits.argmax(-1)
    found = {'accuracy': accuracy(logits, classes), 'loss': cross_entropy(logits, classes)}
    if spec.num_classes == 2:
      found |= {'f1': glue.f1(predicted, classes), 'matthews': glue.matthews(predicted, classes)}
  named = SCORES.get(spec.name, ('accuracy',))
  return {**found, 'score': 100 * float(np.mean([found[name] for name in named]))}
