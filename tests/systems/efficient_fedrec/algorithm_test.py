"""Efficient-FedRec: two stages are the end-to-end gradient; union, drop-outs, bytes, devices."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel
from jaxlab.data import pipeline
from jaxlab.federated import aggregators, secure_aggregation
from jaxlab.federated import clients as clients_lib
from jaxlab.federated.algorithms import server_descent
from jaxlab.models import news as models
from jaxlab.systems.efficient_fedrec import costs, efficient_fedrec
from jaxlab.systems.efficient_fedrec.algorithm import union_of
from jaxlab.tasks import news as news_task
from jaxlab.train import task_gradient
from tests import conftest, toy_news

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
MEAN = aggregators.weighted_mean()
SGD = optax.sgd(1.0)
WORK = clients_lib.LocalWork(batch_size=4)


@functools.cache
def setup(name='nrms', dropout=0.0, negatives=toy_news.NEGATIVES):
  """(task, constants, params, table) of a toy model."""
  data = toy_news.make_data(negatives=negatives)
  news, user = toy_news.make_models(data.table, dropout)
  if name == 'naml':
    sizes = data.table.num_categories, data.table.num_subcategories
    news = models.NAMLNews(data.table.vocab_size, *sizes, embed=4, features=4, queries=3,
                           category_embed=2, dropout=dropout)
    user = models.NAMLUser(queries=3)
  task = news_task.from_models(news, user, data)
  variables = jax.jit(task.init)(jax.random.key(0))
  table = jax.tree.map(jnp.asarray, pipeline.columns(task.dataset('train')))
  return task, variables['constants'], variables['params'], table


@functools.cache
def clients():
  users = np.asarray(setup()[3]['user'])
  return clients_lib.Clients.from_parts([np.flatnonzero(users == u) for u in np.unique(users)])


def cohort(ids=None, devices=1):
  """The Cohort [D, M, ...] of some clients, all by default."""
  ids = np.arange(clients().num_clients) if ids is None else np.array(ids)
  made = clients_lib.make_cohort(clients(), ids, WORK, 0, 0, weighting='examples',
                                 num_devices=devices, steps=2)
  return federated.Cohort(*map(jnp.asarray, made))


def first(tree):
  return jax.tree.map(lambda x: x[0], tree)


def one_round(algorithm, params, table, who, key=0, codec=None):
  """The server's parameters after a round, and the round's metrics."""
  aggregator = MEAN if codec is None else codec.aggregator
  run = jax.jit(functools.partial(federated.federated_round, algorithm=algorithm,
                                  aggregator=aggregator, codec=codec))
  state = federated.RoundState.start(algorithm, aggregator, params)
  state, metrics = run(state, who, table, jax.random.key(key))
  return state.server.params, metrics


class IdentityTest(parameterized.TestCase):

  @parameterized.parameters('nrms', 'naml')  # the pretrained encoder is the golden test's
  def test_two_stages_are_the_end_to_end_gradient(self, name):
    task, constants, params, table = setup(name)
    two = efficient_fedrec(task, constants, SGD, union_size=25, chunk=7)
    whole = server_descent(task_gradient(task, constants), SGD)
    ours, theirs = (one_round(a, params, table, first(cohort()))[0] for a in (two, whole))
    # And both are a centralised step on the pooled rows: no pool of the toy leaves a choice.
    batch = {**table, 'candidates': jnp.concatenate([table['click'][:, None], table['pool']], 1),
             'weight': jnp.ones(len(table['row']))}

    def pooled(params):
      loss = task.loss({'params': params, 'constants': constants}, batch, jax.random.key(0))
      return (loss.values * loss.weights).sum() / loss.weights.sum()

    central = jax.tree.map(jnp.subtract, params, jax.jit(jax.grad(pooled))(params))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(ours, central, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ours, params)
    self.assertGreater(moved['news']['words']['embedding'], 1e-3)

  def test_both_draw_the_same_negatives(self):
    task, constants, params, table = setup(negatives=1)  # of three
    two = efficient_fedrec(task, constants, SGD, union_size=25)
    whole = server_descent(task_gradient(task, constants), SGD)
    news = [[one_round(a, params, table, first(cohort()), key)[0]['news'] for key in (0, 1)]
            for a in (two, whole)]
    chex.assert_trees_all_close(*news, rtol=1e-4, atol=1e-6)
    words = [x['words']['embedding'] for x in news[0]]
    self.assertGreater(float(jnp.abs(words[0] - words[1]).max()), 1e-3)  # keys draw others

  def test_shared_dropout_is_the_gradient_of_one_function_and_fresh_dropout_is_not(self):
    task, constants, params, table = setup(dropout=0.5)
    who, key = first(cohort()), jax.random.key(2)
    news_gradient = {}
    for share in (True, False):
      algorithm = efficient_fedrec(task, constants, SGD, union_size=25, share_dropout=share)
      state = algorithm.init(params)
      broadcast = jax.jit(algorithm.broadcast)
      payload, aux = broadcast(state, who, table, key)
      again, _ = broadcast(state, who, table, jax.random.key(3))
      self.assertEqual(bool(jnp.allclose(payload['vectors'], again['vectors'])), not share)
      cotangent = {'user': params['user'], 'vectors': payload['vectors']}
      new = jax.jit(algorithm.server)(state, aux, cotangent, 6, key)
      news_gradient[share] = jax.tree.map(jnp.subtract, params['news'], new.params['news'])
    features = news_task.gather(constants['news'], jnp.where(payload['ids'] < 25,
                                                             payload['ids'], 0))

    def half_square(news):  # its gradient is the vectors pulled back, if the dropout is the same
      return (news_task.encode_all(task.encode, news, features, key)**2).sum() / 2

    chex.assert_trees_all_close(news_gradient[True], jax.jit(jax.grad(half_square))(params['news']),
                                rtol=1e-4, atol=1e-5)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, *news_gradient.values()))
    self.assertGreater(float(difference), 1e-3)

  def test_a_frozen_news_encoder_stays(self):
    task, constants, params, table = setup()
    algorithm = efficient_fedrec(task, constants, optax.adamw(0.1, weight_decay=0.1),
                                 union_size=25, train_news=False)
    new, _ = one_round(algorithm, params, table, first(cohort()))
    chex.assert_trees_all_equal(new['news'], params['news'])
    self.assertGreater(float(jnp.abs(new['user']['pooling']['hidden']['kernel'] -
                                     params['user']['pooling']['hidden']['kernel']).max()), 0.01)


class RoundTest(parameterized.TestCase):

  def test_union(self):
    _, _, _, table = setup()
    who = first(cohort([1, 4]))
    rows = np.asarray(who.index).ravel()
    rows = rows[rows >= 0]
    expected = {0}.union(*(np.asarray(table[name])[rows].ravel().tolist()
                           for name in ('click', 'pool', 'history')))
    ids, needed = union_of(who, table, 25, 25)
    self.assertEqual(int(needed), len(expected))
    self.assertEqual(ids.tolist(), sorted(expected) + [25] * (25 - len(expected)))

  def test_a_union_that_does_not_fit_is_refused(self):
    task, constants, params, table = setup()
    algorithm = efficient_fedrec(task, constants, SGD, union_size=5)
    new, metrics = one_round(algorithm, params, table, first(cohort()))
    self.assertTrue(metrics['refused'])
    chex.assert_trees_all_equal(new, params)

  @parameterized.parameters(False, True)
  def test_a_padded_union_changes_nothing(self, secure):
    task, constants, params, table = setup()
    who = first(cohort([1, 4]))
    _, needed = union_of(who, table, 25, 25)
    codec = secure_aggregation.secure_mean(  # of few bits: noise of rounding on every row
        clip=1.0, bits=8, max_weight=50, neighbors=0, num_clients=clients().num_clients,
        cohort_size=len(who.ids)) if secure else None
    exact, padded = (one_round(efficient_fedrec(task, constants, SGD, union_size=size), params,
                               table, who, codec=codec)[0] for size in (int(needed), 25))
    chex.assert_trees_all_close(exact, padded, rtol=1e-5, atol=1e-6)

  def test_a_client_that_drops_out_changes_its_own_contribution_alone(self):
    task, constants, params, table = setup()
    algorithm = efficient_fedrec(task, constants, SGD, union_size=25)
    who = first(cohort())
    weights = np.asarray(who.weights)
    payload, _ = jax.jit(algorithm.broadcast)(algorithm.init(params), who, table, jax.random.key(0))

    def message(index):
      data = federated.ClientData(table, index, jnp.full((), 2, jnp.int32))
      return algorithm.client(payload, (), data, jax.random.key(1))[0]

    sent = jax.jit(jax.vmap(message))(who.index)
    dropped = who._replace(weights=who.weights.at[2].set(0))
    ours, _ = one_round(algorithm, params, table, dropped)
    kept = np.where(np.arange(len(weights)) == 2, 0, weights)
    mean = jax.tree.map(lambda x: jnp.tensordot(kept, x, 1) / kept.sum(), sent)
    expected = jax.tree.map(jnp.subtract, params['user'], mean['user'])
    chex.assert_trees_all_close(ours['user'], expected, rtol=1e-4, atol=1e-6)

  def test_two_devices_are_as_one(self):
    count = 2
    task, constants, params, table = setup()
    algorithm = efficient_fedrec(task, constants, SGD, union_size=25)
    devices = jax.devices()[:count]
    run = jax.pmap(functools.partial(federated.federated_round, algorithm=algorithm,
                                     aggregator=MEAN), axis_name=parallel.CLIENTS,
                   in_axes=(None, 0, None, None), out_axes=(None, None), devices=devices)
    state = federated.RoundState.start(algorithm, MEAN, params)
    state, metrics = run(state, cohort(devices=count), table, jax.random.key(0))
    parallel.assert_replicated((state, metrics))
    alone, _ = one_round(algorithm, params, table, first(cohort()))
    chex.assert_trees_all_close(parallel.to_host(state.server.params), parallel.to_host(alone),
                                rtol=1e-4, atol=1e-6)


class CostsTest(absltest.TestCase):

  def test_bytes_are_those_of_the_trees(self):
    task, constants, params, table = setup()
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    two = efficient_fedrec(task, constants, SGD, union_size=20)
    down, up = federated.round_bytes(two, params, table, 4)
    self.assertEqual(down, 4 * (count(params['user']) + 20 * 4 + 20))
    self.assertEqual(up, 4 * (count(params['user']) + 20 * 4) + 8)
    descent = server_descent(task_gradient(task, constants), SGD)
    whole = federated.round_bytes(descent, params, table, 4)
    self.assertEqual(whole, (4 * count(params), 4 * count(params) + 8))
    sparse = costs.sparse_whole_numbers(params, table, np.asarray(constants['news']['title']))
    self.assertBetween(sparse, count(params['user']), count(params))

  def test_published_sizes(self):
    numbers = costs.published_numbers(6000)
    self.assertEqual(numbers['up'] - 6000 * 400, 561_601)  # the user model's parameters
    self.assertEqual(numbers['down'] - numbers['up'], 6000)
    self.assertBetween(numbers['whole'], 110e6, 111e6)

  def test_milliseconds(self):
    task, constants, params, table = setup()
    two = efficient_fedrec(task, constants, SGD, union_size=25)
    times = costs.client_milliseconds({'two': two}, params, table, first(cohort()), repeats=3)
    best, median = times['two']
    self.assertBetween(best, 1e-4, median)


if __name__ == '__main__':
  absltest.main()
