"""The shape of a BERT-like encoder, from fields, a checkpoint's config.json or a preset."""
import dataclasses
from typing import Literal

import flax.linen as nn

from jaxlab import config as config_lib
from jaxlab.nn.activations import exact_gelu

SCAN_FROM = 12  # layers: from here on compile time matters more than looking into a layer
ACTIVATIONS = {
    'gelu': exact_gelu,
    'gelu_new': nn.gelu,
    'gelu_pytorch_tanh': nn.gelu,
    'relu': nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """The shape of an encoder; hashable. The names are those of config.json.

  Attributes:
    vocab_size: V; 0 for an encoder of vectors, without a word table.
    hidden_size: D.
    num_hidden_layers: L.
    num_attention_heads: H, a divisor of D.
    intermediate_size: width of the feed-forward layers.
    max_position_embeddings: P, rows of the position table; RoBERTa can use two fewer.
    type_vocab_size: T, token types; 0 for no such table.
    hidden_act: a key of `ACTIVATIONS`; 'gelu' is the exact one.
    layer_norm_eps: inside the root.
    hidden_dropout_prob: rate after the embeddings and on what is added to the stream.
    attention_probs_dropout_prob: rate on the attention weights.
    initializer_range: standard deviation of all kernels and tables at the start.
    pad_token_id: id whose row of the word table starts at zero; RoBERTa counts positions by it.
    model_type: 'roberta' and 'xlm-roberta' count positions from pad_token_id + 1.
    rel_pos_bins: buckets of UniLM's relative position bias; 0 for none.
    max_rel_pos: its largest distance.
    add_pooler: whether there is a dense layer with tanh on the first token.
    dtype: compute dtype; parameters, norms and softmax are float32.
    scan_layers: whether the layers are one scanned layer with stacked parameters, which compiles
      fast but can be looked into no more; None for L >= 12.
    remat: whether a layer's activations are recomputed in the backward pass.
  """
  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  hidden_act: str = 'gelu'
  layer_norm_eps: float = 1e-12
  hidden_dropout_prob: float = 0.1
  attention_probs_dropout_prob: float = 0.1
  initializer_range: float = 0.02
  pad_token_id: int = 0
  model_type: Literal['bert', 'roberta', 'xlm-roberta'] = 'bert'
  rel_pos_bins: int = 0
  max_rel_pos: int = 128
  add_pooler: bool = True
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'
  scan_layers: bool | None = None
  remat: bool = False

  def __post_init__(self):
    require = config_lib.require
    config_lib.at_least(
        1, self, ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size',
                  'max_position_embeddings'))
    require(self.hidden_size % self.num_attention_heads == 0, 'hidden_size',
            f'a multiple of num_attention_heads={self.num_attention_heads}', self.hidden_size)
    for name in ('hidden_dropout_prob', 'attention_probs_dropout_prob'):
      require(0 <= getattr(self, name) < 1, name, 'a rate in [0, 1)', getattr(self, name))
    config_lib.at_least(0, self, ('vocab_size', 'type_vocab_size'))
    require(self.rel_pos_bins == 0 or (self.rel_pos_bins >= 4 and self.rel_pos_bins % 2 == 0),
            'rel_pos_bins', '0 or an even number of at least 4', self.rel_pos_bins)
    config_lib.choose(self.hidden_act, ACTIVATIONS, 'hidden_act')
    if self.scan_layers is None:
      object.__setattr__(self, 'scan_layers', self.num_hidden_layers >= SCAN_FROM)

  @property
  def is_roberta(self):
    """Whether positions start at pad_token_id + 1 and token types are never used."""
    return self.model_type != 'bert'

  @property
  def max_length(self):
    """Longest sequence that the position table can hold."""
    used = self.pad_token_id + 1 if self.is_roberta else 0
    return self.max_position_embeddings - used


_OWN = ('add_pooler', 'dtype', 'scan_layers', 'remat')  # fields that config.json does not have
_SHAPE = tuple(f.name for f in dataclasses.fields(BertConfig) if f.name not in _OWN)


def from_checkpoint_config(config, **options):
  """The BertConfig of a public checkpoint's config.json.

  Args:
    config: mapping; 'model_type' is bert, roberta or xlm-roberta, bert where it is missing.
    **options: fields to set otherwise, such as dtype, scan_layers or dropout rates.

  Raises:
    ConfigError: another architecture, a decoder, relative position embeddings of another kind, or
      a key that is missing or does not fit.
  """
  where = 'config.json'
  config_lib.require(config.get('model_type', 'bert') in ('bert', 'roberta', 'xlm-roberta'),
                     f'{where}: model_type', 'bert, roberta or xlm-roberta',
                     config.get('model_type'))
  positions = config.get('position_embedding_type', 'absolute')
  config_lib.require(positions == 'absolute', f'{where}: position_embedding_type', 'absolute',
                     positions)
  config_lib.require(not config.get('is_decoder'), f'{where}: is_decoder', 'an encoder',
                     config.get('is_decoder'))
  fields = {name: config[name] for name in _SHAPE if name in config}
  return config_lib.call(BertConfig, {**fields, **options}, where, drop=())


def checkpoint_config(config, architecture):
  """What config.json says of a BertConfig.

  Args:
    config: BertConfig.
    architecture: class of transformers that opens it, such as 'BertModel'.
  """
  shape = {name: getattr(config, name) for name in _SHAPE}
  if not config.rel_pos_bins:
    shape = {key: value for key, value in shape.items() if 'rel_pos' not in key}
  return {**shape, 'architectures': [architecture], 'torch_dtype': 'float32'}


def _bert(layers, width, heads, inner=None, vocab_size=30522, **fields):
  return BertConfig(vocab_size, width, layers, heads, inner or 4 * width, **fields)


_ROBERTA = {'max_position_embeddings': 514, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5,
            'pad_token_id': 1}

# For shapes; a loader believes the checkpoint's own config.json.
PRESETS = {
    'bert-base-uncased': _bert(12, 768, 12),
    'bert-base-cased': _bert(12, 768, 12, vocab_size=28996),
    'bert-large-uncased': _bert(24, 1024, 16),
    'bert-tiny': _bert(2, 128, 2),
    'bert-mini': _bert(4, 256, 4),
    'bert-small': _bert(4, 512, 8),
    'bert-medium': _bert(8, 512, 8),
    'tinybert-4l-312': _bert(4, 312, 12, 1200),
    'minilm-l6-h384': _bert(6, 384, 12),
    'minilm-l12-h384': _bert(12, 384, 12),
    'roberta-base': _bert(12, 768, 12, vocab_size=50265, model_type='roberta', **_ROBERTA),
    'roberta-large': _bert(24, 1024, 16, vocab_size=50265, model_type='roberta', **_ROBERTA),
    'xlm-roberta-base': _bert(12, 768, 12, vocab_size=250002, model_type='xlm-roberta', **_ROBERTA),
    # From memory of the released config: unverified.
    'unilm2-base-uncased': _bert(12, 768, 12, type_vocab_size=0, rel_pos_bins=32, max_rel_pos=128),
}
