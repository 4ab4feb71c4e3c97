"""Measures FedRA's claims on handwritten digits: quantities help, and liars about them do not.

One program serves all attacks and aggregators: which of them a run has is an input, and so are
seed, cohorts and who is malicious. `--ablate` takes from every claim what it rests on: the
estimator (m fixed), the quantities in the score (factor 'none'), or the lie about quantities.
"""
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import federated, models, parallel
from jaxlab.data import partition, pipeline
from jaxlab.federated import aggregators, attacks, sampling
from jaxlab.federated import clients as clients_lib
from jaxlab.tasks import classification
from jaxlab.train import claims, figures, sweep, task_gradient

CLIENTS, COHORT, ROUNDS, FRACTION = 50, 25, 40, 0.1
# Whole batches: then an update is the closer to the others' the more examples it is made of.
WORK = clients_lib.LocalWork(batch_size=512, epochs=5)
RATE = 1.0
MAX_STEPS = 10  # local steps of a client of up to 1024 rows; most have 5
SIZES = {'name': 'quantity', 'law': 'lognormal', 'spread': 1.0, 'min_size': 2}
SEEDS, TABLE_SEEDS = 12, 3  # runs of an arm that a claim is about, and of the rest of the table
BLOCK = 24  # runs a call of the program
NUM_MALICIOUS = 2  # f of the rules that want one: 10 % of 25
M_MAX = 5  # the malicious clients that there are in all
FLOOR = 0.4  # of a group's deviation, in medians of the score: else a long honest tail is split off
LAST = 5  # rounds whose mean is a run's final accuracy

ATTACKS = {  # name -> config; the flip of labels is in the cohorts
    'none': {'name': 'honest'},
    'sign_std(3) + moments(3)': {'name': 'sign_std', 'scale': 3.0,
                                 'quantity': {'name': 'moments', 'scale': 3.0}},
    'STAT-OPT, honest sizes': {'name': 'stat_opt', 'target': 'generic'},
    'LIE(1.5) + moments(3)': {'name': 'lie', 'z': 1.5,
                              'quantity': {'name': 'moments', 'scale': 3.0}},
    'STAT-OPT x 10': {'name': 'stat_opt', 'target': 'generic',
                      'quantity': {'name': 'max', 'factor': 10.0}},
    'DYN-OPT, honest sizes': {'name': 'dyn_opt'},
    'DYN-OPT + moments(3)': {'name': 'dyn_opt', 'quantity': {'name': 'moments', 'scale': 3.0}},
    'DYN-OPT x 10': {'name': 'dyn_opt', 'quantity': {'name': 'max', 'factor': 10.0}},
    'label flip + moments(3)': {'name': 'label_flip', 'num_classes': 10,
                                'quantity': {'name': 'moments', 'scale': 3.0}},
}
HONEST_SIZES = [name for name in ATTACKS if name.endswith('honest sizes')]
FLIP = list(ATTACKS).index('label flip + moments(3)')
_KRUM = {'num_malicious': NUM_MALICIOUS}
RULES = {
    'FedRA': lambda: aggregators.fedra(m_max=M_MAX, floor=FLOOR),
    'FedAvg': aggregators.weighted_mean,
    'oracle': aggregators.weighted_mean,
    'median': aggregators.median,
    'trimmed mean': lambda: aggregators.trimmed_mean(beta=NUM_MALICIOUS),
    'truncation + trimmed mean': lambda: aggregators.truncated(
        aggregators.trimmed_mean(beta=NUM_MALICIOUS, weighted=True), alpha=0.1, alpha_star=0.5),
    'multi-Krum': lambda: aggregators.multi_krum(**_KRUM),
    'multi-Krum by size': lambda: aggregators.multi_krum(**_KRUM, weighted=True),
    'RFA': lambda: aggregators.rfa(weighted=False),
    'norm bound': lambda: aggregators.norm_bound(bound=1.0),
    'FedRA, as specified': lambda: aggregators.fedra(m_max=8),
    'FedRA, pairwise': lambda: aggregators.fedra(factor='pairwise', m_max=M_MAX, floor=FLOOR),
    'FedRA, no quantities': lambda: aggregators.fedra(factor='none', m_max=M_MAX, floor=FLOOR),
    'FedRA, m = 0': lambda: aggregators.fedra(m=0),
    'FedRA, m = 2': lambda: aggregators.fedra(m=2),
    'FedRA, m = 8': lambda: aggregators.fedra(m=8),
}
ORACLE = list(RULES).index('oracle')


def load():
  """The digits Task: 1297 training and 500 test rows, softmax regression."""
  spec, splits = classification.load_arrays(name='digits', train='train[:1297]',
                                            test='train[1297:]')
  return classification.from_model(
      models.MLP(spec.num_classes, ()), spec,
      {name: pipeline.from_arrays(columns) for name, columns in splits.items()})


def any_attack(which):
  """The Attack of number `which` (traced) of `ATTACKS`."""
  made = [attacks.make_attack(config) for config in ATTACKS.values()]

  def apply(state, payload, *inputs):
    branch = lambda attack: lambda args: attack.apply((), payload, *args)[:2]
    return *jax.lax.switch(which, [branch(attack) for attack in made], inputs), state
  return federated.Attack(lambda params: (), apply)


