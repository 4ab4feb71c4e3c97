"""The small study of reproduce.py: one compiled program trains and tests any arm of it.

An arm is data: which of the two losses each update takes, at what rate, with what weight of the
world model, from which encoding of the context. Stages, controls and baselines are rows of one
batch of runs.
"""
import functools
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.models import vjepa2, vlm
from jaxlab.systems.vla_jepa import (
    data,
    flow_head,
    latent_actions,
    model,
    prompt,
    rollout,
    tabletop,
    world_model,
)

NOTHING, VIDEO, ROBOT, LEAKY = range(4)  # what an update of a run learns from
# The encodings that a run chooses from, and where their targets come from.
ENCODINGS = {'causal_prefix': 'clip', 'shared': 'clip', 'repeat_frame': 'context'}
CONDITIONS = tuple(tabletop.LOOKS)
FRAMES, HORIZON, EXECUTED = 4, 4, 2
PER_TRANSITION, EMBODIED = 2, 4


class Run(NamedTuple):
  """The inputs of one run.

  Attributes:
    updates: int [2, S], what each update of the two stages does.
    rates: float [2, S], their learning rates.
    beta: weight of the world model's loss in robot batches.
    encoding: int, index into `ENCODINGS`.
    weighted: how much of the world model's loss counts tokens by their change, in [0, 1]; see
      `model.Settings`.
    demos: int [D], rows of the table of demonstration episodes.
    key: PRNG key.
    eval_key: of the tables of the evaluation, shared by the arms of a seed.
  """
  updates: jax.Array
  rates: jax.Array
  beta: jax.Array
  encoding: jax.Array
  weighted: jax.Array
  demos: jax.Array
  key: jax.Array
  eval_key: jax.Array


def make_parts():
  """The small model; FRAMES latent steps, 12 keypoints, one block of world model."""
  words = tuple(dict.fromkeys(' '.join(data.INSTRUCTIONS).split()))
  encode, size = prompt.word_encoder(words)
  queries = prompt.Queries(tuple(range(size, size + FRAMES - 1)), PER_TRANSITION, size + FRAMES - 1,
                           EMBODIED)
  tokens, mask, places = prompt.build(
      '{instruction}{actions}{e_actions}', data.INSTRUCTIONS, encode, queries,
      length=2 + (FRAMES - 1) * PER_TRANSITION + EMBODIED)
  encoder = vjepa2.VJEPA2Config(
      crop_size=tabletop.SIDE, patch_size=4, tubelet_size=1, hidden_size=48,
      num_attention_heads=4, num_hidden_layers=2, pred_hidden_size=0, init_std=0.0)
  parts = model.Parts(
      vlm.KeypointTrunk(vlm.KeypointConfig(size + FRAMES)), encoder,
      world_model.ACPredictor(encoder.hidden_size, encoder.grid, PER_TRANSITION, width=64,
                              num_layers=1, num_heads=4, residual=True),
      flow_head.FlowHead(2, HORIZON, width=64, num_heads=4, num_layers=2, hidden=64, out_width=64,
                         future_tokens=2, max_positions=HORIZON, dropout=0.0),
      model.Settings(repeats=2), places, places)
  return parts, model.Prompt(jnp.array(tokens), jnp.array(mask))


@functools.partial(jax.jit, static_argnums=0)
def _encode(parts, params, video):
  pairs = []
  for how, targets in ENCODINGS.items():
    settings = parts.settings._replace(context_encoding=how, targets=targets)
    pairs.append(model.encode(parts._replace(settings=settings), params, video))
  return [jnp.stack(kind, 1).astype(jnp.float16) for kind in zip(*pairs)]


def with_latents(parts, params, columns, block=512):
  """Columns with 'context' and 'target' float16 [N, 3, (G - 1) N, D] of all encodings, and the
  first frame as 'image' in place of 'video'."""
  video, made = columns['video'], []
  for start in range(0, len(video), block):
    rows = np.minimum(np.arange(start, start + block), len(video) - 1)
    made.append(jax.device_get(_encode(parts, params, video[rows])))
  context, target = (np.concatenate(x)[:len(video)] for x in zip(*made))
  rest = {name: column for name, column in columns.items() if name != 'video'}
  return {**rest, 'image': video[:, :, 0], 'context': context, 'target': target}


