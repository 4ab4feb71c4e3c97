"""Who takes part: shares, replay, who is never there, and what a call makes of it."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.federated import sampling, staging
from jaxlab.federated.clients import Clients
from jaxlab.federated.settings import federated_config

SIZES = np.array([8, 2, 6, 0, 4])
CONFIG = {'num_clients': 5, 'cohort_size': 2, 'rounds': 6, 'batch_size': 2,
          'partition': {'name': 'iid'}, 'algorithm': {'name': 'fedavg'},
          'client_optimizer': {'name': 'sgd', 'learning_rate': 0.1}}


def make(name, sizes=SIZES, cohort_size=2, seed=3, **options):
  return sampling.make_sampler({'name': name, **options}, sizes, cohort_size, seed)


def shares(sampler, rounds=2000):
  """How often each client is drawn a round, and the numbers of draws of the rounds."""
  drawn = [sampler.draw(r) for r in range(rounds)]
  return (np.bincount(np.concatenate(drawn).astype(int), minlength=len(SIZES)) / rounds,
          [len(ids) for ids in drawn])


class SamplingTest(parameterized.TestCase):

  def test_uniform_is_without_replacement_and_replays(self):
    drawn = [sampling.sample_uniform(50, 10, seed=3, round_number=r) for r in range(2000)]
    self.assertTrue(all(len(set(ids)) == 10 for ids in drawn))
    np.testing.assert_array_equal(drawn[1234], sampling.sample_uniform(50, 10, 3, 1234))
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    expected, deviation = 2000 * .2, np.sqrt(2000 * .2 * .8)
    self.assertLess(np.abs(counts - expected).max(), 3 * deviation)
    sampler = make('uniform', np.ones(50), 10)
    np.testing.assert_array_equal(sampler.draw(1234), drawn[1234])
    self.assertEqual((sampler.smallest, sampler.largest, sampler.weighting), (10, 10, None))

  def test_bernoulli(self):
    share, counts = shares(make('bernoulli'))
    np.testing.assert_allclose(share, 0.4, atol=3 * np.sqrt(0.24 / 2000))
    self.assertEqual((min(counts), max(counts)), (0, 5))
    self.assertAlmostEqual(np.var(counts), 5 * 0.24, delta=0.15)  # independent of each other

  def test_by_size(self):
    sampler = make('by_size')
    share, counts = shares(sampler)
    np.testing.assert_allclose(share, 2 * SIZES / 20, atol=3 * np.sqrt(2 * 0.24 / 2000))
    self.assertEqual((share[3], set(counts), sampler.weighting), (0, {2}, 'uniform'))
    self.assertTrue(any(np.ptp(sampler.draw(r)) == 0 for r in range(50)))  # with replacement

  def test_shuffled(self):
    sampler = make('shuffled')
    passes = [[sampler.draw(3 * p + r) for r in range(3)] for p in range(4)]
    for one in passes:
      self.assertEqual([len(ids) for ids in one], [2, 2, 1])
      self.assertEqual(sorted(np.concatenate(one)), list(range(5)))
    self.assertLen({tuple(np.concatenate(one)) for one in passes}, 4)
    self.assertEqual((sampler.smallest, sampler.largest), (1, 2))

  def test_cyclic(self):
    sampler = make('cyclic', cohort_size=1, groups=2)
    share, _ = shares(sampler)
    np.testing.assert_allclose(share, np.array([1 / 3, 1 / 2] * 3)[:5] / 2, atol=0.04)
    self.assertTrue(all((sampler.draw(r) % 2 == r % 2).all() for r in range(20)))
    self.assertEqual([len(make('cyclic', cohort_size=3, groups=2).draw(r)) for r in (0, 1)], [3, 2])

  def test_available(self):
    masks = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'masks.npy')
      np.save(path, masks)
      sampler = make('available', masks=str(path))
    self.assertEqual([sampler.draw(r).tolist() for r in (0, 1, 3)], [[0, 2], [], [0, 2]])
    self.assertEqual((sampler.smallest, sampler.largest), (0, 5))

  @parameterized.parameters(
      ({'name': 'unifrom'}, "federated.sampling.name: unknown name 'unifrom'; did you mean 'unif"),
      ({'name': 'uniform', 'rate': 1}, "federated.sampling: unknown key 'rate'"),
      ({'name': 'cyclic', 'groups': 6}, 'groups: expected 1 to the 5 clients, got 6'),
      ({'name': 'available', 'masks': 'nowhere.npy'}, 'masks: expected a .npy file'),
      ({'name': 'available', 'masks': np.ones((2, 4), bool)}, r'masks: expected bool \[R, 5\]'),
      ({'name': 'available', 'masks': np.ones((2, 5))}, r'masks: .* bool \[R, 5\], got .float'))
  def test_mistakes(self, config, message):
    with self.assertRaisesRegex(ConfigError, message):
      sampling.make_sampler(config, SIZES, 2, 0)

  @parameterized.parameters(
      ({'sampling': {'name': 'bernoulli'}, 'aggregator': {'name': 'krum', 'num_malicious': 0},
        'cohort_size': 4}, 'federated.sampling: expected one that gives at least the 3 clients'),
      ({'sampling': {'name': 'by_size'}, 'secure': {'clip': 1.0}},
       'federated.sampling: expected one of cohorts of one size under secure aggregation'),
      ({'sampling': {'name': 'shuffled'}, 'secure': {'clip': 1.0}},
       'federated.sampling: expected one of cohorts of one size under secure aggregation'),
      ({'sampling': {'name': 'by_size'}, 'client_optimizer': {},
        'algorithm': {'name': 'scaffold', 'learning_rate': 0.1}},
       'federated.sampling: expected one that draws a client once a round under scaffold'),
      ({'drop_remainder': True, 'client_optimizer': {},
        'algorithm': {'name': 'fedsgd', 'server_learning_rate': 0.1}},
       'federated.drop_remainder: expected False under the algorithm'))
  def test_what_does_not_combine(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      federated_config({'federated': {**CONFIG, **change}})


class CallTest(parameterized.TestCase):

  def calls(self, **change):
    settings = federated_config({'federated': {**CONFIG, 'rounds_per_call': 3, 'eval_every': 3,
                                               'log_every': 3, **change}})
    clients = Clients.from_parts(np.split(np.arange(20), np.cumsum(SIZES)[:-1]))
    source = staging.CallSource(clients, settings, 3, weighting='examples', num_devices=2,
                                devices=[0, 1], chunk=1)
    return settings.make_sampler(clients.sizes, 3), [source[i] for i in range(len(source))]

  @parameterized.parameters(*(name for name in sampling.SAMPLERS if name != 'available'))
  def test_a_call_holds_who_was_drawn(self, name):
    options = {'groups': 2} if name == 'cyclic' else {}
    sampler, calls = self.calls(sampling={'name': name, **options})
    for number, call in enumerate(calls):
      for r in range(3):
        ids, weights = (x[:, r].ravel() for x in (call.cohorts.ids, call.cohorts.weights))
        drawn, times = np.unique(sampler.draw(3 * number + r), return_counts=True)
        self.assertEqual(sorted(ids[ids >= 0]), drawn.tolist())
        expected = times * (SIZES[drawn] > 0) if name == 'by_size' else SIZES[drawn]
        self.assertEqual({i: w for i, w in zip(ids, weights) if i >= 0},
                         dict(zip(drawn, expected)))
        self.assertFalse(weights[ids < 0].any())

  def test_rounds_without_anybody(self):
    _, calls = self.calls(sampling={'name': 'available', 'masks': np.zeros((1, 5), bool)})
    self.assertTrue(all((call.cohorts.ids == -1).all() and not call.contacts for call in calls))


if __name__ == '__main__':
  absltest.main()
