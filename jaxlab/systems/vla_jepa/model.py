"""VLA-JEPA (arXiv 2602.10098): trunk, frozen video encoder, world model and action head together.

Parameters are {'trunk', 'predictor', 'head'}; the frozen encoder is the constant 'encoder'.
"""
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models import vjepa2
from jaxlab.systems.vla_jepa import flow_head, world_model
from jaxlab.systems.vla_jepa.prompt import Places

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, in V-JEPA 2's processor
_STD = np.array([0.229, 0.224, 0.225], np.float32)


class Settings(NamedTuple):
  """How the losses are made; the mapping `config.world_model`.

  Attributes:
    beta: weight of the world model's loss in a robot batch; 0 leaves it out.
    context_encoding: see `vjepa2.context_states`; 'shared' is the release's, which leaks.
    view_order: see `world_model.join_views`.
    targets: 'clip' predicts the encoding of the whole clip, as the paper does; 'context' the next
      step's own context encoding (CHOICE).
    weighted: whether the loss of a token counts by how far its target is from the current state
      (CHOICE): still patches then say nothing.
    repeats: R, draws of noise and time for each example of a robot batch.
    times: see `flow_head.draw`.
    sampling_steps: Euler steps of a sample.
    head_sees: tokens that the action head attends to: the embodied ones, or 'all' of the prompt.
    cache: whether the frozen encodings are computed once and kept in memory as float16.
  """
  beta: float = 0.1
  context_encoding: Literal['causal_prefix', 'repeat_frame', 'shared'] = 'causal_prefix'
  view_order: Literal['intended', 'released_code'] = 'intended'
  targets: Literal['clip', 'context'] = 'clip'
  weighted: bool = False
  repeats: int = 8
  times: Literal['beta', 'uniform'] = 'beta'
  sampling_steps: int = 4
  head_sees: Literal['embodied', 'all'] = 'embodied'
  cache: bool = False


class Parts(NamedTuple):
  """The modules of one model.

  Attributes:
    trunk: a module of `jaxlab.models.vlm`.
    encoder: VJEPA2Config.
    predictor: ACPredictor.
    head: FlowHead or RegressionHead.
    settings: Settings.
    robot: Places of the query tokens in a robot prompt.
    video: Places in a prompt for video without actions.
    image_size: side of the trunk's images; 0 leaves them as they come.
    zoom: whether frames are enlarged by 256 / 224 and cropped, as V-JEPA 2's processor does.
  """
  trunk: Any
  encoder: vjepa2.VJEPA2Config
  predictor: world_model.ACPredictor
  head: Any
  settings: Settings
  robot: Places
  video: Places
  image_size: int = 0
  zoom: bool = False


class Prompt(NamedTuple):
  """Tokens int [B, L] and their mask bool [B, L]."""
  tokens: jax.Array
  mask: jax.Array


def trunk_images(images, parts, training=False):
  """Images [B, V, H, W, 3] in [-1, 1] of uint8 ones, resized as the release does.

  Args:
    images: uint8 [B, V, H', W', 3].
    parts: Parts.
    training: True resizes bicubically with a low-pass filter (Pillow's default), False by areas.
  """
  x, size = images.astype(jnp.float32), parts.image_size
  to_bytes = lambda x: jnp.clip(jnp.round(x), 0, 255)
  if size and x.shape[2:4] != (size, size):
    if training:  # columns first, and bytes between: the sharpest edges would differ otherwise
      x = to_bytes(jax.image.resize(x, (*x.shape[:3], size, 3), 'cubic'))
      x = to_bytes(jax.image.resize(x, (*x.shape[:2], size, size, 3), 'cubic'))
    else:
      rows, columns = (_areas(size, source) for source in x.shape[2:4])
      x = to_bytes(jnp.einsum('ih,bvhwc,jw->bvijc', rows, x, columns))
  return x / 127.5 - 1


def _areas(size, source):
  """Shares [size, source] of the source's pixels in each of `size` pixels."""
  edges, pixel = np.arange(size + 1) * source / size, np.arange(source)
  overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
  return (np.maximum(overlap, 0) * size / source).astype(np.float32)


def encoder_frames(video, parts):
  """Normalised frames [..., crop, crop, 3] of uint8 frames [..., H, W, 3].

  Frames are resized to the crop and, with `zoom`, their middle 224 / 256 enlarged to it.
  """
  size = parts.encoder.crop_size
  x = video.astype(jnp.float32)
  resize = lambda x, side: jax.image.resize(x, (*x.shape[:-3], side, side, 3), 'bilinear')
  if x.shape[-3:-1] != (size, size):
    x = resize(x, size)
  if parts.zoom:
    larger = size * 256 // 224
    edge = (larger - size) // 2
    x = resize(x, larger)[..., edge:edge + size, edge:edge + size, :]
  return (x / 255 - _MEAN) / _STD


def encode(parts, encoder_params, video):
  """(context, target), each [B, (G - 1) N, V' D_v], of uint8 clips [B, V, T, H, W, 3] of all
  cameras; V' of them are the `world_model.world_views`."""
  settings = parts.settings
  views = world_model.world_views(video.shape[1])
  if len(views) < video.shape[1]:
    video = video[:, np.array(views)]
  run = lambda x: vjepa2.Encoder(parts.encoder).apply({'params': encoder_params}, x)
  return world_model.encode_views(
      run, encoder_frames(video, parts), how=settings.context_encoding,
      tubelet=parts.encoder.tubelet_size, order=settings.view_order, targets=settings.targets)


