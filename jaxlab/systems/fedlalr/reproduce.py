"""Measures FedLALR's claims on handwritten digits: fewer rounds than FedAvg on non-IID clients,
linear speed-up.

Every algorithm is compiled once; rates, seeds and partitions are its inputs. The switch of
`--ablate` is `optim.fedlalr(adaptive=False)`, which makes the round FedAvg's, and the number of
participants held fixed.
"""
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import federated, models, optim, parallel
from jaxlab.data import characters, partition, pipeline
from jaxlab.federated import aggregators, sampling
from jaxlab.federated import clients as clients_lib
from jaxlab.tasks import classification, next_token
from jaxlab.train import claims, evaluation, figures, task_gradient

CLIENTS = 20
WORK = clients_lib.LocalWork(batch_size=16)
MAX_STEPS = 32  # local steps of the largest client, 512 rows; smaller ones cost what they do
RATES = {'FedLALR': (0.003, 0.01, 0.03), 'FedAvg': (0.1, 0.3, 1.0), 'FedAdam': (0.03, 0.1, 0.3)}
FEDADAM_SERVER_RATE = 0.03
PARTITIONS = {'Dirichlet(0.1)': {'name': 'dirichlet_by_class', 'alpha': 0.1, 'min_size': 8},
              'Dirichlet(0.3)': {'name': 'dirichlet_by_class', 'alpha': 0.3, 'min_size': 8},
              'IID': {'name': 'iid'}}
SEEDS = 24
ROUNDS = 60
TEXT_ROUNDS, TEXT_MARGIN = 15, 0.7
PARTICIPANTS = (2, 5, 10, 20)
PARTICIPATION_SEEDS = 8
PARTICIPATION_ROUNDS = 80


def load():
  """The digits Task: 1297 training and 500 test rows, an MLP of 64 hidden units."""
  spec, splits = classification.load_arrays(name='digits', train='train[:1297]',
                                            test='train[1297:]')
  return classification.from_model(
      models.MLP(spec.num_classes, (64,)), spec,
      {name: pipeline.from_arrays(columns) for name, columns in splits.items()})


def make_algorithm(name, gradient, rate, adaptive):
  """One of the three algorithms with its client rate."""
  if name == 'FedLALR':
    return federated.fedlalr(gradient, optim.fedlalr(rate, b1=0.9, b2=0.99, adaptive=adaptive))
  if name == 'FedAvg':
    return federated.fedavg(gradient, optax.sgd(rate))
  return federated.fedadam(gradient, optax.sgd(rate), server_learning_rate=FEDADAM_SERVER_RATE)


@functools.lru_cache
def accuracy_curve(task, name, adaptive):
  """The function of one run: ((table, test), rate, key, cohorts [R, M, ...]) -> accuracies [R].

  `key` is of initialisation and rounds; `adaptive` False is the ablation. Compiled once an
  algorithm and number of participants.
  """
  aggregator = aggregators.weighted_mean()

  def run(shared, rate, key, cohorts):
    table, test = shared
    algorithm = make_algorithm(name, task_gradient(task), rate, adaptive)
    init_key, round_key = jax.random.split(key)
    start = federated.RoundState.start(algorithm, aggregator, task.init(init_key)['params'])

    def one(state, inputs):
      number, cohort = inputs
      state, _ = federated.federated_round(state, cohort, table,
                                           jax.random.fold_in(round_key, number),
                                           algorithm=algorithm, aggregator=aggregator)
      logits = task.predict({'params': state.server.params}, test, round_key)
      return state, (logits.argmax(-1) == test['label']).mean()

    return jax.lax.scan(one, start, (jnp.arange(cohorts.ids.shape[0]), cohorts))[1]

  return run


def cohorts_of(labels, how, seed, rounds, participants, weighting):
  """The cohorts of all rounds of one run as a Cohort [R, M, ...]."""
  parts = partition.make_partition(PARTITIONS[how], labels, CLIENTS, seed)
  clients = clients_lib.Clients.from_parts(parts)
  made = [clients_lib.make_cohort(
      clients, sampling.sample_uniform(CLIENTS, participants, seed, r), WORK, seed, r,
      weighting=weighting, steps=MAX_STEPS) for r in range(rounds)]
  return federated.Cohort(*(np.concatenate(leaves) for leaves in zip(*made)))


