"""`simulate`: runs federated rounds, and goes on after a kill to the bit-identical end."""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.data import partition, pipeline
from jaxlab.federated import attacks, secure_aggregation, staging
from jaxlab.federated import clients as clients_lib
from jaxlab.federated import rows as rows_lib
from jaxlab.federated.client import ClientData
from jaxlab.federated.round import Cohort, RoundState, federated_round
from jaxlab.federated.settings import federated_config
from jaxlab.federated.types import tree_bytes
from jaxlab.task import split_variables
from jaxlab.train.checkpoints import fingerprint, load_collection
from jaxlab.train.early_stop import Best
from jaxlab.train.evaluation import Evaluator
from jaxlab.train.phases import check_splits
from jaxlab.train.rows import of_rows
from jaxlab.train.run import Run, check_bad_steps, check_hooks
from jaxlab.train.step import task_gradient
from jaxlab.train.telemetry import compile_program

_ROOT_ROWS = 5  # a stream of randomness, beside those of clients and attacks


class FederatedState(NamedTuple):
  """Everything that a simulation carries from round to round, and all that a checkpoint holds.

  Attributes:
    round: int32, rounds done.
    server: the algorithm's server state, with a field `params`.
    clients: states of stateful clients, see `RoundState`.
    aggregator: the aggregator's state.
    attack: the attack's state.
    key: the run's PRNG key; round keys are folded from it and never stored.
    bad_rounds: int32, refused rounds in a row.
    hooks: name -> state of the hook of that name.
  """
  round: jax.Array
  server: Any
  clients: Any
  aggregator: Any
  attack: Any
  key: jax.Array
  bad_rounds: jax.Array
  hooks: Any

  @property
  def params(self):
    """The global model."""
    return self.server.params

  @property
  def running(self):
    """Federated models have no running collections."""
    return {}

  @property
  def step(self):
    """The round, under the name that evaluation knows."""
    return self.round

  def with_params(self, params):
    """The state with another global model."""
    return self._replace(server=self.server._replace(params=params))


def make_clients(task, settings, seed):
  """Deals the training rows to the clients; raises ConfigError if that cannot be done."""
  dataset = task.dataset('train')
  if settings.partition['name'] in partition.BLIND:
    labels = np.zeros(len(dataset), int)
  else:
    labels = pipeline.column(dataset, settings.partition_by, 'federated.partition_by')
  parts = partition.make_partition(settings.partition, labels, settings.num_clients, seed,
                                   users=labels)
  held = root_rows(len(labels), settings, seed)
  return clients_lib.Clients.from_parts([part[~np.isin(part, held)] for part in parts])


def root_rows(num_rows, settings, seed):
  """Training rows that the server holds back for an aggregator with a root: [root_examples]."""
  count = settings.make_aggregator(settings.make_algorithm(None)).root_examples
  config_lib.require(count < num_rows, 'federated.aggregator.root_examples',
                     f'less than the {num_rows} training examples', count)
  return np.random.default_rng([seed, _ROOT_ROWS]).choice(num_rows, count, replace=False)


def _poisoned(dataset, clients, threat, seed):
  """The training data as the clients see it."""
  if threat is None or threat.attack.poison is None:
    return dataset
  rows = np.concatenate([clients.of(c) for c in np.flatnonzero(threat.malicious)] or [[]])
  return pipeline.from_arrays(attacks.poisoned(
      pipeline.columns(dataset), threat.attack, rows.astype(int), seed))


def simulate(task, config, *, workdir=None, state=None, hooks=(), devices=None,
             profile_steps=None):
  """Runs a federated experiment.

  Same files, resumption and errors as `train.fit`, with rounds for steps.

  Args:
    task: Task without running state.
    config: mapping with 'federated' (see FederatedConfig), 'seed' and 'init_from', the folder of a
      run, central or federated, whose parameters the first round starts from; other keys are
      ignored.
    workdir: folder of the run, or None to keep nothing.
    state: FederatedState to start from; None initialises.
    hooks: sequence of `train.Hook`, called with (state, round).
    devices: devices to run on, all by default.
    profile_steps: (first, last) rounds to trace to workdir/profile, or None.

  Returns:
    The final FederatedState, on the devices; with `early_stop` that of the best evaluation, under
    the number of the last round.

  Raises:
    ConfigError: impossible settings or parameters in `init_from` that do not fit, before anything
      compiles.
    FloatingPointError: `max_bad_rounds` rounds in a row were refused.
    OSError: a checkpoint or metric could not be written; earlier checkpoints are kept.
  """
  settings, seed = (task.federation or federated_config)(config), config.get('seed', 0)
  check_hooks(hooks, settings.rounds_per_call, 'federated.rounds_per_call')
  check_splits(task, settings.eval_splits)
  build = functools.partial(_initial_state, task, settings, seed, hooks)
  shapes = jax.eval_shape(build)
  parallel.check_fits(shapes[0], 'config.model')
  rows_lib.check(task, settings, shapes[0].params)
  clients = make_clients(task, settings, seed)
  algorithm = settings.make_algorithm(None)
  secure_aggregation.check_weights(
      settings.make_codec(algorithm), algorithm.weighting, clients.sizes)

  with Run(config, workdir, unit='round', total=settings.rounds, keep=settings.keep,
           profile_steps=profile_steps) as run:
    restored, sent, params = run.resume(lambda meta: shapes[0]), (0, 0), None
    if config.get('init_from') and not restored and state is None:
      params = load_collection(config['init_from'], shapes[0].params)
    fresh, constants = jax.jit(build)(params)
    if restored:
      _, state, _, meta = restored
      sent = meta['sent']
      config_lib.require(meta['constants'] == fingerprint(constants), 'constants',
                         'those of the checkpoint', 'others')
    place = functools.partial(parallel.place, axis=parallel.CLIENTS, devices=devices)
    state = place(fresh if state is None else state)
    constants = place(constants)
    with Best(settings.stopping(), run, 0) as best:
      state = _run_rounds(run, task, settings, seed, state, sent, clients, constants, hooks,
                          Evaluator(task, devices=devices), best, devices)
    run.draw()
    return state


