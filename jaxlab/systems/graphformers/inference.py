"""Vectors of all nodes of a graph, each text encoded once as a neighbour and once as a centre."""
import functools

import jax
import numpy as np

from jaxlab import parallel
from jaxlab.data import pipeline


def encode_graph(model, params, tokens, neighbors, *, centers=None, batch_size=256):
  """Vectors float32 [N, D] of the nodes of a graph, equal to those of the joint forward.

  What a node gives to others depends on its own text alone. It is computed once and kept on the
  host, N (L - 1) D numbers of the compute dtype for a GraphFormer, however many centres the node is
  a neighbour of.

  Args:
    model: GraphFormer, Cascade or TextOnly.
    params: its parameters.
    tokens: {'ids', 'mask'} [N, S] of all nodes.
    neighbors: int [N, K], -1 where there is none.
    centers: {'ids', 'mask'} [N, S'] of the nodes as centres; `tokens` by default.
    batch_size: nodes a device and call.

  Raises:
    ValueError: a neighbour that is no node.
  """
  count = len(tokens['ids'])
  if neighbors.size and not -1 <= neighbors.min() <= neighbors.max() < count:
    raise ValueError(f'neighbors: expected -1..{count - 1}, got {neighbors.min()}..'
                     f'{neighbors.max()}')
  params = parallel.place(params)
  states = np.concatenate(list(_map_rows(_neighbor_states(model), params, tokens, batch_size)))
  rows = {**(centers or tokens), 'neighbors': neighbors.astype(np.int32)}
  prepare = lambda batch: _with_states(batch, states)
  return np.concatenate(list(_map_rows(_center(model), params, rows, batch_size, prepare)))


def _with_states(batch, states):
  """The batch with the states of its neighbours in place of their numbers."""
  numbers = batch['neighbors']
  own = np.ones((len(numbers), 1), bool)
  return {'ids': batch['ids'], 'mask': batch['mask'], 'states': states[np.maximum(numbers, 0)],
          'node_mask': np.concatenate([own, numbers >= 0], 1)}


def _map_rows(function, params, columns, batch_size, prepare=lambda batch: batch):
  """Yields function(params, batch) of all rows, batch by batch, on all devices."""
  batches = pipeline.eval_batches(
      pipeline.from_arrays(columns), batch_size=batch_size * jax.device_count(),
      process_index=jax.process_index(), process_count=jax.process_count())
  for batch in batches:
    rows = parallel.split(prepare({name: batch[name] for name in columns}))
    outputs, weight = parallel.gather_rows(
        (function(params, parallel.shard(rows)), batch['weight'][None]))
    yield outputs[weight > 0]


@functools.lru_cache
def _neighbor_states(model):
  def run(params, batch):
    return model.apply({'params': params}, batch['ids'].astype(int), batch['mask'],
                       method='neighbor_states')
  return jax.pmap(run, axis_name=parallel.BATCH, in_axes=(None, 0))


@functools.lru_cache
def _center(model):
  def run(params, batch):
    return model.apply({'params': params}, batch['ids'].astype(int), batch['mask'],
                       batch['states'], batch['node_mask'], method='center').astype('float32')
  return jax.pmap(run, axis_name=parallel.BATCH, in_axes=(None, 0))
