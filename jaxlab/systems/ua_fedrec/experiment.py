"""The small-scale experiment: planted worlds of news, and one program for attacks or for defences.

Without a defence the honest clients of a round are one client that holds all their samples: with
FedSGD and the mean by size that is the same round, at a fraction of the cost. Behind it stand the
malicious clients, who need not train. A defence has to see each client's message.
"""
import functools
import pathlib
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import federated
from jaxlab.data import mind_demo
from jaxlab.data import news as news_data
from jaxlab.federated import aggregators, attacks, sampling
from jaxlab.federated import clients as clients_lib
from jaxlab.federated.algorithms import server_descent
from jaxlab.metrics import ranking
from jaxlab.models import news as models
from jaxlab.systems.ua_fedrec import attack as attack_lib
from jaxlab.systems.ua_fedrec import comparison
from jaxlab.tasks import news as news_task
from jaxlab.train import task_gradient

COHORT, RATE, BLOCK = 50, 3e-3, 25
OWN_CLIENTS, REFRESH_EVERY = 8, 25
WORK = clients_lib.LocalWork(batch_size=4)  # a client has 8 samples at the most
CLIENTS_PER_VMAP = 10
SHARES = (0.0, 0.01, 0.03, 0.1)
VOCABULARY = 8 * mind_demo.TOPIC_WORDS + mind_demo.COMMON_WORDS + 1
DATA = {'history_length': 10, 'pad_side': 'front', 'negatives': 4, 'title_length': 8,
        'min_count': 1}
WIDTH, HEADS, QUERIES = 32, 4, 16
# CHOICE: at .1 learning is late, at 1 it ends lower. Taken on worlds 1001000 to 1001002.
WORD_DEVIATION = 0.25
MODELS = {
    'NRMS': lambda: (
        models.NRMSNews(VOCABULARY, embed=WIDTH, heads=HEADS, head_dim=WIDTH // HEADS,
                        queries=QUERIES, dropout=0.0, word_deviation=WORD_DEVIATION),
        models.NRMSUser(heads=HEADS, head_dim=WIDTH // HEADS, queries=QUERIES)),
    'LSTUR': lambda: (
        models.LSTURNews(VOCABULARY, embed=WIDTH, features=WIDTH, queries=QUERIES, dropout=0.0,
                         word_deviation=WORD_DEVIATION),
        models.LSTURUser(features=WIDTH)),
}
FORGES = ('UA-FedRec', 'LIE', 'Gaussian', 'sign_std')
RULES = {'norm bound': lambda: aggregators.norm_bound(bound=0.5),
         'multi-Krum': lambda: aggregators.multi_krum(num_malicious=1, keep=COHORT - 1)}
BY_SHARE = ('pooled', 'liars', 'liar_sizes', 'malicious', 'own_index', 'own_sizes')
OFF = attack_lib.Strength(0.0, 0.0, 0.0, 0.0)  # own clients' mean gradient and size, as they are


class Arm(NamedTuple):
  """What the malicious clients do.

  Attributes:
    share: of the clients that are malicious, one of `SHARES`.
    forge: one of `FORGES`, or 'flip' for honest training on flipped clicks.
    strength: of UA-FedRec.
  """
  share: float = 0.0
  forge: str = 'UA-FedRec'
  strength: attack_lib.Strength = attack_lib.Strength()


class World(NamedTuple):
  """Data and draws of some seeds, stacked [W, ...]; S is the index of a share in `SHARES`.

  Attributes:
    features: of all news.
    table: columns of the samples, then those with flipped clicks.
    owner: int32 [W, N], the client of each sample.
    test: columns of the impressions to judge by.
    cohorts: Cohort [W, R, M, ...], each client by itself.
    pooled: int32 [S, W, R, B], the samples of a round's honest clients, -1 for padding.
    liars: int32 [S, W, R, L], ids of a round's malicious clients, -1 for padding.
    liar_sizes: float32 [S, W, R, L].
    malicious: bool [S, W, clients + 1].
    own_index: int32 [S, W, A, steps, batch], the samples of all malicious clients.
    own_sizes: float32 [S, W, A].
  """
  features: dict
  table: dict
  owner: np.ndarray
  test: dict
  cohorts: federated.Cohort
  pooled: np.ndarray
  liars: np.ndarray
  liar_sizes: np.ndarray
  malicious: np.ndarray
  own_index: np.ndarray
  own_sizes: np.ndarray


def make_data(seed, **sizes):
  """The Data of one planted world, by way of MIND's files; splits 'train' and 'test'."""
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder, 'mind')
    mind_demo.write_mind(folder, seed, **sizes)
    parts = news_data.read_folder(folder, {'train': 'train', 'test': 'dev'})
  return news_task.prepare(*parts, **DATA)


def pad_to(arrays, value):
  """Stacks arrays whose lengths differ, filled up at the ends."""
  shape = np.max([x.shape for x in arrays], axis=0)
  return np.stack([np.pad(x, [(0, n - m) for n, m in zip(shape, x.shape)], constant_values=value)
                   for x in arrays])


def make_world(datas, seeds, rounds):
  """The World of some Data, one a seed."""
  tables = [data.splits['train'] for data in datas]
  flipped = [comparison.flip_clicks(table, np.arange(len(table['row'])),
                                    np.random.default_rng([seed, 4]))
             for table, seed in zip(tables, seeds)]
  stack = lambda trees, value=0: jax.tree.map(lambda *x: pad_to(x, value), *trees)
  both = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), stack(tables), stack(flipped))
  owners = [np.unique(table['user'], return_inverse=True)[1].astype(np.int32) for table in tables]
  parts = [_draws(owner, seed, rounds) for owner, seed in zip(owners, seeds)]
  per_share = lambda name, value: pad_to([
      pad_to([part[name][s] for part in parts], value) for s in range(len(SHARES))], value)
  return World(
      stack([data.table.features for data in datas]), both, pad_to(owners, 0),
      stack([data.splits['test'] for data in datas]),
      jax.tree.map(lambda *x: np.stack(x), *[part['cohorts'] for part in parts]),
      per_share('pooled', -1), per_share('liars', -1), per_share('liar_sizes', 0),
      per_share('malicious', False), per_share('own_index', -1), per_share('own_sizes', 0))


