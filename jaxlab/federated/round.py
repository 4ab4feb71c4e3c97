"""A federated round as one pure function: broadcast, vmapped clients, aggregation, server."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import parallel
from jaxlab.federated.client import CLIENT_AXES, ClientData
from jaxlab.federated.types import Attack
from jaxlab.train.step import all_finite, each_finite, tree_where

_ROOT = 2**31 - 1  # folded into a key where clients fold in their ids


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


class RoundState(NamedTuple):
  """What a round carries to the next.

  Attributes:
    server: the algorithm's server state, with a field `params`.
    clients: states of stateful clients [N + 1, ...], the last row for padding; () otherwise.
    aggregator: the aggregator's state.
    attack: the attack's state.
  """
  server: Any
  clients: Any = ()
  aggregator: Any = ()
  attack: Any = ()

  @classmethod
  def start(cls, algorithm, aggregator, params, num_clients=0, attack=None):
    """The state before the first round; `num_clients` matters to stateful algorithms alone."""
    clients = ()
    if algorithm.init_client is not None:
      repeat = lambda x: jnp.repeat(x[None], num_clients + 1, axis=0)
      clients = jax.tree.map(repeat, algorithm.init_client(params))
    return cls(algorithm.init(params), clients, aggregator.init(params),
               attack.init(params) if attack else ())


def run_clients(algorithm, payload, states, table, cohort, key, zero=True):
  """Runs a chunk of clients side by side and screens what they send.

  Args:
    algorithm: Algorithm.
    payload: what the server broadcasts.
    states: the states of these clients [c, ...], or ().
    table: mapping of columns [N, ...].
    cohort: Cohort of c clients.
    key: the round's key for clients; each gets fold_in(key, its id).
    zero: whether a rejected message is replaced by zeros; a Stream does not mind what it holds.

  Returns:
    (messages [c, ...], weights [c], states [c, ...], metrics [c], rejected [c] bool). A message
    with a NaN or Inf, or a weight that is negative or not finite, is rejected: it gets weight 0,
    and the client keeps its old state. So does a client that takes no step, whose message counts.
  """
  steps = (cohort.index >= 0).any(-1)  # [c, S]
  ends = jnp.where(steps, jnp.arange(1, steps.shape[1] + 1), 0).max(-1)  # [c], 0 without a step
  bound = ends.max()
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(cohort.ids)
  first = lambda tree: jax.tree.map(lambda x: x[0], tree)
  if len(cohort.ids) == 1:  # one client needs no batched kernels
    data = ClientData(table, cohort.index[0], bound)
    one = algorithm.client(payload, first(states), data, keys[0])
    messages, new_states, metrics = jax.tree.map(lambda x: x[None], one)
  else:
    run = jax.vmap(algorithm.client, in_axes=(None, 0, CLIENT_AXES, 0))
    messages, new_states, metrics = run(
        payload, states, ClientData(table, cohort.index, bound), keys)
  good = each_finite((messages, new_states))
  good &= jnp.isfinite(cohort.weights) & (cohort.weights >= 0)
  weights = jnp.where(good, cohort.weights, 0)

  def keep(condition, new, old):
    shaped = lambda x: condition.reshape((-1,) + (1,) * (x.ndim - 1))
    return jax.tree.map(lambda a, b: jnp.where(shaped(a), a, b), new, old)

  if zero:
    messages = keep(good, messages, jax.tree.map(jnp.zeros_like, messages))
  states = keep((weights > 0) & (ends > 0), new_states, states)
  return messages, weights, states, metrics, ~good


class Threat(NamedTuple):
  """An attack and those who commit it.

  Attributes:
    attack: Attack.
    malicious: bool [N + 1] by client id; the last is for padding, and False.
  """
  attack: Attack
  malicious: jax.Array

  @property
  def looks_at_all(self):
    """Whether the attack looks at more of the model than the clients of a round, see `Attack`."""
    return self.attack.idle is not None


def federated_round(state, cohort, table, key, *, algorithm, aggregator, clients_per_vmap=1,
                    threat=None, root=None, codec=None, axis=parallel.CLIENTS):
  """One round of a federated algorithm.

  Args:
    state: RoundState.
    cohort: this device's Cohort of M clients, M divisible by `clients_per_vmap`.
    table: mapping of columns [N, ...].
    key: PRNG key of the round.
    algorithm: Algorithm.
    aggregator: Aggregator.
    clients_per_vmap: clients side by side; chunks of them are scanned.
    threat: Threat, or None where all are honest.
    root: int32 [S, B] rows of the server's own data, for an aggregator with `root_examples`.
    codec: Codec of secure aggregation whose `aggregator` this is, or None.
    axis: name of the device axis.

  Returns:
    (RoundState, metrics). The metrics are means over the clients that took part, of their lowest
    and of their highest tenth (`<name>_low`, `<name>_high`), and 'participants', 'rejected'
    (messages not finite) and 'refused' (1 if the round was void or its result not finite: then the
    state is the old one).
  """
  broadcast_key, client_key, aggregate_key, server_key = jax.random.split(key, 4)
  payload, aux = algorithm.broadcast(state.server, cohort, table, broadcast_key)
  chunks = jax.tree.map(lambda x: x.reshape((-1, clients_per_vmap) + x.shape[1:]), cohort)
  flat = lambda tree: jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), tree)

  invited = parallel.all_gather(cohort.ids, axis)

  streams = aggregator.stream is not None and threat is None

  def run(chunk):
    states = jax.tree.map(lambda x: x[chunk.ids], state.clients)  # -1, padding, is the last row
    messages, weights, *rest = run_clients(
        algorithm, payload, states, table, chunk, client_key, zero=not streams)
    if codec is not None and threat is None:
      messages = codec.encode(messages, weights, chunk.ids, invited, aggregate_key)
    return messages, weights, *rest

  attack_state, found = state.attack, {}
  if streams:
    stream = aggregator.stream
    shapes = jax.eval_shape(run, jax.tree.map(lambda x: x[0], chunks))[0]
    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), shapes)

    def body(accumulator, chunk):
      messages, *rest = run(chunk)
      return stream.add(accumulator, messages, rest[0]), rest

    accumulator, results = jax.lax.scan(body, stream.zero(one), chunks)
    weights, states, metrics, rejected = flat(tuple(results))
    rows = _rows(cohort, weights, rejected, metrics)
    if stream.collect is parallel.psum:  # one collective for both
      accumulator, rows = parallel.psum((accumulator, parallel.among_zeros(rows, axis)), axis)
    else:
      accumulator, rows = stream.collect(accumulator, axis), parallel.all_gather(rows, axis)
    aggregate, info = stream.finish(accumulator, aggregate_key), {}
    aggregator_state = state.aggregator
  else:
    _, results = jax.lax.scan(lambda carry, chunk: (carry, run(chunk)), None, chunks)
    messages, weights, states, metrics, rejected = flat(results)
    rows = parallel.all_gather(_rows(cohort, weights, rejected, metrics), axis)
    ids, sent, claimed = in_order(parallel.all_gather((cohort.ids, messages, weights), axis))
    malicious = None
    if threat is not None:
      attack_key, aggregate_key = jax.random.split(aggregate_key)
      malicious = jnp.asarray(threat.malicious)[ids] & (claimed > 0)
      sent, claimed, attack_state = threat.attack.apply(
          attack_state, payload, sent, claimed, malicious, attack_key)
      if codec is not None:
        sent = codec.encode(sent, claimed, ids, ids, aggregate_key)
    aggregator_state = state.aggregator
    if aggregator.begin is not None:
      trusted = root_message(algorithm, payload, root, table, state, client_key)
      aggregator_state = aggregator.begin(aggregator_state, ids, trusted)
    aggregate, aggregator_state, info = aggregator.apply(
        aggregator_state, sent, claimed, aggregate_key)
    found = detection(info, claimed, malicious)
    info = {name: value for name, value in info.items() if jnp.ndim(value) == 0}

  weights, rejected, *values = rows.T
  present = (weights > 0).astype(weights.dtype)
  participants = present.sum()
  server = algorithm.server(state.server, aux, aggregate, participants, server_key)
  everyone = parallel.all_gather((cohort.ids, states), axis)
  clients = jax.tree.map(lambda table, rows: table.at[everyone[0]].set(rows), state.clients,
                         everyone[1])
  new = RoundState(server, clients, aggregator_state, attack_state)
  good = (weights.sum() > 0) & all_finite(new)
  spread = distribution((dict(zip(metrics, values)), present), participants)
  return tree_where(good, new, state), {
      **spread, **info, **found, 'participants': participants, 'rejected': rejected.sum(),
      'refused': ~good}


def _rows(cohort, weights, rejected, metrics):
  """What a round says of its clients, [M, 2 + metrics]: weight, whether rejected, metrics.

  In one array, because on small models a collective costs more than what it carries.
  """
  columns = [weights, rejected & (cohort.ids >= 0), *metrics.values()]
  return jnp.stack([x.astype(weights.dtype) for x in columns], axis=1)


def in_order(gathered):
  """(ids, messages, weights) of all devices in the order of the ids, so that no result depends on
  how clients were dealt to devices; padding comes last."""
  ids = gathered[0]
  order = jnp.argsort(jnp.where(ids < 0, jnp.iinfo(ids.dtype).max, ids), stable=True)
  return jax.tree.map(lambda x: x[order], gathered)


def root_message(algorithm, payload, root, table, state, key):
  """What the server's own client sends, whose rows are `root` [S, B]; None without them."""
  if root is None:
    return None
  own = jax.tree.map(lambda x: x[-1], state.clients)
  data = ClientData(table, jnp.asarray(root), jnp.asarray(len(root), jnp.int32))
  return algorithm.client(payload, own, data, jax.random.fold_in(key, _ROOT))[0]