def _initial_state(task, settings, seed, hooks, params=None):
  """(state before the first round, constants); `params` in place of the task's own."""
  init_key, key = jax.random.split(jax.random.key(seed))
  own, running, constants = split_variables(task.init(init_key))
  params = own if params is None else params
  config_lib.require(not running, 'federated', 'a task without running collections',
                     sorted(running))
  algorithm = settings.make_algorithm(None)
  aggregator = settings.make_aggregator(algorithm)
  zero = jnp.zeros((), jnp.int32)
  threat = settings.make_threat(seed)
  start = RoundState.start(algorithm, aggregator, params, settings.num_clients,
                           threat.attack if threat else None)
  state = FederatedState(**start._asdict(), round=zero, key=key, bad_rounds=zero,
                         hooks={hook.name: hook.init(params) for hook in hooks})
  return state, constants


def run_rounds(state, cohorts, table, constants, rows, *, task, settings, clients_per_vmap,
               threat=None, root=None, axis=parallel.CLIENTS):
  """Scans rounds over cohorts [R, M, ...]; a pure function of one device.

  Args:
    state: FederatedState.
    cohorts: this device's Cohort with leaves [R, M, ...].
    table: mapping of columns [N, ...].
    constants: the Flax collection 'constants', or {}.
    rows: {name of a table: int32 [R, K]}, the rows that take part in each round, as `RoundRows`
      gives them; {} where tables take part whole.
    task: Task without running state.
    settings: FederatedConfig.
    clients_per_vmap: see `federated_round`.
    threat: likewise.
    root: likewise.
    axis: name of the device axis.

  Returns:
    (FederatedState, {metric: [R]}).
  """
  if rows and threat is not None and threat.looks_at_all:
    threat = threat._replace(attack=threat.attack.resting())

  def one(state, inputs):
    cohort, ids = inputs
    touched = of_rows(ids, state.params)
    algorithm = settings.make_algorithm(
        task_gradient(task, constants, settings.accumulate, touched), constants)
    whole = RoundState(state.server, state.clients, state.aggregator, state.attack)
    new, metrics = federated_round(
        touched.gather(whole), cohort, table, jax.random.fold_in(state.key, state.round),
        algorithm=algorithm, aggregator=settings.make_aggregator(algorithm),
        clients_per_vmap=clients_per_vmap, threat=threat, root=root,
        codec=settings.make_codec(algorithm), axis=axis)
    state = state._replace(
        **touched.scatter(whole, new)._asdict(), round=state.round + 1,
        bad_rounds=jnp.where(metrics['refused'], state.bad_rounds + 1, 0))
    return state, {**metrics, 'bad_rounds': state.bad_rounds}

  return jax.lax.scan(one, state, (cohorts, rows))


def default_clients_per_vmap(params):
  """How many clients of these parameters run side by side on a device.

  Measured on the CPU by benchmarks/federated_rounds.py: small ones gain from fewer operations,
  large ones lose the cache. 32 on accelerators is a guess.
  """
  if jax.default_backend() != 'cpu':
    return 32
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  return 4 if size <= 2**15 else 2 if size <= 2**16 else 1


