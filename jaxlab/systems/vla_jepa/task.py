"""VLA-JEPA as a Task with the arms 'robot' and 'video'."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import pipeline
from jaxlab.systems.vla_jepa import data as data_lib
from jaxlab.systems.vla_jepa import experiment as experiment_lib
from jaxlab.systems.vla_jepa import flow_head, model, sets
from jaxlab.task import Arm, Loss, Task, row_keys

BLOCK = 64  # clips encoded at a time where encodings are cached


def check(config):
  """Checks all parts of a config without loading data; returns the Experiment.

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type, parts that do not fit.
  """
  frames = sets.check(config_lib.section(config, 'data'))
  experiment = experiment_lib.build(config, frames)
  if 'rollout' in config:
    config_lib.check_arguments(rollout_settings, config['rollout'], 'rollout', drop=())
  return experiment


def rollout_settings(*, executed: int = 2):
  """The mapping `config.rollout`: actions of a chunk that are executed before the next plan."""
  return {'executed': executed}


def make_task(config):
  """Makes the Task of a config; see `experiment.build` and `sets.load` for its parts."""
  experiment = check(config)
  return from_data(experiment, sets.load(config['data']))


def from_data(experiment, data):
  """Makes the Task.

  Args:
    experiment: experiment.Experiment.
    data: data.Data.

  Returns:
    Task. Its own loss is that of the robot; `arms` are 'robot' and, where there is any, 'video'.
  """
  robot, robot_places = experiment_lib.prompts(experiment, experiment.prompt.robot,
                                               data.instructions)
  video, video_places = experiment_lib.prompts(experiment, experiment.prompt.video,
                                               data.instructions)
  parts = experiment_lib.make_parts(experiment, robot_places, video_places)
  settings = parts.settings
  frozen = experiment_lib.encoder_params(experiment)
  constants = {'encoder': frozen, 'robot': robot, 'video': video}
  if settings.cache:
    data = data._replace(**{name: cached(parts, frozen, getattr(data, name))
                            for name in ('robot', 'video', 'test')
                            if getattr(data, name) is not None})
  flows = isinstance(parts.head, flow_head.FlowHead)

  def init(key):
    shape = (data.views, *data.size, 3)
    return {'params': model.init(parts, key, experiment.prompt.length, shape),
            'constants': constants}

  def act(variables, batch, key):
    del variables
    if not flows:
      return batch
    shape = (settings.repeats, *batch['actions'].shape[1:])
    draw = functools.partial(flow_head.draw, shape=shape, times=settings.times)
    noise, t = jax.vmap(draw)(row_keys(key, len(batch['actions'])))
    return {**batch, 'noise': noise, 't': t}

  def of_batch(variables, batch, kind, training=False):
    """(images, latent-action tokens, the head's tokens, their mask)."""
    images = batch['image'] if 'image' in batch else batch['video'][:, :, 0]
    asked = model.Prompt(*(x[batch['instruction']] for x in variables['constants'][kind]))
    return model.read(parts, variables['params'], images, asked, getattr(parts, kind), training)

  def world(variables, batch, latent):
    """(l1, copy l1) float32 [B]."""
    if 'context' in batch:
      states = (batch[name].astype(jnp.float32) for name in ('context', 'target'))
    else:
      states = model.encode(parts, variables['constants']['encoder'], batch['video'])
    return model.world_losses(parts, variables['params'], *states, latent)

  def robot_loss(variables, batch, key):
    latent, seen, mask = of_batch(variables, batch, 'robot', training=True)
    weights = batch['weight']
    acted = model.action_loss(parts, variables['params'], seen, mask, batch, key)
    if settings.beta == 0:
      return Loss(acted, weights, {'action_loss': (acted, weights)})
    error, copied = world(variables, batch, latent)
    return Loss(acted + settings.beta * error, weights, {
        'action_loss': (acted, weights), 'l1': (error, weights), 'copy_l1': (copied, weights)})

  def video_loss(variables, batch, key):
    del key
    latent, _, _ = of_batch(variables, batch, 'video', training=True)
    error, copied = world(variables, batch, latent)
    return Loss(error, batch['weight'], {'l1': (error, batch['weight']),
                                         'copy_l1': (copied, batch['weight'])})

  def predict(variables, batch, key):
    latent, _, _ = of_batch(variables, batch, 'robot')
    error, copied = world(variables, batch, latent)
    images = batch['image'] if 'image' in batch else batch['video'][:, :, 0]
    asked = model.Prompt(*(x[batch['instruction']] for x in variables['constants']['robot']))
    shape = (parts.head.horizon, parts.head.action_dim)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(row_keys(key, len(images)))
    actions = model.act(parts, variables['params'], images, asked, batch.get('state'), noise)
    return {'actions': actions, 'l1': error, 'copy_l1': copied}

  def evaluate(pairs):
    pairs = list(pairs)
    column = lambda name: np.concatenate([outputs[name] for outputs, _ in pairs])
    given = lambda name: np.concatenate([batch[name] for _, batch in pairs])
    real = given('action_mask')
    errors = np.abs(column('actions') - given('actions')).mean(-1)
    return {'l1': float(column('l1').mean()), 'copy_l1': float(column('copy_l1').mean()),
            'action_error': float((errors * real).sum() / max(real.sum(), 1))}

  def dataset(split):
    splits = {'train': data.robot, 'test': data.test}
    return config_lib.choose(split, {k: v for k, v in splits.items() if v is not None}, 'split')

  arms = {'robot': Arm(robot_loss, lambda: data.robot, act)}
  if data.video is not None:
    arms['video'] = Arm(video_loss, lambda: data.video)
  return Task(init, robot_loss, predict, evaluate, dataset, act, arms=arms)


def cached(parts, frozen, dataset):
  """A data set with 'context' and 'target' float16 and the first frames as 'image', in memory.

  The encoder is frozen, so that its work need be done but once.
  """
  columns = pipeline.columns(dataset)
  run = jax.jit(functools.partial(model.encode, parts))
  video, made = columns['video'], []
  for start in range(0, len(video), BLOCK):
    rows = np.minimum(np.arange(start, start + BLOCK), len(video) - 1)
    pair = jax.device_get(run(frozen, video[rows]))
    made.append([x.astype(np.float16) for x in pair])
  context, target = (np.concatenate(x)[:len(video)] for x in zip(*made))
  rest = {name: column for name, column in columns.items() if name != 'video'}
  return pipeline.from_arrays({**rest, 'image': video[:, :, 0], 'context': context,
                               'target': target})


def policy(config, params, instructions=data_lib.INSTRUCTIONS):
  """The policy of a trained small model in closed loop.

  Args:
    config: of the run.
    params: {'trunk', 'head', ...}.
    instructions: texts that `target` numbers.

  Returns:
    (images [N, V, H, W, 3], target int [N], state [N, P], key) -> actions [N, H, A].
  """
  experiment = check(config)
  asked, places = experiment_lib.prompts(experiment, experiment.prompt.robot, instructions)
  parts = experiment_lib.make_parts(experiment, places, places)

  def act(images, target, state, key):
    chosen = model.Prompt(*(x[target] for x in asked))
    noise = jax.random.normal(key, (len(images), parts.head.horizon, parts.head.action_dim))
    return model.act(parts, params, images, chosen, state, noise)

  return act
