"""Sampling with token pruning: by gathering (fast) and by masking (the oracle).

Every `interval` steps an anchor step runs all tokens, measures their influence and decides which
reference tokens run in the steps up to the next anchor, from layer `first_layer` on.
"""
import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.models import dit_sampler, rectified_flow
from jaxlab.models.dit_sampler import velocity
from jaxlab.systems.topi import influence as influence_lib

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pruning:
  """Settings of ToPi. Exactly one of `tau` and `pruned` is given.

  Attributes:
    pivotal: layers whose influence counts.
    first_layer: l_0, the first layer that runs without the pruned tokens.
    interval: steps from one anchor to the next.
    tau: share of the influence that stays, in (0, 1]; the number of tokens follows.
    pruned: share of the reference tokens that goes, in [0, 1].
    bucket: with `tau`, the number of tokens is rounded up to a multiple of this.
    separate: whether the negative prompt of guidance has kept tokens of its own.
    floor: tokens of every reference image that stay whatever their influence and the budget.
  """
  pivotal: Sequence[int]
  first_layer: int = 10
  interval: int = 10
  tau: float | None = None
  pruned: float | None = None
  bucket: int = 64
  separate: bool = False
  floor: int = 0

  def __post_init__(self):
    object.__setattr__(self, 'pivotal', tuple(self.pivotal))
    config_lib.require((self.tau is None) != (self.pruned is None), 'tau, pruned',
                       'exactly one of them', (self.tau, self.pruned))
    if self.tau is not None:
      config_lib.require(0 < self.tau <= 1, 'tau', 'a share in (0, 1]', self.tau)
    else:
      config_lib.require(0 <= self.pruned <= 1, 'pruned', 'a share in [0, 1]', self.pruned)
    config_lib.at_least(1, self, ('interval', 'bucket'))
    config_lib.at_least(0, self, ('first_layer', 'floor'))

  def check(self, num_layers):
    """Raises ConfigError unless the layers exist."""
    config_lib.require(self.first_layer < num_layers, 'first_layer', f'below {num_layers} layers',
                       self.first_layer)
    config_lib.require(self.pivotal and all(0 <= layer < num_layers for layer in self.pivotal),
                       'pivotal', f'some layers of 0..{num_layers - 1}', self.pivotal)


def scaled_first_layer(num_layers):
  """l_0 of the paper's 57 layers, scaled."""
  return round(10 / 57 * num_layers)


def scaled_interval(steps):
  """Delta_T = 10 of the paper, scaled where there are fewer steps than its 28."""
  return max(1, round(10 * min(steps, 28) / 28))


class Sampled(NamedTuple):
  """What a sampling run gives.

  Attributes:
    latents: [B, N, C].
    kept: reference tokens that ran in the late layers of each step.
  """
  latents: jax.Array
  kept: tuple[int, ...]


def sample(model, params, noise, conditions, sigmas, pruning):
  """Euler sampling with pruned reference tokens; the parameters are only read.

  Compiles one program for anchors and one a number of kept tokens. With nothing to prune
  (pruned=0) it is `dit_sampler.sample`, bit for bit.

  Args:
    model: DiT.
    params: its parameters.
    noise: [B, N, C].
    conditions: Conditions; the samples may differ in everything but shapes.
    sigmas: `rectified_flow.sigma_grid`.
    pruning: Pruning.

  Returns:
    Sampled.
  """
  pruning.check(model.num_layers)
  steps, total = len(sigmas) - 1, conditions.reference.shape[1]
  if pruning.pruned == 0 or not total:
    return Sampled(dit_sampler.sample(model, params, noise, conditions, sigmas)[-1],
                   (total,) * steps)
  x, kept = noise, []
  for anchor in range(0, steps, pruning.interval):
    stop = min(anchor + pruning.interval, steps)
    x, order, count = _anchor_step(model, pruning, params, x, conditions,
                                   sigmas[anchor:anchor + 2])
    kept += [total]
    if anchor + 1 < stop:
      count = _budget(pruning, count, total)
      x = _pruned_steps(model, pruning.first_layer, count, params, x, conditions, order, sigmas,
                        anchor + 1, stop)
      kept += [count] * (stop - anchor - 1)
  return Sampled(x, tuple(kept))


