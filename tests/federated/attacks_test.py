"""Attacks: what they send, what they may know, and a round and a run under them."""
import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel, train
from jaxlab.config import ConfigError
from jaxlab.federated import aggregators, attacks
from jaxlab.federated.attacks import crafted, labels, optimized
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
KEY = jax.random.key(0)
N = 9
MALICIOUS = np.isin(np.arange(N), (1, 4))
MADE = {
    'gaussian': attacks.gaussian, 'gaussian_moments': attacks.gaussian_moments,
    'sign_flip': attacks.sign_flip, 'same_value': attacks.same_value,
    'lie': lambda: attacks.lie(z=1.0), 'lie_formula': attacks.lie, 'sign_std': attacks.sign_std,
    'stat_opt': attacks.stat_opt, 'stat_opt_own': lambda: attacks.stat_opt(knowledge='own'),
    'stat_opt_krum': lambda: attacks.stat_opt(target='krum'), 'dyn_opt': attacks.dyn_opt,
    'dyn_opt_sum': lambda: attacks.dyn_opt(objective='min_sum', direction='std'),
    'dyn_opt_krum': lambda: attacks.dyn_opt(objective='multi_krum', direction='sign'),
    'replacement': lambda: attacks.replacement(lambda params: jax.tree.map(jnp.ones_like, params)),
    'honest': attacks.honest,
}


def draw(seed=0):
  """(messages, weights)."""
  rng = np.random.default_rng(seed)
  return ({'w': rng.normal(size=(N, 3, 2)).astype(np.float32) + 0.5,
           'b': rng.normal(size=(N, 4)).astype(np.float32) + 0.5},
          rng.integers(5, 40, N).astype(np.float32))


@functools.cache
def program(name):
  return jax.jit(MADE[name]().apply)


def apply(name, messages, weights, malicious=MALICIOUS):
  payload = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), messages)
  state = MADE[name]().init(payload)
  return program(name)(state, payload, messages, weights, malicious, KEY)


