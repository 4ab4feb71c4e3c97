"""The Task of a config: a transformer that copies an embedding service."""
import dataclasses
import inspect

import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import pipeline, text
from jaxlab.models import bert_weights
from jaxlab.models.bert import POOLERS
from jaxlab.systems.embmarker import files, market
from jaxlab.systems.embmarker.extraction import Copier, copier_task
from jaxlab.tasks import text_classification

CONFIG_KEYS = ('model', 'data', 'watermark')
_OWN = ('width', 'pooler')  # of the copier; the rest of config.model is its encoder's


@dataclasses.dataclass(frozen=True)
class Bought:
  """The mapping `config.data` of bought embeddings, beside {name: 'files'}.

  Attributes:
    train: .npz file of 'texts' and 'embeddings', as `launch.watermark` writes it.
    test: likewise.
    max_length: tokens after which a text is cut off.
    vocab_size: of the WordPiece vocabulary that is learned from the training texts where there is
      neither a `tokenizer` nor a folder of a model.
    tokenizer: file or folder for `text.load_tokenizer`.
  """
  train: str
  test: str
  max_length: int = 128
  vocab_size: int = 4000
  tokenizer: str | None = None


def check(config):
  """Checks `config.model`, `config.data` and `config.watermark` without reading data or weights.

  Returns:
    (folder or None, BertConfig or None, options) of `text_classification.encoder_config`, and the
    copier's own fields.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  data = config_lib.section(config, 'data')
  if data.get('name') == 'files':
    config_lib.check_arguments(Bought, data, 'data')
    config_lib.require('watermark' not in config, 'config.watermark',
                       'none: bought embeddings have theirs', config.get('watermark'))
  else:
    config_lib.require('name' in data, 'data.name', "'files' or a set of texts", None)
    config_lib.check_arguments(market.open_market, data, 'data', drop=())
    config_lib.check_arguments(market.plant, config_lib.section(config, 'watermark'), 'watermark',
                               drop=(), injected=('market',))
  config_lib.require(data.get('max_length', 8) >= 8, 'data.max_length', 'at least 8',
                     data.get('max_length'))
  model = config_lib.section(config, 'model')
  encoder_keys = inspect.signature(text_classification.encoder_config).parameters
  config_lib.check_keys(model, (*encoder_keys, *_OWN), 'model')
  own = {key: model[key] for key in _OWN if key in model}
  config_lib.require(own.get('pooler', 'pooler') in POOLERS, 'model.pooler',
                     f'one of {", ".join(POOLERS)}', own.get('pooler'))
  config_lib.check_type(own.get('width', 1), int, 'model.width')
  config_lib.require(own.get('width', 1) >= 1, 'model.width', 'at least 1', own.get('width'))
  encoder = config_lib.call(text_classification.encoder_config, model, 'model', drop=_OWN)
  return encoder, own


def make_task(config):
  """Makes the Task: `config.data` is (`market.open_market`) with `config.watermark`
  (`market.plant`), or {name: 'files', ...} (`Bought`); `config.model` the encoder and `_OWN`."""
  (folder, bert_config, options), own = check(config)
  data = config['data']
  tokenizer, max_length, parts = _goods(config, folder)
  encoder = None
  if folder is not None:
    pooled = own.get('pooler', 'pooler') == 'pooler'
    module, encoder = bert_weights.load(folder, **options, add_pooler=pooled)
    bert_config = module.config
  else:
    bert_config = dataclasses.replace(bert_config, add_pooler=own.get('pooler',
                                                                      'pooler') == 'pooler')
    if not data.get('tokenizer'):
      bert_config = dataclasses.replace(bert_config, vocab_size=tokenizer.get_vocab_size(),
                                        pad_token_id=text.pad_id(tokenizer))
  text.check_vocabulary(tokenizer, bert_config.vocab_size, bert_config.pad_token_id)
  config_lib.require(max_length <= bert_config.max_length, 'data.max_length',
                     f"at most the model's {bert_config.max_length}", max_length)
  widths = {embeddings.shape[1] for _, embeddings in parts.values()}
  if len(widths) > 1:
    raise ValueError(f'data: expected embeddings of one width, got {sorted(widths)}')
  datasets = {split: pipeline.from_arrays({**_columns(tokenizer, texts, max_length),
                                           'embedding': embeddings})
              for split, (texts, embeddings) in parts.items()}
  return copier_task(Copier(bert_config, widths.pop(), **own), datasets, encoder=encoder)


def file_dataset(config, path):
  """The data set of a file with a text a line, for `launch.predict`."""
  (folder, _, _), _ = check(config)
  tokenizer, max_length, _ = _goods(config, folder)
  return pipeline.from_arrays(_columns(tokenizer, files.read_texts(path), max_length))


def _goods(config, folder):
  """(tokenizer of the copy, most tokens, split -> (texts, bought embeddings))."""
  data = config['data']
  if data['name'] != 'files':
    shop = config_lib.call(market.open_market, data, 'data', drop=())
    marked = config_lib.call(market.plant, config['watermark'], 'watermark', drop=(), market=shop)
    parts = {split: (shop.texts[split], market.sell(shop, marked, split)) for split in shop.texts}
    tokenizer = shop.tokenizer if folder is None else text.load_tokenizer(folder)
    return tokenizer, shop.max_length, parts
  settings = config_lib.call(Bought, data, 'data')
  parts = {split: files.read_embeddings(getattr(settings, split)) for split in ('train', 'test')}
  for split, (texts, _) in parts.items():
    if texts is None:
      raise ValueError(f"{getattr(settings, split)}: expected an array 'texts'")
  source = settings.tokenizer or folder
  tokenizer = (text.load_tokenizer(source) if source else
               text.train_wordpiece(parts['train'][0], settings.vocab_size))
  return tokenizer, settings.max_length, parts


def _columns(tokenizer, texts, max_length):
  tokens = text.encode(tokenizer, texts, max_length=max_length)
  return {'ids': tokens.ids, 'mask': tokens.mask.astype(np.uint8)}