def _budget(pruning, count, total):
  """Tokens that run: one number for the whole batch, the largest that a sample wants."""
  if pruning.tau is None:
    share = round((1 - pruning.pruned) * total)
    return max(share, int(count.max())) if pruning.floor else share
  return influence_lib.bucketed(int(count.max()), pruning.bucket, total)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _anchor_step(model, pruning, params, x, conditions, levels):
  """(x after a step with all tokens, ranking of the reference tokens, how many have to stay)."""
  v, scores = velocity(model, params, x, levels[0], conditions, score_layers=pruning.pivotal)
  values = influence_lib.influence(scores, pruning.pivotal)
  if not pruning.separate:
    values = values[:len(x)]  # the conditional branch
  count = jnp.zeros(len(values), jnp.int32)
  if pruning.tau is not None:
    count = influence_lib.count_for_share(values, pruning.tau)
  if pruning.floor:
    owner = conditions.img_ids.reshape(-1, *conditions.img_ids.shape[-2:])[0, x.shape[1]:, 0]
    first = influence_lib.best_of_each(values, owner, pruning.floor)
    first |= influence_lib.keep_mask(values, count)
    count = first.sum(-1)
    values = values + jnp.where(first, values.max(-1, keepdims=True) + 1, 0)
  return rectified_flow.euler_step(x, v, levels), influence_lib.ranking(values), count


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _pruned_steps(model, first_layer, count, params, x, conditions, order, sigmas, start, stop):
  """Steps start .. stop - 1 with the first `count` reference tokens of `order` [B, n_c]."""
  everything = count == conditions.reference.shape[1]
  keep = None if everything else influence_lib.keep_indices(order, count)

  def step(index, x):
    levels = jax.lax.dynamic_slice(sigmas, (index,), (2,))
    v, _ = velocity(model, params, x, levels[0], conditions, keep=keep, prune_from=first_layer)
    return rectified_flow.euler_step(x, v, levels)

  return jax.lax.fori_loop(start, stop, step, x)


def masked_sample(model, params, noise, conditions, sigmas, choose, *, first_layer, interval,
                  score_layers):
  """The same trajectory at full cost, all shapes static: pruned tokens are hidden as keys.

  A pure function for tests and studies, to be jitted or vmapped as they like.

  Args:
    model: DiT.
    params: its parameters.
    noise: [B, N, C].
    conditions: Conditions.
    sigmas: [steps + 1].
    choose: ({layer: Score} of the conditional branch, step, mask in force) -> the new mask bool
      [B, n_c]; called at anchors.
    first_layer: first layer that prunes.
    interval: steps from one anchor to the next.
    score_layers: layers whose scores `choose` looks at.

  Returns:
    (x after each step [steps, B, N, C], mask in force after each step [steps, B, n_c]).
  """
  def anchor(x, mask, levels, step):
    v, scores = velocity(model, params, x, levels[0], conditions, score_layers=score_layers)
    scores = jax.tree.map(lambda leaf: leaf[:len(x)], scores)
    return v, choose(scores, step, mask)

  def between(x, mask, levels, step):
    del step
    v, _ = velocity(model, params, x, levels[0], conditions, mask=mask, prune_from=first_layer)
    return v, mask

  def one(carry, inputs):
    x, mask = carry
    step, levels = inputs
    v, mask = jax.lax.cond(step % interval == 0, anchor, between, x, mask, levels, step)
    x = rectified_flow.euler_step(x, v, levels)
    return (x, mask), (x, mask)

  everything = jnp.ones(conditions.reference.shape[:2], bool)
  levels = jnp.stack([sigmas[:-1], sigmas[1:]], axis=1)
  return jax.lax.scan(one, (noise, everything), (jnp.arange(len(levels)), levels))[1]