def run_seeds(task, name, rate, seeds, how, *, rounds=ROUNDS, participants=CLIENTS, adaptive=True):
  """Accuracy curves [seeds, rounds]; a seed draws partition, initialisation and data order."""
  shared = tuple(pipeline.columns(task.dataset(split)) for split in ('train', 'test'))
  weighting = 'uniform' if name == 'FedLALR' else 'examples'
  cohorts = [cohorts_of(shared[0]['label'], how, seed, rounds, participants, weighting)
             for seed in seeds]
  return parallel.map_runs(
      accuracy_curve(task, name, adaptive), shared, np.full(len(seeds), rate, np.float32),
      jax.vmap(jax.random.key)(np.array(seeds)), jax.tree.map(lambda *x: np.stack(x), *cohorts))


def final(curves):
  """Mean of the last five rounds."""
  return np.asarray(curves)[..., -5:].mean(-1)


def rounds_to(curves, target):
  """First round (from 1) at the target; the length + 1 where it is never reached."""
  reached = np.asarray(curves) >= target
  return np.where(reached.any(-1), reached.argmax(-1) + 1, reached.shape[-1] + 1)


def compare(task, how, seeds, adaptive):
  """{algorithm: {rate: curves [seeds, rounds]}}."""
  return {name: {rate: run_seeds(task, name, rate, seeds, how, adaptive=adaptive) for rate in rates}
          for name, rates in RATES.items()}


def best(grid):
  """(rate, curves) of the highest mean final accuracy."""
  rate = max(grid, key=lambda r: final(grid[r]).mean())
  return rate, grid[rate]


def next_character(seed, adaptive):
  """(test loss, entropy of single characters) in nats of a character model of 20 speakers.

  The text is that of the demo of the Shakespeare reader: docstrings, a module a speaker.
  """
  config = {
      'seed': seed,
      'model': {'name': 'lstm', 'hidden': 64, 'layers': 1},
      'data': {'name': 'shakespeare_demo'},
      'federated': {
          'num_clients': CLIENTS, 'cohort_size': CLIENTS, 'rounds': TEXT_ROUNDS, 'batch_size': 8,
          'partition': {'name': 'by_user'}, 'partition_by': 'user', 'eval_every': 0,
          'algorithm': {'name': 'fedlalr'},
          'client_optimizer': {'name': 'fedlalr', 'learning_rate': 0.01, 'b1': 0.8, 'b2': 0.998,
                               'adaptive': adaptive}}}
  task = next_token.make_task(config)
  state = federated.simulate(task, config)
  loss = evaluation.Evaluator(task)(state, {}, 'test')['test/loss']
  target = pipeline.column(task.dataset('test'), 'target', 'data')
  counts = np.bincount(target[target != characters.PAD])
  shares = counts[counts > 0] / counts.sum()
  return loss, float(-(shares * np.log(shares)).sum())


