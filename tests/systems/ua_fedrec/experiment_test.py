"""The pooled round of the experiment is the round of all clients."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated
from jaxlab.federated import aggregators, attacks
from jaxlab.federated.algorithms import server_descent
from jaxlab.models import news as models
from jaxlab.systems.ua_fedrec import experiment
from jaxlab.tasks import news as news_task
from jaxlab.train import task_gradient

SEEDS = (1, 2)
SHARE = experiment.SHARES.index(0.1)


@functools.cache
def planted():
  """(World of two seeds and three rounds, their Data, a NewsTask)."""
  datas = [experiment.make_data(seed, users=80, news=30, tests=20) for seed in SEEDS]
  task = news_task.from_models(
      models.NRMSNews(experiment.VOCABULARY, embed=4, heads=2, head_dim=2, queries=3, dropout=0.0),
      models.NRMSUser(heads=2, head_dim=2, queries=3), datas[0])
  return experiment.make_world(datas, SEEDS, 3), datas, task


class PooledTest(parameterized.TestCase):

  def test_who_is_in_a_round(self):
    stacked, datas, _ = planted()
    for which in range(len(SEEDS)):
      world = experiment.of_seed(stacked, which)
      for number in range(3):
        ids = world.cohorts.ids[number]
        self.assertEqual((ids >= 0).sum(), experiment.COHORT)
        liars = world.liars[SHARE, number]
        self.assertCountEqual(liars[liars >= 0], ids[world.malicious[SHARE][ids]])
        for share in (0, SHARE):
          rows = world.pooled[share, number]
          honest = ids[(ids >= 0) & ~world.malicious[share][ids]]
          real = np.arange(len(datas[which].splits['train']['row']))
          self.assertCountEqual(rows[rows >= 0],
                                real[np.isin(world.owner[:len(real)], honest)])

  def test_one_round(self):
    """All clients in their own slots, and pooled, give the same model, attacked or not."""
    stacked, _, task = planted()
    world = jax.tree.map(jnp.asarray, experiment.of_seed(stacked, 0))
    constants = {'news': world.features}
    # Where there are just as many negatives as are drawn, the draw does not matter.
    table = {**world.table, 'pool_size': jnp.minimum(world.table['pool_size'], 4)}
    algorithm = server_descent(task_gradient(task, constants), optax.adam(0.1))
    mean = aggregators.weighted_mean()

    attack = attacks.same_value(value=0.1)

    def after(attacked, pooled):
      share = jnp.where(attacked, SHARE, 0)
      state = federated.RoundState.start(algorithm, mean, task.init(jax.random.key(0))['params'])
      cohort = (experiment.pooled_cohort(world, share, ~attacked, False, 1) if pooled else
                jax.tree.map(lambda x: x[1], world.cohorts))
      state, metrics = federated.federated_round(
          state, cohort, table, jax.random.key(1), algorithm=algorithm, aggregator=mean,
          threat=federated.Threat(attack, world.malicious[share]))
      return state.server.opt_state[0].mu, metrics['m_true']  # a tenth of the aggregate

    ours, theirs = (jax.jit(functools.partial(after, pooled=pooled)) for pooled in (True, False))
    for attacked in (False, True):
      (pooled, count), (separate, expected) = ours(attacked), theirs(attacked)
      self.assertEqual(count, expected)
      self.assertEqual(count > 0, attacked)
      for a, b in zip(jax.tree.leaves(pooled), jax.tree.leaves(separate)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)

  def test_flipped_clicks_are_those_of_the_malicious(self):
    world = jax.tree.map(jnp.asarray, experiment.of_seed(planted()[0], 0))
    plain, flipped = (np.asarray(experiment.pooled_cohort(world, SHARE, True, flip, 0).index[0, 0])
                      for flip in (False, True))
    half = len(world.owner)
    real = plain >= 0
    dishonest = np.asarray(world.malicious[SHARE][world.owner[plain]]) & real
    np.testing.assert_array_equal(flipped[real], (plain + half * dishonest)[real])
    self.assertGreater(dishonest.sum(), 0)
    self.assertLess(dishonest.sum(), real.sum())
    click = np.asarray(world.table['click'])
    self.assertTrue((click[plain[dishonest]] != click[flipped[dishonest]]).all())


class RunInputsTest(absltest.TestCase):

  def test_arms_by_seeds(self):
    arms = [(experiment.Arm(0.03, 'LIE'), 1), (experiment.Arm(0.1, 'flip'), 0)]
    which, keys, share, forge, flip, strength, rule = experiment.run_inputs(arms, SEEDS)
    self.assertLen(keys, 4)
    np.testing.assert_array_equal(which, [0, 1, 0, 1])
    np.testing.assert_array_equal(share, [2, 2, 3, 3])
    np.testing.assert_array_equal(forge, [1, 1, 0, 0])
    np.testing.assert_array_equal(flip, [False, False, True, True])
    np.testing.assert_array_equal(strength.user, [3, 3, 3, 3])
    np.testing.assert_array_equal(rule, [1, 1, 0, 0])


if __name__ == '__main__':
  absltest.main()
