"""The Task of monocular geometry: losses routed by the kind of ground truth."""
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models import dinov2
from jaxlab.systems.moge2 import data as data_lib
from jaxlab.systems.moge2 import evaluation, geometry, local_loss, losses, recovery
from jaxlab.systems.moge2.network import MoGe
from jaxlab.task import Loss, Task, row_keys

CONFIG_KEYS = ('model', 'data', 'loss', 'predict')
SEGMENTS, SEGMENT_AREA = 100, 1000  # measured in an image, at most; valid pixels of each, at least
TERMS = ('global', 'local', 'edge', 'normal_map', 'metric_scale', 'mask')
# Terms that a kind of ground truth serves; local levels are named one by one.
ROUTES = {
    'A': ('global', 'local4', 'local16', 'local64', 'edge', 'normal_map', 'metric_scale', 'mask'),
    'B': ('global', 'local4', 'local16', 'edge', 'normal_map', 'metric_scale', 'mask'),
    'C': ('global', 'local4', 'metric_scale', 'mask'),
    'invalid': (),
}


@dataclasses.dataclass(frozen=True)
class LocalSpec:
  """A local loss: its level, the grid that is aligned, and the patches of an image."""
  level: Literal[4, 16, 64]
  resolution: int
  num_patches: int


LOCAL = ({'level': 4, 'resolution': 24, 'num_patches': 16},
         {'level': 16, 'resolution': 12, 'num_patches': 256},
         {'level': 64, 'resolution': 6, 'num_patches': 4096})


@dataclasses.dataclass(frozen=True)
class LossSpec:
  """The mapping `config.loss`.

  Attributes:
    weights: term -> weight; a term without one has the paper's.
    resolution: side of the global loss's grid.
    anchor_step: every so many rows and columns of it are anchors; 1 for all.
    local: mappings of LocalSpec.
    entangled: True for the variant without a scale head, whose points are in meters up to a shift.
    flip: whether half of the training images are mirrored.
    num_tokens: patches of a training image; 0 for those of `config.predict`.
  """
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  resolution: int = 48
  anchor_step: int = 1
  local: Sequence[Mapping] = LOCAL
  entangled: bool = False
  flip: bool = True
  num_tokens: int = 0

  def __post_init__(self):
    config_lib.check_keys(self.weights, TERMS, 'loss.weights')
    config_lib.at_least(1, self, ('resolution', 'anchor_step'), 'loss')
    config_lib.at_least(0, self, ('num_tokens',), 'loss')

  def locals(self):
    """The LocalSpecs."""
    specs = tuple(config_lib.call(LocalSpec, spec, f'loss.local[{i}]', drop=())
                  for i, spec in enumerate(self.local))
    for i, spec in enumerate(specs):
      config_lib.at_least(1, spec, ('resolution', 'num_patches'), f'loss.local[{i}]')
    return specs

  def weight(self, term):
    """The weight of a term."""
    return self.weights.get(term, {'normal_map': .1, 'metric_scale': .1, 'mask': .1}.get(term, 1.0))

  def anchors(self):
    """Numbers of the grid's anchors, or None for all."""
    if self.anchor_step == 1:
      return None
    grid = np.arange(self.resolution**2).reshape(self.resolution, self.resolution)
    return grid[::self.anchor_step, ::self.anchor_step].reshape(-1)


@dataclasses.dataclass(frozen=True)
class PredictSpec:
  """The mapping `config.predict`.

  Attributes:
    num_tokens: patches of an image; 0 for `resolution_level`.
    resolution_level: 0 (1200 patches) to 9 (3600).
    fov_x: known horizontal field of view in degrees; 0 where it is not known.
    batch_size: images of one size that are predicted together.
    edge_rtol: relative depth step that cuts the mesh.
    max_side: longer images are shrunk to it first; 0 for none.
    align_size: side of the grid of the evaluation's alignments.
  """
  num_tokens: int = 0
  resolution_level: int = 9
  fov_x: float = 0.0
  batch_size: int = 1
  edge_rtol: float = 0.04
  max_side: int = 0
  align_size: int = 64

  def __post_init__(self):
    require = config_lib.require
    require(self.num_tokens >= 0, 'predict.num_tokens', 'at least 0', self.num_tokens)
    require(0 <= self.resolution_level <= 9, 'predict.resolution_level', '0 to 9',
            self.resolution_level)
    require(0 <= self.fov_x < 180, 'predict.fov_x', 'degrees below 180, or 0', self.fov_x)
    require(self.batch_size >= 1, 'predict.batch_size', 'at least 1', self.batch_size)
    require(self.max_side == 0 or self.max_side >= 2, 'predict.max_side', '0 or at least 2',
            self.max_side)
    require(self.align_size >= 2, 'predict.align_size', 'at least 2', self.align_size)

  @property
  def tokens(self):
    """Patches of an image."""
    return self.num_tokens or int(1200 + self.resolution_level / 9 * 2400)


