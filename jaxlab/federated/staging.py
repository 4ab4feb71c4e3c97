"""The next cohorts, built by Grain on the host while the device runs the current ones.

What a call of the round program needs is a pure function of the call's number, so there is nothing
to checkpoint. Where the clients' data do not fit the device, only the rows of the cohort are sent.
"""
import functools
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxlab.data import pipeline
from jaxlab.federated import clients as clients_lib


class Call(NamedTuple):
  """What one call of the round program gets from the host.

  Attributes:
    cohorts: HostCohort with leaves [D, R, M, ...] of this process's D devices.
    table: {column: [D, N', ...]} the rows that each device needs, or None for the resident table.
    waste: share of the steps run that are padding.
    contacts: clients that take part, those of all rounds and devices.
    rows: {name of a parameter: int32 [R, K]} the rows of it that take part, as `RoundRows` gives
      them; {} where all do.
  """
  cohorts: clients_lib.HostCohort
  table: Any
  waste: float
  contacts: int
  rows: Any


class CallSource:
  """Random access to the calls of a run; a source for `grain.MapDataset`.

  Args:
    clients: Clients.
    settings: FederatedConfig.
    seed: of the run.
    weighting: 'examples' or 'uniform', where the sampler has no other.
    num_devices: devices of all processes.
    devices: positions of this process's devices.
    chunk: clients vmapped together.
    dataset: MapDataset of the rows to stage, or None to stage none.
    rows: RoundRows, or None where parameters take part whole.
    whole: bool [N + 1] by client id, those with whom they take part whole all the same.
  """

  def __init__(self, clients, settings, seed, *, weighting, num_devices, devices, chunk,
               dataset=None, rows=None, whole=None):
    self._clients, self._settings, self._seed = clients, settings, seed
    self._chunk, self._dataset, self._rows, self._whole = chunk, dataset, rows, whole
    self._abreast = num_devices * chunk
    self._sampler = settings.make_sampler(clients.sizes, seed)
    self._make = functools.partial(
        clients_lib.make_cohort, clients, work=settings.work, seed=seed,
        weighting=self._sampler.weighting or weighting, num_devices=num_devices, devices=devices,
        chunk=chunk)

  def __len__(self):
    return self._settings.rounds // self._settings.rounds_per_call

  def __getitem__(self, number):
    settings, per_call = self._settings, self._settings.rounds_per_call
    rounds = range(number * per_call, (number + 1) * per_call)
    ids, times = zip(*(np.unique(self._sampler.draw(r), return_counts=True) for r in rounds))
    longest = max(clients_lib.num_steps(self._clients.sizes[i], settings.work).max(initial=1)
                  for i in ids)
    steps, slots = clients_lib.padded_steps(longest), self._slots(ids)
    cohorts = jax.tree.map(lambda *x: np.stack(x, axis=1), *(
        self._make(i, round_number=r, steps=steps, slots=slots, times=t)
        for i, t, r in zip(ids, times, rounds)))
    waste = clients_lib.padding_waste(cohorts.index, self._chunk)
    everyone = np.concatenate(ids)
    contacts = int((self._clients.sizes[everyone] > 0).sum())
    rows = {}
    if self._rows is not None and not (self._whole is not None and self._whole[everyone].any()):
      rows = self._rows([np.concatenate([np.zeros(0, np.int32), *map(self._clients.of, one)])
                         for one in ids])
    if self._dataset is None:
      return Call(cohorts, None, waste, contacts, rows)
    index, table = stage_rows(self._dataset, cohorts.index)
    return Call(cohorts._replace(index=index), table, waste, contacts, rows)

  def _slots(self, ids):
    """M for the clients [rounds][K] of a call: of the largest cohort where all are alike; otherwise
    rounded up, so that cohorts share a few shapes."""
    sampler, most = self._sampler, max(map(len, ids))
    chunks = lambda clients: max(1, -(-clients // self._abreast))
    if sampler.smallest == sampler.largest:
      return chunks(sampler.largest) * self._chunk
    return min(clients_lib.padded_steps(chunks(most)), chunks(sampler.largest)) * self._chunk


def stage_rows(dataset, index):
  """Copies the rows that each device visits to a table of its own.

  Args:
    dataset: MapDataset of examples.
    index: [D, ...] row numbers of each device, -1 for padding.

  Returns:
    (index into the new tables, {column: [D, N', ...]}); N' is rounded up so that cohorts share
    shapes, and the padding rows repeat row 0.
  """
  rows = [np.unique(own[own >= 0]) for own in index]
  size = clients_lib.padded_steps(max([1, *map(len, rows)]))
  moved = np.stack([np.where(own >= 0, np.searchsorted(wanted, own), -1).astype(np.int32)
                    for own, wanted in zip(index, rows)])
  tables = [pipeline.take(dataset, np.pad(wanted, (0, size - len(wanted)))) for wanted in rows]
  return moved, jax.tree.map(lambda *x: np.stack(x), *tables)


def prefetched(source, first_call):
  """Iterator over the calls from `first_call` on, two of them built ahead in a thread."""
  calls = grain.MapDataset.source(source)[first_call:]
  return iter(calls.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
