"""The shape of a decoder language model, from fields, a checkpoint's config.json or a preset."""
import collections.abc
import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn

from jaxlab import config as config_lib
from jaxlab.nn.rotary import RopeScaling, rotary_frequencies

SCAN_FROM = 12  # layers: from here on compile time matters more than looking into a layer


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """The shape of a decoder; hashable, so that it can be a static argument.

  The names are those of the checkpoints' config.json; `from_checkpoint_config` reads one.

  Attributes:
    vocab_size: V, rows of the embedding (it may exceed the tokenizer's size).
    hidden_size: d.
    num_hidden_layers: L.
    num_attention_heads: H.
    intermediate_size: F, width of the SwiGLU.
    num_key_value_heads: KV, a divisor of H; None for H.
    head_dim: D, even; None for d / H.
    attention_bias: biases of q, k, v.
    output_bias: bias of o.
    mlp_bias: biases of gate, up, down.
    qk_norm: RMSNorm over D on queries and keys.
    rms_norm_eps: of all norms.
    rope_theta: base of the rotary frequencies.
    rope_scaling: RopeScaling or a mapping of its fields, or None.
    tie_word_embeddings: the output matrix is the embedding.
    init: 'normal' draws all matrices from N(0, 0.02^2), as the reference does; 'scaled' from
      N(0, 1 / fan_in) with o and down divided by sqrt(2 L), which trains small models much faster.
    dtype: compute dtype; parameters and logits are float32.
    scan_layers: whether the layers are one scanned layer with stacked parameters; None for L >= 12.
    remat: whether a layer's activations are recomputed in the backward pass.
  """
  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  num_key_value_heads: int | None = None
  head_dim: int | None = None
  attention_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  rms_norm_eps: float = 1e-6
  rope_theta: float = 10000.0
  rope_scaling: Any = None
  tie_word_embeddings: bool = True
  init: Literal['normal', 'scaled'] = 'normal'
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  scan_layers: bool | None = None
  remat: bool = False

  def __post_init__(self):
    fill = lambda name, value: object.__setattr__(self, name, value)
    config_lib.at_least(
        1, self, ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
                  'intermediate_size'))
    if self.num_key_value_heads is None:
      fill('num_key_value_heads', self.num_attention_heads)
    config_lib.at_least(1, self, ('num_key_value_heads',))
    config_lib.require(self.num_attention_heads % self.num_key_value_heads == 0,
                       'num_key_value_heads',
                       f'a divisor of num_attention_heads={self.num_attention_heads}',
                       self.num_key_value_heads)
    if self.head_dim is None:
      config_lib.require(self.hidden_size % self.num_attention_heads == 0, 'hidden_size',
                         f'a multiple of num_attention_heads={self.num_attention_heads}, or '
                         'head_dim beside it', self.hidden_size)
      fill('head_dim', self.hidden_size // self.num_attention_heads)
    config_lib.at_least(1, self, ('head_dim',))
    config_lib.require(self.head_dim % 2 == 0, 'head_dim', 'an even number', self.head_dim)
    if self.scan_layers is None:
      fill('scan_layers', self.num_hidden_layers >= SCAN_FROM)
    if isinstance(self.rope_scaling, dict):
      fill('rope_scaling',
           config_lib.call(RopeScaling, self.rope_scaling, 'rope_scaling', drop=()))
    config_lib.check_type(self.rope_scaling, RopeScaling | None, 'rope_scaling')
    if self.rope_scaling is not None:
      _check_scaling(self.rope_scaling)

  @property
  def frequencies(self):
    """Rotary frequencies float32 [D / 2]."""
    return rotary_frequencies(self.head_dim, self.rope_theta, self.rope_scaling)

  def initializer(self, fan_in, residual=False):
    """Initialiser of a matrix; `residual` for one whose output is added to the stream."""
    if self.init == 'normal':
      return nn.initializers.normal(0.02)
    depth = math.sqrt(2 * self.num_hidden_layers) if residual else 1
    return nn.initializers.normal(1 / math.sqrt(fan_in) / depth)


def _check_scaling(scaling):
  config_lib.at_least(1, scaling, ('factor', 'original_context'), 'rope_scaling')
  config_lib.require(scaling.low_freq_factor < scaling.high_freq_factor,
                     'rope_scaling.high_freq_factor',
                     f'above low_freq_factor={scaling.low_freq_factor}', scaling.high_freq_factor)


_FAMILIES = {  # model_type -> (attention_bias, output_bias, mlp_bias, qk_norm) from config.json
    'llama': lambda c: (c.get('attention_bias', False), c.get('attention_bias', False),
                        c.get('mlp_bias', False), False),
    'mistral': lambda c: (False, False, False, False),
    'qwen2': lambda c: (True, False, False, False),
    'qwen3': lambda c: (c.get('attention_bias', False), c.get('attention_bias', False), False,
                        True),
}

_ARCHITECTURES = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
                  'qwen3': 'Qwen3ForCausalLM'}
_REQUIRED = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
             'intermediate_size', 'rms_norm_eps')