def make_model(config, *, entangled=False):
  """The MoGe of `config.model`: its fields, with `encoder` {name: 'vitl14', ...} or DINOv2's."""
  config_lib.check_type(config, Mapping, 'model')
  encoder = config.get('encoder')
  config_lib.require(isinstance(encoder, Mapping) or hasattr(encoder, 'items'), 'model.encoder',
                     'a mapping', encoder)
  if 'name' in encoder:
    config_lib.choose(encoder['name'], dinov2.VARIANTS, 'model.encoder.name')
    encoder = {**dinov2.VARIANTS[encoder['name']], **encoder}
  vit = config_lib.call(functools.partial(dinov2.DINOv2, parent=None), encoder, 'model.encoder')
  config_lib.at_least(1, vit, ('width', 'depth', 'num_heads', 'patch', 'grid'), 'model.encoder')
  config_lib.require(vit.width % vit.num_heads == 0, 'model.encoder.num_heads',
                     f'a divisor of width={vit.width}', vit.num_heads)
  fields = {key: tuple(value) if isinstance(value, list) else value
            for key, value in config.items() if key != 'encoder'}
  model = config_lib.call(functools.partial(MoGe, parent=None), fields, 'model', drop=(),
                          encoder=vit, **({'metric': False} if entangled else {}))
  levels = len(model.dims)
  for name, value, expected in (('neck_blocks', model.neck_blocks, levels),
                                ('head_blocks', model.head_blocks, levels),
                                ('resamplers', model.resamplers, levels - 1)):
    if value is not None:
      config_lib.require(len(value) == expected, f'model.{name}', f'{expected} values', value)
  for kind in model.resamplers:
    config_lib.choose(kind, dict.fromkeys(('conv_transpose', 'bilinear', 'nearest',
                                           'pixel_shuffle')), 'model.resamplers')
  dinov2.wanted_layers(model.layers, vit.depth)
  return model


