import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxlab.config import ConfigError
from jaxlab.data import partition

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'fedbase.npz'
CONFIGS = [
    {'name': 'iid'},
    {'name': 'quantity', 'law': 'lognormal', 'spread': 1.0},
    {'name': 'quantity', 'law': 'power', 'spread': 1.5, 'min_size': 0},
    {'name': 'shards', 'per_client': 2},
    {'name': 'pathological', 'classes': 2},
    {'name': 'dirichlet_by_class', 'alpha': 0.3},
    {'name': 'dirichlet_by_class', 'alpha': 0.0001, 'min_size': 0, 'balanced': True},
    {'name': 'dirichlet_by_client', 'alpha': 0.3},
    {'name': 'dirichlet_by_client', 'alpha': 0.001},
]
LABELS = np.random.default_rng(0).integers(0, 10, 1000)


def counts_of(owner, labels, num_clients):
  return partition.report(partition.index_arrays(owner, num_clients), labels).counts


class AnyPartitionTest(parameterized.TestCase):

  @settings(max_examples=150, deadline=None)
  @given(config=st.sampled_from(CONFIGS), size=st.integers(1, 80), classes=st.integers(1, 6),
         num_clients=st.integers(1, 12), seed=st.integers(0, 2**40))
  def test_disjoint_covering_and_deterministic(self, config, size, classes, num_clients, seed):
    labels = np.random.default_rng(size).integers(0, classes, size)
    try:
      parts = partition.make_partition(config, labels, num_clients, seed)
    except ConfigError:
      # Few examples may not be divisible as asked; many must be.
      self.assertFalse(size >= 60 and num_clients <= 3 and config['name'] != 'pathological')
      assume(False)
    self.assertLen(parts, num_clients)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(size))
    for part in parts:
      self.assertTrue((np.diff(part) > 0).all())
    np.random.default_rng(seed).random(7)  # draws of others
    np.random.random(7)
    np.testing.assert_equal(partition.make_partition(config, labels, num_clients, seed), parts)

  @parameterized.parameters(*CONFIGS)
  def test_another_seed_is_another_partition(self, **config):
    first, second = (partition.make_partition(config, LABELS, 10, seed) for seed in range(2))
    self.assertNotEqual([part.tolist() for part in first], [part.tolist() for part in second])

  @parameterized.parameters(*CONFIGS)
  def test_examples_of_a_class_are_dealt_in_random_order(self, **config):
    config = {**config, **({'classes': 1} if 'classes' in config else {})}
    parts = partition.make_partition(config, np.zeros(400, int), 4, 0)
    for part in parts:
      if 20 < len(part) < 380:
        self.assertLess(part[0], 40)
        self.assertGreater(part[-1], 360)

  def test_options_that_do_not_act_do_not_change_the_draw(self):
    first = partition.dirichlet_by_class(LABELS, 10, seed=0, alpha=1.0, min_size=0)
    smallest = np.bincount(first).min()
    again = partition.dirichlet_by_class(LABELS, 10, seed=0, alpha=1.0, min_size=smallest)
    np.testing.assert_array_equal(again, first)


class SizesTest(parameterized.TestCase):

  def test_iid(self):
    counts, effective_classes, _ = partition.report(
        partition.index_arrays(partition.iid(LABELS, 7, seed=0), 7), LABELS)
    self.assertLessEqual(np.ptp(counts.sum(1)), 1)
    self.assertGreater(effective_classes.min(), 9)

  def test_by_user(self):
    self.assertEqual(partition.by_user(['b', 'a', 'c', 'b']).tolist(), [1, 0, 2, 1])

  @settings(max_examples=100, deadline=None)
  @given(num_clients=st.integers(1, 30), spare=st.integers(0, 500), seed=st.integers(0, 2**32),
         law=st.sampled_from(['lognormal', 'power']), spread=st.floats(0, 4),
         min_size=st.integers(1, 5))
  def test_quantity_sizes(self, num_clients, spare, seed, law, spread, min_size):
    total = num_clients * min_size + spare
    sizes = partition.quantity_sizes(total, num_clients, seed=seed, law=law, spread=spread,
                                     min_size=min_size)
    self.assertLen(sizes, num_clients)
    self.assertEqual(sizes.sum(), total)
    self.assertGreaterEqual(sizes.min(), min_size)
    if spread == 0:
      self.assertLessEqual(np.ptp(sizes), 1)

  def test_quantity_laws(self):
    sizes = partition.quantity_sizes(10**8, 4000, seed=0, law='lognormal', spread=1.5)
    self.assertAlmostEqual(np.log(sizes).std(), 1.5, delta=0.06)
    sizes = partition.quantity_sizes(10**8, 50, seed=0, law='power', spread=2.0)
    self.assertNotEqual(sizes.argmax(), 0)
    ranked = np.sort(sizes)[::-1]
    np.testing.assert_allclose(ranked / ranked[0], np.arange(1., 51) ** -2, rtol=1e-3)

  def test_quantity_deals_those_sizes_at_random(self):
    options = {'seed': 3, 'law': 'lognormal', 'spread': 1.0}
    counts = counts_of(partition.quantity(LABELS, 5, **options), LABELS, 5)
    sizes = partition.quantity_sizes(1000, 5, **options)
    np.testing.assert_array_equal(counts.sum(1), sizes)
    expected = sizes[:, None] * np.bincount(LABELS) / 1000
    self.assertLess((np.abs(counts - expected) / np.sqrt(expected)).max(), 4)


class ClassesTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 5)
  def test_shards_hold_few_classes(self, per_client):
    labels = np.random.default_rng(0).permutation(np.arange(1000) % 10)
    counts = counts_of(partition.shards(labels, 10, seed=0, per_client=per_client), labels, 10)
    np.testing.assert_array_equal(counts.sum(1), 100)
    self.assertLessEqual((counts > 0).sum(1).max(), per_client)
    self.assertFalse((counts % (100 // per_client)).any())  # whole shards of one class
    again = counts_of(partition.shards(labels, 10, seed=1, per_client=per_client), labels, 10)
    self.assertTrue((again != counts).any())

  @parameterized.product(num_clients=[5, 12, 30], classes=[2, 3, 10])
  def test_pathological(self, num_clients, classes):
    counts = counts_of(partition.pathological(LABELS, num_clients, seed=1, classes=classes), LABELS,
                       num_clients)
    np.testing.assert_array_equal((counts > 0).sum(1), classes)
    self.assertLessEqual(np.ptp((counts > 0).sum(0)), 1)
    for of_class in counts.T:
      self.assertLessEqual(np.ptp(of_class[of_class > 0]), 1)

  def test_pathological_favours_no_client(self):
    sizes = [np.bincount(partition.pathological(LABELS, 30, seed=seed, classes=3))
             for seed in range(100)]
    self.assertLess(np.ptp(np.mean(sizes, 0)), 1.0)

  def test_pathological_skips_absent_classes(self):
    labels = np.repeat([0, 3], 10)
    counts = counts_of(partition.pathological(labels, 4, seed=0, classes=1), labels, 4)
    np.testing.assert_array_equal(np.sort(counts[:, [0, 3]], 0), [[0, 0], [0, 0], [5, 5], [5, 5]])

  @parameterized.parameters(
      ({'classes': 0}, 5, 'classes: expected 1..10'),
      ({'classes': 11}, 5, 'classes: expected 1..10'),
      ({'classes': 1}, 9, 'each class has a client'),
      ({'classes': 10}, 500, 'an example each'))
  def test_pathological_refuses(self, options, num_clients, message):
    with self.assertRaisesRegex(ValueError, message):
      partition.pathological(LABELS, num_clients, seed=0, **options)


class DirichletTest(parameterized.TestCase):

  def test_golden_cut(self):
    golden = np.load(GOLDEN)
    labels, proportions, permuted, owner, counts = (
        golden[f'partition/dirichlet/{name}']
        for name in ('labels', 'proportions', 'class_perm_concat', 'owner', 'counts'))
    found = partition.cut_by_class(labels, proportions, permuted)
    np.testing.assert_array_equal(found, owner)
    np.testing.assert_array_equal(counts_of(found, labels, 6), counts)

  @parameterized.parameters(partition.dirichlet_by_class, partition.dirichlet_by_client)
  def test_effective_classes_increase_with_alpha(self, function):
    def mean_effective_classes(alpha):
      owners = [function(LABELS, 10, seed=seed, alpha=alpha) for seed in range(20)]
      reports = [partition.report(partition.index_arrays(owner, 10), LABELS) for owner in owners]
      return np.mean([report.effective_classes for report in reports])

    means = [mean_effective_classes(alpha) for alpha in (0.05, 0.2, 0.5, 2.0, 100.0)]
    self.assertTrue((np.diff(means) > 0.5).all(), means)
    self.assertGreater(means[-1], 9)

  @parameterized.parameters(0, 1, 8)
  def test_min_size(self, min_size):
    sizes = [np.bincount(partition.dirichlet_by_class(
        LABELS, 20, seed=seed, alpha=0.1, min_size=min_size), minlength=20) for seed in range(10)]
    self.assertGreaterEqual(np.min(sizes), min_size)
    self.assertLess(np.min(sizes), min_size + 4)  # no more than asked for

  def test_min_size_that_cannot_be_reached(self):
    with self.assertRaisesRegex(ValueError, 'no draw of 1000 gave every client 50 .* min_size or'):
      partition.dirichlet_by_class(LABELS, 20, seed=0, alpha=0.1, min_size=50)

  @parameterized.parameters(0.01, 0.1, 1.0)
  def test_balanced(self, alpha):
    spread = []
    for seed in range(20):
      options = {'seed': seed, 'alpha': alpha, 'min_size': 0}
      plain = counts_of(partition.dirichlet_by_class(LABELS, 7, **options), LABELS, 7)
      owner = partition.dirichlet_by_class(LABELS, 7, balanced=True, **options)
      counts = counts_of(owner, LABELS, 7)
      np.testing.assert_array_equal(counts[:, 0], plain[:, 0])
      before = np.cumsum(counts, 1) - counts
      self.assertEqual(counts[before >= 1000 / 7].sum(), 0)
      spread.append((np.ptp(counts.sum(1)), np.ptp(plain.sum(1))))
    balanced, plain = np.mean(spread, 0)
    self.assertLess(balanced, 0.8 * plain)

  def test_by_class_has_unequal_sizes_and_by_client_the_given_ones(self):
    by_class = np.bincount(partition.dirichlet_by_class(LABELS, 10, seed=0, alpha=0.3))
    self.assertGreater(np.ptp(by_class), 50)
    by_client = np.bincount(partition.dirichlet_by_client(LABELS, 10, seed=0, alpha=0.3))
    np.testing.assert_array_equal(by_client, 100)
    sizes = [400, 300, 200, 100, 0]
    owner = partition.dirichlet_by_client(LABELS, 5, seed=0, alpha=0.3, sizes=sizes)
    self.assertEqual(np.bincount(owner, minlength=5).tolist(), sizes)

  def test_by_client_favours_no_client(self):
    # What remains when classes run out is shared by all, not left to the last client.
    owners = [partition.dirichlet_by_client(LABELS, 10, seed=seed, alpha=1.0)
              for seed in range(150)]
    effective_classes = [partition.report(partition.index_arrays(owner, 10), LABELS)
                         .effective_classes for owner in owners]
    self.assertLess(np.ptp(np.mean(effective_classes, 0)), 0.4)

  @parameterized.parameters(([100] * 9,), ([100] * 9 + [99],), ([-1] + [100] * 8 + [201],))
  def test_by_client_refuses_sizes(self, sizes):
    with self.assertRaisesRegex(ValueError, 'sizes: expected 10 sizes that add up to 1000'):
      partition.dirichlet_by_client(LABELS, 10, seed=0, alpha=1.0, sizes=sizes)


class LikeTest(absltest.TestCase):

  def test_same_data_same_counts(self):
    for seed in range(10):
      counts = counts_of(partition.dirichlet_by_class(LABELS, 10, seed=seed, alpha=0.1), LABELS, 10)
      again = counts_of(partition.like(counts, LABELS, seed=seed), LABELS, 10)
      np.testing.assert_array_equal(again, counts)

  def test_other_data_same_proportions(self):
    counts = counts_of(partition.dirichlet_by_class(LABELS, 10, seed=0, alpha=0.1), LABELS, 10)
    labels = np.random.default_rng(1).integers(0, 10, 333)
    found = counts_of(partition.like(counts, labels, seed=0), labels, 10)
    expected = counts / counts.sum(0) * np.bincount(labels)
    self.assertLess(np.abs(found - expected).max(), 1)
    self.assertEqual(found[counts == 0].sum(), 0)

  def test_class_that_no_client_has(self):
    labels = np.repeat([0, 1], 4)
    owner = partition.like(np.array([[3, 0], [1, 0]]), labels, seed=0)
    self.assertEqual(counts_of(owner, labels, 2).tolist(), [[3, 2], [1, 2]])

  def test_class_that_is_not_counted(self):
    with self.assertRaisesRegex(ValueError, r'labels: expected classes 0\.\.1, got 2'):
      partition.like(np.ones((3, 2), int), np.array([0, 2]), seed=0)


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, 'partition.name: missing'),
      ({'name': 'dirichlet_by_clas', 'alpha': 1.0}, "did you mean 'dirichlet_by_class'"),
      ({'name': 'dirichlet_by_class'}, 'partition.alpha: missing'),
      ({'name': 'dirichlet_by_class', 'alpha': '1'}, 'partition.alpha: expected float'),
      ({'name': 'dirichlet_by_class', 'alpha': 0.0}, 'partition: alpha: expected > 0, got 0.0'),
      ({'name': 'dirichlet_by_client', 'alpha': -1.0}, 'partition: alpha: expected > 0, got -1.0'),
      ({'name': 'iid', 'alpha': 1.0}, "partition: unknown key 'alpha'"),
      ({'name': 'iid', 'seed': 1}, "partition: unknown key 'seed'"),
      ({'name': 'quantity', 'law': 'normal', 'spread': 1.0}, 'partition.law: expected'),
      ({'name': 'quantity', 'law': 'power', 'spread': -1.0}, 'partition: spread: expected >= 0'),
      ({'name': 'dirichlet_by_class', 'alpha': 1.0, 'min_size': -1}, 'partition: min_size: expe'),
      ({'name': 'dirichlet_by_class', 'alpha': 1.0, 'min_size': 101},
       'partition: num_clients: .* with 101 of the 1000 examples each, got 10'),
      ({'name': 'shards', 'per_client': 0}, 'partition: per_client: expected >= 1'),
      ({'name': 'shards', 'per_client': 101}, 'partition: num_clients: expected'),
      ({'name': 'by_user'}, 'user ids'))
  def test_refuses(self, config, message):
    with self.assertRaisesRegex(ConfigError, message):
      partition.make_partition(config, LABELS, 10, 0)

  @parameterized.parameters((LABELS / 2,), (LABELS[:, None],))
  def test_labels_that_are_no_classes(self, labels):
    with self.assertRaisesRegex(ConfigError, r'partition: labels: expected int \[N\], got'):
      partition.make_partition({'name': 'dirichlet_by_class', 'alpha': 1.0}, labels, 10, 0)

  @parameterized.parameters(*CONFIGS)
  def test_more_clients_than_examples(self, **config):
    with self.assertRaisesRegex(ConfigError, 'num_clients: expected'):
      partition.make_partition(config, LABELS[:9], 10, 0)

  def test_by_user(self):
    users = np.array([5, 3, 5, 9])
    parts = partition.make_partition({'name': 'by_user'}, LABELS[:4], 3, 0, users)
    self.assertEqual([part.tolist() for part in parts], [[1], [0, 2], [3]])
    with self.assertRaisesRegex(ConfigError, 'num_clients: expected the 3 users, got 2'):
      partition.make_partition({'name': 'by_user'}, LABELS[:4], 2, 0, users)


class ReportTest(absltest.TestCase):

  def test_by_hand(self):
    labels = np.array([0, 0, 1, 2, 2, 1, 2, 2])
    parts = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5, 6, 7]), np.array([], int)]
    counts, effective_classes, gini = partition.report(parts, labels)
    self.assertEqual(counts.tolist(), [[2, 0, 0], [0, 1, 1], [0, 1, 3], [0, 0, 0]])
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(effective_classes, [1, 2, np.exp(entropy), 0])
    # Mean absolute difference of the sizes 2, 2, 4, 0 over twice their mean.
    sizes = np.array([2, 2, 4, 0])
    self.assertAlmostEqual(gini, np.abs(sizes[:, None] - sizes).mean() / (2 * sizes.mean()))

  def test_equal_sizes(self):
    self.assertEqual(partition.report([np.array([0]), np.array([1])], np.array([0, 1])).gini, 0)


if __name__ == '__main__':
  absltest.main()
