"""Federated averaging in jaxlab against FedJAX on the same rounds.

  pip install -e . fedjax==0.0.17                                (an environment of its own)
  JAX_PLATFORMS=cpu python -m benchmarks.federated_rounds [--json=FILE]

Both sides train the same network from the same parameters on the same batches in the same order,
which is checked first: examples, steps, and parameters after a round. jaxlab runs `federated_round`
pmapped over one CPU device a core; FedJAX runs its own client triple of federated averaging on its
jit backend (its pmap backend calls functions that JAX has removed), in a process of its own, where
JAX is as it comes: one CPU device with a thread a core. FedJAX's weighted mean is one jitted call a
client, less than its own two. The two take turns.

The rows of a workload's name alone time rounds from index arrays on the host to new parameters:
shipping them and the program (jaxlab, whose table of examples lies on the devices, and whose arrays
are padded and dealt to the devices), or gathering and shipping every batch and the steps (FedJAX,
whose examples lie in host memory). 'Drawing them too' begins before that, with the clients'
numbers: the order of every client's rows is drawn by the same function for both, while the device
computes: by jaxlab for the rounds of the next call, as `simulate` does, by FedJAX for the next
client. 'Batches given' leaves out what happens before a program: index arrays and FedJAX's batches
were put on the devices beforehand, which FedJAX's data sets do not offer. A timed call is several
rounds, one program in jaxlab; the table has the median time of one.

The exit status is 1 if rounds of index arrays are not faster by a workload's bar, if more than
MAX_COMPILATIONS programs serve 20 cohorts, or if 1000 clients a round need more than MAX_MEMORY
times the memory of 100.
"""
import functools
import multiprocessing
import operator
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import fedjax
import haiku as hk
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from fedjax.algorithms import fed_avg

from benchmarks import comparison
from jaxlab import federated, models, parallel
from jaxlab.federated import simulation
from jaxlab.federated.clients import Clients, LocalWork, local_batches, make_cohort, padding_waste
from jaxlab.tasks import classification
from jaxlab.train.step import task_gradient

REPETITIONS = flags.DEFINE_integer('repetitions', 7, 'Timed calls of each program.', lower_bound=1)
ONLY = flags.DEFINE_string('only', '', 'Only the workloads whose name contains this.')

RATE = 0.01  # at 0.1 five steps of the CNN on random data amplify rounding a thousandfold
TOLERANCE = 1e-5
MAX_COMPILATIONS, MAX_MEMORY = 6, 1.3
CLIENTS_PER_VMAP = (1, 2, 4)
XLA_FLAGS = os.environ.get('XLA_FLAGS', '')


def ragged_sizes(num_clients, seed=1186):
  """Lognormal numbers of examples; 100 clients have 8768, in 487 batches of 20, at most 14 each."""
  return np.random.default_rng(seed).lognormal(4.35, 0.5, num_clients).astype(int)


def peer_mlp():
  """The 64-64-10 MLP as a FedJAX model."""
  forward = hk.transform(lambda batch: hk.nets.MLP((64, 10))(batch['x']))
  cross_entropy = lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(
      batch['y'], logits)
  return fedjax.create_model_from_haiku(forward, {'x': np.zeros((1, 64), np.float32)},
                                        cross_entropy)


class Workload(NamedTuple):
  """Rounds in which all clients take part.

  Attributes:
    model: jaxlab's network.
    peer: () -> FedJAX's.
    shape: of an example.
    sizes: examples of each client.
    work: LocalWork.
    rounds: rounds of a timed call.
    bar: how many times faster than FedJAX.
  """
  model: Any
  peer: Callable[[], fedjax.Model]
  shape: tuple[int, ...]
  sizes: np.ndarray
  work: LocalWork
  rounds: int
  bar: float


FIVE_STEPS = LocalWork(batch_size=20, steps=5)
RAGGED = Workload(models.MLP(10, features=(64,)), peer_mlp, (64,), ragged_sizes(100),
                  LocalWork(batch_size=20), rounds=20, bar=5)
LOGISTIC = Workload(models.MLP(62, features=()), fedjax.models.emnist.create_logistic_model,
                    (28, 28, 1), np.full(8, 100), FIVE_STEPS, rounds=50, bar=4)
WORKLOADS = {
    'MLP 64-64-10, 100 ragged clients': RAGGED,
    'logistic 784-62, 8 clients': LOGISTIC,
    'logistic 784-62, 64 clients': LOGISTIC._replace(sizes=np.full(64, 100), rounds=10),
    'CNN, 8 clients': Workload(
        models.CNN(62, dropout=(0.0, 0.0)), fedjax.models.emnist.create_conv_model, (28, 28, 1),
        np.full(8, 100), FIVE_STEPS, rounds=1, bar=1.5),
}


