"""Ragged clients on the host: who owns which rows, who takes part, in which order.

The device holds the whole table of examples; a round ships only int32 row numbers. Everything is a
pure function of (seed, round, client id), so a round can be replayed after a restart without
replaying the rounds before it, and does not depend on the order of clients, on chunks, padding or
devices.
"""
import dataclasses
from typing import NamedTuple

import numpy as np

_SHUFFLING = 2  # a stream of randomness, beside that of sampling


class LocalWork(NamedTuple):
  """How much a client does in a round.

  Attributes:
    batch_size: examples a step; those of the largest client or more make every step a full batch.
    epochs: passes over the client's own data, each reshuffled.
    steps: if positive, exactly so many steps instead, cycling through reshuffled data.
    drop_remainder: leaves out the last batch of a pass where it is not full, and so clients with
      less than a batch.
  """
  batch_size: int
  epochs: int = 1
  steps: int = 0
  drop_remainder: bool = False


@dataclasses.dataclass(frozen=True)
class Clients:
  """Row numbers of a table, client by client (CSR layout).

  Attributes:
    rows: int32 [N], the rows of client 0, then those of client 1, ...
    offsets: int64 [C + 1]; client c owns rows[offsets[c]:offsets[c + 1]].
  """
  rows: np.ndarray
  offsets: np.ndarray

  @classmethod
  def from_parts(cls, parts):
    """From a list of row-number arrays, one a client (empty ones allowed)."""
    sizes = [len(part) for part in parts]
    return cls(
        np.concatenate(parts).astype(np.int32),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

  @property
  def num_clients(self):
    """C."""
    return len(self.offsets) - 1

  @property
  def sizes(self):
    """int64 [C], examples of each client."""
    return np.diff(self.offsets)

  def of(self, client):
    """The row numbers of a client."""
    return self.rows[self.offsets[client]:self.offsets[client + 1]]


def local_batches(rows, work, seed, round_number, client):
  """The batches of one client in one round.

  Args:
    rows: row numbers that the client owns [n].
    work: LocalWork.
    seed: of the run.
    round_number: the round.
    client: the client's id.

  Returns:
    int32 [S, batch_size] row numbers, -1 padding at the ends of passes; S = 0 for a client without
    rows, or with less than a batch where partial ones are dropped.
  """
  size = work.batch_size
  per_pass = _batches(len(rows), work)
  if not per_pass:
    return np.full((0, size), -1, np.int32)
  entropy = [seed, _SHUFFLING, round_number, client]
  if max(entropy) < 2**32:  # the same numbers, sooner
    entropy = np.array(entropy, np.uint32)
  rng = np.random.default_rng(entropy)
  taken = min(len(rows), per_pass * size)
  passes = -(-work.steps // per_pass) if work.steps else work.epochs
  batches = np.full((passes, per_pass * size), -1, np.int32)
  for one in batches:
    one[:taken] = rng.permutation(rows)[:taken]
  batches = batches.reshape(-1, size)
  return batches[:work.steps] if work.steps else batches


def padded_steps(steps):
  """Rounds up to 2^k or 3 * 2^(k-1), so that varying cohorts share a few compiled shapes."""
  step = 1
  while step < steps:
    if step * 3 // 2 >= steps and step > 1:
      return step * 3 // 2
    step *= 2
  return step


class HostCohort(NamedTuple):
  """The clients of some devices in a round, as padded arrays.

  Attributes:
    ids: int32 [D, M], -1 for a padding client.
    index: int32 [D, M, S, B] row numbers, -1 for padding.
    weights: float32 [D, M], 0 for a padding client and for one without steps.
  """
  ids: np.ndarray
  index: np.ndarray
  weights: np.ndarray


def _batches(size, work):
  """Batches of a pass over so many rows."""
  return size // work.batch_size if work.drop_remainder else -(-size // work.batch_size)


def num_steps(sizes, work):
  """Local steps of clients with these numbers of rows: int64, shaped like `sizes`."""
  batches = _batches(np.asarray(sizes), work)
  return np.where(batches > 0, work.steps or work.epochs * batches, 0)


def make_cohort(clients, ids, work, seed, round_number, *, weighting, num_devices=1, devices=None,
                chunk=1, steps=None, slots=None, times=None):
  """Builds the padded arrays of a round.

  Clients are dealt to the devices like cards, the longest first, so that devices have equal work
  and the clients that are vmapped together have about as many steps. Only the rows of the asked
  devices are touched.

  Args:
    clients: Clients.
    ids: the clients that take part.
    work: LocalWork.
    seed: of the run.
    round_number: the round.
    weighting: 'examples', 'uniform', or weights by client [C].
    num_devices: devices of all processes.
    devices: positions of the devices to build, all by default.
    chunk: clients vmapped together; each device gets a multiple of it.
    steps: S, at least the longest client's; by default that, rounded up by `padded_steps`.
    slots: M, a multiple of `chunk` with room for the clients; by default as few as have.
    times: [len(ids)] how often each client counts; once by default.

  Returns:
    HostCohort of the asked devices.
  """
  ids = np.asarray(ids, np.int64)
  sizes = clients.sizes[ids]
  lengths = num_steps(sizes, work)
  steps = steps or padded_steps(max(1, lengths.max(initial=0)))
  devices = range(num_devices) if devices is None else devices
  slots = slots or max(1, -(-len(ids) // (num_devices * chunk))) * chunk
  if isinstance(weighting, str):
    weights = {'examples': sizes, 'uniform': np.ones(len(ids))}[weighting]
  else:
    weights = np.asarray(weighting)[ids]
  weights = np.where(lengths > 0, weights, 0) * (1 if times is None else times)
  cohort = HostCohort(ids=np.full((len(devices), slots), -1, np.int32),
                      index=np.full((len(devices), slots, steps, work.batch_size), -1, np.int32),
                      weights=np.zeros((len(devices), slots), np.float32))
  longest = np.argsort(-lengths, kind='stable')
  for position, device in enumerate(devices):
    for slot, i in enumerate(longest[device::num_devices]):
      cohort.ids[position, slot] = ids[i]
      cohort.index[position, slot, :lengths[i]] = local_batches(
          clients.of(ids[i]), work, seed, round_number, int(ids[i]))
      cohort.weights[position, slot] = weights[i]
  return cohort


def padding_waste(index, chunk):
  """Share of the steps run that are no steps: each chunk of clients runs as long as its longest.

  Args:
    index: [..., M, S, B] row numbers.
    chunk: clients vmapped together.
  """
  steps = (index >= 0).any(-1).sum(-1).reshape(-1, chunk)
  run = chunk * steps.max(-1).sum()
  return 1 - steps.sum() / max(run, 1)
