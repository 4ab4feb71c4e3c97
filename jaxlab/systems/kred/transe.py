"""TransE (Bordes et al. 2013, NeurIPS): vectors in which head + relation is about tail."""
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

_TINY = 1e-24


def _length(x):
  """L2 norm over the last axis, with gradient 0 at 0."""
  return jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), _TINY))


def distance(params, triples, norm=1):
  """||e_h + r - e_t||, L1 (`norm` 1) or L2 (2).

  Args:
    params: {'entity': [E, D], 'relation': [R, D]}.
    triples: int [..., 3], (head, relation, tail).
    norm: 1 or 2.

  Returns:
    [...].
  """
  head, relation, tail = (triples[..., i] for i in range(3))
  gap = params['entity'][head] + params['relation'][relation] - params['entity'][tail]
  return jnp.abs(gap).sum(-1) if norm == 1 else _length(gap)


def loss(params, positive, negative, margin=1.0, norm=1):
  """Mean over triples [T, 3] of max(0, margin + f(positive) - f(negative))."""
  near, far = distance(params, positive, norm), distance(params, negative, norm)
  return jax.nn.relu(margin + near - far).mean()


def corrupt(key, triples, num_entities):
  """Replaces the head or the tail (even chances) by an entity 1..num_entities, uniformly."""
  side_key, entity_key = jax.random.split(key)
  entity = jax.random.randint(entity_key, triples.shape[:1], 1, num_entities + 1)
  head = jax.random.bernoulli(side_key, shape=triples.shape[:1])
  return jnp.stack([jnp.where(head, entity, triples[:, 0]), triples[:, 1],
                    jnp.where(head, triples[:, 2], entity)], axis=1)


def train(triples, *, seed: int = 0, dim: int = 100, steps: int = 2000, batch_size: int = 1024,
          learning_rate: float = 0.01, margin: float = 1.0, norm: Literal[1, 2] = 1):
  """Trains vectors by Adam; entities are brought to unit length after each step.

  Args:
    triples: int [T, 3], (head, relation, tail), numbered from 1.
    seed: of initialisation, order and corruption.
    dim: D.
    steps: of the optimizer.
    batch_size: triples of a step, drawn with replacement.
    learning_rate: of Adam.
    margin: between a triple and its corruption.
    norm: 1 or 2.

  Returns:
    (entity [1 + E, D], relation [1 + R, D], losses [steps]) as NumPy; rows 0 are zero.
  """
  triples = np.asarray(triples, np.int32)
  if triples.ndim != 2 or triples.shape[1:] != (3,) or not len(triples) or triples.min() < 1:
    raise ValueError(f'triples: expected [T, 3] numbers from 1, T >= 1, got shape {triples.shape}')
  entities, relations = int(triples[:, [0, 2]].max()), int(triples[:, 1].max())
  optimizer = optax.adam(learning_rate)

  def unit(x):
    return x / _length(x)[:, None]

  @jax.jit
  def run(key, triples):
    entity_key, relation_key, key = jax.random.split(key, 3)
    bound = 6 / np.sqrt(dim)
    draw = lambda key, rows: jax.random.uniform(
        key, (rows + 1, dim), jnp.float32, -bound, bound).at[0].set(0)
    params = {'entity': unit(draw(entity_key, entities)),
              'relation': unit(draw(relation_key, relations))}

    def step(carry, number):
      params, state = carry
      rows_key, corrupt_key = jax.random.split(jax.random.fold_in(key, number))
      rows = triples[jax.random.randint(rows_key, (batch_size,), 0, len(triples))]
      value, gradient = jax.value_and_grad(loss)(
          params, rows, corrupt(corrupt_key, rows, entities), margin, norm)
      updates, state = optimizer.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
      return ({**params, 'entity': unit(params['entity'])}, state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params, losses

  params, losses = jax.device_get(run(jax.random.key(seed), triples))
  return params['entity'], params['relation'], losses


def filtered_hits(entity, relation, triples, known, k=10, norm=1):
  """Share of held-out triples whose tail, and head, is among the k nearest of all entities.

  Other true answers (those in `known`) do not count as rivals.

  Args:
    entity: [1 + E, D].
    relation: [1 + R, D].
    triples: int [T, 3], to be judged.
    known: int [K, 3], all true triples.
    k: places.
    norm: 1 or 2.
  """
  params = {'entity': jnp.asarray(entity), 'relation': jnp.asarray(relation)}
  every = np.arange(1, len(entity))
  true = set(map(tuple, np.asarray(known).tolist()))
  hits = []
  for triple in np.asarray(triples).tolist():
    for side in (0, 2):
      rivals = np.tile(triple, (len(every), 1))
      rivals[:, side] = every
      apart = np.array(distance(params, rivals, norm))
      others = np.array([tuple(row) in true for row in rivals.tolist()])
      own = apart[triple[side] - 1]
      hits.append((apart[~others] < own).sum() < k)
  return float(np.mean(hits))
