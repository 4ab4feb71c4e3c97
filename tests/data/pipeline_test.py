import itertools
import tempfile

import grain
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.config import ConfigError
from jaxlab.data import pipeline

KINDS = ('memory', 'source')


def columns(size):
  return {'id': np.arange(size), 'x': np.arange(size * 6, dtype=np.uint8).reshape(size, 2, 3)}


def make(kind, size, **more):
  """The same examples as columns in memory and as any other Grain data set."""
  arrays = {**columns(size), **more}
  if kind == 'memory':
    return pipeline.from_arrays(arrays)
  return grain.MapDataset.source([{name: column[row] for name, column in arrays.items()}
                                  for row in range(size)])


def train(dataset, count, **kwargs):
  return list(itertools.islice(iter(pipeline.train_batches(dataset, **kwargs)), count))


def ids(batches):
  return np.concatenate([batch['id'] for batch in batches])


def assert_same(batches, others):
  np.testing.assert_equal(list(batches), list(others))


class Recorder:
  """A column, or a data source, that notes the rows which are read."""

  def __init__(self, values):
    self.values, self.rows, self.reads = values, set(), 0

  def __len__(self):
    return len(self.values)

  def __getitem__(self, rows):
    self.rows |= set(np.ravel(rows).tolist())
    self.reads += 1
    return self.values[rows]


class ArraysTest(absltest.TestCase):

  def test_examples(self):
    dataset = make('memory', 5)
    self.assertLen(dataset, 5)
    self.assertEqual([example['id'] for example in dataset], [0, 1, 2, 3, 4])
    self.assertEqual(dataset[7]['id'], 2)  # the second epoch, as in every MapDataset
    np.testing.assert_array_equal(dataset[3]['x'], columns(5)['x'][3])

  def test_a_slice_stays_in_memory(self):
    part = make('memory', 10)[2:9:3]
    self.assertIsInstance(part, pipeline.ArraySource)
    self.assertEqual(part.arrays['id'].tolist(), [2, 5, 8])

  def test_columns(self):
    for kind in KINDS:
      np.testing.assert_equal(pipeline.columns(make(kind, 5)), columns(5))
    dataset = make('memory', 5)
    self.assertIs(pipeline.columns(dataset)['x'], dataset.arrays['x'])

  def test_columns_of_different_lengths(self):
    with self.assertRaisesRegex(ValueError, "'a': 2, 'b': 3"):
      pipeline.from_arrays({'a': [1, 2], 'b': [1, 2, 3]})


