"""The runs of `reproduce`: an encoder trained on pairs of which all is on the device.

A neighbour that occurs several times in a batch is encoded once, which changes nothing but the
noise of dropout.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel
from jaxlab.losses import contrastive
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.graphformers import data as data_lib
from jaxlab.systems.graphformers import metrics, pollution
from jaxlab.systems.graphformers.model import Cascade, GraphFormer, TextOnly

WIDTH, HEADS, LAYERS = 64, 4, 2
TOKENS, NEIGHBORS = 12, 5
BATCH, WARMUP, SCALE = 60, 0.05, 0.1
CHUNK = 256  # texts encoded together in evaluation
MODELS = {'text only': TextOnly, 'GraphFormers': GraphFormer, 'PLM+SAGE-max': Cascade}


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs of nodes, ready for the device.

  Attributes:
    texts: {'ids', 'mask'} [T, S] of the distinct texts as neighbours.
    centers: {'ids', 'mask'} [T, S'] of them as centres.
    nodes: split -> int32 [n, 2, 1 + K], numbers of texts.
    here: split -> bool [n, 2, 1 + K], which nodes are there; the centre always.
    vocabulary: pollution.Vocabulary.
  """
  texts: dict[str, np.ndarray]
  centers: dict[str, np.ndarray]
  nodes: dict[str, np.ndarray]
  here: dict[str, np.ndarray]
  vocabulary: pollution.Vocabulary


def prepare(tokenizer, texts, center_length, use_neighbors):
  """Pairs of `data.Texts`; without `use_neighbors` no node but the centre is there."""
  whole, short = (data_lib.tokenize(tokenizer, texts.texts, length)
                  for length in (TOKENS, center_length))
  real = whole['mask'].sum(1) > 2
  fill = lambda tokens: {**tokens, 'ids': tokens['ids'].astype(np.int32)}
  here = {}
  for split, numbers in texts.numbers.items():
    here[split] = real[numbers] & use_neighbors
    here[split][..., 0] = True
  return Pairs(fill(whole), fill(short), texts.numbers, here, data_lib.vocabulary(tokenizer))


def make_model(arm, vocab_size):
  """The encoder of an arm; all share the text encoder's shape."""
  return MODELS[arm](BertConfig(
      vocab_size, WIDTH, LAYERS, HEADS, 4 * WIDTH, max_position_embeddings=TOKENS,
      initializer_range=0.1, add_pooler=False))


def schedule_of(pairs, seed, epochs):
  """(the batches of a run as arrays [epochs, steps, ...], the most distinct neighbours of one).

  The batches are {'nodes': [B, 2, 1 + K], 'here'}; every epoch is a new order of the training pairs
  of which the last partial batch is left out.
  """
  count = len(pairs.nodes['train'])
  steps = count // BATCH
  orders = [np.random.default_rng([seed, epoch]).permutation(count)[:steps * BATCH]
            for epoch in range(epochs)]
  rows = np.stack(orders).reshape(epochs, steps, BATCH)
  batches = {'nodes': pairs.nodes['train'][rows], 'here': pairs.here['train'][rows]}
  most = max(len(np.unique(step)) for epoch in batches['nodes'] for step in epoch[..., 1:])
  return batches, most


def distinct(batches, size):
  """The batches with the distinct neighbours of each [size] and where in them each stands."""
  neighbors = batches['nodes'][..., 1:]
  lead = neighbors.shape[:2]
  unique = np.zeros((*lead, size), np.int32)
  where = np.zeros(neighbors.shape, np.int32)
  for index in np.ndindex(lead):
    found, inverse = np.unique(neighbors[index], return_inverse=True)
    unique[index][:len(found)] = found
    where[index] = inverse.reshape(neighbors[index].shape)
  return {'centers': batches['nodes'][..., 0], 'here': batches['here'], 'unique': unique,
          'where': where}