def _draws(owner, seed, rounds):
  """The parts of a World that depend on who takes part and who is malicious, of one seed."""
  count = owner.max() + 1
  clients = clients_lib.Clients.from_parts([np.flatnonzero(owner == c) for c in range(count)])
  chosen = [sampling.sample_uniform(count, COHORT, seed, r) for r in range(rounds)]
  steps = int(clients_lib.num_steps(clients.sizes, WORK).max())
  made = [clients_lib.make_cohort(clients, ids, WORK, seed, r, weighting='examples', steps=steps,
                                  chunk=CLIENTS_PER_VMAP) for r, ids in enumerate(chosen)]
  draws = {'cohorts': federated.Cohort(*(np.concatenate(x) for x in zip(*made)))}
  for share in SHARES:
    malicious = attacks.malicious_clients({'fraction': share}, count, seed)
    liars = [ids[malicious[ids]].astype(np.int32) for ids in chosen]
    honest = [np.concatenate([clients.of(c) for c in ids[~malicious[ids]]]) for ids in chosen]
    own = np.flatnonzero(malicious[:-1])
    index = [clients_lib.local_batches(clients.of(c), WORK, seed, 0, c) for c in own]
    for name, value in (
        ('malicious', malicious), ('pooled', pad_to(honest, -1)), ('liars', pad_to(liars, -1)),
        ('liar_sizes', pad_to([clients.sizes[ids].astype(np.float32) for ids in liars], 0)),
        ('own_index', pad_to([*index, np.full((steps, WORK.batch_size), -1, np.int32)], -1)),
        ('own_sizes', np.append(clients.sizes[own], 0).astype(np.float32))):
      draws.setdefault(name, []).append(value)
  return draws


def any_forge(which, ua):
  """The Forge of number `which` (traced) of `FORGES`, all with the state of `ua`."""
  others = [attacks.lie(z=1.5, knowledge='own'), attacks.gaussian_moments(scale=3.0),
            attacks.sign_std(scale=3.0, knowledge='own')]
  forges = [ua, *map(comparison.uninformed, others)]
  return ua._replace(make=lambda *inputs: jax.lax.switch(
      which, [forge.make for forge in forges], *inputs))


