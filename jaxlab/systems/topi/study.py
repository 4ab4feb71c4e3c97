"""Policies at equal numbers of kept tokens, on a trained fixture: who keeps the picture?

All policies share noise, schedule and unpruned anchors. Everything that a policy is made of is an
input of one compiled program.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import parallel
from jaxlab.models import dit_sampler, rectified_flow
from jaxlab.systems.topi import calibration, data, merging, sampler, task
from jaxlab.systems.topi import influence as influence_lib
from jaxlab.systems.topi.calibration import PIVOTAL

CALIBRATION_SAMPLES, CALIBRATION_TIMES = 16, (0.125, 0.375, 0.625, 0.875)
RANDOM_DRAWS = 4
TAUS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


class Settings(NamedTuple):
  """Of the sampler in a study.

  Attributes:
    steps: Euler steps.
    first_layer: l_0.
    interval: steps between anchors.
  """
  steps: int = 12
  first_layer: int = 1
  interval: int = 4


class Policy(NamedTuple):
  """A ranking of reference tokens as arrays.

  The value of a token is sign * sum over layers of weight * (received or 1) * (value norm or 1),
  plus a value of its own that does not change along the run.

  Attributes:
    layers: weights [L].
    received: 1 to use the attention received, 0 not to.
    value_norm: likewise for the length of the value.
    own: [B, n_c].
    refresh: 1 to rank anew at every anchor, 0 to keep the set of step 0.
    count: tokens that stay; 0 to let `tau` decide.
    tau: share of the values that stays.
    shuffled: 1 to deal the values at random among the tokens (ablation).
  """
  layers: np.ndarray
  received: float
  value_norm: float
  own: np.ndarray
  refresh: float = 1.0
  count: int = 0
  tau: float = 1.0
  shuffled: float = 0.0


class Held(NamedTuple):
  """Held-out examples, their noise, and a key of the study's own draws."""
  example: data.Example
  noise: jax.Array
  key: jax.Array


def policies(num_layers, pivotal, held, first_layer, rng):
  """{name: Policy without a budget}; `pivotal` is all layers in falling order of the profile."""
  shape = held.example.reference.shape[:2]
  none = np.zeros(shape, np.float32)
  weights = lambda layers: np.isin(np.arange(num_layers), list(layers)).astype(np.float32)
  scored = lambda layers, received=1.0, value_norm=1.0, **more: Policy(
      weights(layers), received, value_norm, none, **more)
  fixed = lambda own: Policy(weights(()), 1.0, 1.0, np.asarray(own, np.float32))
  random = lambda: rng.random(shape, np.float32)
  topi = scored(pivotal[:PIVOTAL])
  made = {
      'ToPi': topi,
      'ToPi, 1 layer': scored(pivotal[:1]),
      'ToPi, 2 layers': scored(pivotal[:2]),
      'all layers': scored(range(num_layers)),
      'attention only': scored(pivotal[:PIVOTAL], value_norm=0.0),
      'value norm only': scored(pivotal[:PIVOTAL], received=0.0),
      'set of step 0': topi._replace(refresh=0.0),
      'last layer': scored((num_layers - 1,)),
      'early layer': scored((max(first_layer - 1, 0),), value_norm=0.0, refresh=0.0),
      'least influential first': topi._replace(layers=-topi.layers),
      'true location': fixed(np.asarray(held.example.informative) + 0.5 * random()),
      'pixel deviation': fixed(np.asarray(held.example.reference).std(-1)),
      'regular': fixed(np.broadcast_to(_regular(shape[1]), shape)),
  }
  made |= {f'random {i}': fixed(random()) for i in range(RANDOM_DRAWS)}
  return made


def _regular(total):
  """Values whose first k tokens are spread evenly, for every k: bit-reversed positions."""
  bits = max(total - 1, 1).bit_length()
  reverse = lambda i: int(format(i, f'0{bits}b')[::-1], 2)
  return -np.array([reverse(i) for i in range(total)], np.float32)


def policy_values(policy, scores, key):
  """Values of the reference tokens [B, n_c] under a policy."""
  values = policy.own
  for layer, score in scores.items():
    product = (jnp.where(policy.received > 0, score.received, 1) *
               jnp.where(policy.value_norm > 0, score.value_norm, 1))
    values = values + policy.layers[layer] * product.sum(1)
  return jnp.where(policy.shuffled > 0, influence_lib.shuffle(values, key), values)


@functools.lru_cache
def policy_run(model, settings):
  """The function of one run: ((params of all networks, Held of all), which, Policy) -> samples."""
  def run(shared, which, policy):
    params, held = jax.tree.map(lambda leaf: leaf[which], shared)
    sigmas = jnp.asarray(rectified_flow.sigma_grid(settings.steps, data.N_TARGET))

    def choose(scores, step, mask):
      values = policy_values(policy, scores, jax.random.fold_in(held.key, step))
      count = jnp.where(policy.count > 0, policy.count,
                        influence_lib.count_for_share(values, policy.tau))
      fresh = influence_lib.keep_mask(values, count)
      return jnp.where((step == 0) | (policy.refresh > 0), fresh, mask)

    latents, masks = sampler.masked_sample(
        model, params, held.noise, data.conditions(held.example), sigmas, choose,
        first_layer=settings.first_layer, interval=settings.interval,
        score_layers=range(model.num_layers))
    return latents[-1], masks.mean()

  return run