@functools.lru_cache
def trainer(arm, vocabulary):
  """The function of one run: (shared, rate, key, polluted [epochs], batches) -> results.

  `shared` is (texts, centers, evaluated pairs {'nodes', 'here'} [m, 2, 1 + K]); the results are
  'loss' [epochs], 'vectors' [epochs, m, 2, D], and those with the neighbours masked, 'masked'.
  """
  model = make_model(arm, vocabulary.size)

  def take(table, rows):
    return table['ids'][rows], table['mask'][rows]

  def center(params, tokens, states, here, **options):
    """[..., D] of centres; all arguments have the same leading axes."""
    lead = here.shape[:-1]
    flat = lambda x: x.reshape(-1, *x.shape[len(lead):])
    out = model.apply({'params': params}, *(flat(x) for x in tokens), flat(states), flat(here),
                      method='center', **options)
    return out.reshape(*lead, -1)

  def loss(params, shared, batch, polluted, key):
    noise = lambda number: {'deterministic': False,
                            'rngs': {'dropout': jax.random.fold_in(key, number)}}
    states = model.apply({'params': params}, *take(shared[0], batch['unique']),
                         method='neighbor_states', **noise(0))
    ids, mask = take(shared[1], batch['centers'])
    changed = pollution.pollute(jax.random.fold_in(key, 2), ids.reshape(-1, ids.shape[-1]),
                                vocabulary).reshape(ids.shape)
    ids = jnp.where(polluted, changed, ids)
    vectors = center(params, (ids, mask), states[batch['where']], batch['here'], **noise(1))
    logits, own = contrastive.in_batch_logits(vectors[:, 0], vectors[:, 1], temperature=1 / SCALE)
    return contrastive.cross_entropy(logits, own).mean()

  def evaluate(params, shared):
    texts, centers, pairs = shared
    count = len(texts['ids'])
    padded = jnp.minimum(jnp.arange(-(-count // CHUNK) * CHUNK), count - 1).reshape(-1, CHUNK)
    states = jax.lax.map(lambda rows: model.apply(
        {'params': params}, *take(texts, rows), method='neighbor_states'), padded)
    states = states.reshape(-1, *states.shape[2:])[pairs['nodes'][..., 1:]]
    alone = pairs['here'] & (jnp.arange(pairs['here'].shape[-1]) == 0)
    tokens = take(centers, pairs['nodes'][..., 0])
    return jax.lax.map(lambda here: center(params, tokens, states, here),
                       jnp.stack([pairs['here'], alone]))

  def run(shared, rate, key, polluted, batches):
    init_key, noise_key = jax.random.split(key)
    ids = jnp.zeros((1, 2, 4), jnp.int32)
    params = model.init(init_key, ids, ids + 1, jnp.ones((1, 2)))['params']
    adam = optax.scale_by_adam()
    epochs, steps = batches['centers'].shape[:2]
    profile = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, int(WARMUP * steps * epochs)),
         optax.linear_schedule(1.0, 0.0, steps * epochs - int(WARMUP * steps * epochs))],
        [int(WARMUP * steps * epochs)])

    def step(carry, inputs):
      (params, state), (number, batch, dirty) = carry, inputs
      value, gradient = jax.value_and_grad(loss)(params, shared, batch, dirty,
                                                 jax.random.fold_in(noise_key, number))
      updates, state = adam.update(gradient, state, params)
      updates = jax.tree.map(lambda u: -rate * profile(number) * u, updates)
      return (optax.apply_updates(params, updates), state), value

    def epoch(carry, inputs):
      number, batch, dirty = inputs
      numbers = number * steps + jnp.arange(steps)
      carry, losses = jax.lax.scan(step, carry, (numbers, batch, jnp.repeat(dirty, steps)))
      return carry, (losses.mean(), evaluate(carry[0], shared))

    start = params, adam.init(params)
    _, (losses, vectors) = jax.lax.scan(epoch, start, (jnp.arange(epochs), batches, polluted))
    return {'loss': losses, 'vectors': vectors[:, 0], 'masked': vectors[-1, 1]}

  return run


def train(arm, pairs, rates, seeds, *, epochs, polluted_epochs=0):
  """Runs of an arm, one for each of the paired `rates` and `seeds`.

  Args:
    arm: key of `MODELS`.
    pairs: Pairs.
    rates: peak learning rates [R]; warm-up, then linear decay to 0.
    seeds: of initialisation, order and noise [R].
    epochs: passes over the training pairs.
    polluted_epochs: the first of them whose centres are polluted.

  Returns:
    List of R mappings: 'loss', 'validation' [epochs] (the tie-aware MRR), and 'test', 'masked'
    (metrics of `metrics.over_batches` at the end, with and without neighbours).
  """
  schedules = [schedule_of(pairs, seed, epochs) for seed in seeds]
  # One width for all calls of an arm, so that there is one compilation.
  size = min(BATCH * 2 * NEIGHBORS, -(-max(most for _, most in schedules) // 64) * 64)
  made = [distinct(batches, size) for batches, _ in schedules]
  parts = ('validation', 'test')
  evaluated = {name: np.concatenate([getattr(pairs, name)[part] for part in parts])
               for name in ('nodes', 'here')}
  dirty = np.arange(epochs) < polluted_epochs
  results = parallel.map_runs(
      trainer(arm, pairs.vocabulary), (pairs.texts, pairs.centers, evaluated),
      np.array(rates, np.float32), jax.vmap(jax.random.key)(np.array(seeds)),
      np.stack([dirty] * len(seeds)), jax.tree.map(lambda *x: np.stack(x), *made), block=1)
  border = len(pairs.nodes['validation'])
  score = lambda vectors, rows: metrics.over_batches(*vectors[rows].swapaxes(0, 1))
  validation, test = slice(border), slice(border, None)
  return [{'loss': results['loss'][r].tolist(),
           'validation': [score(v, validation)['tied_mrr'] for v in results['vectors'][r]],
           'test': score(results['vectors'][r][-1], test),
           'masked': score(results['masked'][r], test)} for r in range(len(seeds))]