def pooled_cohort(world, share, trained, flip, number):
  """Round `number` as one client with all honest samples, and the liars, who have none.

  Args:
    world: World of one seed.
    share: index in `SHARES` of the malicious clients.
    trained: True where they train with the others.
    flip: True where their clicks are flipped.
    number: the round.
  """
  rows = world.pooled[jnp.where(trained, 0, share), number]
  dishonest = flip & world.malicious[share][world.owner[jnp.maximum(rows, 0)]]
  rows = jnp.where((rows >= 0) & dishonest, rows + len(world.owner), rows)
  ids = jnp.concatenate([jnp.full(1, world.malicious.shape[1] - 1), world.liars[share, number]])
  sizes = jnp.where(trained, 0, world.liar_sizes[share, number])
  sizes = jnp.concatenate([(rows >= 0).sum(dtype=jnp.float32)[None], sizes])
  none = jnp.full((len(ids) - 1, 1, len(rows)), -1, rows.dtype)
  return federated.Cohort(ids, jnp.concatenate([rows[None, None], none]), sizes)


def of_seed(shared, which):
  """The World of seed number `which` (traced)."""
  cut = lambda name, value: (value[:, which] if name in BY_SHARE else
                             jax.tree.map(lambda x: x[which], value))
  return World(**{name: cut(name, value) for name, value in shared._asdict().items()})


@functools.lru_cache
def one_run(task, defended, rounds):
  """The function of one run: (World, inputs of `run_inputs`) -> AUC [rounds / 25].

  Compiled once for attacks, and once for defences, which are inputs.
  """
  def run(shared, seed, key, share, forge, flip, strength, rule):
    world = of_seed(shared, seed)
    constants = {'news': world.features}
    algorithm = server_descent(task_gradient(task, constants), optax.adam(RATE))
    learn = attack_lib.own_clients(algorithm, world.table, world.own_index[share],
                                   world.own_sizes[share], count=OWN_CLIENTS)
    ua = attack_lib.ua_forge(task.encode, world.features, strength, refresh_every=REFRESH_EVERY,
                             batch_size=len(world.features['title']))
    attack = attack_lib.from_own(any_forge(forge, ua), learn)
    threat = federated.Threat(attack, world.malicious[share])
    trained = flip | (share == 0)
    aggregator = any_rule(rule) if defended else aggregators.weighted_mean()
    init_key, round_key = jax.random.split(key)
    start = federated.RoundState.start(algorithm, aggregator, task.init(init_key)['params'],
                                       attack=attack)

    def one(state, number):
      if defended:
        cohort = jax.tree.map(lambda x: x[number], world.cohorts)
      else:
        cohort = pooled_cohort(world, share, trained, flip, number)
      return federated.federated_round(
          state, cohort, world.table, jax.random.fold_in(round_key, number), algorithm=algorithm,
          aggregator=aggregator, threat=threat,
          clients_per_vmap=CLIENTS_PER_VMAP if defended else 1)[0], None

    def block(state, numbers):
      state, _ = jax.lax.scan(one, state, numbers)
      variables = {'params': state.server.params, 'constants': constants}
      scores = task.predict(variables, world.test, round_key)['score']
      real = world.test['labels'] >= 0
      values = ranking.auc(world.test['labels'], scores, real)
      both = ranking.two_class(world.test['labels'], real)
      return state, jnp.where(both, values, 0).sum() / both.sum()

    return jax.lax.scan(block, start, jnp.arange(rounds).reshape(-1, BLOCK))[1]

  return run


def any_rule(which):
  """The Aggregator of number `which` (traced) of `RULES`."""
  rules = [make() for make in RULES.values()]

  def apply(state, *inputs):
    branch = lambda rule: lambda args: rule.apply((), *args)[0]
    return jax.lax.switch(which, [branch(rule) for rule in rules], inputs), state, {}
  return federated.Aggregator(lambda params: (), apply)


def run_inputs(arms, seeds):
  """The arguments of `one_run`'s function but the World, stacked over arms x seeds.

  Args:
    arms: list of (Arm, number of the rule in `RULES`).
    seeds: one a world.
  """
  rows = [(i, seed, arm, rule) for arm, rule in arms for i, seed in enumerate(seeds)]
  column = lambda values, dtype=np.int32: np.array(list(values), dtype)
  forge = lambda arm: FORGES.index(arm.forge) if arm.forge in FORGES else 0
  return (column(i for i, *_ in rows),
          jax.vmap(jax.random.key)(column((seed for _, seed, *_ in rows), np.uint32)),
          column(SHARES.index(arm.share) for _, _, arm, _ in rows),
          column(forge(arm) for _, _, arm, _ in rows),
          column((arm.forge == 'flip' for _, _, arm, _ in rows), bool),
          attack_lib.Strength(*column((arm.strength for _, _, arm, _ in rows), np.float32).T),
          column(rule for *_, rule in rows))