def make_world(parts, seed, *, clips, episodes, held_out=40):
  """Data of one draw: {'clips', 'demos' [windows of an episode side by side], 'test'} columns."""
  seeds = np.random.SeedSequence(seed).generate_state(5).tolist()
  frames = jnp.zeros((1, FRAMES, tabletop.SIDE, tabletop.SIDE, 3))
  encoder = jax.jit(vjepa2.Encoder(parts.encoder).init)(jax.random.key(seeds[0]), frames)['params']
  video = data.clip_windows(
      data.tabletop_episodes(seeds[1], clips, tabletop.VIDEO, data.CLIP_NOISE), seeds[2])
  demos = data.tabletop_episodes(seeds[3], episodes)
  test = data.tabletop_episodes(seeds[4], held_out)
  by_episode = lambda columns, count: {
      name: np.moveaxis(x.reshape(-1, count, *x.shape[1:]), 0, 1) for name, x in columns.items()}
  latents = functools.partial(with_latents, parts, encoder)
  return {'clips': latents(video),
          'demos': by_episode(latents(data.demo_windows(demos)), episodes),
          'test': latents(data.demo_windows(test))}


def _of_encoding(batch, encoding):
  pick = lambda x: x[:, encoding].astype(jnp.float32)
  return {**batch, 'context': pick(batch['context']), 'target': pick(batch['target'])}


def _learned_error(parts, params, batch, latent, weighted):
  """The error [B] that is learned from: plain, weighted, or between the two."""
  guess = parts.predictor.apply({'params': params['predictor']}, batch['context'], latent)
  plain, by_change = (model.state_error(guess, batch['context'], batch['target'], choice)
                      for choice in (False, True))
  return plain + weighted * (by_change - plain)


def probe(x, y, train, ridge=1e-2):
  """R^2 on the rest of the rows of a ridge regression on the first `train` rows.

  Args:
    x: [N, F]; y: [N, 2].
    train: rows to fit.
    ridge: penalty, in units of the mean variance of a feature.
  """
  mean, std = x[:train].mean(0), x[:train].std(0) + 1e-6
  x = (x - mean) / std
  centre = y[:train].mean(0)
  gram = x[:train].T @ x[:train] + ridge * train * jnp.eye(x.shape[1])
  weights = jnp.linalg.solve(gram, x[:train].T @ (y[:train] - centre))
  error = jnp.square(x[train:] @ weights + centre - y[train:]).sum()
  return 1 - error / jnp.square(y[train:] - y[train:].mean(0)).sum()


def _drift(key):
  """A plain clip uint8 [FRAMES, side, side, 3], and its motion [2], which frame 0 does not tell."""
  keys = jax.random.split(key, 4)
  scene = tabletop.reset(keys[0], tabletop.LOOKS['plain'])
  start = jax.random.uniform(keys[1], (2,), minval=0.3, maxval=0.7)
  motion = jax.random.uniform(keys[2], (2,), minval=-0.24, maxval=0.24)
  frame = lambda i: tabletop.render(
      scene._replace(agent=start + motion * i / (FRAMES - 1)), keys[3])
  return tabletop.quantise(jax.vmap(frame)(jnp.arange(FRAMES))), motion


def leak_probes(parts, seeds, clips, train):
  """R^2 of the motion to come from state 0, {encoding: float [len(seeds)]}.

  Clips of their own, in which the motion does not follow from the first frame: what a probe finds
  of it has leaked. Each seed draws clips and encoder.

  Args:
    parts: model.Parts.
    seeds: of the draws.
    clips: of each draw.
    train: of them, to fit; the rest judges.
  """
  size = parts.encoder.tokens_per_step

  @jax.jit
  def draw(key):
    clip_key, encoder_key = jax.random.split(key)
    video, motion = jax.vmap(_drift)(jax.random.split(clip_key, clips))
    frames = jnp.zeros((1, FRAMES, tabletop.SIDE, tabletop.SIDE, 3))
    params = vjepa2.Encoder(parts.encoder).init(encoder_key, frames)

    def first(frames):  # of both encodings [B, 2, N * D]
      encode = lambda x: vjepa2.Encoder(parts.encoder).apply(params, x)[:, :size]
      both = jnp.stack([encode(frames[:, :1]), encode(frames)], axis=1)
      return both.reshape(*both.shape[:2], -1)

    blocks = model.encoder_frames(video, parts).reshape(-1, 250, FRAMES, *video.shape[2:])
    states = jax.lax.map(first, blocks).reshape(clips, 2, -1)
    return jnp.stack([probe(states[:, i], motion, train, ridge=0.1) for i in range(2)])

  scores = np.stack([draw(jax.random.key(seed)) for seed in seeds])
  return {'causal_prefix': scores[:, 0], 'shared': scores[:, 1]}


