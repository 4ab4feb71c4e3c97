"""Ragged clients on the host: who takes part, in which order, in which shapes."""
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.federated import clients as clients_lib
from jaxlab.federated.clients import Clients, LocalWork


def ragged(sizes):
  return Clients.from_parts(
      np.split(np.random.default_rng(0).permutation(sum(sizes)),
               np.cumsum(sizes)[:-1]))


class ClientsTest(parameterized.TestCase):

  def test_csr_layout(self):
    clients = Clients.from_parts([np.array([4, 2]), np.array([], np.int64), np.array([0])])
    self.assertEqual(clients.num_clients, 3)
    np.testing.assert_array_equal(clients.sizes, [2, 0, 1])
    np.testing.assert_array_equal(clients.of(0), [4, 2])
    self.assertEmpty(clients.of(1))

  @parameterized.parameters(0, 2**32 - 1, 2**32, 2**70)
  def test_order_is_that_of_numpy(self, seed):
    batches = clients_lib.local_batches(np.arange(12), LocalWork(4), seed, 5, 7)
    expected = np.random.default_rng([seed, 2, 5, 7]).permutation(12)
    np.testing.assert_array_equal(batches.ravel(), expected)

  @parameterized.parameters(1, 2, 3)
  def test_each_epoch_visits_every_row_once(self, epochs):
    rows = np.arange(100, 111)
    batches = clients_lib.local_batches(rows, LocalWork(4, epochs), seed=0, round_number=2,
                                        client=7)
    self.assertEqual(batches.shape, (3 * epochs, 4))
    for one in np.split(batches, epochs):
      np.testing.assert_array_equal(np.sort(one[one >= 0]), rows)
      self.assertEqual((one < 0).sum(), 1)
      self.assertEqual(one[-1, -1], -1)
    if epochs > 1:
      self.assertFalse(np.array_equal(*np.split(batches, epochs)[:2]))

  def test_fixed_steps_cycle(self):
    batches = clients_lib.local_batches(np.arange(5), LocalWork(4, steps=5), 0, 0, 0)
    self.assertEqual(batches.shape, (5, 4))
    self.assertEqual((batches >= 0).sum(), 5 + 5 + 4)

  def test_a_partial_batch_may_be_left_out(self):
    work = LocalWork(4, epochs=2, drop_remainder=True)
    batches = clients_lib.local_batches(np.arange(11), work, 0, 0, 0)
    self.assertEqual(batches.shape, (4, 4))
    self.assertTrue((batches >= 0).all())
    self.assertLen(np.unique(batches[:2]), 8)
    clients = ragged([11, 3, 8])
    np.testing.assert_array_equal(clients_lib.num_steps(clients.sizes, work), [4, 0, 4])
    cohort = clients_lib.make_cohort(clients, [0, 1, 2], work, 0, 0, weighting='examples')
    self.assertEqual(dict(zip(cohort.ids[0].tolist(), cohort.weights[0].tolist())),
                     {0: 11, 1: 0, 2: 8})
    self.assertFalse((cohort.index[0][cohort.ids[0] == 1] >= 0).any())
    steps = clients_lib.local_batches(np.arange(11), work._replace(steps=3), 0, 0, 0)
    self.assertEqual((steps >= 0).sum(), 12)

  def test_weights_by_client_and_how_often_each_counts(self):
    clients = ragged([4, 1, 0, 2])
    make = lambda ids, **more: clients_lib.make_cohort(clients, ids, LocalWork(2), 0, 0, **more)
    own = make([3, 0, 2], weighting=np.array([0.5, 9, 9, 0.25]))
    self.assertEqual(dict(zip(own.ids[0].tolist(), own.weights[0].tolist())),
                     {0: 0.5, 3: 0.25, 2: 0})
    often = make([0, 3], weighting='uniform', times=np.array([3, 1]), chunk=2, slots=4)
    self.assertEqual(often.ids[0].tolist(), [0, 3, -1, -1])
    self.assertEqual(often.weights[0].tolist(), [3, 1, 0, 0])
    self.assertEqual(make([], weighting='uniform').ids.tolist(), [[-1]])

  def test_a_client_without_rows_takes_no_step(self):
    self.assertEqual(
        clients_lib.local_batches(np.array([], np.int64), LocalWork(4), 0, 0, 0).shape, (0, 4))
    np.testing.assert_array_equal(clients_lib.num_steps([0, 1, 4, 5], LocalWork(4)), [0, 1, 1, 2])
    np.testing.assert_array_equal(clients_lib.num_steps([0, 1], LocalWork(4, steps=7)), [0, 7])

  def test_the_order_depends_on_seed_round_and_client(self):
    base = clients_lib.local_batches(np.arange(40), LocalWork(40), 0, 0, 0)
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
      self.assertFalse(
          np.array_equal(base, clients_lib.local_batches(np.arange(40), LocalWork(40), *other)))
    np.testing.assert_array_equal(base,
                                  clients_lib.local_batches(np.arange(40), LocalWork(40), 0, 0, 0))

  def test_padded_steps_are_few_and_tight(self):
    values = [clients_lib.padded_steps(s) for s in range(1, 400)]
    self.assertTrue(all(s <= v <= max(s + 1, s * 1.5) for s, v in zip(range(1, 400), values)))
    self.assertLessEqual(len(set(values)), 18)

  @settings(max_examples=30, deadline=None)
  @given(
      sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12), devices=st.integers(1, 4),
      chunk=st.integers(1, 3), weighting=st.sampled_from(['examples', 'uniform']))
  def test_cohort_holds_every_client_once_however_it_is_cut(self, sizes, devices, chunk, weighting):
    clients = ragged([*sizes, 1])
    ids = np.arange(len(sizes))
    whole = clients_lib.make_cohort(clients, ids, LocalWork(4), 1, 2, weighting=weighting,
                                    num_devices=devices, chunk=chunk)
    self.assertEqual(whole.ids.shape[0], devices)
    self.assertEqual(whole.ids.shape[1] % chunk, 0)
    self.assertCountEqual(whole.ids[whole.ids >= 0], ids)
    for device, slot in zip(*np.nonzero(whole.ids >= 0)):
      client = whole.ids[device, slot]
      rows = whole.index[device, slot]
      np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.sort(clients.of(client)))
      size = clients.sizes[client]
      self.assertEqual(whole.weights[device, slot],
                       size if weighting == 'examples' else float(size > 0))
    padding = whole.ids < 0
    self.assertTrue((whole.weights[padding] == 0).all() and (whole.index[padding] == -1).all())
    # Each process builds the same arrays for its own devices alone.
    for device in range(devices):
      part = clients_lib.make_cohort(clients, ids, LocalWork(4), 1, 2, weighting=weighting,
                                     num_devices=devices, devices=[device], chunk=chunk)
      for ours, theirs in zip(part, whole):
        np.testing.assert_array_equal(ours[0], theirs[device])

  def test_padding_waste(self):
    index = np.full((1, 2, 4, 3), -1)
    index[0, 0, :2] = 1
    index[0, 1, :1] = 1
    self.assertEqual(clients_lib.padding_waste(index, 2), 0.25)
    self.assertEqual(clients_lib.padding_waste(index, 1), 0)


if __name__ == '__main__':
  absltest.main()