class TrainTest(parameterized.TestCase):

  @parameterized.product(kind=KINDS, size=[10, 3])
  def test_static_shapes_and_nothing_dropped(self, kind, size):
    batches = train(make(kind, size), 30, batch_size=4, seed=0)
    for batch in batches:
      self.assertEqual({name: (column.shape, column.dtype) for name, column in batch.items()},
                       {'id': ((4,), np.int64), 'x': ((4, 2, 3), np.uint8),
                        'weight': ((4,), np.float32)})
      np.testing.assert_array_equal(batch['weight'], 1)
      np.testing.assert_array_equal(batch['x'], columns(size)['x'][batch['id']])
    epochs = ids(batches)[:120 // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(size), (len(epochs), 1)))
    self.assertGreater(len({tuple(epoch) for epoch in epochs}), 3)

  @settings(max_examples=12, deadline=None)
  @given(kind=st.sampled_from(KINDS), size=st.integers(1, 12), rows=st.integers(1, 5),
         processes=st.integers(1, 3), seed=st.integers(0, 2**40))
  def test_processes_share_each_batch(self, kind, size, rows, processes, seed):
    batch_size = rows * processes
    whole = train(make(kind, size), 4, batch_size=batch_size, seed=seed)
    shares = [train(make(kind, size), 4, batch_size=batch_size, seed=seed, process_index=process,
                    process_count=processes) for process in range(processes)]
    for t, batch in enumerate(whole):
      self.assertLen(batch['id'], batch_size)
      joined = {name: np.concatenate([share[t][name] for share in shares]) for name in batch}
      np.testing.assert_equal(joined, batch)
    epochs = ids(whole)[:4 * batch_size // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(size), (len(epochs), 1)))

  def test_processes_touch_their_own_rows_only(self):
    touched = {}
    for kind, process in itertools.product(KINDS, range(2)):
      rows = Recorder(np.arange(1000) if kind == 'memory' else [{'id': i} for i in range(1000)])
      dataset = (pipeline.ArraySource({'id': rows}) if kind == 'memory'
                 else grain.MapDataset.source(rows))
      train(dataset, 20, batch_size=8, seed=0, process_index=process, process_count=2)
      touched[kind, process] = rows.rows
    for kind in KINDS:
      self.assertGreaterEqual(len(touched[kind, 0]), 80)
      self.assertEmpty(touched[kind, 0] & touched[kind, 1])

  def test_rows_in_memory_are_read_a_batch_at_a_time(self):
    column = Recorder(np.arange(1000))
    train(pipeline.ArraySource({'id': column}), 20, batch_size=50, seed=0)
    self.assertLessEqual(column.reads, 25)

  @parameterized.parameters(*KINDS)
  def test_order_depends_on_the_seed_alone(self, kind):
    stream = lambda seed: ids(train(make(kind, 50), 10, batch_size=10, seed=seed))
    np.testing.assert_array_equal(stream(3), stream(3))
    # The first epoch of a seed is not the second of the seed before.
    orders = [tuple(epoch) for seed in range(4) for epoch in stream(seed).reshape(2, 50)]
    self.assertLen(set(orders), 8)

  @parameterized.parameters(*KINDS)
  def test_given_weights_are_kept(self, kind):
    weight = np.linspace(0, 1, 7, dtype=np.float32)
    for batch in train(make(kind, 7, weight=weight), 5, batch_size=4, seed=0):
      np.testing.assert_array_equal(batch['weight'], weight[batch['id']])

  @parameterized.parameters(*KINDS)
  def test_state_is_the_number_of_batches(self, kind):
    dataset = pipeline.train_batches(make(kind, 10), batch_size=4, seed=0)
    iterator = iter(dataset)
    first = list(itertools.islice(iterator, 7))
    state = iterator.get_state()
    rest = list(itertools.islice(iterator, 9))
    self.assertEqual(state, {'next_index': 7})
    fresh = iter(dataset)
    for batches, start in ((rest, state), (first, {'next_index': 0}), (rest, state)):
      fresh.set_state(start)  # also away from an iterator that has read ahead
      assert_same(itertools.islice(fresh, len(batches)), batches)

  @parameterized.parameters(*KINDS)
  def test_orbax_round_trip(self, kind):
    dataset = pipeline.train_batches(make(kind, 10), batch_size=4, seed=0)
    iterator = iter(dataset)
    list(itertools.islice(iterator, 5))
    with tempfile.TemporaryDirectory() as folder, ocp.CheckpointManager(folder) as manager:
      manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
      manager.wait_until_finished()
      fresh = iter(dataset)
      manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert_same(itertools.islice(fresh, 6), itertools.islice(iterator, 6))


class EvalTest(parameterized.TestCase):

  @settings(max_examples=25, deadline=None)
  @given(kind=st.sampled_from(KINDS), size=st.integers(1, 20), rows=st.integers(1, 5),
         processes=st.integers(1, 3))
  def test_one_pass_in_order(self, kind, size, rows, processes):
    shares = [list(pipeline.eval_batches(make(kind, size), batch_size=rows * processes,
                                         process_index=process, process_count=processes))
              for process in range(processes)]
    for share in shares:
      self.assertLen(share, -(-size // (rows * processes)))
    batches = [share[t] for t in range(len(shares[0])) for share in shares]
    for batch in batches:
      self.assertEqual({name: (column.shape, column.dtype) for name, column in batch.items()},
                       {'id': ((rows,), np.int64), 'x': ((rows, 2, 3), np.uint8),
                        'weight': ((rows,), np.float32)})
    weight = np.concatenate([batch['weight'] for batch in batches])
    np.testing.assert_array_equal(weight, np.arange(len(weight)) < size)
    np.testing.assert_array_equal(ids(batches), np.minimum(np.arange(len(weight)), size - 1))

  @parameterized.parameters(*KINDS)
  def test_given_weights_are_kept_but_not_on_padding(self, kind):
    dataset = make(kind, 3, weight=np.array([0.5, 0, 2], np.float32))
    batch, = pipeline.eval_batches(dataset, batch_size=5)
    self.assertEqual(batch['weight'].tolist(), [0.5, 0, 2, 0, 0])
    self.assertEqual(batch['weight'].dtype, np.float32)


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters((5, 2), (0, 1), (-2, 2))
  def test_batch_size_that_cannot_be_shared(self, batch_size, processes):
    message = f'batch_size: expected a positive multiple of .* {processes}, got {batch_size}'
    with self.assertRaisesRegex(ConfigError, message):
      pipeline.train_batches(make('memory', 4), batch_size=batch_size, seed=0,
                             process_count=processes)
    with self.assertRaisesRegex(ConfigError, message):
      pipeline.eval_batches(make('memory', 4), batch_size=batch_size, process_count=processes)

  @parameterized.parameters(*KINDS)
  def test_no_examples(self, kind):
    with self.assertRaisesRegex(ConfigError, 'at least one example'):
      pipeline.train_batches(make(kind, 0), batch_size=1, seed=0)
    with self.assertRaisesRegex(ConfigError, 'at least one example'):
      pipeline.eval_batches(make(kind, 0), batch_size=1)


if __name__ == '__main__':
  absltest.main()
