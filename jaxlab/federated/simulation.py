"""`simulate`: runs federated rounds, and goes on after a kill to the bit-identical end."""
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.data import partition, pipeline
from jaxlab.federated import aggregators, algorithms, attacks, secure_aggregation, staging
from jaxlab.federated import clients as clients_lib
from jaxlab.federated import rows as rows_lib
from jaxlab.federated.client import ClientData
from jaxlab.federated.round import Cohort, RoundState, Threat, federated_round
from jaxlab.federated.types import tree_bytes
from jaxlab.task import split_variables
from jaxlab.train.checkpoints import fingerprint
from jaxlab.train.evaluation import Evaluator
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


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
  """The settings of `simulate`, the mapping `config.federated`.

  Attributes:
    num_clients: clients that the training split is dealt to.
    cohort_size: clients a round, sampled uniformly without replacement.
    rounds: rounds of the run.
    partition: {name, ...} for `data.partition.make_partition`.
    algorithm: {name, ...} for `algorithms.make_algorithm`.
    client_optimizer: config for `optim.make_optimizer`; none for an algorithm with a rule of its
      own (scaffold, feddyn, mime, mimelite, fedsgd).
    aggregator: {name, ...} for `aggregators.make_aggregator`.
    attack: {name, ...} for `attacks.make_attack`; empty where all clients are honest. Who is
      malicious is fixed by the seed.
    secure: keyword arguments of `secure_aggregation.secure_mean`, under which the server sees sums
      alone; empty for none.
    batch_size: examples of a local step.
    epochs: local passes a round.
    local_steps: if positive, exactly so many local steps a round instead.
    accumulate: microbatches of a local batch.
    partition_by: column of the training split that the partition looks at; iid and quantity look
      at none.
    clients_per_vmap: clients side by side on a device; 0 takes `default_clients_per_vmap`.
    stage: False keeps all clients' data on the device; True sends the rows of each cohort, built by
      Grain while the cohort before runs.
    rounds_per_call: rounds scanned in one device program; `rounds` and every interval must be
      multiples of it.
    log_every: rounds between metric rows.
    eval_every: rounds between evaluations of `eval_splits`; 0 for the end only.
    eval_splits: splits to evaluate the global model on.
    save_every: rounds between checkpoints; 0 for the end only.
    keep: newest checkpoints that stay.
    max_bad_rounds: refused rounds in a row that end the run.
  """
  num_clients: int
  cohort_size: int
  rounds: int
  partition: Mapping
  algorithm: Mapping
  client_optimizer: Mapping = dataclasses.field(default_factory=dict)
  aggregator: Mapping = dataclasses.field(default_factory=lambda: {'name': 'mean'})
  attack: Mapping = dataclasses.field(default_factory=dict)
  secure: Mapping = dataclasses.field(default_factory=dict)
  batch_size: int = 16
  epochs: int = 1
  local_steps: int = 0
  accumulate: int = 1
  partition_by: str = 'label'
  clients_per_vmap: int = 0
  stage: bool = False
  rounds_per_call: int = 1
  log_every: int = 1
  eval_every: int = 1
  eval_splits: Sequence[str] = ('test',)
  save_every: int = 0
  keep: int = 2
  max_bad_rounds: int = 5

  def __post_init__(self):
    for name in ('num_clients', 'cohort_size', 'rounds', 'batch_size', 'epochs', 'accumulate',
                 'rounds_per_call', 'log_every', 'max_bad_rounds'):
      config_lib.require(
          getattr(self, name) >= 1, f'federated.{name}', 'at least 1', getattr(self, name))
    for name in ('local_steps', 'clients_per_vmap', 'eval_every', 'save_every'):
      config_lib.require(
          getattr(self, name) >= 0, f'federated.{name}', 'at least 0', getattr(self, name))
    config_lib.require(self.cohort_size <= self.num_clients, 'federated.cohort_size',
                       f'at most num_clients={self.num_clients}', self.cohort_size)
    config_lib.require(self.batch_size % self.accumulate == 0, 'federated.batch_size',
                       f'a multiple of accumulate={self.accumulate}', self.batch_size)
    for name in ('rounds', 'log_every', 'eval_every', 'save_every'):
      config_lib.require(
          getattr(self, name) % self.rounds_per_call == 0, f'federated.{name}',
          f'a multiple of rounds_per_call={self.rounds_per_call}', getattr(self, name))
    partition.check(self.partition, 'federated.partition')
    self._check_aggregation()

  def _check_aggregation(self):
    aggregator = self.make_aggregator(self.make_algorithm(None))
    config_lib.require(
        self.cohort_size >= aggregator.minimum, 'federated.cohort_size',
        f'at least {aggregator.minimum} under the aggregator {self.aggregator["name"]}',
        self.cohort_size)
    config_lib.require(not (aggregator.root_examples and self.stage), 'federated.stage',
                       f'False under the aggregator {self.aggregator["name"]}, whose root data '
                       'stay on the device', self.stage)
    name = self.algorithm['name']
    config_lib.require(
        not self.message_of_parts or not set(self.rules) & set(aggregators.MODEL_SHAPED),
        'federated.aggregator.name',
        f'one without a state under {name}, whose message is more than an update of the model',
        self.aggregator['name'])
    if not attacks.make_attack(self.attack):
      return
    config_lib.require(
        not self.message_of_parts or self.attack['name'] in attacks.HONEST_MESSAGES,
        'federated.attack.name',
        f'one of {", ".join(attacks.HONEST_MESSAGES)} under {name}, whose message is more than an '
        'update of the model', self.attack['name'])
    config_lib.require(
        self.attack['name'] != 'model_replacement' or name in ('fedavg', 'fedprox'),
        'federated.algorithm.name', 'fedavg or fedprox under the attack model_replacement', name)

  @property
  def rules(self):
    """The names of the aggregator and of the one that it wraps, if any."""
    return [rule['name'] for rule in (self.aggregator, self.aggregator.get('rule')) if rule]

  @property
  def message_of_parts(self):
    """Whether a message is more than an update of the model."""
    return self.algorithm['name'] in algorithms.MESSAGES_OF_PARTS

  def make_aggregator(self, algorithm):
    """The aggregator of an algorithm."""
    codec = self.make_codec(algorithm)
    if codec is not None:
      return codec.aggregator
    return aggregators.make_aggregator(self.aggregator, algorithm, self.num_clients)

  def make_codec(self, algorithm):
    """The Codec of secure aggregation; None without it."""
    if not self.secure:
      return None
    return secure_aggregation.make_codec(self.secure, self.aggregator, algorithm, self.num_clients,
                                         self.cohort_size)

  def make_threat(self, seed):
    """The Threat of the attack; None where all clients are honest."""
    attack = attacks.make_attack(self.attack)
    if attack is None:
      return None
    return Threat(attack, attacks.malicious_clients(self.attack, self.num_clients, seed))

  def make_algorithm(self, gradient, constants=None):
    """The algorithm over this gradient function, None for its shapes alone.

    Args:
      gradient: `TaskGradient`, or None.
      constants: the Flax collection 'constants', for the algorithms of a system; None with it.
    """
    del constants
    return algorithms.make_algorithm(self.algorithm, self.client_optimizer, gradient,
                                     self.num_clients)

  @property
  def work(self):
    """The LocalWork of a round."""
    return clients_lib.LocalWork(self.batch_size, self.epochs, self.local_steps)