# Kind of rotary scaling -> field of RopeScaling -> key of config.json.
_SCALINGS = {'linear': {'factor': 'factor'},
             'llama3': {'factor': 'factor', 'low_freq_factor': 'low_freq_factor',
                        'high_freq_factor': 'high_freq_factor',
                        'original_context': 'original_max_position_embeddings'}}


def from_checkpoint_config(config, **options):
  """The DecoderConfig of a public checkpoint's config.json, in its old or new spelling.

  Args:
    config: mapping. 'model_type' is one of llama, mistral, qwen2, qwen3.
    **options: dtype, scan_layers, remat, init.

  Raises:
    ConfigError: another family, sliding windows, another activation, an unknown rotary scaling, or
      a key that is missing or does not fit.
  """
  config_lib.check_type(config.get('model_type'), str, 'config.json: model_type')
  family = config_lib.choose(config.get('model_type'), _FAMILIES, 'config.json: model_type')
  # Qwen2's config names a window even where it is off; Mistral's has no switch.
  windowed = config.get('use_sliding_window', family is _FAMILIES['mistral'])
  config_lib.require(not (windowed and config.get('sliding_window')), 'config.json: sliding_window',
                     'full attention in every layer', config.get('sliding_window'))
  config_lib.require(config.get('hidden_act', 'silu') == 'silu', 'config.json: hidden_act', 'silu',
                     config.get('hidden_act'))
  for name in _REQUIRED:
    config_lib.require(name in config, f'config.json: {name}', 'a number', None)
  qkv_bias, out_bias, mlp_bias, qk_norm = family(config)
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  config_lib.check_type(rope, collections.abc.Mapping, 'config.json: rope_scaling')
  fields = {
      'num_key_value_heads': config.get('num_key_value_heads'), 'head_dim': config.get('head_dim'),
      'attention_bias': qkv_bias, 'output_bias': out_bias, 'mlp_bias': mlp_bias,
      'qk_norm': qk_norm,
      'rope_theta': rope.get('rope_theta', config.get('rope_theta', 10000.0)),
      'rope_scaling': _scaling(rope),
      'tie_word_embeddings': config.get('tie_word_embeddings', False)}
  fields.update({name: config[name] for name in _REQUIRED})
  return config_lib.call(DecoderConfig, {**fields, **options}, 'config.json', drop=())


def _scaling(rope):
  """The fields of a RopeScaling by their names in config.json, or None."""
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return None
  config_lib.require(kind in _SCALINGS, 'config.json: rope_type', 'default, linear or llama3', kind)
  for name in _SCALINGS[kind].values():
    config_lib.require(name in rope, f'config.json: rope_scaling: {name}', 'a number', None)
  return {'kind': kind, **{field: rope[name] for field, name in _SCALINGS[kind].items()}}


def checkpoint_config(config):
  """What config.json says of a DecoderConfig; `from_checkpoint_config` and transformers read it.

  Raises:
    ConfigError: biases and norms that are those of no family.
  """
  names = (*_REQUIRED, 'num_key_value_heads', 'head_dim', 'attention_bias', 'mlp_bias',
           'rope_theta', 'tie_word_embeddings')
  scaling = config.rope_scaling
  shape = {**{name: getattr(config, name) for name in names}, 'hidden_act': 'silu',
           'rope_scaling': None if scaling is None else {
               'rope_type': scaling.kind, **{name: getattr(scaling, field) for field, name in
                                             _SCALINGS[scaling.kind].items()}}}
  own = {name: getattr(config, name) for name in ('init', 'dtype', 'scan_layers', 'remat')}
  for family, architecture in _ARCHITECTURES.items():
    written = {'model_type': family, 'architectures': [architecture], 'torch_dtype': 'float32',
               **shape}
    if from_checkpoint_config(written, **own) == config:
      return written
  raise config_lib.ConfigError('model: expected the biases and norms of one of '
                               f'{", ".join(_ARCHITECTURES)}, got {config}')


def _preset(d, layers, heads, kv_heads, head_dim, width, tied, vocab, family):
  qwen3 = family == 'qwen3'
  return DecoderConfig(
      vocab_size=vocab, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads,
      num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=width,
      attention_bias=not qwen3, qk_norm=qwen3, rope_theta=1e6, tie_word_embeddings=tied)


# For shapes and estimates; a loader believes the checkpoint's own config.json.
PRESETS = {
    'qwen3-0.6b': _preset(1024, 28, 16, 8, 128, 3072, True, 151936, 'qwen3'),
    'qwen3-1.7b': _preset(2048, 28, 16, 8, 128, 6144, True, 151936, 'qwen3'),
    'qwen3-4b': _preset(2560, 36, 32, 8, 128, 9728, True, 151936, 'qwen3'),
    'qwen3-8b': _preset(4096, 36, 32, 8, 128, 12288, False, 151936, 'qwen3'),
    'qwen2.5-0.5b': _preset(896, 24, 14, 2, 64, 4864, True, 151936, 'qwen2'),
    'qwen2.5-1.5b': _preset(1536, 28, 12, 2, 128, 8960, True, 151936, 'qwen2'),
    'qwen2.5-7b': _preset(3584, 28, 28, 4, 128, 18944, False, 152064, 'qwen2'),
}
