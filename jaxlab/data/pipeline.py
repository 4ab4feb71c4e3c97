"""Grain pipelines: from a data set of examples to batches of static shape.

A batch is a dict of arrays [B, ...] with a 'weight' [B] that is 0 on padding. `batch_size` counts
the rows of the whole job: process p of P makes the rows [p * B / P, (p + 1) * B / P) of every batch
and touches no others. A training batch is a pure function of (seed, its number), so the checkpoint
of an iterator is the number of batches that it has given.
"""
import functools
import sys

import grain
import numpy as np

from jaxlab import config as config_lib

# Rows in memory are gathered in microseconds: one thread, one batch ahead of the next. Rows on disk
# are read by many threads, which wait for the disk side by side.
_GATHER = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
_READ = grain.ReadOptions(num_threads=16, prefetch_buffer_size=16)
_SHUFFLE = 0x5FFE  # sets the shuffle's random stream apart from others of the same seed


class ArraySource(grain.MapDataset):
  """A data set whose examples are rows of columns in memory, so that batches are gathered whole.

  Attributes:
    arrays: {name: array [N, ...]}.
  """

  def __init__(self, arrays):
    super().__init__()
    self.arrays = arrays

  def __len__(self):
    return len(next(iter(self.arrays.values())))

  def __getitem__(self, index):
    return self.slice(index) if isinstance(index, slice) else self.take(index % len(self))

  def slice(self, sl):
    """The rows of a slice, as an ArraySource of views."""
    return ArraySource(self.take(sl))

  def take(self, rows):
    """{name: rows of the column}, for whatever indexes a NumPy array."""
    return {name: column[rows] for name, column in self.arrays.items()}


def from_arrays(arrays):
  """Makes the data set whose examples are the rows of `arrays`.

  Args:
    arrays: {name: array [N, ...]}, at least one.

  Raises:
    ValueError: the columns differ in length.
  """
  columns = {name: np.asarray(column) for name, column in arrays.items()}
  lengths = {name: len(column) for name, column in columns.items()}
  if len(set(lengths.values())) != 1:
    raise ValueError(f'expected columns of one length, got {lengths}')
  return ArraySource(columns)


def columns(dataset):
  """{name: array [N, ...]} of a whole data set; its own columns where they are in memory."""
  if isinstance(dataset, ArraySource):
    return dataset.arrays
  return take(dataset, range(len(dataset)))


def take(dataset, rows):
  """{name: array [len(rows), ...]} of some rows of a data set."""
  if isinstance(dataset, ArraySource):
    return dataset.take(rows)
  examples = [dataset[int(row)] for row in rows]
  return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def column(dataset, name, where):
  """One column [N, ...] of a data set; ConfigError at `where` with the nearest name if none."""
  if isinstance(dataset, ArraySource):
    return config_lib.choose(name, dataset.arrays, where)
  config_lib.choose(name, dataset[0], where)
  return np.stack([dataset[row][name] for row in range(len(dataset))])


def train_batches(dataset, *, batch_size, seed, process_index=0, process_count=1):
  """Endless batches of a stream in which every epoch is the whole data set in a new random order.

  Batch t holds the positions [t * B, (t + 1) * B) of the stream. It may begin in one epoch and end
  in the next, so nothing is dropped and nothing is padded.

  Args:
    dataset: MapDataset of examples (dicts of arrays of fixed shapes), as by `from_arrays` or from
      any Grain source. 'weight' is added where an example has none.
    batch_size: B, a multiple of `process_count`.
    seed: a non-negative integer.
    process_index: p, this process.
    process_count: P, the number of processes.

  Returns:
    grain.IterDataset of {name: array [B / P, ...]}.

  Raises:
    ConfigError: `batch_size` cannot be split among the processes, or there is no example.
  """
  rows = _rows_per_process(dataset, batch_size, process_count)
  dataset = _with_weights(dataset)
  if isinstance(dataset, ArraySource):
    blocks = grain.MapDataset.range(process_index, sys.maxsize // rows, process_count)
    return blocks.map(_shuffled_block(dataset, rows, seed)).to_iter_dataset(_GATHER)
  # Grain seeds epoch e with seed + e: hashing keeps the epochs of neighbouring seeds apart.
  hashed = int(np.random.SeedSequence([seed, _SHUFFLE]).generate_state(1)[0])
  # drop_remainder, since the length of the endless stream rounded up is more than Python can hold.
  blocks = dataset.shuffle(hashed).repeat().batch(rows, drop_remainder=True)
  return blocks[process_index::process_count].to_iter_dataset(_READ)


def eval_batches(dataset, *, batch_size, process_index=0, process_count=1):
  """One pass in order. The last batch is filled up with copies of the last row, of weight 0.

  Args and raised errors are those of `train_batches`.

  Returns:
    Iterator of {name: array [B / P, ...]}: as many batches in every process.
  """
  rows = _rows_per_process(dataset, batch_size, process_count)
  dataset = _with_weights(dataset)
  padding = -len(dataset) % batch_size
  if isinstance(dataset, ArraySource):
    blocks = grain.MapDataset.range(process_index, (len(dataset) + padding) // rows, process_count)
    return iter(blocks.map(_padded_block(dataset, rows)).to_iter_dataset(_GATHER))
  if padding:
    last = dataset[len(dataset) - 1:].map(lambda row: {**row, 'weight': 0 * row['weight']})
    dataset = grain.MapDataset.concatenate([dataset, last.repeat(padding)])
  blocks = dataset.batch(rows)
  return iter(blocks[process_index::process_count].to_iter_dataset(_READ))


def _rows_per_process(dataset, batch_size, process_count):
  config_lib.require(batch_size > 0 and batch_size % process_count == 0, 'batch_size',
                     f'a positive multiple of the number of processes, {process_count}', batch_size)
  config_lib.require(len(dataset) > 0, 'data', 'at least one example', len(dataset))
  return batch_size // process_count


def _with_weights(dataset):
  if isinstance(dataset, ArraySource):
    return ArraySource({'weight': np.ones(len(dataset), np.float32), **dataset.arrays})
  return dataset.map(lambda example: {'weight': np.float32(1), **example})


def _shuffled_block(dataset, rows, seed):
  """Function of k that gathers the positions [k * rows, (k + 1) * rows) of the shuffled stream."""
  size = len(dataset)

  @functools.lru_cache(maxsize=2)  # a block touches two epochs, or is longer than one
  def order(epoch):
    return np.random.default_rng([seed, _SHUFFLE, epoch]).permutation(size)

  def gather(k):
    epochs, positions = np.divmod(np.arange(k * rows, (k + 1) * rows), size)
    return dataset.take(np.concatenate([
        order(epoch)[positions[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]))

  return gather


def _padded_block(dataset, rows):
  """Function of k that gathers the rows [k * rows, (k + 1) * rows), with weight 0 past the end."""
  size = len(dataset)

  def gather(k):
    positions = np.arange(k * rows, (k + 1) * rows)
    batch = dataset.take(np.minimum(positions, size - 1))
    return {**batch, 'weight': batch['weight'] * (positions < size)}

  return gather