class AttackTest(parameterized.TestCase):

  @parameterized.parameters(*MADE)
  def test_honest_clients_are_left_alone_and_padding_changes_nothing(self, name):
    messages, weights = draw()
    sent, claimed, _ = apply(name, messages, weights)
    honest = jax.tree.map(lambda x: x[~MALICIOUS], (sent, claimed))
    toy.assert_trees_equal(honest, jax.tree.map(lambda x: x[~MALICIOUS], (messages, weights)))
    moved = any((x[MALICIOUS] != y[MALICIOUS]).any()
                for x, y in zip(jax.tree.leaves(sent), jax.tree.leaves(messages)))
    self.assertEqual(moved, name != 'honest')
    self.assertTrue(all(np.isfinite(x).all() for x in jax.tree.leaves(sent)))
    alone, same, _ = apply(name, messages, weights, np.zeros(N, bool))
    toy.assert_trees_equal((alone, same), (messages, weights))
    absent, _, _ = apply(name, messages, np.where(MALICIOUS, 0, weights).astype(np.float32))
    toy.assert_trees_equal(absent, messages)

  def test_knowledge(self):
    messages, weights = draw()
    mask = crafted.known(weights > 0, MALICIOUS, 'own')
    np.testing.assert_array_equal(mask, MALICIOUS)
    np.testing.assert_array_equal(crafted.known(weights > 0, MALICIOUS, 'all'), ~MALICIOUS)
    updates = messages['b']
    mean, deviation = crafted.moments(updates, MALICIOUS)
    np.testing.assert_allclose(mean, updates[MALICIOUS].mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, updates[MALICIOUS].std(0, ddof=1), rtol=1e-5)
    self.assertFalse(crafted.moments(updates, np.arange(N) == 3)[1].any())  # one has no deviation

  @parameterized.product(objective=['min_max', 'min_sum'], direction=['unit', 'sign', 'std'])
  def test_dyn_opt_goes_as_far_as_it_may(self, objective, direction):
    updates = draw()[0]['b']
    benign = updates[~MALICIOUS].astype(np.float64)
    mean = benign.mean(0)
    p = np.asarray(optimized.direction_of(mean, benign.std(0, ddof=1), direction))
    gamma = float(optimized.dyn_gamma(jnp.asarray(updates), ~MALICIOUS, MALICIOUS, jnp.asarray(
        p, jnp.float32), objective, 'max'))
    apart = np.square(benign[:, None] - benign[None]).sum(-1)

    def allowed(gamma):
      reach = np.square(mean + gamma * p - benign).sum(-1)
      if objective == 'min_max':
        return reach.max() <= apart.max() + 1e-4
      return reach.sum() <= apart.sum(1).max() + 1e-3
    self.assertTrue(allowed(gamma))
    self.assertFalse(allowed(gamma * 1.01 + 1e-3))

  def test_krum_picks_what_stat_opt_made_for_it(self):
    messages, weights = draw()
    around_zero = jax.tree.map(lambda x: x - 0.5, messages)
    sent, claimed, _ = apply('stat_opt_krum', around_zero, weights)
    keep = aggregators.krum(num_malicious=2).apply((), sent, claimed, KEY)[2]['keep']
    self.assertTrue(keep[MALICIOUS].any())
    sent, claimed, _ = apply('dyn_opt_krum', messages, weights)
    keep = aggregators.multi_krum(num_malicious=2).apply((), sent, claimed, KEY)[2]['keep']
    self.assertTrue(keep[MALICIOUS].all())

  def test_model_replacement_lands_on_its_target(self):
    messages, weights = draw()
    messages = jax.tree.map(lambda x: np.where(
        MALICIOUS.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0), messages)
    sent, claimed, _ = apply('replacement', messages, weights)
    landed = aggregators.weighted_mean().apply((), sent, claimed, KEY)[0]
    for leaf in jax.tree.leaves(landed):
      np.testing.assert_allclose(leaf, 1, rtol=1e-5)

  @parameterized.parameters('scale', 'moments', 'max')
  def test_quantities(self, name):
    messages, weights = draw()
    attack = attacks.enhanced(attacks.sign_flip(), attacks.QUANTITIES[name]())
    sent, claimed, _ = attack.apply((), None, messages, weights, MALICIOUS, KEY)
    benign = weights[~MALICIOUS]
    expected = {'scale': 10 * weights[MALICIOUS], 'max': benign.max(),
                'moments': np.floor(benign.mean() + 3 * benign.std(ddof=1))}[name]
    np.testing.assert_allclose(claimed[MALICIOUS], np.broadcast_to(expected, 2), rtol=1e-6)
    np.testing.assert_array_equal(claimed[~MALICIOUS], benign)
    np.testing.assert_array_equal(sent['b'][MALICIOUS], -messages['b'][MALICIOUS])

  @parameterized.parameters('reverse', 'next', 'random')
  def test_flipped_labels_are_wrong(self, kind):
    right = np.arange(8, dtype=np.int32) // 2
    wrong = labels.flip(right, np.random.default_rng(0), 4, kind)
    self.assertTrue(((wrong >= 0) & (wrong < 4) & (wrong != right)).all())
    if kind != 'random':
      expected = 3 - right if kind == 'reverse' else (right + 1) % 4
      np.testing.assert_array_equal(wrong, expected)

  def test_only_the_rows_of_the_malicious_are_poisoned(self):
    columns = toy.columns()
    rows = np.array([3, 5, 8])
    ours = attacks.poisoned(columns, attacks.label_flip(num_classes=3, kind='next'), rows, 0)
    changed = np.flatnonzero(ours['label'] != columns['label'])
    np.testing.assert_array_equal(changed, rows)

  def test_who_is_malicious_is_fixed_by_the_seed(self):
    who = lambda seed, **more: attacks.malicious_clients({'name': 'lie', **more}, 50, seed)
    np.testing.assert_array_equal(who(3), who(3))
    self.assertTrue((who(3) != who(4)).any())
    self.assertEqual((who(3).sum(), who(3, fraction=0.3).sum(), who(3)[-1]), (5, 15, False))
    self.assertFalse(attacks.malicious_clients({}, 50, 3).any())
    self.assertFalse(who(3, fraction=0.0).any())
    with self.assertRaisesRegex(ConfigError, '^federated.attack.fraction: expected so much that'):
      who(3, fraction=0.005)

  def test_a_label_flip_of_too_few_classes(self):
    with self.assertRaisesRegex(ConfigError, 'expected more than the largest label, 9, got 5'):
      attacks.poisoned({'label': np.arange(10)}, attacks.label_flip(num_classes=5), np.arange(10),
                       0)


FEDERATED = {
    'num_clients': 8, 'cohort_size': 8, 'rounds': 2, 'batch_size': 4, 'eval_every': 2,
    'partition': {'name': 'iid'}, 'algorithm': {'name': 'fedavg'},
    'client_optimizer': {'name': 'sgd', 'learning_rate': 0.1},
}


def config(**changes):
  return {'seed': 1, 'federated': {**FEDERATED, **changes}}


class RunTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 4)
  def test_a_round_finds_the_liars_on_any_devices(self, count):
    attack = {'name': 'sign_std', 'scale': 30.0, 'fraction': 0.25,
              'quantity': {'name': 'scale', 'factor': 3.0}}
    with tempfile.TemporaryDirectory() as folder:
      state = federated.simulate(
          toy.softmax_task(rows=64), config(aggregator={'name': 'fedra'}, attack=attack),
          workdir=folder, devices=jax.devices()[:count])
      lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
    parallel.assert_replicated(state)
    for row in map(json.loads, lines):
      self.assertEqual((row['m_true'], row['m_hat'], row['recall'], row['false_positive_rate']),
                       (2, 2, 1, 0))
      self.assertAlmostEqual(row['kept_weight_share'], 6 / 12)
      self.assertEqual((row['participants'], row['rejected']), (8, 0))

  def test_without_malicious_clients_nothing_changes(self):
    task = toy.softmax_task(rows=64)
    plain = federated.simulate(task, config(aggregator={'name': 'median'}))
    none = federated.simulate(task, config(aggregator={'name': 'median'},
                                           attack={'name': 'lie', 'z': 9.0, 'fraction': 0.0}))
    toy.assert_trees_equal(plain.server, none.server)

  def test_a_crafted_nan_is_dropped(self):
    nan = attacks.from_update(
        lambda updates, present, malicious, key: jnp.full(updates.shape[1:], jnp.nan))
    task = toy.softmax_task(rows=64)
    algorithm = federated.fedavg(train.task_gradient(task), optax.sgd(0.1))
    aggregator = aggregators.weighted_mean()
    params = task.init(KEY)['params']
    cohort = federated.Cohort(jnp.arange(4), jnp.arange(32).reshape(4, 2, 4), jnp.ones(4))
    threat = federated.Threat(nan, jnp.asarray([False, True, False, False, False]))
    start = federated.RoundState.start(algorithm, aggregator, params, 4, nan)
    table = jax.tree.map(jnp.asarray, toy.columns(64))
    run = lambda cohort, threat: federated.federated_round(
        start, cohort, table, KEY, algorithm=algorithm, aggregator=aggregator,
        threat=threat)
    attacked, metrics = run(cohort, threat)
    without, _ = run(cohort._replace(weights=jnp.asarray([1.0, 0.0, 1.0, 1.0])), None)
    self.assertFalse(metrics['refused'])
    toy.assert_trees_equal(attacked.server, without.server)

  def test_label_flip_changes_the_training_of_the_malicious_alone(self):
    task = toy.softmax_task(rows=64)
    flip = {'name': 'label_flip', 'num_classes': 3}
    plain, none, some = (federated.simulate(task, config(**more)).params for more in (
        {}, {'attack': {**flip, 'fraction': 0.0}}, {'attack': {**flip, 'fraction': 0.25}}))
    for a, b, c in zip(*map(jax.tree.leaves, (plain, none, some))):
      np.testing.assert_allclose(a, b, atol=1e-6)
      self.assertTrue((np.asarray(b) != np.asarray(c)).any())

  @parameterized.parameters({'name': 'fltrust', 'root_examples': 10}, {'name': 'foolsgold'},
                            {'name': 'centered_clip', 'tau': 0.5})
  def test_rules_with_a_state_run_and_their_state_moves(self, **aggregator):
    state = federated.simulate(toy.softmax_task(rows=64), config(aggregator=aggregator))
    self.assertTrue(any(np.asarray(x).any() for x in jax.tree.leaves(state.aggregator)))
    self.assertEqual(int(state.bad_rounds), 0)

  @parameterized.parameters(
      ({'attack': {'name': 'lei'}}, "^federated.attack.name: unknown name 'lei'; .*'lie'"),
      ({'attack': {'name': 'lie', 'zz': 1.0}}, "^federated.attack: unknown key 'zz'"),
      ({'attack': {'name': 'lie', 'fraction': 1.0}}, '^federated.attack.fraction: expected in'),
      ({'attack': {'name': 'lie', 'quantity': {'name': 'scal'}}},
       "^federated.attack.quantity.name: unknown name 'scal'; did you mean 'scale'"),
      ({'attack': {'name': 'stat_opt', 'target': 'krum', 'knowledge': 'own'}},
       "^knowledge: expected 'all' against krum"),
      ({'aggregator': {'name': 'bulyan', 'num_malicious': 2}},
       'federated.cohort_size: expected at least 11 under the aggregator bulyan, got 8'),
      ({'aggregator': {'name': 'fltrust'}, 'stage': True}, '^federated.stage: expected False'),
      ({'aggregator': {'name': 'fltrust', 'root_examples': 64}},
       '^federated.aggregator.root_examples: expected less than the 64'),
      ({'attack': {'name': 'model_replacement', 'workdir': 'x'}, 'client_optimizer': {},
        'algorithm': {'name': 'fedsgd', 'server_learning_rate': 0.1}},
       '^federated.algorithm.name: expected fedavg or fedprox'),
      ({'attack': {'name': 'lie'}, 'algorithm': {'name': 'scaffold', 'learning_rate': 0.1},
        'client_optimizer': {}}, '^federated.attack.name: expected one of honest, label_flip'),
      ({'aggregator': {'name': 'foolsgold'}, 'client_optimizer': {},
        'algorithm': {'name': 'scaffold', 'learning_rate': 0.1}},
       '^federated.aggregator.name: expected one without a state'))
  def test_what_cannot_combine_is_refused(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      federated.simulate(toy.softmax_task(rows=64), config(**change))


if __name__ == '__main__':
  absltest.main()
