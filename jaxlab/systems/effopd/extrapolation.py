"""Extrapolated acceleration: after steps 1, 2, 4, 8, ... jump along the latest displacement.

EffOPD (arXiv 2605.11739). It is a hook of the loops, `train.fit` and `federated.simulate` alike,
and knows neither the Task nor distillation: a function of the parameters scores them.
"""
import functools
import logging
import math
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.train import Hook
from jaxlab.train.step import all_finite, merge, select

_log = logging.getLogger(__name__)
_SEARCHES = 32  # 2^31 steps

# The official code's rule, by name: attention and MLP, whose keyword also catches
# post_attention_layernorm; embeddings, input_layernorm, the final norm and lm_head stay.
OFFICIAL = re.compile('attn|attention|[qkvo]_proj|mlp|ffn|(gate|up|down)_proj', re.IGNORECASE)
MATRICES = re.compile(r'([qkvo]|gate|up|down)_proj\.weight')


class ExtrapolationState(NamedTuple):
  """What the hook carries, and what a checkpoint holds of it.

  Attributes:
    anchor: where the displacement is measured from; None for parameters that do not move.
    examples: the validation examples, drawn once.
    key: PRNG key of the validation, a stream of its own.
    accepted: int32 [32], k accepted by the search after step 2^i; -1 for none yet.
    evaluations: int32, scores computed so far.
  """
  anchor: Any
  examples: Any
  key: jax.Array
  accepted: jax.Array
  evaluations: jax.Array


def is_power_of_two(step):
  """True for 1, 2, 4, 8, ..."""
  return step > 0 and step & (step - 1) == 0


def candidate(params, anchor, k):
  """params + 2 k (params - anchor), so 1 + 2 k displacements away from the anchor."""
  return jax.tree.map(lambda w, a: w + 2 * k * (w - a), params, anchor)


def search(score, max_k, accept_ties=False):
  """Goes on along the displacement while the score rises; the first failure ends it.

  Args:
    score: k -> float; 0 scores the current parameters. Not finite is a failure.
    max_k: last candidate to try.
    accept_ties: whether an equal score is a success (the paper's formula; its code is strict).

  Returns:
    (accepted k, scores computed, the current one among them).
  """
  if max_k == 0:
    return 0, 0
  best = score(0)
  best = best if math.isfinite(best) else -math.inf
  for k in range(1, max_k + 1):
    value = score(k)
    better = value >= best if accept_ties else value > best
    if not (math.isfinite(value) and better):
      return k - 1, k + 1
    best = value
  return max_k, max_k + 1


def movable(params, which='official', name=lambda path: path.replace('/', '.')):
  """Which parameters a jump moves, as a pytree of bools.

  Args:
    params: pytree of parameters.
    which: 'official' is the published code's rule, 'matrices' the attention and MLP matrices alone,
      'all' everything.
    name: path 'a/b/c' -> the name that the rule reads; `decoder_lm.checkpoint_name` for a decoder.
  """
  rule = {'official': OFFICIAL, 'matrices': MATRICES, 'all': re.compile('')}[which]
  spell = lambda path: name(jax.tree_util.keystr(path, simple=True, separator='/'))
  return jax.tree_util.tree_map_with_path(lambda path, _: bool(rule.search(spell(path))), params)


def extrapolation(validate, examples, *, seed=0, max_k=5, mask=None, accept_ties=False,
                  anchor: Literal['accepted', 'raw'] = 'accepted', common_random_numbers=True,
                  reset_moments=False):
  """The hook.

  A search costs at most 1 + max_k validations and happens log2(steps) + 1 times. Optimizer state
  and schedule are left as they are. A run whose searches all fail is the run without the hook, bit
  for bit.

  Args:
    validate: (params, examples, key) -> float, larger is better; a host function over a compiled
      one.
    examples: pytree of arrays, kept in the checkpoint.
    seed: of the validation's keys, which are the same for all candidates of a search.
    max_k: candidates of a search; 0 never jumps.
    mask: params -> pytree of bools, which parameters move (see `movable`); all by default.
    accept_ties: see `search`.
    anchor: the displacement is measured from the last 'accepted' parameters, or from those before
      the last jump ('raw').
    common_random_numbers: False gives each candidate a key of its own, as the published code does.
    reset_moments: whether a jump zeroes the optimizer's floating state.

  Returns:
    `train.Hook` named 'extrapolation'.
  """
  mask = mask or functools.partial(movable, which='all')
  finite = jax.jit(all_finite)
  jump = jax.jit(candidate)

  def init(params):
    return ExtrapolationState(
        select(params, mask(params)), jax.tree.map(jnp.asarray, examples), jax.random.key(seed),
        jnp.full(_SEARCHES, -1, jnp.int32), jnp.zeros((), jnp.int32))

  def apply(state, step):
    if not is_power_of_two(step):
      return state
    own = state.hooks['extrapolation']
    chosen = mask(state.params)
    here = select(state.params, chosen)
    number = step.bit_length() - 1
    key = jax.random.fold_in(own.key, number)

    def params_at(k):
      return merge(chosen, jump(here, own.anchor, k), state.params) if k else state.params

    def score(k):
      params = params_at(k)
      if not bool(finite(params)):
        return -math.inf
      draw = key if common_random_numbers else jax.random.fold_in(key, k)
      return float(validate(params, own.examples, draw))

    k, scored = search(score, max_k, accept_ties)
    if k:
      state = state.with_params(params_at(k))
      if reset_moments and hasattr(state, 'opt_state'):
        zero = lambda x: jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x
        state = state._replace(opt_state=jax.tree.map(zero, state.opt_state))
    _log.info('step %d: extrapolated by k=%d after %d validations', step, k, scored)
    after = select(state.params, chosen) if anchor == 'accepted' else here
    own = own._replace(anchor=after, accepted=own.accepted.at[number].set(k),
                       evaluations=own.evaluations + scored)
    return state._replace(hooks={**state.hooks, 'extrapolation': own})

  return Hook('extrapolation', init, apply)
