"""The shapes that federated learning is made of."""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Stream(NamedTuple):
  """An aggregator as running sums: memory is one accumulator, not the cohort's stack.

  Attributes:
    zero: message (shapes suffice) -> accumulator.
    add: (accumulator, messages [C, ...], weights [C]) -> accumulator, client after client in order.
    collect: (accumulator, axis name) -> accumulator over all devices.
    finish: (accumulator, key) -> aggregate, shaped like a message.
  """
  zero: Callable[[Any], Any]
  add: Callable[[Any, Any, jax.Array], Any]
  collect: Callable[[Any, str], Any]
  finish: Callable[[Any, jax.Array], Any]


class Aggregator(NamedTuple):
  """What becomes of the clients' messages.

  Attributes:
    init: params -> state.
    apply: (state, messages [C, ...], weights [C], key) -> (aggregate, state, info); a client of
      weight 0 does not exist.
    stream: the same as running sums, for mean-like aggregators; None for those that must see the
      stack.
  """
  init: Callable[[Any], Any]
  apply: Callable[..., tuple[Any, Any, dict]]
  stream: Stream | None = None


class Algorithm(NamedTuple):
  """A federated algorithm as pure functions.

  The state of the server has a field `params`, the global model. A message is a per-client mean (an
  update, a gradient); its weight travels beside it.

  Attributes:
    init: params -> server_state.
    broadcast: (server_state, cohort, table, key) -> (payload, server_aux); the payload is what goes
      down the wire. `cohort` and `table` are the device's own: what needs all clients is psummed.
    client: (payload, client_state, ClientData, key) -> (message, client_state, {metric: scalar}).
    server: (server_state, server_aux, aggregate, participants, key) -> server_state, where
      `participants` is the number of clients in the aggregate (float32 scalar).
    weighting: 'examples' or 'uniform', as published.
    aggregator: the one that belongs to the algorithm where that is not the weighted mean.
    init_client: params -> the state that a client keeps between rounds; None for stateless clients.
  """
  init: Callable[[Any], Any]
  broadcast: Callable[..., tuple[Any, Any]]
  client: Callable[..., tuple[Any, Any, dict]]
  server: Callable[..., Any]
  weighting: str = 'examples'
  aggregator: Aggregator | None = None
  init_client: Callable[[Any], Any] | None = None


def tree_bytes(tree):
  """Bytes of a pytree of arrays or ShapeDtypeStructs on the wire."""
  return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