def make_table(workload, seed=0):
  """(columns of random examples, Clients)."""
  rng = np.random.default_rng(seed)
  rows = workload.sizes.sum()
  table = {'image': rng.random((rows, *workload.shape), np.float32),
           'label': rng.integers(0, workload.model.num_classes, rows, np.int32)}
  offsets = np.concatenate([[0], np.cumsum(workload.sizes)])
  return table, Clients(np.arange(rows, dtype=np.int32), offsets)


class Ours:
  """jaxlab's side of a workload."""

  def __init__(self, workload, table, clients):
    task = classification.from_model(
        workload.model, classification.DataSpec(workload.model.num_classes, workload.shape, 1.0),
        {})
    self.params = task.init(jax.random.key(0))['params']
    self._algorithm = federated.fedavg(task_gradient(task), optax.sgd(RATE))
    self._aggregator = federated.aggregators.weighted_mean()
    self._workload, self._clients = workload, clients
    # What `simulate` would take.
    self.side_by_side = simulation.side_by_side(0, self.params, len(workload.sizes),
                                                jax.local_device_count())
    place = functools.partial(parallel.place, axis=parallel.CLIENTS)
    self._state = place(
        federated.RoundState.start(self._algorithm, self._aggregator, self.params))
    self._table, self._key = place(table), place(jax.random.key(1))

  def cohorts(self, clients_per_vmap, rounds, ids=None):
    """HostCohort of some rounds [D, R, M, ...]; all clients by default."""
    ids = np.arange(len(self._workload.sizes)) if ids is None else ids
    each = [make_cohort(
        self._clients, ids, self._workload.work, 0, r, weighting='examples',
        num_devices=jax.local_device_count(), chunk=clients_per_vmap) for r in rounds]
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *each)

  def ship(self, cohorts):
    """The cohorts on the devices."""
    return parallel.shard(federated.Cohort(*cohorts), axis=parallel.CLIENTS)

  def program(self, clients_per_vmap):
    """The pmapped rounds, a function of `arguments`."""
    def run(state, cohorts, table, key):
      def one(carry, cohort):
        state, r = carry
        state, metrics = federated.federated_round(
            state, cohort, table, jax.random.fold_in(key, r), algorithm=self._algorithm,
            aggregator=self._aggregator, clients_per_vmap=clients_per_vmap)
        return (state, r + 1), metrics
      (state, _), metrics = jax.lax.scan(one, (state, 0), cohorts)
      return state.server.params, metrics
    return jax.pmap(run, axis_name=parallel.CLIENTS, in_axes=(None, 0, None, None),
                    out_axes=(None, None))

  def arguments(self, cohorts):
    """Arguments of a program, from cohorts on the devices."""
    return self._state, cohorts, self._table, self._key


