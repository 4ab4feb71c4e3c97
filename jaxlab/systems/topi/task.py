"""The fixture's Task: a diffusion transformer that reads a digit out of a reference canvas."""
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import builders, pipeline
from jaxlab.metrics import image_similarity
from jaxlab.models import dit_sampler, dit_weights, rectified_flow
from jaxlab.models.dit import DiT, init_params
from jaxlab.systems.topi import calibration, data
from jaxlab.task import Loss, Task, row_keys

CONFIG_KEYS = ('model', 'data', 'sampling', 'prune')
TEST_SEED = 0x70B1  # of the canvases and noises of the test split, the same for all runs


class DataSpec(NamedTuple):
  """The mapping `config.data`.

  Attributes:
    variant: a key of `data.VARIANTS`.
    train: TFDS split of the training digits.
    test: likewise.
    instructions: keys of `data.INSTRUCTIONS`.
    reference: whether the network sees the reference; False for the network that has to do without.
  """
  variant: str
  train: str = 'train[:1500]'
  test: str = 'train[1500:]'
  instructions: Sequence[str] = ('copy', 'invert')
  reference: bool = True


def make_model(spec, config):
  """The DiT of `config` (its fields without those that the data decide)."""
  return config_lib.call(functools.partial(DiT, parent=None), config, 'model',
                         in_channels=data.CHANNELS, text_dim=len(spec.instructions),
                         pooled_dim=len(spec.instructions))


def check(config):
  """Checks all parts without loading data.

  Returns:
    (DiT, DataSpec).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type.
  """
  spec = config_lib.call(DataSpec, config_lib.section(config, 'data'), 'data', drop=())
  config_lib.choose(spec.variant, data.VARIANTS, 'data.variant')
  for name in spec.instructions:
    config_lib.choose(name, data.INSTRUCTIONS, 'data.instructions')
  model = make_model(spec, config_lib.section(config, 'model'))
  steps = config_lib.section(config, 'sampling')
  config_lib.check_keys(steps, ('steps',), 'sampling')
  config_lib.require(steps.get('steps', 0) >= 1, 'sampling.steps', 'at least 1', steps.get('steps'))
  if 'prune' in config:
    calibration.pruning_of(config_lib.section(config, 'prune'), model, steps['steps'],
                           lambda: np.zeros(model.num_layers))
  return model, spec._replace(instructions=tuple(spec.instructions))


def make_task(config):
  """Makes the Task from `config.model` (DiT), `config.data` (DataSpec) and `config.sampling`."""
  model, spec = check(config)
  builder = builders.load('digits')
  splits = {'train': builders.arrays(builder, spec.train),
            'test': builders.arrays(builder, spec.test)}
  datasets = {
      name: pipeline.from_arrays({
          'image': columns['image'], 'number': np.arange(len(columns['image']), dtype=np.int32)})
      for name, columns in splits.items()}
  return from_model(model, spec, datasets, steps=config['sampling']['steps'])


def official_weights(config, template):
  """(tensors -> params, params -> tensors) by diffusers' names, for launch.convert.

  Args:
    config: of the experiment.
    template: not used.
  """
  del template
  model, _ = check(config)
  return (functools.partial(dit_weights.params_from_torch, config=model),
          functools.partial(dit_weights.params_to_torch, config=model))


def see(example, spec):
  """The Conditions of examples, without the reference where the network may not see it."""
  conditions = data.conditions(example)
  if spec.reference:
    return conditions
  return conditions._replace(reference=conditions.reference[:, :0],
                             img_ids=conditions.img_ids[:, :data.N_TARGET])


def from_model(model, spec, datasets, *, steps):
  """Makes the Task of a DiT.

  Args:
    model: DiT over 2 x 2 patches of one channel.
    spec: DataSpec.
    datasets: split -> grain.MapDataset of {'image' [8, 8], 'number' (fixes the test canvas)}.
    steps: Euler steps of a test sample.
  """
  sigmas = rectified_flow.sigma_grid(steps, data.N_TARGET)

  def init(key):
    return {'params': init_params(model, key)}

  def act(variables, batch, key):
    del variables
    keys = jax.vmap(jax.random.split)(row_keys(key, len(batch['image'])))
    draw = jax.vmap(data.compose, in_axes=(0, 0, None, None))
    example = draw(batch['image'], keys[:, 0], spec.variant, spec.instructions)
    noise, t = jax.vmap(rectified_flow.draw)(keys[:, 1], example.target)
    return {**batch, 'example': example, 'noise': noise, 't': t}

  def loss(variables, batch, key):
    del key
    conditions = see(batch['example'], spec)
    field = lambda x, t: dit_sampler.velocity(model, variables['params'], x, t, conditions)[0]
    values = rectified_flow.loss(field, batch['example'].target, batch['noise'], batch['t'])
    return Loss(values, batch['weight'])

  def predict(variables, batch, key):
    del key
    example, noise = held_out(batch['image'], batch['number'], spec)
    out = dit_sampler.sample(model, variables['params'], noise, see(example, spec), sigmas)[-1]
    return {'sample': data.pixels(out), 'target': data.pixels(example.target)}

  def evaluate(pairs):
    samples, targets = (np.concatenate([outputs[name] for outputs, _ in pairs_])
                        for pairs_ in [list(pairs)] for name in ('sample', 'target'))
    return {'mse': float(np.mean(np.square(samples - targets))),
            'variance': float(targets.var()),
            'psnr': float(image_similarity.psnr(samples, targets, 2.0).mean())}

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset, act)


def held_out(images, numbers, spec, seed=TEST_SEED):
  """Examples and noise by their numbers alone: (Example [B, ...], noise [B, 16, 4])."""
  example, keys = data.compose_numbered(images, numbers, spec.variant, spec.instructions, seed)
  noise = jax.vmap(lambda key: jax.random.normal(key, (data.N_TARGET, data.CHANNELS)))(keys)
  return example, jnp.asarray(noise)
