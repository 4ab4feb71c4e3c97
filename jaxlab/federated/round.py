"""A federated round as one pure function: broadcast, vmapped clients, aggregation, server."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import parallel
from jaxlab.federated.client import CLIENT_AXES, ClientData
from jaxlab.train.step import all_finite, tree_where


class Cohort(NamedTuple):
  """One device's clients of a round.

  Attributes:
    ids: int32 [M], -1 for a padding client.
    index: int32 [M, S, B] rows of the table, -1 for padding.
    weights: float32 [M], 0 for a padding client.
  """
  ids: jax.Array
  index: jax.Array
  weights: jax.Array


def run_clients(algorithm, payload, table, cohort, key):
  """Runs a chunk of clients side by side and screens what they send.

  Args:
    algorithm: Algorithm.
    payload: what the server broadcasts.
    table: mapping of columns [N, ...].
    cohort: Cohort of c clients.
    key: the round's key for clients; each gets fold_in(key, its id).

  Returns:
    (messages [c, ...], weights [c], metrics [c], rejected [c] bool). A message with a NaN or Inf,
    or a weight that is negative or not finite, is replaced by zeros of weight 0.
  """
  steps = (cohort.index >= 0).any(-1)  # [c, S]
  bound = jnp.max(jnp.where(steps, jnp.arange(1, steps.shape[1] + 1), 0))
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(cohort.ids)
  if len(cohort.ids) == 1:  # one client needs no batched kernels
    message, _, metrics = algorithm.client(payload, (), ClientData(table, cohort.index[0], bound),
                                           keys[0])
    messages, metrics = jax.tree.map(lambda x: x[None], (message, metrics))
  else:
    run = jax.vmap(algorithm.client, in_axes=(None, None, CLIENT_AXES, 0))
    messages, _, metrics = run(payload, (), ClientData(table, cohort.index, bound), keys)
  good = jax.vmap(all_finite)(messages) & jnp.isfinite(cohort.weights) & (cohort.weights >= 0)
  mask = lambda x: jnp.where(good.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))
  return jax.tree.map(mask, messages), jnp.where(good, cohort.weights, 0), metrics, ~good


def federated_round(server, aggregator_state, cohort, table, key, *, algorithm, aggregator,
                    clients_per_vmap=1, axis=parallel.CLIENTS):
  """One round of a federated algorithm.

  Args:
    server: the algorithm's server state, with a field `params`.
    aggregator_state: the aggregator's state.
    cohort: this device's Cohort of M clients, M divisible by `clients_per_vmap`.
    table: mapping of columns [N, ...].
    key: PRNG key of the round.
    algorithm: Algorithm.
    aggregator: Aggregator.
    clients_per_vmap: clients side by side; chunks of them are scanned.
    axis: name of the device axis.

  Returns:
    (server, aggregator_state, metrics). The metrics are means over the clients that took part, and
    'participants', 'rejected' (messages not finite) and 'refused' (1 if the round was void or its
    result not finite: then the server's state is the old one).
  """
  broadcast_key, client_key, aggregate_key, server_key = jax.random.split(key, 4)
  payload, aux = algorithm.broadcast(server, cohort, broadcast_key)
  chunks = jax.tree.map(lambda x: x.reshape((-1, clients_per_vmap) + x.shape[1:]), cohort)
  run = lambda chunk: run_clients(algorithm, payload, table, chunk, client_key)

  if aggregator.stream is not None:
    stream = aggregator.stream
    shapes = jax.eval_shape(run, jax.tree.map(lambda x: x[0], chunks))[0]
    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), shapes)

    def body(accumulator, chunk):
      messages, *rest = run(chunk)
      return stream.add(accumulator, messages, rest[0]), rest

    accumulator, results = jax.lax.scan(body, stream.zero(one), chunks)
    aggregate, info = stream.finish(stream.collect(accumulator, axis)), {}
    weights, metrics, rejected = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]),
                                              tuple(results))
  else:
    _, results = jax.lax.scan(lambda carry, chunk: (carry, run(chunk)), None, chunks)
    messages, weights, metrics, rejected = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]),
                                                        results)
    aggregate, aggregator_state, info = aggregator.apply(
        aggregator_state, jax.tree.map(lambda x: parallel.all_gather(x, axis), messages),
        parallel.all_gather(weights, axis), aggregate_key)

  new = algorithm.server(server, aux, aggregate, server_key)
  present = (weights > 0).astype(jnp.float32)
  total, participants, rejected, sums = parallel.psum(
      (weights.sum(), present.sum(), (rejected & (cohort.ids >= 0)).sum(),
       {name: jnp.where(present > 0, value, 0).sum() for name, value in metrics.items()}), axis)
  good = (total > 0) & all_finite(new)
  means = {name: value / jnp.maximum(participants, 1) for name, value in sums.items()}
  return tree_where(good, new, server), aggregator_state, {
      **means, **info, 'participants': participants, 'rejected': rejected, 'refused': ~good}