def main(seed, workdir, ablate):
  """Prints the table, writes results.json and figure.png; True unless a claim does not hold."""
  task = load()
  seeds = [seed * 1000 + i for i in range(SEEDS)]
  grids = {how: compare(task, how, seeds, not ablate) for how in ('Dirichlet(0.1)', 'IID')}
  chosen = {how: {name: best(grid) for name, grid in grids[how].items()} for how in grids}
  curves = {name: curve for name, (_, curve) in chosen['Dirichlet(0.1)'].items()}
  to_target = {name: rounds_to(curve, 0.92) for name, curve in curves.items()}
  speed = claims.margin(0.75 * to_target['FedAvg'], to_target['FedLALR'])
  gain = claims.margin(final(curves['FedLALR']), final(curves['FedAvg']))
  iid_gain = claims.margin(final(chosen['IID']['FedLALR'][1]), final(chosen['IID']['FedAvg'][1]))
  shrink = claims.Margin(gain.mean - iid_gain.mean, float(np.hypot(gain.error, iid_gain.error)))

  fresh = [seed * 1000 + 500 + i for i in range(PARTICIPATION_SEEDS)]
  participation = {m: run_seeds(task, 'FedLALR', 0.003, fresh, 'Dirichlet(0.3)',
                                rounds=PARTICIPATION_ROUNDS,
                                participants=PARTICIPANTS[0] if ablate else m)
                   for m in PARTICIPANTS}
  to_90 = {m: rounds_to(c, 0.9) for m, c in participation.items()}
  tail = {m: c[:, -20:].std(-1) for m, c in participation.items()}
  fewer = claims.margin(to_90[2], to_90[10])
  steadier = claims.margin(tail[2], tail[10])

  text_loss, unigram = next_character(seed, not ablate)
  megabytes = _megabytes_a_round(task)
  traffic = {name: float(np.mean(to_target[name]) * megabytes[name]) for name in to_target}
  mean = lambda values: f'{np.mean(values):.1f}'
  label = lambda name: f'{name} {mean(to_target[name])}'
  table = [
      claims.Claim(
          'non-IID: at most 0.75x the rounds of FedAvg to 92 %', 'not available',
          ', '.join(map(label, RATES)) + f'; 0.75 FedAvg - FedLALR {speed}',
          claims.verdict(speed.at_least())),
      claims.Claim(
          'non-IID: final accuracy 1 point above FedAvg', 'not available',
          f'{final(curves["FedLALR"]).mean():.4f} v {final(curves["FedAvg"]).mean():.4f}, {gain}',
          claims.verdict(gain.at_least(0.01))),
      claims.Claim('the lead over FedAvg is smaller on IID clients', 'not available',
                   f'lead {gain.mean:+.4f} non-IID, {iid_gain.mean:+.4f} IID, difference {shrink}',
                   claims.verdict(shrink.at_least())),
      claims.Claim('linear speed-up: rounds to 90 % fall as participants grow', 'not available',
                   ', '.join(f'{m}: {mean(to_90[m])}' for m in PARTICIPANTS) + f'; 2 - 10: {fewer}',
                   claims.verdict(fewer.at_least())),
      claims.Claim(
          'the tail is steadier with more participants', 'not available',
          ', '.join(f'{m}: {tail[m].mean():.4f}' for m in PARTICIPANTS) + f'; 2 - 10: {steadier}',
          claims.verdict(steadier.at_least())),
      claims.Claim(f'a character model over {CLIENTS} speakers: {TEXT_MARGIN} nats below unigrams',
                   'not available', f'loss {text_loss:.3f}, unigram entropy {unigram:.3f}',
                   claims.verdict(text_loss <= unigram - TEXT_MARGIN)),
      claims.Claim('MB to 92 %: three models each way a round', '3x a round', ', '.join(
          f'{name} {value:.1f}' for name, value in traffic.items()), claims.NOT_JUDGED),
  ]
  results = {
      'grids': {
          how: {
              name: {
                  str(rate): {
                      'curves': c.tolist(), 'final': final(c).tolist(), 'rounds_to_92': rounds_to(
                          c, 0.92).tolist()
                  } for rate, c in grid.items()
              } for name, grid in by_name.items()
          } for how, by_name in grids.items()
      },
      'best_rates': {
          how: {name: rate for name, (rate, _) in by_name.items()}
          for how, by_name in chosen.items()
      },
      'participation': {str(m): c.tolist() for m, c in participation.items()},
      'megabytes_a_round': megabytes,
      'next_character': {'loss': text_loss, 'unigram_entropy': unigram},
  }
  lines = {f'{name} ({chosen["Dirichlet(0.1)"][name][0]:g})': (np.arange(1, ROUNDS + 1), c)
           for name, c in curves.items()}
  figures.compare(lines,
                  pathlib.Path(workdir) / 'figure.png', xlabel='round', ylabel='test accuracy',
                  target=0.92,
                  title='digits, 20 clients, Dirichlet(0.1), each at the best of its grid')
  return claims.report('fedlalr', table, results, workdir, seed=seed, ablate=ablate)


def _megabytes_a_round(task):
  """{algorithm: MB of a round of all clients, both ways}, from the payload and message trees."""
  table = pipeline.columns(task.dataset('train'))
  params = jax.eval_shape(task.init, jax.random.key(0))['params']
  return {name: CLIENTS * sum(federated.round_bytes(
      make_algorithm(name, task_gradient(task), 0.1, True), params, table, WORK.batch_size)) / 1e6
          for name in RATES}