def read(parts, params, images, prompt, places, training=False):
  """(latent-action tokens [B, (G - 1) K, D], the tokens that the head sees, their mask or None).

  Args:
    parts: Parts.
    params: {'trunk', ...}.
    images: uint8 [B, V, H, W, 3], the first frame of each camera.
    prompt: Prompt.
    places: Places of that kind of prompt.
    training: see `trunk_images`.
  """
  hidden = parts.trunk.apply({'params': params['trunk']}, trunk_images(images, parts, training),
                             prompt.tokens, prompt.mask)
  latent = hidden[:, np.array(places.latent)]
  if parts.settings.head_sees == 'all':
    return latent, hidden, prompt.mask
  return latent, hidden[:, np.array(places.embodied, int)], None


def world_losses(parts, params, context, target, latent):
  """(error of the world model, of copying the current state), float32 [B] each.

  The error that is trained on may be weighted (see Settings); that of copying is weighted alike.
  """
  prediction = parts.predictor.apply({'params': params['predictor']}, context, latent)
  return tuple(state_error(guess, context, target, parts.settings.weighted)
               for guess in (prediction, context))


def state_error(guess, context, target, weighted):
  """Distance float32 [B] of guessed states from the target's, `weighted` by how much each moves."""
  if not weighted:
    return world_model.l1(guess, target)
  moved = jnp.abs(target - context).mean(-1)
  weights = moved / jnp.maximum(moved.mean(-1, keepdims=True), 1e-6)
  return jnp.mean(jnp.abs(guess - target).mean(-1) * weights, axis=-1)


def _head_velocity(parts, params, seen, mask, state, **options):
  return lambda x, bucket: parts.head.apply({'params': params['head']}, x, bucket, seen, state,
                                            mask, **options)


def action_loss(parts, params, seen, mask, batch, key=None):
  """Loss of the head, float32 [B]: the mean over repeats and the real actions of the chunk.

  Args:
    parts: Parts.
    params: {'head', ...}.
    seen: [B, N, D], what `read` gave.
    mask: its mask.
    batch: 'actions' [B, H, A], 'action_mask' [B, H], 'state' [B, P] where the head has one, and
      for a flow 'noise' [B, R, H, A] and 't' [B, R].
    key: PRNG key of the dropout, or None for none.
  """
  state, real = batch.get('state') if parts.head.state_dim else None, batch['action_mask']
  if isinstance(parts.head, flow_head.RegressionHead):
    chunk = parts.head.apply({'params': params['head']}, seen, state, mask)
    errors = jnp.abs(chunk - batch['actions']).mean(-1)
  else:
    rows, repeats = batch['t'].shape
    again = lambda x: None if x is None else jnp.repeat(x, repeats, axis=0)
    options = {} if key is None else {'deterministic': False, 'rngs': {'dropout': key}}
    velocity = _head_velocity(parts, params, again(seen), again(mask), again(state), **options)
    flat = lambda x: x.reshape(rows * repeats, *x.shape[2:])
    errors = flow_head.loss(velocity, again(batch['actions']), flat(batch['noise']),
                            flat(batch['t'])).reshape(rows, repeats, -1).mean(1)
  return jnp.sum(errors * real, -1) / jnp.maximum(real.sum(-1), 1)


def act(parts, params, images, prompt, state, noise):
  """A chunk of actions [B, H, A] in the network's units, for images as they are now.

  Args:
    parts: Parts.
    params: {'trunk', 'head', ...}; neither the encoder nor the world model is needed.
    images: uint8 [B, V, H, W, 3].
    prompt: Prompt, of a robot.
    state: [B, P] or None.
    noise: [B, H, A], where the flow starts.
  """
  _, seen, mask = read(parts, params, images, prompt, parts.robot)
  state = state if parts.head.state_dim else None
  if isinstance(parts.head, flow_head.RegressionHead):
    return parts.head.apply({'params': params['head']}, seen, state, mask)
  return flow_head.sample(_head_velocity(parts, params, seen, mask, state), noise,
                          parts.settings.sampling_steps)


def init(parts, key, prompt_length, image_shape):
  """Random parameters {'trunk', 'predictor', 'head'}.

  Args:
    parts: Parts.
    key: PRNG key.
    prompt_length: L.
    image_shape: (V, H, W, 3) of the camera images.
  """
  trunk_key, predictor_key, head_key = jax.random.split(key, 3)
  images = trunk_images(jnp.zeros((1, *image_shape), jnp.uint8), parts)
  tokens = jnp.zeros((1, prompt_length), jnp.int32)
  shape, trunk = parts.trunk.init_with_output(trunk_key, images, tokens,
                                              jnp.ones((1, prompt_length), bool))
  width = shape.shape[-1]
  if isinstance(parts.head, flow_head.RegressionHead):
    state = jnp.zeros((1, parts.head.state_dim)) if parts.head.state_dim else None
    head = parts.head.init(head_key, jnp.zeros((1, 1, width)), state)['params']
  else:
    head = flow_head.init_params(parts.head, width, head_key)
  predictor = world_model.init_params(parts.predictor, width, predictor_key)
  return {'trunk': trunk['params'], 'predictor': predictor, 'head': head}