def check(config):
  """Checks all parts without loading data.

  Returns:
    (MoGe, LossSpec, PredictSpec).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  spec = config_lib.call(LossSpec, config.get('loss', {}), 'loss', drop=())
  spec.locals()
  try:
    model = make_model(config_lib.section(config, 'model'), entangled=spec.entangled)
  except config_lib.ConfigError:
    raise
  except ValueError as error:
    raise config_lib.ConfigError(f'model: {error}') from error
  data = config_lib.section(config, 'data')
  config_lib.check_arguments(data_lib.load, data, 'data', drop=())
  data_lib.check(**data)
  predict = config_lib.call(PredictSpec, config.get('predict', {}), 'predict', drop=())
  return model, spec, predict


def make_task(config):
  """Makes the Task of a config: `model` (MoGe), `data` (data.load), `loss` (LossSpec) and `predict`
  (PredictSpec; its number of tokens is the training's too where `loss` has none)."""
  model, spec, predict = check(config)
  # Read when they are first asked for: predicting the user's own pictures needs none.
  load = functools.cache(lambda: config_lib.call(data_lib.load, config['data'], 'data', drop=()))
  return from_model(model, spec, load, num_tokens=predict.tokens, align_size=predict.align_size)


def from_model(model, spec, datasets, *, num_tokens, align_size=64):
  """Makes the Task of a MoGe.

  Args:
    model: MoGe.
    spec: LossSpec.
    datasets: function that gives {split: grain.MapDataset of the columns of `data.columns_of`}.
    num_tokens: patches of an image; in training `spec.num_tokens` where it is not 0.
    align_size: side of the grid of the evaluation's alignments.
  """
  local = spec.locals()
  terms = ['global', *[f'local{one.level}' for one in local], 'edge', 'normal_map', 'mask',
           *(() if spec.entangled else ('metric_scale',))]
  routes = jnp.array([[name in ROUTES[label] for name in terms] for label in data_lib.LABELS],
                     jnp.float32)
  weights = jnp.array([spec.weight(name.rstrip('0123456789')) for name in terms], jnp.float32)

  def init(key):
    side = model.encoder.patch * 2
    image = jnp.zeros((1, side, side, 3))
    return {'params': model.init(key, image, num_tokens=1)['params']}

  def act(variables, batch, key):
    del variables
    keys = row_keys(key, len(batch['image']))
    batch = {**batch, 'key': jax.vmap(jax.random.key_data)(keys)}
    if not spec.flip:
      return batch
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    flip = lambda x: jnp.where(mirrored.reshape(-1, *(1,) * (x.ndim - 1)), x[:, :, ::-1], x)
    return {**batch, 'image': flip(batch['image']), 'depth': flip(batch['depth'])}

  def image_losses(points, mask_logit, normal, scale, depth, intrinsics, flags, key):
    """(losses [terms], aligned scale) of one image."""
    target = geometry.unproject(depth, intrinsics)
    first = losses.global_loss(points, target, resolution=spec.resolution,
                               anchors=spec.anchors(), metric=spec.entangled)
    values = {'global': first.value, 'edge': losses.edge_loss(points, target)}
    focal = geometry.diagonal_focal(intrinsics)
    for one in local:
      values[f'local{one.level}'] = local_loss.local_loss(
          jax.random.fold_in(key, one.level), points, target, focal, first.scale, level=one.level,
          resolution=one.resolution, num_patches=one.num_patches).value
    zero = jnp.float32(0)
    values['normal_map'] = zero if normal is None else losses.normal_map_loss(
        normal, geometry.target_normals(depth, intrinsics))
    finite, sky = jnp.isfinite(depth), jnp.isposinf(depth)
    positive = jnp.where(flags['only_known'], finite, ~sky)
    values['mask'] = losses.mask_bce_loss(mask_logit, positive, sky)
    if not spec.entangled:
      values['metric_scale'] = zero if scale is None else flags['metric'] * (
          losses.metric_scale_loss(scale, first.scale))
    return jnp.stack([values[name] for name in terms]), first

  def loss(variables, batch, key):
    if 'key' not in batch:  # whoever takes no `act` first, draws here
      batch = act(variables, batch, key)
    out = model.apply(variables, images_of(batch), num_tokens=spec.num_tokens or num_tokens)
    flags = {name: batch[name] for name in ('metric', 'only_known')}
    keys = jax.random.wrap_key_data(batch['key'])
    values, first = jax.vmap(image_losses)(out.points, out.mask_logit, out.normal, out.metric_scale,
                                           batch['depth'], batch['intrinsics'], flags, keys)
    used, pad = routes[batch['label']], batch['weight']
    metrics = {name: (values[:, i], pad * used[:, i]) for i, name in enumerate(terms)}
    # The share of images with a usable scale: training has collapsed where it drops.
    metrics['valid_scale'] = (first.scale > 0).astype(jnp.float32), pad * used[:, 0]
    metrics['delta'] = first.delta, pad * used[:, 0]
    return Loss(jnp.sum(values * used * weights, axis=1), pad, metrics)

  def predict(variables, batch, key):
    del key
    out = model.apply(variables, images_of(batch), num_tokens=num_tokens)
    scale = jnp.ones(len(out.points)) if out.metric_scale is None else out.metric_scale
    mask = jax.nn.sigmoid(out.mask_logit)
    found = recovery.infer(out.points, mask, out.normal, scale, apply_mask=False)
    return {'points': out.points * scale[:, None, None, None], 'depth': found.depth,
            'intrinsics': found.intrinsics, 'mask': mask, 'metric_scale': scale,
            **({} if out.normal is None else {'normal': out.normal})}

  def evaluate(pairs):
    rows = []
    for outputs, batch in pairs:
      for i in range(len(batch['depth'])):
        pick = lambda tree: jax.tree.map(lambda x: np.asarray(x[i]), tree)
        rows.append(image_metrics(pick(outputs), pick(batch), align_size))
    return mean_metrics(rows)

  def dataset(split):
    return config_lib.choose(split, datasets(), 'split')

  return Task(init, loss, predict, evaluate, dataset, act)


def images_of(batch) -> Any:
  """RGB [B, H, W, 3] in [0, 1] of a batch's bytes."""
  return batch['image'].astype(jnp.float32) / 255


def image_metrics(outputs, example, align_size):
  """{metric: value} of one image, without any masking by the prediction; {} where none is valid.

  Args:
    outputs: what `predict` says of the image.
    example: its columns.
    align_size: side of the grid of alignments.
  """
  depth = example['depth']
  mask = np.isfinite(depth)
  if not mask.any():
    return {}
  points = np.asarray(geometry.unproject(depth, example['intrinsics']))
  truth = evaluation.Truth(depth, points, mask, example['intrinsics'],
                           large_segments(example['segments'], mask), example['metric'])
  guess = evaluation.Guess(outputs['depth'], outputs['points'], outputs['intrinsics'])
  scores = evaluation.evaluate(guess, truth, grid=align_size)
  sky = np.isposinf(depth)
  found = outputs['mask'] > 0.5
  either = (found & (mask | sky)) | mask
  return {**scores, 'mask.iou': float((found & mask).sum() / either.sum())}


def large_segments(segments, mask):
  """Segment ids int [H, W] of those whose local points are measured, 0 for the others.

  Args:
    segments: int [H, W], ids, 0 for none.
    mask: bool [H, W], valid pixels.
  """
  numbers, areas = np.unique(segments[mask & (segments > 0)], return_counts=True)
  largest = np.argsort(-areas, kind='stable')[:SEGMENTS]
  kept = numbers[largest[areas[largest] >= SEGMENT_AREA]]
  return np.where(np.isin(segments, kept), segments, 0)


def mean_metrics(rows):
  """Means over the images that have a metric; {'images': 0.0} where none has any."""
  names = sorted({name for row in rows for name in row})
  means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
  return {**means, 'images': float(len([row for row in rows if row]))}