class Peer:
  """FedJAX's side of a workload, from the parameters of jaxlab's."""

  def __init__(self, name, params):
    self._workload = workload = WORKLOADS[name]
    self._table, self._clients = make_table(workload)
    model = workload.peer()
    shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    ordered = lambda tree, kernel: sorted(tree, key=lambda name: (-tree[name][kernel].ndim, name))
    self._names = dict(zip(ordered(shapes, 'w'), ordered(params, 'kernel'), strict=True))
    self.params = {theirs: {'w': params[ours]['kernel'], 'b': params[ours]['bias']}
                   for theirs, ours in self._names.items()}
    # apply_for_eval is the network without dropout
    gradient = fedjax.grad(
        lambda params, batch, key: model.train_loss(batch, model.apply_for_eval(params, batch)))
    self._train = fed_avg.create_train_for_each_client(gradient, fedjax.optimizers.sgd(RATE))
    self._keys = list(jax.random.split(jax.random.PRNGKey(1), len(workload.sizes)))
    self._zeros = jax.jit(functools.partial(jax.tree.map, jnp.zeros_like))
    self._add = jax.jit(lambda total, delta, weight: jax.tree.map(
        lambda t, d: t + weight * d, total, delta), donate_argnums=0)
    self._server = jax.jit(lambda params, total, weight: jax.tree.map(
        lambda p, t: p - t / weight, params, total))
    self._index = [[self._draw(client, r) for client in range(len(workload.sizes))]
                   for r in range(workload.rounds)]
    device = jax.local_devices()[0]
    self._prepared = [[[jax.device_put(batch, device) for batch in self._batches(index)]
                       for index in clients] for clients in self._index]

  def first_round(self):
    """(examples, steps, parameters under jaxlab's names) of a round."""
    real = [batch.get(fedjax.EXAMPLE_MASK_KEY, np.ones(len(batch['y']), bool))
            for client in self._prepared[0] for batch in client]
    params = jax.device_get(self._run(self._prepared[:1]))
    params = {ours: {'kernel': params[theirs]['w'], 'bias': params[theirs]['b']}
              for theirs, ours in self._names.items()}
    return int(np.sum([mask.sum() for mask in real])), len(real), params

  def seconds(self):
    """Of the rounds of a call, the batches given."""
    return comparison.seconds(lambda: self._run(self._prepared))

  def seconds_indexed(self):
    """The same, gathering the batches on the way."""
    return comparison.seconds(
        lambda: self._run(map(self._batches, clients) for clients in self._index))

  def seconds_whole(self):
    """The same, drawing the index arrays on the way too."""
    drawn = lambda client, r: (yield from self._batches(self._draw(client, r)))
    return comparison.seconds(
        lambda: self._run((drawn(client, r) for client in range(len(clients)))
                          for r, clients in enumerate(self._index)))

  def _draw(self, client, round_number):
    """A client's index arrays [S, B]."""
    return local_batches(self._clients.of(client), self._workload.work, 0, round_number, client)

  def _batches(self, index):
    """Yields the batches of index arrays; masked, FedJAX's padding, where some are not full."""
    for rows in index:
      batch = {'x': self._table['image'][rows], 'y': self._table['label'][rows]}
      if not self._workload.work.steps:
        batch[fedjax.EXAMPLE_MASK_KEY] = rows >= 0
      yield batch

  def _run(self, rounds):
    """The parameters after rounds of iterables of batches [R][C]."""
    params = self.params
    for clients in rounds:
      batches = list(clients)
      total = self._zeros(params)
      for client, delta in self._train(params, list(zip(range(len(batches)), batches, self._keys))):
        total = self._add(total, delta, float(self._workload.sizes[client]))
      params = self._server(params, total, float(self._workload.sizes.sum()))
    return params


def serve(pipe, xla_flags, name, params):
  """Answers calls of the methods of a `Peer`: what `Remote` starts."""
  os.environ['XLA_FLAGS'] = xla_flags
  peer = Peer(name, params)
  while True:
    pipe.send(getattr(peer, pipe.recv())())


class Remote:
  """A `Peer` in a process of its own, where JAX is as it comes.

  Here it would have jaxlab's devices and the option that `parallel.initialize` gives XLA.
  """

  def __init__(self, *arguments):
    context = multiprocessing.get_context('spawn')
    self._pipe, end = context.Pipe()
    self._process = context.Process(target=serve, args=(end, XLA_FLAGS, *arguments), daemon=True)
    self._process.start()
    end.close()  # so that a process that dies is noticed

  def __getattr__(self, method):
    def call():
      self._pipe.send(method)
      return self._pipe.recv()
    return call

  def close(self):
    self._process.terminate()
    self._process.join()


def check(ours, peer):
  """Raises AssertionError unless examples, steps, and the parameters after a round agree.

  Returns:
    What agreed, in words.
  """
  *counts, expected = peer.first_round()
  largest = lambda a, b: max(jax.tree.leaves(
      jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), a, b)))
  moved, worst = largest(expected, ours.params), 0.0
  for clients_per_vmap in CLIENTS_PER_VMAP:
    cohorts = ours.cohorts(clients_per_vmap, [0])
    mask = cohorts.index >= 0
    found = [mask.sum(), mask.any(-1).sum()]
    assert found == counts, f'{found} examples and steps, FedJAX {counts}'
    params, metrics = ours.program(clients_per_vmap)(*ours.arguments(ours.ship(cohorts)))
    assert not metrics['rejected'].any() and not metrics['refused'].any()
    worst = max(worst, largest(params, expected))
  assert worst <= TOLERANCE < moved / 10, f'parameters moved {moved} and differ by {worst}'
  waste = padding_waste(cohorts.index, clients_per_vmap)
  return (f'{counts[0]} examples in {counts[1]} steps on both sides, parameters moved {moved:.1e} '
          f'and differ by {worst:.1e}; padding at {clients_per_vmap} a vmap {waste:.0%}')