def federated_config(config, kind=FederatedConfig, **parts):
  """Reads and checks `config.federated`.

  Args:
    config: of the experiment.
    kind: FederatedConfig, or the subclass of a system with an algorithm or a threat of its own.
    **parts: fields of `kind` that no config holds.
  """
  if 'federated' not in config:
    raise config_lib.ConfigError('config.federated: missing')
  return config_lib.call(kind, config['federated'], 'federated', drop=(), **parts)


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
    config: mapping with 'federated' (see FederatedConfig) and 'seed'; other keys are ignored.
    workdir: folder of the run, or None to keep nothing.
    state: FederatedState to start from; None initialises.
    hooks: sequence of `train.Hook`, called with (state, round).
    devices: devices to run on, all by default.
    profile_steps: (first, last) rounds to trace to workdir/profile, or None.

  Returns:
    The final FederatedState, on the devices.

  Raises:
    ConfigError: impossible settings, before anything compiles.
    FloatingPointError: `max_bad_rounds` rounds in a row were refused.
    OSError: a checkpoint or metric could not be written; earlier checkpoints are kept.
  """
  settings, seed = (task.federation or federated_config)(config), config.get('seed', 0)
  check_hooks(hooks, settings.rounds_per_call, 'federated.rounds_per_call')
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
    fresh, constants = jax.jit(build)()
    restored, sent = run.resume(lambda meta: shapes[0]), (0, 0)
    if restored:
      _, state, _, meta = restored
      sent = meta['sent']
      config_lib.require(meta['constants'] == fingerprint(constants), 'constants',
                         'those of the checkpoint', 'others')
    place = functools.partial(parallel.place, axis=parallel.CLIENTS, devices=devices)
    state = place(fresh if state is None else state)
    constants = place(constants)
    state = _run_rounds(run, task, settings, seed, state, sent, clients, constants, hooks,
                        Evaluator(task, devices=devices), devices)
    run.draw()
    return state


def _initial_state(task, settings, seed, hooks):
  """(state before the first round, constants)."""
  init_key, key = jax.random.split(jax.random.key(seed))
  params, running, constants = split_variables(task.init(init_key))
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

  Measured on the CPU by benchmarks/federated_rounds.py: small ones gain from fewer programs, large
  ones lose the cache. 32 on accelerators is a guess.
  """
  if jax.default_backend() != 'cpu':
    return 32
  return 4 if sum(leaf.size for leaf in jax.tree.leaves(params)) <= 2**16 else 1


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


def _run_rounds(run, task, settings, seed, state, sent, clients, constants, hooks, evaluator,
                devices):
  everywhere = devices or jax.devices()
  mine = [i for i, d in enumerate(everywhere) if d.process_index == jax.process_index()]
  chunk = settings.clients_per_vmap or default_clients_per_vmap(state.params)
  chunk = min(chunk, -(-settings.cohort_size // len(everywhere)))
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

  while position < settings.rounds:
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
    if due(settings.save_every):
      check_bad_steps(int(metrics['bad_rounds'].max()), settings.max_bad_rounds, position, 'round')
      run.save(position, state, None, meta)
    if run.stop_requested(position):
      run.leave(position, state, None, meta)
  return state