@functools.lru_cache
def merge_run(model, settings, name, count):
  """As `policy_run` for a merging baseline: ((params, Held), which) -> samples."""
  def run(shared, which):
    params, held = jax.tree.map(lambda leaf: leaf[which], shared)
    conditions = data.conditions(held.example)
    side = round(held.example.reference.shape[1]**0.5)
    sigmas = jnp.asarray(rectified_flow.sigma_grid(settings.steps, data.N_TARGET))
    options = {'grids': [(data.GRID, data.GRID), (side, side)], 'n_target': data.N_TARGET,
               'count': count}
    if name == 'tofu':
      options['merge_from'] = (settings.first_layer + model.num_layers) // 2

    def step(x, inputs):
      number, levels = inputs
      merge = getattr(merging, name)(**options, key=jax.random.fold_in(held.key, number))
      field = lambda merge: lambda x: dit_sampler.velocity(
          model, params, x, levels[0], conditions, merge=merge, prune_from=settings.first_layer)[0]
      v = jax.lax.cond(number % settings.interval == 0, field(None), field(merge), x)
      return rectified_flow.euler_step(x, v, levels), None

    levels = jnp.stack([sigmas[:-1], sigmas[1:]], axis=1)
    return jax.lax.scan(step, held.noise, (jnp.arange(settings.steps), levels))[0]

  return run


def calibrate(model, params, images, spec, seed, score='ablation'):
  """Profile of the layers [L] on training digits at four noise levels."""
  numbers = np.tile(np.arange(CALIBRATION_SAMPLES), len(CALIBRATION_TIMES))
  example, noise = task.held_out(images[numbers], numbers, spec, seed)
  t = np.repeat(np.float32(CALIBRATION_TIMES), CALIBRATION_SAMPLES)
  x, _ = rectified_flow.interpolate(example.target, noise, t)
  return calibration.profile(model, params, x, t, data.conditions(example), score)


def run_study(model, networks, held, profiles, settings, *, budgets, seed, shuffled=False,
              merges=()):
  """Runs every policy at every budget on every network.

  Args:
    model: DiT.
    networks: params stacked over networks [S, ...].
    held: list of Held, one a network.
    profiles: [S, L].
    settings: Settings.
    budgets: numbers of kept tokens.
    seed: of the random policies.
    shuffled: whether the influence is dealt at random (ablation).
    merges: names of `merging` to compare with, at the middle budget.

  Returns:
    {'unpruned': samples [S, B, N, C], 'runs': {policy: {budget: samples [S, B, N, C]}},
    'taus': {tau: (samples, kept share [S])}}.
  """
  rng = np.random.default_rng([seed, 3])
  jobs = []  # (policy name, budget or tau, network, Policy)
  for which, (one, profile) in enumerate(zip(held, profiles)):
    late = calibration.pivotal_layers(profile, model.num_layers, settings.first_layer)
    order = sorted(late, key=lambda layer: -profile[layer])
    made = policies(model.num_layers, order, one, settings.first_layer, rng)
    made = {name: policy._replace(shuffled=float(shuffled and policy.layers.any()))
            for name, policy in made.items()}
    everything = one.example.reference.shape[1]
    jobs.append(('unpruned', None, which, made['ToPi']._replace(count=everything)))
    jobs += [(name, budget, which, policy._replace(count=budget))
             for name, policy in made.items() for budget in budgets]
    jobs += [('tau', tau, which, made['ToPi']._replace(tau=tau)) for tau in TAUS]
  stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
  shared = (networks, jax.tree.map(lambda *leaves: jnp.stack(leaves), *held))
  samples, shares = parallel.map_runs(
      policy_run(model, settings), shared, np.array([job[2] for job in jobs], np.int32),
      stack([jax.tree.map(np.float32, job[3]) for job in jobs]))
  result = {'runs': {}, 'taus': {}}
  rows = lambda name, budget: [i for i, job in enumerate(jobs) if job[:2] == (name, budget)]
  result['unpruned'] = samples[rows('unpruned', None)]
  for name in made:
    result['runs'][name] = {budget: samples[rows(name, budget)] for budget in budgets}
  result['taus'] = {tau: (samples[rows('tau', tau)], shares[rows('tau', tau)]) for tau in TAUS}
  middle = sorted(budgets)[len(budgets) // 2]
  for name in merges:
    result['runs'][name] = {middle: parallel.map_runs(
        merge_run(model, settings, name, middle), shared, np.arange(len(held), dtype=np.int32))}
  return result


def errors(samples, unpruned):
  """Relative L2 distance to the unpruned sample [S, B]."""
  length = lambda x: np.sqrt(np.square(np.asarray(x, np.float64)).sum((-2, -1)))
  return length(samples - unpruned) / length(unpruned)


def error_table(result):
  """{policy: {budget: errors [S, B]}}; 'random' is the mean over its draws."""
  table = {name: {budget: errors(samples, result['unpruned']) for budget, samples in runs.items()}
           for name, runs in result['runs'].items()}
  draws = [table.pop(f'random {i}') for i in range(RANDOM_DRAWS)]
  table['random'] = {budget: np.mean([draw[budget] for draw in draws], axis=0)
                     for budget in draws[0]}
  return table
