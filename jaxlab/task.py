"""Task: the one interface between a problem and the loops that train it."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Loss(NamedTuple):
  """What a loss returns. It takes no mean: the step divides by the global sum of weights.

  Attributes:
    values: loss per example, token, ...: any shape.
    weights: of the same shape, 0 where padded.
    metrics: name -> (values, weights) pairs, reported as global weighted means.
    state: the updated running collections (an empty mapping where there are none).
  """
  values: jax.Array
  weights: jax.Array
  metrics: Mapping[str, tuple[jax.Array, jax.Array]] = {}
  state: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Task:
  """A problem as a bundle of pure functions, made from a config by a module's `make_task(config)`.

  Attributes:
    init: key -> variables, Flax collections. 'params' trains; 'constants' (teachers, tables) is
      never differentiated, donated or checkpointed; anything else is running state.
    loss: (variables, batch, key) -> Loss. `batch` is a mapping of arrays [B, ...];
      `batch['weight']` [B] is 0 for padding.
    predict: (variables, batch, key) -> outputs, a pytree of arrays [B, ...].
    evaluate: iterable of (outputs, batch) of the real rows of a whole split, NumPy on the host ->
      {metric: float}.
    dataset: split ('train', 'test', ...) -> grain.MapDataset of examples (mappings of fixed-shape
      arrays).
  """
  init: Callable[[jax.Array], Mapping[str, Any]]
  loss: Callable[[Mapping[str, Any], Mapping[str, jax.Array], jax.Array], Loss]
  predict: Callable[[Mapping[str, Any], Mapping[str, jax.Array], jax.Array], Any]
  evaluate: Callable[[Any], dict[str, float]]
  dataset: Callable[[str], Any]


def split_variables(variables):
  """Splits Flax collections into (params, running state, constants)."""
  running = {name: tree for name, tree in variables.items() if name not in ('params', 'constants')}
  return variables['params'], running, variables.get('constants', {})


def join_variables(params, running, constants):
  """The inverse of `split_variables`."""
  return {'params': params, **running, **({'constants': constants} if constants else {})}
