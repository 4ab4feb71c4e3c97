"""The federation of a config: who attacks, with which data, and what is refused."""
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel, systems, train
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.federated import aggregators, sampling, simulation
from jaxlab.federated import clients as clients_lib
from jaxlab.models import news as models
from jaxlab.systems.ua_fedrec import experiment
from jaxlab.systems.ua_fedrec import task as task_lib
from jaxlab.tasks import news as news_task
from jaxlab.train import task_gradient

USERS = 12
SETTINGS = {
    'num_clients': USERS, 'cohort_size': 6, 'rounds': 1, 'partition': {'name': 'by_user'},
    'partition_by': 'user', 'algorithm': {'name': 'fedsgd', 'server_learning_rate': 0.01},
    'batch_size': 4, 'eval_splits': ('test',)}
CONFIG = {
    'task': 'ua_fedrec', 'seed': 0,
    'data': {'name': 'mind_demo', 'history_length': 10, 'pad_side': 'front', 'negatives': 4},
    'model': {'news': {'name': 'nrms'}, 'user': {'name': 'nrms'}},
    'attack': {'fraction': 0.25}, 'federated': SETTINGS}


@functools.cache
def make_news_task(rows=False):
  """A task of LSTUR on a small planted world."""
  data = experiment.make_data(0, users=USERS, news=30, tests=20)
  return news_task.from_models(
      models.LSTURNews(experiment.VOCABULARY, embed=4, features=4, queries=3, dropout=0.0),
      models.LSTURUser(features=4), data, rows=rows)


@functools.cache
def make_task(rows=False):
  """The same with three attackers."""
  liars = task_lib.AttackConfig(fraction=0.25, own_clients=2)
  return task_lib.attacked(make_news_task(rows), liars)


def make_federation():
  return make_task().federation({'federated': SETTINGS})