def side_by_side(asked, params, cohort_size, num_devices):
  """The clients that a device runs side by side: the number asked for, or the default where that is
  0, and no more than it has."""
  return min(asked or default_clients_per_vmap(params), -(-cohort_size // num_devices))


def round_bytes(algorithm, params, table, batch_size):
  """(bytes down, bytes up) of one client in a round, from the real payload and message."""
  def exchange(params, table):
    key, index = jax.random.key(0), jnp.zeros((1, batch_size), jnp.int32)
    cohort = Cohort(jnp.zeros(1, jnp.int32), index[None], jnp.ones(1))
    payload, _ = algorithm.broadcast(algorithm.init(params), cohort, table, key)
    state = algorithm.init_client(params) if algorithm.init_client else ()
    data = ClientData(table, index, jnp.ones((), jnp.int32))
    return payload, algorithm.client(payload, state, data, key)[0]

  payload, message = jax.eval_shape(exchange, params, table)
  return tree_bytes(payload), tree_bytes(message) + 8  # beside the message travels its weight


def _bytes_of_call(task, settings, params, dataset, constants, rows):
  """(bytes down, bytes up) of one client in a round of a call, with the numbers of its rows."""
  first = {name: jnp.asarray(ids[0]) for name, ids in rows.items()}
  touched = of_rows(first, params)
  algorithm = settings.make_algorithm(
      task_gradient(task, constants, settings.accumulate, touched), constants)
  table = pipeline.take(dataset, np.zeros(1, np.int32))
  down, up = round_bytes(algorithm, jax.eval_shape(touched.gather, params), table,
                         settings.batch_size)
  return down + tree_bytes(first), up


def _run_rounds(run, task, settings, seed, state, sent, clients, constants, hooks, evaluator, best,
                devices):
  everywhere = devices or jax.devices()
  mine = [i for i, d in enumerate(everywhere) if d.process_index == jax.process_index()]
  chunk = side_by_side(settings.clients_per_vmap, state.params, settings.cohort_size,
                       len(everywhere))
  threat = settings.make_threat(seed)
  dataset = _poisoned(task.dataset('train'), clients, threat, seed)
  held = root_rows(len(dataset), settings, seed)
  root = clients_lib.local_batches(held, settings.work, seed, 0, settings.num_clients)
  root = root if len(held) else None
  program = jax.pmap(
      functools.partial(run_rounds, task=task, settings=settings, clients_per_vmap=chunk,
                        threat=threat, root=root),
      axis_name=parallel.CLIENTS, in_axes=(None, 0, 0 if settings.stage else None, None, None),
      out_axes=(None, None), donate_argnums=0, devices=devices)
  row_wise = rows_lib.RoundRows(task, dataset, state.params) if task.rows else None
  source = staging.CallSource(
      clients, settings, seed, weighting=settings.make_algorithm(None).weighting,
      num_devices=len(everywhere), devices=mine, chunk=chunk,
      dataset=dataset if settings.stage else None, rows=row_wise,
      whole=threat.malicious if threat is not None and threat.looks_at_all else None)
  place = functools.partial(parallel.place, axis=parallel.CLIENTS, devices=devices)
  shard = functools.partial(parallel.shard, axis=parallel.CLIENTS, devices=devices)
  resident = None if settings.stage else place(pipeline.columns(dataset))
  shapes = jax.eval_shape(lambda: state.params)
  constants_print = fingerprint(constants)
  position, programs, pending = int(state.round), {}, None
  calls = staging.prefetched(source, position // settings.rounds_per_call)

  def due(every):
    return every and position % every == 0 or position == settings.rounds

  while position < settings.rounds and not best.finished:
    call = next(calls)
    table = shard(call.table) if settings.stage else resident
    inputs = shard(Cohort(*call.cohorts)), table, constants, place(call.rows)
    shape = str(jax.tree.map(np.shape, (call.cohorts.index, table, call.rows)))
    if shape not in programs:
      programs[shape] = (
          compile_program(program, (state, *inputs), settings.rounds_per_call, 'round'),
          _bytes_of_call(task, settings, shapes, dataset, constants, call.rows))
    run.trace(position, state)
    compiled, of_client = programs[shape]
    state, metrics = compiled.run(state, *inputs)
    sent = [total + call.contacts * one for total, one in zip(sent, of_client)]
    meta = {'constants': constants_print, 'sent': sent}
    position += settings.rounds_per_call
    if pending is not None:  # one call behind, so that the device is never waited for
      check_bad_steps(int(pending[1].max()), settings.max_bad_rounds, pending[0], 'round')
    pending = (position, metrics['bad_rounds'])
    for hook in hooks:
      if position % hook.every == 0:
        state = place(hook.apply(state, position))
    row = {}
    if due(settings.log_every):
      row = {name: float(value[-1]) for name, value in jax.device_get(metrics).items()}
      row.update(padding_waste=call.waste, mb_down=sent[0] / 1e6, mb_up=sent[1] / 1e6,
                 rounds_per_s=run.rate(position))
    if due(settings.eval_every):
      for split in settings.eval_splits:
        row.update(evaluator(state, constants, split))
    if row:
      run.log(position, row)
    if due(settings.eval_every):
      best.see(position, state)
    if position == settings.rounds or best.finished:
      result = best.take(state)
      if result is not state:
        state = place(result._replace(round=state.round))
    if due(settings.save_every) or best.finished:
      check_bad_steps(int(metrics['bad_rounds'].max()), settings.max_bad_rounds, position, 'round')
      best.wait()
      run.save(position, state, None, meta)
    if run.stop_requested(position):
      best.wait()
      run.leave(position, state, None, meta)
  return state
