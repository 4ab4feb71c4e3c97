"""The shapes that federated learning is made of."""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Stream(NamedTuple):
  """An aggregator as running sums: memory is one accumulator, not the cohort's stack.

  Attributes:
    zero: message (shapes suffice) -> accumulator.
    add: (accumulator, messages [C, ...], weights [C]) -> accumulator, client after client in order;
      the message of a client of weight 0 may hold anything.
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
    minimum: clients without which `apply` is not defined.
    begin: (state, ids [C] of the stacked clients, message of the root or None) -> state, called
      before `apply` by those that remember each client or trust a root; None for the others.
    root_examples: training examples that the server holds back as a client of its own, whose
      message is the root; 0 for none.

  `info` holds scalars, which become metrics of the round, and arrays; 'keep' bool [C] says who is
  in the aggregate, where that is a matter of yes or no.
  """
  init: Callable[[Any], Any]
  apply: Callable[..., tuple[Any, Any, dict]]
  stream: Stream | None = None
  minimum: int = 1
  begin: Callable[..., Any] | None = None
  root_examples: int = 0


class Attack(NamedTuple):
  """What the malicious clients do.

  Attributes:
    init: params -> state.
    apply: (state, payload, messages [C, ...], weights [C], malicious bool [C], key) ->
      (messages, weights, state). `messages` are what all would send honestly; a liar may change its
      weight too. Without a malicious client it is the identity.
    poison: (columns {name: [N, ...]}, rows of the malicious clients, numpy Generator) -> columns,
      for attacks on the data; None for the others.
    idle: state -> state in a round without a malicious client, for an attack that looks at more of
      the model than the clients of a round do. Under row-wise updates the rounds in which it acts
      have all rows. None for the others, which see and write the rows of the round.
  """
  init: Callable[[Any], Any]
  apply: Callable[..., tuple[Any, Any, Any]]
  poison: Callable[..., dict[str, np.ndarray]] | None = None
  idle: Callable[[Any], Any] | None = None

  def resting(self):
    """The attack in rounds without a malicious client, which looks at nothing; needs `idle`."""
    return self._replace(apply=lambda state, payload, messages, weights, malicious, key: (
        messages, weights, self.idle(state)))


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
    needs_full_gradient: whether it takes `full_gradient` of a client, for which local work must be
      whole passes over the data.
  """
  init: Callable[[Any], Any]
  broadcast: Callable[..., tuple[Any, Any]]
  client: Callable[..., tuple[Any, Any, dict]]
  server: Callable[..., Any]
  weighting: str = 'examples'
  aggregator: Aggregator | None = None
  init_client: Callable[[Any], Any] | None = None
  needs_full_gradient: bool = False


def tree_bytes(tree):
  """Bytes of a pytree of arrays or ShapeDtypeStructs on the wire."""
  return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