class FederationTest(parameterized.TestCase):

  def test_a_round_with_the_attack(self):
    task, settings = make_task(), make_federation()
    threat, clients = settings.make_threat(3), simulation.make_clients(task, settings, 3)
    self.assertEqual(threat.malicious.sum(), 3)
    variables = task.init(jax.random.key(0))
    algorithm = settings.make_algorithm(task_gradient(task, variables['constants']))
    cohort = clients_lib.make_cohort(clients, np.arange(USERS), settings.work, 3, 0,
                                     weighting='examples')
    cohort = federated.Cohort(*(jnp.asarray(x[0]) for x in cohort))
    table = jax.tree.map(jnp.asarray, pipeline.columns(task.dataset('train')))
    mean = aggregators.weighted_mean()

    @jax.jit
    def run(malicious):
      attack = threat.attack
      state = federated.RoundState.start(algorithm, mean, variables['params'], attack=attack)
      return federated.federated_round(state, cohort, table, jax.random.key(0),
                                       algorithm=algorithm, aggregator=mean,
                                       threat=federated.Threat(attack, malicious))

    attacked, metrics = run(threat.malicious)
    honest, _ = run(np.zeros_like(threat.malicious))
    self.assertEqual(metrics['m_true'], 3)
    self.assertFalse(metrics['refused'])
    for side in ('news', 'user'):
      pairs = zip(*(jax.tree.leaves(state.server.params[side]) for state in (attacked, honest)))
      self.assertTrue(any(np.abs(a - b).max() > 1e-4 for a, b in pairs), side)
    steps = np.abs(jax.tree.leaves(jax.tree.map(  # Adam's first step is the rate
        np.subtract, honest.server.params, variables['params']))[0])
    self.assertAlmostEqual(steps.max(), 0.01, places=4)

  def test_row_wise_but_for_the_rounds_with_the_attack(self):
    task, seed = make_task(), 7  # with which the attack acts in the third of three rounds
    malicious = make_federation().make_threat(seed).malicious
    present = [malicious[sampling.sample_uniform(USERS, 2, seed, r)].any() for r in range(3)]
    self.assertEqual(present, [False, False, True])
    # One client at a time, so that both round alike: the scores' bias has no gradient but rounding,
    # of which Adam makes whole steps.
    config = {'seed': seed, 'federated': {
        **SETTINGS, 'cohort_size': 2, 'rounds': 3, 'eval_splits': (), 'clients_per_vmap': 1}}
    runs = []
    for made in (make_task(rows=True), task):
      states = []
      see = train.Hook('see', lambda params: (), lambda state, _, states=states: (
          states.append(parallel.to_host(state)), state)[1])
      federated.simulate(made, config, hooks=[see], devices=jax.devices()[:1])
      runs.append(states)
    for one, whole, age in zip(*runs, (101, 102, 1)):  # found anew at 100 and more
      chex.assert_trees_all_equal(one.attack, whole.attack)
      self.assertEqual(one.attack.age, age)
    # Later Adam's momentum moves words that nobody reads, if they are not left out.
    chex.assert_trees_all_close(*(states[0].params for states in runs), atol=1e-5)
    words = [np.asarray(states[-1].params['news']['words']['embedding']) for states in runs]
    self.assertGreater(np.abs(words[0] - words[1]).max(), 1e-4)

  def test_own_data_are_those_of_the_malicious(self):
    clients = clients_lib.Clients.from_parts([np.array(x) for x in ([4], [0, 3], [], [1, 2, 5])])
    table = {'click': np.arange(6) * 10}
    malicious = np.array([False, True, True, True, False])
    own, index, sizes = task_lib.own_data(table, clients, malicious, clients_lib.LocalWork(2))
    np.testing.assert_array_equal(sizes, [2, 3])
    self.assertEqual([sorted(own['click'][rows[rows >= 0]]) for rows in index],
                     [[0, 30], [10, 20, 50]])
    self.assertEqual(index.shape, (2, 2, 2))

  @parameterized.parameters('lie', 'gaussian', 'sign_std')
  def test_a_compared_attack_knows_its_own_clients_alone(self, name):
    liars = task_lib.AttackConfig(fraction=0.25, name=name, own_clients=2)
    task = task_lib.attacked(make_news_task(), liars)
    threat = task.federation({'federated': SETTINGS}).make_threat(3)
    self.assertIsNone(threat.attack.poison)
    params = jax.jit(task.init)(jax.random.key(0))['params']
    rng = np.random.default_rng(0)
    messages = jax.tree.map(lambda x: rng.normal(size=(4, *x.shape)).astype(np.float32), params)
    malicious = np.array([False, True, False, True])

    @jax.jit
    def forged(messages):
      return threat.attack.apply(threat.attack.init(params), params, messages, jnp.ones(4),
                                 malicious, jax.random.key(1))

    sent, weights, _ = forged(messages)
    np.testing.assert_array_equal(weights, 1)  # sizes stay true
    others = jax.tree.map(lambda x: x + np.float32([2, 3, 4, 5]).reshape(-1, *(1,) * (x.ndim - 1)),
                          messages)
    again, _, _ = forged(others)
    for one, two, was in zip(*map(jax.tree.leaves, (sent, again, messages))):
      np.testing.assert_array_equal(one[malicious], two[malicious])  # whatever the honest ones send
      np.testing.assert_array_equal(one[1], one[3])
      np.testing.assert_array_equal(one[~malicious], was[~malicious])

  @parameterized.parameters('label_flip', 'popularity')
  def test_samples_that_lie(self, name):
    liars = task_lib.AttackConfig(fraction=0.25, name=name)
    task = task_lib.attacked(make_news_task(), liars)
    settings = task.federation({'federated': SETTINGS})
    threat, clients = settings.make_threat(3), simulation.make_clients(task, settings, 3)
    columns = pipeline.columns(task.dataset('train'))
    rows = np.concatenate([clients.of(c) for c in np.flatnonzero(threat.malicious)])
    changed = np.flatnonzero(
        federated.attacks.poisoned(columns, threat.attack, rows, 3)['click'] != columns['click'])
    self.assertNotEmpty(changed)
    self.assertContainsSubset(changed.tolist(), rows.tolist())
    state = federated.simulate(task, {'seed': 3, 'federated': SETTINGS})
    clean = federated.simulate(task_lib.attacked(make_news_task(), dataclasses.replace(
        liars, fraction=0.0)), {'seed': 3, 'federated': SETTINGS})
    self.assertTrue(any(np.abs(a - b).max() > 1e-4 for a, b in zip(
        *(jax.tree.leaves(parallel.to_host(x.params)) for x in (state, clean)))))

  def test_nobody_malicious_is_no_threat(self):
    settings = dataclasses.replace(make_federation(), liars=task_lib.AttackConfig(fraction=0.0))
    self.assertIsNone(settings.make_threat(0))

  def test_too_few_are_malicious(self):
    settings = dataclasses.replace(make_federation(), liars=task_lib.AttackConfig(fraction=0.01))
    with self.assertRaisesRegex(ConfigError, '^attack.fraction: expected so much that'):
      settings.make_threat(0)


class ConfigTest(parameterized.TestCase):

  def test_good(self):
    systems.check(CONFIG)

  @parameterized.parameters(
      ({'attack': {}}, '^attack.fraction: missing$'),
      ({'attack': {'fraction': 1.5}}, r'^attack.fraction: expected in \[0, 1\), got 1.5$'),
      ({'attack': {'fraction': 0.1, 'usr': 3.0}}, "^attack: unknown key 'usr'; .* 'user'"),
      ({'attack': {'fraction': 0.1, 'news_sign': 'both'}}, '^attack.news_sign: expected'),
      ({'attack': {'fraction': 0.1, 'name': 'lies'}}, '^attack.name: expected'),
      ({'attack': {'fraction': 0.1, 'deviations': -1.0}}, '^attack.deviations: expected at least'),
      ({'attack': {'fraction': 0.1, 'user': -1.0}}, '^attack.user: expected at least 0'),
      ({'attack': {'fraction': 0.1, 'own_clients': 0}}, '^attack.own_clients: expected at least 1'),
      ({'federated': {**SETTINGS, 'algorithm': {'name': 'scaffold', 'learning_rate': 0.1}}},
       "^federated.algorithm.name: expected 'fedsgd'"),
      ({'federated': {**SETTINGS, 'algorithm': {'name': 'fedsgd', 'server_learning_rate': -1.0}}},
       '^federated.algorithm.server_learning_rate: expected a finite number >= 0, got -1.0$'),
      ({'federated': {**SETTINGS, 'attack': {'name': 'lie'}}},
       '^federated.attack: expected nothing'),
  )
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      systems.check({**CONFIG, **change})


if __name__ == '__main__':
  absltest.main()