def any_rule(which, malicious):
  """The Aggregator of number `which` (traced) of `RULES`; the oracle is told who is malicious."""
  def begin(state, ids, root):
    del state, root
    return malicious[ids]

  def branch(rule):
    def run(args):
      messages, weights, key = args
      aggregate, _, info = rule.apply((), messages, weights, key)
      return aggregate, info.get('keep', weights > 0)
    return run

  rules = [branch(make()) for make in RULES.values()]

  def apply(state, messages, weights, key):
    told = jnp.where((which == ORACLE) & state, 0, weights)
    aggregate, keep = jax.lax.switch(which, rules, (messages, told, key))
    return aggregate, (), {'keep': keep}
  return federated.Aggregator(lambda params: (), apply, begin=begin)


@functools.lru_cache
def one_run(task):
  """The function of one run: (shared, attack, rule, which seed, key) -> {metric: [ROUNDS]}."""
  algorithm = federated.fedavg(task_gradient(task), optax.sgd(RATE))

  def run(shared, attack, rule, which, key):
    table, test, cohorts, malicious = shared
    cohorts, malicious = jax.tree.map(lambda x: x[which], (cohorts, malicious))
    # The second half of the table has flipped labels.
    flips = malicious[cohorts.ids] & (attack == FLIP)
    shift = jnp.where(flips[..., None, None] & (cohorts.index >= 0), len(table['label']) // 2, 0)
    cohorts = cohorts._replace(index=cohorts.index + shift)
    threat = federated.Threat(any_attack(attack), malicious)
    aggregator = any_rule(rule, malicious)
    init_key, round_key = jax.random.split(key)
    start = federated.RoundState.start(algorithm, aggregator, task.init(init_key)['params'])

    def one(state, inputs):
      number, cohort = inputs
      state, metrics = federated.federated_round(
          state, cohort, table, jax.random.fold_in(round_key, number), algorithm=algorithm,
          aggregator=aggregator, threat=threat)
      logits = task.predict({'params': state.server.params}, test, round_key)
      names = ('m_true', 'm_hat', 'recall', 'false_positive_rate', 'kept_weight_share')
      return state, {'accuracy': (logits.argmax(-1) == test['label']).mean(),
                     **{name: metrics[name] for name in names}}

    return jax.lax.scan(one, start, (jnp.arange(ROUNDS), cohorts))[1]

  return run


def make_shared(task, seeds):
  """(table and its flipped copy, test, cohorts [seeds, ROUNDS, ...], malicious [seeds, N + 1])."""
  table, test = (pipeline.columns(task.dataset(split)) for split in ('train', 'test'))
  cohorts = []
  for seed in seeds:
    clients = clients_lib.Clients.from_parts(
        partition.make_partition(SIZES, table['label'], CLIENTS, seed))
    made = [clients_lib.make_cohort(
        clients, sampling.sample_uniform(CLIENTS, COHORT, seed, r), WORK, seed, r,
        weighting='examples', steps=MAX_STEPS) for r in range(ROUNDS)]
    cohorts.append(federated.Cohort(*(np.concatenate(leaves) for leaves in zip(*made))))
  flipped = attacks.poisoned(table, attacks.label_flip(num_classes=10),
                             np.arange(len(table['label'])), 0)
  both = jax.tree.map(lambda *x: np.concatenate(x), table, flipped)
  malicious = [attacks.malicious_clients({'fraction': FRACTION}, CLIENTS, s) for s in seeds]
  return both, test, jax.tree.map(lambda *x: np.stack(x), *cohorts), np.stack(malicious)


def run_arms(task, arms, seeds):
  """{(attack, rule): {metric: [n, ROUNDS]}} of arms {(attack, rule): n}, on the first n seeds."""
  numbers = np.array([(list(ATTACKS).index(a), list(RULES).index(r), i)
                      for (a, r), n in arms.items() for i in range(n)], np.int32).T
  keys = jax.vmap(jax.random.key)(np.array(seeds)[numbers[-1]])
  results = parallel.map_runs(one_run(task), make_shared(task, seeds), *numbers, keys, block=BLOCK)
  ends = np.cumsum(list(arms.values()))
  return {arm: jax.tree.map(lambda x, i=slice(end - n, end): x[i], results)
          for (arm, n), end in zip(arms.items(), ends)}


def final(run):
  """Mean accuracy of the last rounds [n]."""
  return run['accuracy'][:, -LAST:].mean(-1)


def counts(run):
  """(mean error of m_hat, mean correlation with the true number over the rounds of a run)."""
  m_hat, m_true = run['m_hat'], run['m_true']
  correlations = [np.corrcoef(*pair)[0, 1] if min(map(np.std, pair)) > 0 else 0.0
                  for pair in zip(m_hat, m_true)]
  return float((m_hat - m_true).mean()), float(np.mean(correlations))


def main(seed, workdir, ablate):
  """Prints the table, writes results.json and figure.png; True unless a claim does not hold."""
  quantity, stat, dyn = 'sign_std(3) + moments(3)', 'STAT-OPT x 10', 'DYN-OPT x 10'
  # What takes the place of FedRA, or of the lie about quantities, in each claim when it is ablated.
  instead = lambda arm, other: other if ablate else arm
  clean = ('none', instead('FedRA', 'FedRA, m = 8'))
  under = [(attack, instead('FedRA', 'FedRA, m = 0')) for attack in (quantity, stat, dyn)]
  counted = (quantity, instead('FedRA', 'FedRA, m = 2'))
  scored = (stat, instead('FedRA', 'FedRA, no quantities'))
  sized = ('none', instead('FedRA', 'median'))
  lying = instead(dyn, 'DYN-OPT, honest sizes')
  rules = list(RULES)[:list(RULES).index('FedRA, m = 0')]
  attacked = [name for name in ATTACKS if name not in HONEST_SIZES]
  judged = [clean, *under, counted, scored, sized, (lying, 'FedAvg'), (lying, 'multi-Krum by size'),
            ('none', 'FedAvg'), ('none', 'FedRA'), ('none', 'median'),
            (stat, 'FedRA, no quantities'), (stat, 'multi-Krum by size'),
            (quantity, 'FedRA, as specified'), *((attack, 'oracle') for attack, _ in under)]
  arms = {(a, r): TABLE_SEEDS for a in attacked for r in rules} | dict.fromkeys(judged, SEEDS)
  seeds = [seed * 1000 + i for i in range(SEEDS)]
  runs = run_arms(load(), arms, seeds)
  accuracy = {arm: final(run) for arm, run in runs.items()}
  mean = lambda arm: f'{accuracy[arm].mean():.3f}'

  fedavg = ('none', 'FedAvg')
  drop = runs[clean]['false_positive_rate'].mean()
  error, correlation = counts(runs[counted])
  aware = claims.margin(accuracy[scored], accuracy[stat, 'FedRA, no quantities'])
  wins = claims.margin(accuracy[sized], accuracy['none', 'median'])
  collapse = [accuracy[lying, rule].mean() for rule in ('FedAvg', 'multi-Krum by size')]
  within = lambda arm, other: accuracy[arm].mean() >= accuracy[other].mean() - 0.02
  safe = all(within(arm, other) for arm in under for other in (
      ('none', 'FedRA'), (arm[0], 'oracle')))
  table = [
      claims.Claim('no attack: within 2 points of FedAvg, at most 20 % of the honest dropped',
                   'not available', f'{mean(clean)} v {mean(fedavg)}, {100 * drop:.1f} % dropped',
                   claims.verdict(within(clean, fedavg) and drop <= 0.2)),
      claims.Claim('quantity-enhanced: FedAvg and multi-Krum by size collapse to .5 or less',
                   'not available', f'{lying}: {collapse[0]:.3f}, {collapse[1]:.3f}',
                   claims.verdict(max(collapse) <= 0.5)),
      claims.Claim('multi-Krum by size under STAT-OPT x 10', 'not available',
                   mean((stat, 'multi-Krum by size')), claims.NOT_JUDGED),
      claims.Claim('quantity-enhanced: FedRA within 2 points of its clean run and of the oracle',
                   'not available', ', '.join(map(mean, under)) + ' v ' + ', '.join(map(mean, [
                       ('none', 'FedRA'), *((arm[0], 'oracle') for arm in under)])),
                   claims.verdict(safe)),
      claims.Claim('quantities in the score: 10 points ahead of none under STAT-OPT x 10',
                   'not available',
                   f'{mean(scored)} v {mean((stat, "FedRA, no quantities"))}, {aware}',
                   claims.verdict(aware.at_least(0.1))),
      claims.Claim('no attack: ahead of the quantity-blind median', 'not available',
                   f'{mean(sized)} v {mean(("none", "median"))}, {wins}',
                   claims.verdict(wins.at_least())),
      claims.Claim('number of attackers: mean error at most .5, correlation over .8',
                   'not available', f'{error:+.2f}, {correlation:.3f}',
                   claims.verdict(abs(error) <= 0.5 and correlation > 0.8)),
      claims.Claim('the same with a floor of .1 and at most 8', 'not available',
                   '{:+.2f}, {:.3f}'.format(*counts(runs[quantity, 'FedRA, as specified'])),
                   claims.NOT_JUDGED),
  ]
  grid = np.array([[accuracy[a, r][:TABLE_SEEDS].mean() for r in rules] for a in attacked])
  print(sweep.format_table(['attack', *rules], [[a, *(f'{x:.3f}' for x in row)]
                                                 for a, row in zip(attacked, grid)]))
  results = {'runs': [{'attack': a, 'rule': r, **jax.tree.map(lambda x: x.tolist(), run)}
                      for (a, r), run in runs.items()]}
  figures.heat_map(grid, attacked, rules, pathlib.Path(workdir) / 'figure.png',
                   title=f'digits, test accuracy, mean of {TABLE_SEEDS} seeds')
  return claims.report('fedra', table, results, workdir, seed=seed, ablate=ablate)