@functools.lru_cache
def runner(batch_size, episodes):
  """The function (world, Run) -> metrics of one run, compiled once for all arms."""
  parts, prompts = make_parts()
  leaky = latent_actions.LatentActions(parts.predictor)

  def read(params, batch):
    asked = jax.tree.map(lambda x: x[batch['instruction']], prompts)
    return model.read(parts, params, batch['image'], asked, parts.robot)

  def batch_of(table, rows, run):
    return _of_encoding(jax.tree.map(lambda x: x[rows], table), run.encoding)

  def video_loss(params, world, run, key):
    rows = jax.random.randint(key, (batch_size,), 0, len(world['clips']['instruction']))
    batch = batch_of(world['clips'], rows, run)
    latent, _, _ = read(params, batch)
    return _learned_error(parts, params, batch, latent, run.weighted).mean()

  def leaky_loss(params, world, run, key):
    rows = jax.random.randint(key, (batch_size,), 0, len(world['clips']['instruction']))
    batch = batch_of(world['clips'], rows, run)
    latent, _, _ = read(params, batch)
    return leaky.apply({'params': params['leaky']}, batch['context'], batch['target'],
                       latent).mean()

  def robot_loss(params, world, run, key):
    keys = jax.random.split(key, 3)
    episode = run.demos[jax.random.randint(keys[0], (batch_size,), 0, len(run.demos))]
    start = jax.random.randint(keys[1], (batch_size,), 0, world['demos']['actions'].shape[1])
    batch = batch_of(world['demos'], (episode, start), run)
    latent, seen, mask = read(params, batch)
    error = _learned_error(parts, params, batch, latent, run.weighted)
    noise, t = jax.vmap(flow_head.draw, in_axes=(0, None))(
        jax.random.split(keys[2], batch_size), (parts.settings.repeats, HORIZON, 2))
    acted = model.action_loss(parts, params, seen, mask, {**batch, 'noise': noise, 't': t})
    return acted.mean() + run.beta * error.mean()

  def latent_probe(params, clips):
    latent, _, _ = read(params, clips)
    return probe(latent.reshape(len(latent), -1), clips['motion'], 1200)

  def train(world, run):
    start = model.init(parts, jax.random.fold_in(run.key, 0), prompts.tokens.shape[1],
                       (1, tabletop.SIDE, tabletop.SIDE, 3))
    nothing = jax.tree.map(lambda x: x[:1], world['clips'])
    states = _of_encoding(nothing, run.encoding)
    latent, _, _ = read(start, states)
    start['leaky'] = leaky.init(jax.random.fold_in(run.key, 2 * run.updates.size),
                                states['context'], states['target'], latent)['params']
    # One vector, for which the optimizer compiles in no time.
    flat, tree = jax.flatten_util.ravel_pytree(start)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.95),
                            optax.add_decayed_weights(1e-8))
    losses = [lambda flat, *_: 0.0 * flat[0],
              *(lambda flat, *rest, loss=loss: loss(tree(flat), *rest)
                for loss in (video_loss, robot_loss, leaky_loss))]
    steps = run.updates.shape[1]
    probed = batch_of(world['clips'], np.arange(1500), run)

    def update(carry, inputs):
      flat, state = carry
      kind, rate, number = inputs
      key = jax.random.fold_in(run.key, 1 + number)
      gradient = jax.lax.switch(kind, [jax.grad(loss) for loss in losses], flat, world, run, key)
      updates, state = optimizer.update(gradient, state, flat)
      return (flat - rate * updates, state), None

    def stage(flat, inputs):  # scanned too, so that its body is compiled once
      (after, _), _ = jax.lax.scan(update, (flat, optimizer.init(flat)), inputs)
      return after, latent_probe(tree(flat), probed)

    numbers = jnp.arange(2 * steps).reshape(2, steps)
    flat, probes = jax.lax.scan(stage, flat, (run.updates, run.rates, numbers))
    return tree(flat), probes

  def one(world, run):
    params, probes = train(world, run)
    test = _of_encoding(world['test'], run.encoding)
    latent, _, _ = read(params, test)
    error = lambda latent: model.world_losses(parts, params, test['context'], test['target'],
                                              latent)
    l1, copied = error(latent)
    # Another episode's tokens: the windows of one start stand side by side.
    shuffled, _ = error(jnp.roll(latent, 7, axis=0))

    def policy(images, target, places, key):
      asked = jax.tree.map(lambda x: x[target], prompts)
      noise = jax.random.normal(key, (len(images), HORIZON, 2))
      return model.act(parts, params, images, asked, places, noise)

    result = rollout.rollout(policy, rollout.looks_for(CONDITIONS, episodes),
                             rollout.stack_keys(run.eval_key, CONDITIONS, episodes),
                             executed=EXECUTED)
    return {'l1': l1.mean(), 'copy': copied.mean(), 'shuffled': shuffled.mean(),
            'probes': probes, 'success': result.success.reshape(len(CONDITIONS), episodes)}

  return one
