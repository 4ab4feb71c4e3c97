"""A diffusion transformer as a velocity field under fixed conditions, and its plain sampler."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.models import rectified_flow
from jaxlab.models.dit import HIDDEN


class Prompt(NamedTuple):
  """Outputs of the text encoders.

  Attributes:
    txt: [B, n_txt, text_dim].
    pooled: [B, pooled_dim], or None.
    mask: bool [B, n_txt], False on padding; None for none.
  """
  txt: jax.Array
  pooled: jax.Array | None = None
  mask: jax.Array | None = None


class Conditions(NamedTuple):
  """All that a velocity depends on besides x and t.

  Attributes:
    prompt: Prompt.
    reference: clean reference tokens [B, n_c, C], all images one after the other; n_c may be 0.
    img_ids: positions of target and reference [n, 3] or [B, n, 3].
    txt_ids: positions of the text [n_txt, 3].
    guidance: [B], embedded guidance scale, or None.
    negative: Prompt of classifier-free guidance with the shapes of `prompt`, or None.
    cfg_scale: its scale.
  """
  prompt: Prompt
  reference: jax.Array
  img_ids: jax.Array
  txt_ids: jax.Array
  guidance: jax.Array | None = None
  negative: Prompt | None = None
  cfg_scale: float | jax.Array = 1.0


def velocity(model, params, x, sigma, conditions, *, keep=None, mask=None, merge=None,
             prune_from=0, score_layers=()):
  """The velocity of the target, with classifier-free guidance where there is a negative prompt.

  Args:
    model: DiT.
    params: its parameters.
    x: noisy target tokens [B, N, C].
    sigma: noise level, a scalar or [B].
    conditions: Conditions.
    keep: int [B, k] (or [2 B, k], the second half for the negative prompt), the reference tokens
      that run from layer `prune_from` on; None for all.
    mask: bool [B, n_c]: the same by hiding the keys of all others, at full cost; None for all.
    merge: as in DiT.
    prune_from: first layer that prunes.
    score_layers: layers whose scores are wanted.

  Returns:
    (velocity [B, N, C], {layer: Score}); scores have 2 B rows under guidance.
  """
  c = conditions
  prompt, t = c.prompt, jnp.broadcast_to(sigma, len(x))
  doubled = c.negative is not None
  if doubled:
    prompt = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), c.prompt, c.negative)
  twice = lambda a: jnp.concatenate([a, a]) if doubled and a is not None else a
  ids = twice(c.img_ids) if c.img_ids.ndim == 3 else c.img_ids
  if doubled and keep is not None and len(keep) == len(x):
    keep = twice(keep)
  bias = None if mask is None else _hide(twice(mask), prompt.txt.shape[1] + x.shape[1], prune_from)
  v, aux = model.apply(
      {'params': params}, twice(jnp.concatenate([x, c.reference], axis=1)), prompt.txt,
      prompt.pooled, twice(t), ids, c.txt_ids, twice(c.guidance), n_target=x.shape[1],
      txt_mask=prompt.mask, keep=keep, prune_from=prune_from, merge=merge, attn_bias=bias,
      score_layers=score_layers)
  if doubled:
    v = rectified_flow.guide(*jnp.split(v, 2), c.cfg_scale)
  return v, aux['scores']


def _hide(mask, before, prune_from):
  """layer -> bias that hides the unkept reference keys behind `before` other keys."""
  bias = jnp.pad(jnp.where(mask, 0.0, HIDDEN), ((0, 0), (before, 0)))[:, None, None]
  return lambda layer: bias if layer >= prune_from else None


@functools.partial(jax.jit, static_argnums=0)
def sample(model, params, noise, conditions, sigmas):
  """Euler sampling with all tokens: x after each step [steps, B, N, C].

  Args:
    model: DiT.
    params: its parameters.
    noise: [B, N, C].
    conditions: Conditions.
    sigmas: `rectified_flow.sigma_grid`.
  """
  return rectified_flow.euler(
      lambda x, t: velocity(model, params, x, t, conditions)[0], noise, sigmas)