def detection(info, claimed, malicious):
  """How well an aggregator told the malicious from the others.

  Args:
    info: of the aggregator; without 'keep' there is nothing to tell.
    claimed: weights [C] that the clients claim.
    malicious: bool [C], or None where nobody attacks.

  Returns:
    {'m_true', 'm_hat' (number dropped), 'recall' (share of the malicious that were dropped, 1 where
    there are none), 'false_positive_rate' (share of the honest that were dropped),
    'kept_weight_share'}, as far as they are defined.
  """
  # A claim that is not finite, or negative, is there to be dropped.
  there = ~(claimed == 0)
  count = lambda mask: mask.sum(dtype=jnp.float32)
  share = lambda part, whole, empty: jnp.where(whole > 0, part / jnp.maximum(whole, 1e-30), empty)
  result = {} if malicious is None else {'m_true': count(malicious)}
  if 'keep' not in info:
    return result
  keep = info['keep']
  valid = jnp.where(jnp.isfinite(claimed) & (claimed > 0), claimed, 0)
  result['m_hat'] = count(there & ~keep)
  result['kept_weight_share'] = share(jnp.where(keep, valid, 0).sum(), valid.sum(), 1.0)
  if malicious is not None:
    honest = there & ~malicious
    result['recall'] = share(count(malicious & ~keep), count(malicious), 1.0)
    result['false_positive_rate'] = share(count(honest & ~keep), count(honest), 0.0)
  return result


def distribution(metrics_and_present, participants):
  """Mean, mean of the lowest tenth and mean of the highest tenth of each metric over clients.

  Args:
    metrics_and_present: ({name: [M]}, [M] 1 for a client that took part).
    participants: how many took part.

  Returns:
    {name, f'{name}_low', f'{name}_high': scalar}; 0 where nobody took part.
  """
  metrics, present = metrics_and_present
  tenth = jnp.ceil(participants / 10)
  ranks = jnp.arange(len(present))
  result = {}
  for name, values in metrics.items():
    ordered = jnp.sort(jnp.where(present > 0, values, jnp.inf))  # absent clients go to the end
    mean_of = lambda chosen, count: jnp.where(chosen, ordered, 0).sum() / jnp.maximum(count, 1)
    result[name] = mean_of(ranks < participants, participants)
    result[f'{name}_low'] = mean_of(ranks < tenth, tenth)
    result[f'{name}_high'] = mean_of(
        (ranks >= participants - tenth) & (ranks < participants), tenth)
  return result
