"""The parts of a VLA-JEPA from its config: modules, prompts, frozen encoder, checks before data."""
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.models import pretrained, vjepa2, vjepa2_weights, vlm
from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.systems.vla_jepa import flow_head, model, prompt, world_model

CONFIG_KEYS = ('trunk', 'encoder', 'predictor', 'head', 'world_model', 'prompt', 'data', 'rollout')


class PromptSpec(NamedTuple):
  """The mapping `config.prompt`.

  Attributes:
    length: L, tokens of a padded prompt.
    per_transition: K, latent-action tokens of a transition.
    num_embodied: M, embodied-action tokens.
    robot: template of robot prompts, see `prompt.build`.
    video: template of prompts for video without actions.
    words: all words of templates and instructions, for a small trunk without a tokenizer.
    tokenizer: folder with the trunk's tokenizer; the query tokens may be new to it.
  """
  length: int
  per_transition: int = 8
  num_embodied: int = 32
  robot: str = prompt.ROBOT
  video: str = prompt.VIDEO
  words: Sequence[str] = ()
  tokenizer: str | None = None


class EncoderSpec(NamedTuple):
  """What `config.encoder` has beside the fields of VJEPA2Config.

  Attributes:
    checkpoint: folder of a V-JEPA 2 of that shape (safetensors); None for a random encoder.
    seed: of a random encoder.
    zoom: see `model.Parts`.
  """
  checkpoint: str | None = None
  seed: int = 0
  zoom: bool = False


class Frames(NamedTuple):
  """What the other parts must know of an example.

  Attributes:
    frames: T of a clip, a multiple of the tubelet.
    horizon: H.
    action_dim: A.
    state_dim: P that the head sees; 0 for none.
    views: V, cameras.
  """
  frames: int
  horizon: int
  action_dim: int
  state_dim: int
  views: int


class Experiment(NamedTuple):
  """What `build` makes of a config.

  Attributes:
    encode: text -> token ids.
    queries: prompt.Queries.
    prompt: PromptSpec.
    encoder: VJEPA2Config.
    encoder_spec: EncoderSpec.
    trunk: the module.
    predictor: ACPredictor.
    head: FlowHead or RegressionHead.
    settings: model.Settings.
    image_size: of the trunk.
  """
  encode: Any
  queries: prompt.Queries
  prompt: PromptSpec
  encoder: vjepa2.VJEPA2Config
  encoder_spec: EncoderSpec
  trunk: Any
  predictor: Any
  head: Any
  settings: model.Settings
  image_size: int


def build(config, frames):
  """Checks and makes the parts, without any data.

  Args:
    config: mapping with 'trunk', 'encoder', 'predictor', 'head', 'world_model' and 'prompt'.
    frames: Frames.

  Raises:
    ConfigError: an unknown or missing key, a wrong type, parts that do not fit together.
  """
  encoder_config = dict(config_lib.section(config, 'encoder'))
  spec = config_lib.call(EncoderSpec, {key: encoder_config.pop(key) for key in EncoderSpec._fields
                                       if key in encoder_config}, 'encoder', drop=())
  encoder = config_lib.call(vjepa2.VJEPA2Config, encoder_config, 'encoder', drop=(),
                            pred_hidden_size=0)
  tubelet = encoder.tubelet_size
  config_lib.require(frames.frames % tubelet == 0 and frames.frames >= 2 * tubelet, 'data.frames',
                     f'a multiple of tubelet_size={tubelet}, two at least', frames.frames)
  settings = config_lib.call(model.Settings, config_lib.section(config, 'world_model'),
                             'world_model', drop=())
  config_lib.require(settings.beta >= 0, 'world_model.beta', 'at least 0', settings.beta)
  config_lib.at_least(1, settings, ('repeats', 'sampling_steps'), 'world_model')

  words = config_lib.call(PromptSpec, config_lib.section(config, 'prompt'), 'prompt', drop=())
  config_lib.at_least(1, words, ('length', 'per_transition', 'num_embodied'), 'prompt')
  config_lib.require('{e_actions}' in words.robot or settings.head_sees == 'all', 'prompt.robot',
                     "{e_actions} for a head that sees them (world_model.head_sees='embodied')",
                     words.robot)
  config_lib.require(bool(words.words) != bool(words.tokenizer), 'prompt',
                     'either words or tokenizer', dict(config['prompt']))
  transitions = frames.frames // tubelet - 1
  trunk_config = config_lib.section(config, 'trunk')
  make = config_lib.choose_named(trunk_config, {'keypoints': _keypoints, 'qwen3_vl': _qwen},
                                 'trunk')
  trunk, encode, queries, image_size = make(
      {key: value for key, value in trunk_config.items() if key != 'name'}, words, transitions,
      frames)
  predictor = config_lib.call(
      functools.partial(world_model.ACPredictor, parent=None), config_lib.section(
          config, 'predictor'), 'predictor', drop=(),
      state_dim=len(world_model.world_views(frames.views)) * encoder.hidden_size,
      grid=encoder.grid, actions_per_step=words.per_transition)
  _check_heads(predictor, 'predictor')
  heads = {'flow': flow_head.FlowHead, 'regression': flow_head.RegressionHead}
  head_config = config_lib.section(config, 'head')
  head = config_lib.call(
      functools.partial(config_lib.choose_named(head_config, heads, 'head'), parent=None),
      head_config, 'head', action_dim=frames.action_dim, horizon=frames.horizon,
      state_dim=frames.state_dim)
  if isinstance(head, flow_head.FlowHead):
    _check_heads(head, 'head')
    config_lib.require(head.width % 2 == 0, 'head.width', 'an even number', head.width)
    config_lib.require(frames.horizon <= head.max_positions, 'head.max_positions',
                       f'at least data.horizon={frames.horizon}', head.max_positions)
  return Experiment(encode, queries, words, encoder, spec, trunk, predictor, head, settings,
                    image_size)


