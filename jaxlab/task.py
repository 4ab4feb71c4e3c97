"""Task: the one interface between a problem and the loops that train it."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import parallel


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


class Arm(NamedTuple):
  """One of several problems that a phase trains in turn over the same parameters.

  Attributes:
    loss: as a Task's.
    dataset: () -> grain.MapDataset of the arm's training examples.
    act: as a Task's, or None.
  """
  loss: Callable[[Mapping[str, Any], Mapping[str, jax.Array], jax.Array], Loss]
  dataset: Callable[[], Any]
  act: Callable[[Mapping[str, Any], Mapping[str, jax.Array], jax.Array], Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
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
    act: (variables, batch, key) -> batch, inside the training step and outside the gradient: what
      is drawn or scored once (rollouts, noise) and kept by a second gradient and by microbatches.
      The key is the same on all devices: draw with `row_keys`. None where there is nothing to do.
    rows: batch -> {path of a table's parameter 'a/b/embedding': integer ids of any static shape},
      the rows of the tables [V, ...] that the loss looks up in this batch; ids out of 0..V-1 name
      none. Training then gathers, differentiates and updates these alone (`train.rows`), and the
      loss may do nothing with such a parameter but `table[ids]`. A federated round asks for those
      of its clients (`federated.rows`) before `act`: what `act` may come to look up is named too.
      None updates whole tables.
    arms: name -> Arm, what a phase with `arms` trains on in a cycle in place of `loss` on
      `dataset('train')`. None where there are none.
    refresh: (variables, key, round) -> aux, {name: NumPy array}, on the host: what the data of a
      phase with `refresh_every` are made of, by the model as it then is. The phase trains on
      `dataset('train', aux)`. `round` counts from 0 in each phase. With several processes it runs
      on all of them and must give all the same.
    federation: config of the experiment -> a subclass of `FederatedConfig`, for a problem that has
      an algorithm or a threat of its own; None for those of `jaxlab.federated`.
  """
  init: Callable[[jax.Array], Mapping[str, Any]]
  loss: Callable[[Mapping[str, Any], Mapping[str, jax.Array], jax.Array], Loss]
  predict: Callable[[Mapping[str, Any], Mapping[str, jax.Array], jax.Array], Any]
  evaluate: Callable[[Any], dict[str, float]]
  dataset: Callable[..., Any]
  act: Callable[[Mapping[str, Any], Mapping[str, jax.Array], jax.Array], Any] | None = None
  rows: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]] | None = None
  arms: Mapping[str, Arm] | None = None
  refresh: Callable[[Mapping[str, Any], jax.Array, int], Mapping[str, Any]] | None = None
  federation: Callable[[Any], Any] | None = None


def row_keys(key, rows, axis=parallel.BATCH):
  """Keys [rows] of this device's rows, by their number in the whole batch of all devices.

  What is drawn with them does not depend on how many devices there are.

  Args:
    key: PRNG key, the same on all devices.
    rows: B, rows of this device; row i of device d has the number d * B + i.
    axis: name of the device axis.
  """
  numbers = parallel.axis_index(axis) * rows + jnp.arange(rows)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def split_variables(variables):
  """Splits Flax collections into (params, running state, constants)."""
  running = {name: tree for name, tree in variables.items() if name not in ('params', 'constants')}
  return variables['params'], running, variables.get('constants', {})


def join_variables(params, running, constants):
  """The inverse of `split_variables`."""
  return {'params': params, **running, **({'constants': constants} if constants else {})}