def measure(name, workload):
  """Rows of the table for a workload."""
  ours = Ours(workload, *make_table(workload))
  peer = Remote(name, jax.device_get(ours.params))
  print(f'{name}: {check(ours, peer)}')

  rounds = range(workload.rounds)
  usual = ours.side_by_side
  ours_of = {k: ours.program(k) for k in {usual, *CLIENTS_PER_VMAP}}
  cohorts = {k: ours.cohorts(k, rounds) for k in ours_of}
  ship = lambda cohorts: ours.arguments(ours.ship(cohorts))

  def ahead(cohorts):
    """A call that ships the next call's cohorts while the devices compute, as `simulate` does."""
    shipped = [ship(cohorts())]

    def call():
      result = ours_of[usual](*shipped.pop())
      shipped.append(ship(cohorts()))
      return result

    return functools.partial(comparison.seconds, call)

  timed = {'indexed': ahead(lambda: cohorts[usual]), 'peer, indexed': peer.seconds_indexed,
           'whole': ahead(lambda: ours.cohorts(usual, rounds)), 'peer, whole': peer.seconds_whole}
  for k, program in ours_of.items():
    timed[k] = functools.partial(
        comparison.seconds, functools.partial(program, *ship(cohorts[k])))
  timed['peer'] = peer.seconds

  # The peer's times come from its own process.
  times = comparison.medians(timed, REPETITIONS.value, timer=operator.call)
  milliseconds = {key: 1e3 * value / workload.rounds for key, value in times.items()}
  peer.close()
  pairs = {name: ('indexed', 'peer, indexed'),
           f'{name}, drawing them too': ('whole', 'peer, whole')}
  pairs |= {f'{name}, batches given, {k} a vmap': (k, 'peer') for k in CLIENTS_PER_VMAP}
  return [{'name': row, 'ours': milliseconds[a], 'peer': milliseconds[b], 'unit': 'ms',
           'ratio': milliseconds[b] / milliseconds[a]} for row, (a, b) in pairs.items()]


def count_compilations(rounds=20, cohort_size=10):
  """How many programs are compiled for cohorts of ragged clients that differ from round to round.
  """
  ours = Ours(RAGGED, *make_table(RAGGED))
  program = ours.program(ours.side_by_side)
  events = []

  def listen(event, duration, **kwargs):
    del duration, kwargs
    if event == '/jax/core/compile/backend_compile_duration':
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  shapes = set()
  for r in range(rounds):
    ids = np.random.default_rng(r).choice(len(RAGGED.sizes), cohort_size, replace=False)
    cohorts = ours.cohorts(ours.side_by_side, [r], ids)
    shapes.add(cohorts.index.shape)
    jax.block_until_ready(program(*ours.arguments(ours.ship(cohorts))))
  jax.monitoring.unregister_event_duration_listener(listen)
  print(f'{len(events)} compilations in {rounds} rounds of {cohort_size} clients, '
        f'{len(shapes)} shapes')
  return len(events)


def memory_ratio(few=100, many=1000):
  """Memory of a CNN round of `many` clients over that of `few`, without the table of examples."""
  workload = WORKLOADS['CNN, 8 clients']._replace(sizes=np.full(many, 1))
  table, clients = make_table(workload)
  ours = Ours(workload, table, clients)
  program = ours.program(ours.side_by_side)

  def megabytes(cohort_size):
    cohorts = ours.ship(ours.cohorts(ours.side_by_side, [0], np.arange(cohort_size)))
    need = program.lower(*ours.arguments(cohorts)).compile().memory_analysis()
    return (need.temp_size_in_bytes + need.output_size_in_bytes + need.argument_size_in_bytes -
            sum(column.nbytes for column in table.values())) / 1e6

  small, large = megabytes(few), megabytes(many)
  print(f'CNN round on a device: {small:.1f} MB with {few} clients, {large:.1f} MB with {many}, '
        f'ratio {large / small:.3f}')
  return large / small


def main(_):
  parallel.initialize(cpu_devices=len(os.sched_getaffinity(0)))
  chosen = {name: w for name, w in WORKLOADS.items() if ONLY.value in name}
  rows = [row for name, workload in chosen.items() for row in measure(name, workload)]
  print(f'a round against FedJAX, on {jax.local_device_count()} x {jax.devices()[0].device_kind}')
  comparison.show(rows, 'workload')
  missed = [f'{row["name"]}: {row["ratio"]:.2f} times, the bar is {chosen[row["name"]].bar}'
            for row in rows if row['name'] in chosen and row['ratio'] < chosen[row['name']].bar]
  if (compilations := count_compilations()) > MAX_COMPILATIONS:
    missed.append(f'{compilations} compilations, the bar is {MAX_COMPILATIONS}')
  if (ratio := memory_ratio()) > MAX_MEMORY:
    missed.append(f'memory {ratio:.2f} times, the bar is {MAX_MEMORY}')
  if missed:
    sys.exit('\n'.join(missed))


if __name__ == '__main__':
  app.run(main)