def _check_heads(module, where):
  """Raises ConfigError unless the heads of a module share its width evenly."""
  config_lib.at_least(1, module, ('width', 'num_heads'), where)
  config_lib.require(module.width % module.num_heads == 0, f'{where}.num_heads',
                     f'a divisor of width={module.width}', module.num_heads)


def _queries(first, words, transitions, embodied, images=()):
  return prompt.Queries(tuple(range(first, first + transitions)), words.per_transition, embodied,
                        words.num_embodied, images)


def _keypoints(fields, words, transitions, frames):
  del frames
  config_lib.require(bool(words.words), 'prompt.words', 'the words of a keypoint trunk', words)
  encode, size = prompt.word_encoder(words.words)
  shape = config_lib.call(vlm.KeypointConfig, fields, 'trunk', drop=(),
                          vocab_size=size + transitions + 1)
  return vlm.KeypointTrunk(shape), encode, _queries(size, words, transitions,
                                                    size + transitions), 0


def _qwen_options(*, text: Mapping, vision: Mapping, first_query_id: int, image_token_id: int,
                  vision_start_id: int, vision_end_id: int, mrope_section: Sequence[int],
                  image_size: int = 224, num_action_tokens: int | None = None,
                  readout: Literal['pre_norm', 'post_norm'] = 'pre_norm'):
  """The mapping `config.trunk` of a Qwen3-VL.

  Args:
    text: fields of DecoderConfig.
    vision: fields of VisionConfig.
    first_query_id: id of `<|action_0|>`; those of the other action tokens follow, and then that
      of `<|embodied_action|>`.
    image_token_id: see QwenVLConfig.
    vision_start_id: id before an image.
    vision_end_id: id behind it.
    mrope_section: see QwenVLConfig.
    image_size: side of the trunk's images.
    num_action_tokens: `<|action_i|>` in the vocabulary, of which as many as there are transitions
      are used; None for no others. The release has 28.
    readout: see QwenVLConfig.
  """
  return dict(locals())


def _qwen(fields, words, transitions, frames):
  options = config_lib.call(_qwen_options, fields, 'trunk', drop=())
  config_lib.require(bool(words.tokenizer), 'prompt.tokenizer', 'the folder of a tokenizer', None)
  text, vision = ({key: tuple(value) if isinstance(value, list) else value
                   for key, value in options[part].items()} for part in ('text', 'vision'))
  shape = vlm.QwenVLConfig(
      config_lib.call(DecoderConfig, text, 'trunk.text', drop=(), qk_norm=True, scan_layers=False),
      config_lib.call(vlm.VisionConfig, vision, 'trunk.vision', drop=()),
      tuple(options['mrope_section']), options['image_token_id'], options['readout'])
  size = options['image_size']
  try:
    rows, columns = shape.vision.merged(size, size)
  except ValueError as error:
    raise config_lib.ConfigError(f'trunk.image_size: {error}') from error
  image = (options['vision_start_id'], *[shape.image_token_id] * rows * columns,
           options['vision_end_id'])
  first, count = options['first_query_id'], options['num_action_tokens']
  count = transitions if count is None else count
  config_lib.require(count >= transitions, 'trunk.num_action_tokens',
                     f'at least the {transitions} transitions of a clip', count)
  queries = _queries(first, words, transitions, first + count, image * frames.views)
  config_lib.require(queries.embodied < shape.text.vocab_size, 'trunk.text.vocab_size',
                     f'more than the id of the last query token, {queries.embodied}',
                     shape.text.vocab_size)
  return vlm.QwenVL(shape), _tokenizer(words.tokenizer, queries), queries, size


def _tokenizer(folder, queries):
  """The function text -> ids; the folder is read when it is first called."""
  @functools.cache
  def load():
    from jaxlab.data import text as text_lib
    tokenizer = text_lib.load_tokenizer(folder)
    names = [f'<|action_{i}|>' for i in range(len(queries.latent))] + ['<|embodied_action|>']
    for name, wanted in zip(names, (*queries.latent, queries.embodied)):
      config_lib.require(tokenizer.token_to_id(name) in (None, wanted), 'trunk.first_query_id',
                         f'the id {tokenizer.token_to_id(name)} of {name}', wanted)
    return tokenizer

  return lambda text: load().encode(text, add_special_tokens=False).ids


def prompts(experiment, template, instructions):
  """(Prompt [N, L], Places) of one kind of prompt."""
  tokens, mask, places = prompt.build(template, instructions, experiment.encode,
                                      experiment.queries, length=experiment.prompt.length)
  return model.Prompt(jnp.array(tokens), jnp.array(mask)), places


def make_parts(experiment, robot, video):
  """The model.Parts of an Experiment and the Places of its two kinds of prompts."""
  return model.Parts(experiment.trunk, experiment.encoder, experiment.predictor, experiment.head,
                     experiment.settings, robot, video, experiment.image_size,
                     experiment.encoder_spec.zoom)


def encoder_params(experiment):
  """The frozen encoder: a checkpoint's, or random."""
  spec, shape = experiment.encoder_spec, experiment.encoder
  if spec.checkpoint is None:
    make = jax.jit(lambda key: vjepa2_weights.init_params(shape, key)['encoder'])
    return make(jax.random.key(spec.seed))
  tensors = pretrained.read_safetensors_folder(spec.checkpoint)
  return vjepa2_weights.params_from_torch(tensors, shape)['encoder']
