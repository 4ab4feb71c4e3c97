"""The small models on real pages: features made once, all seeds of an arm one compiled program."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel
from jaxlab.systems.deepqse import baselines, demo, small
from jaxlab.systems.deepqse.model import scatter_scores
from jaxlab.train import task_gradient

QUERY, SENTENCE = 20, 40  # tokens
PSEUDO, PSEUDO_WORDS, EPOCHS = 1312, (4, 10), 2
BATCH, CANDIDATES, RATE, CLIP = 16, 6, 1e-3, 1.0
EVALUATED = 4  # pages at a time


class World(NamedTuple):
  """Pages, queries and their frozen vectors.

  Attributes:
    arrays: 'query' [N, Sq, F], 'query_mask', 'sentence' [M, Ss, F], 'sentence_mask', and of the N
      queries 'page' int [N, n] (rows of the sentences), 'mask' [N, n], 'label' [N], 'cosine' [N, n]
      of the frozen vectors and 'hard' int [N, CANDIDATES - 2], the wrong sentences of the largest.
    pseudo: int rows of the queries that are words of the training pages' sentences.
    train: int rows of the training split.
    parts: 'dev', 'test' -> int rows of the queries.
    overlap: name -> scores float32 [N, n] of what learns nothing.
  """
  arrays: dict[str, np.ndarray]
  pseudo: np.ndarray
  train: np.ndarray
  parts: dict[str, np.ndarray]
  overlap: dict[str, np.ndarray]


def build(encoder, splits, seed):
  """The World of examples.

  Args:
    encoder: frozen.Frozen.
    splits: 'train', 'dev', 'test' -> [formats.Example, ...].
    seed: of the pseudo-questions.
  """
  rng = np.random.default_rng([seed, 2])
  of_pages = list(dict.fromkeys((e.title, e.sentences) for e in splits['train']))
  groups = {'pseudo': demo.questions(of_pages, PSEUDO, rng, PSEUDO_WORDS), **splits}
  examples = [e for group in groups.values() for e in group]
  ends = np.cumsum([len(group) for group in groups.values()])
  rows = {name: np.arange(end - len(groups[name]), end) for name, end in zip(groups, ends)}
  texts = list(dict.fromkeys(s for e in examples for s in e.sentences))
  number = {sentence: i for i, sentence in enumerate(texts)}
  length = max(len(e.sentences) for e in examples)
  page = np.zeros((len(examples), length), np.int32)
  mask = np.zeros((len(examples), length), np.float32)
  for i, example in enumerate(examples):
    count = len(example.sentences)
    page[i, :count], mask[i, :count] = [number[s] for s in example.sentences], 1
  queries = encoder.encode([e.query for e in examples], QUERY)
  sentences = encoder.encode(texts, SENTENCE)
  label = np.array([e.label for e in examples], np.int32)
  cosine = np.einsum('ne,nje->nj', queries.vectors, sentences.vectors[page]) * mask
  wrong = np.where((mask > 0) & (np.arange(length) != label[:, None]), cosine, -np.inf)
  hard = np.argsort(-wrong, axis=1, kind='stable')[:, :CANDIDATES - 2].astype(np.int32)
  arrays = {'query': queries.tokens, 'query_mask': queries.mask, 'sentence': sentences.tokens,
            'sentence_mask': sentences.mask, 'page': page, 'mask': mask, 'label': label,
            'cosine': cosine.astype(np.float32), 'hard': hard}
  score = lambda function: baselines.padded(
      [function(e.query, e.sentences) for e in examples], length)
  bm25 = score(baselines.bm25)
  overlap = {'first sentences in order': score(lambda _, s: baselines.in_order(s)),
             'TF-IDF': score(baselines.tf_idf), 'BM25': bm25, 'frozen cosine': arrays['cosine'],
             'cosine + .05 BM25': arrays['cosine'] + 0.05 * bm25}
  return World(arrays, rows['pseudo'], rows['train'],
               {name: rows[name] for name in ('dev', 'test')}, overlap)


def gather(arrays, rows, chosen, blank):
  """The batch of some queries and candidates.

  Args:
    arrays: of a World.
    rows: int [B].
    chosen: int [B, C], sentences of the queries' pages.
    blank: whether the query is taken away: it becomes one token without a content.
  """
  pick = lambda name: jnp.take_along_axis(arrays[name][rows], chosen, axis=1)
  sentences, seen = pick('page'), jnp.where(blank, 0.0, 1.0)
  query_mask = jnp.where(blank, jnp.arange(QUERY) == 0, arrays['query_mask'][rows])
  return {'query': arrays['query'][rows] * seen, 'query_mask': query_mask,
          'sentences': arrays['sentence'][sentences],
          'sentence_mask': arrays['sentence_mask'][sentences], 'mask': pick('mask'),
          'positions': chosen + 1, 'cosine': pick('cosine') * seen,
          'weight': jnp.ones(len(rows))}


@functools.lru_cache
def run_of(arm, context, positions, steps):
  """The function of one run: (arrays and rows, key, blank, test candidates [T, K], params of the
  coarse model or {}) -> (scores [T, n] of the test pages, losses [steps], params); see `measure`.
  """
  model = small.Small(arm, positions, context)

  def run(shared, key, blank, candidates, start):
    arrays, pseudo, train, test = shared
    init_key, order_key, pick_key = jax.random.split(key, 3)
    one = gather(arrays, test[:1], candidates[:1], blank)
    task = small.make_task(model, one)
    gradient = task_gradient(task)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 10, steps)))
    params = small.start_from(start, task.init(init_key)['params'])
    epochs = [jax.random.permutation(jax.random.fold_in(order_key, i), rows)
              for i, rows in enumerate([pseudo] + [train] * EPOCHS)]
    order = jnp.concatenate(epochs)[:steps * BATCH].reshape(steps, BATCH)

    def step(carry, number):
      params, state = carry
      rows = order[number]
      gold = arrays['label'][rows]
      count = arrays['mask'][rows].sum(1).astype(jnp.int32)
      draw = jax.random.uniform(jax.random.fold_in(pick_key, number), (BATCH,))
      other = (gold + 1 + (draw * (count - 1)).astype(jnp.int32)) % count
      chosen = jnp.concatenate([gold[:, None], arrays['hard'][rows], other[:, None]], axis=1)
      grads, sums = gradient(params, gather(arrays, rows, chosen, blank), key)
      updates, state = optimizer.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), sums['loss'][0] / sums['loss'][1]

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))

    def score(inputs):
      row, chosen = inputs
      batch = gather(arrays, row[None], chosen[None], blank)
      found = task.predict({'params': params}, batch, None)
      return scatter_scores(found, chosen[None], arrays['page'].shape[1])[0]

    return jax.lax.map(score, (test, candidates), batch_size=EVALUATED), losses, params

  return run


def measure(world, arm, seeds, blank, *, context='query', candidates=None, start=None):
  """(test scores [R, T, n], losses [R, steps], params [R, ...]) of R runs of an arm.

  Args:
    world: World.
    arm: 'joint', 'coarse' or 'fine'.
    seeds: R integers.
    blank: whether the query is taken away, in training and in the test.
    context: see model.Ranker.
    candidates: int [R, T, K] sentences that are scored; all of the page by default.
    start: params [R, ...] of the coarse model that the fine one starts from; random by default.
  """
  length = world.arrays['page'].shape[1]
  steps = (len(world.pseudo) + EPOCHS * len(world.train)) // BATCH
  test = world.parts['test']
  if candidates is None:
    candidates = np.broadcast_to(np.arange(length, dtype=np.int32), (len(seeds), len(test), length))
  keys = jax.vmap(jax.random.key)(np.asarray(seeds))
  shared = world.arrays, world.pseudo, world.train, test
  return parallel.map_runs(run_of(arm, context, length + 1, steps), shared, keys,
                           np.full(len(seeds), blank), candidates, start or {})
