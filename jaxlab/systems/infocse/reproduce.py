"""Measures InfoCSE's claims in a synthetic world whose meanings are known, and looks at real text.

All runs, arms x rates x seeds, are one compiled program: the rule that picks positives is an input.
The switch of `--ablate` is that rule: the encoder's picks become any sentence of the document.
"""
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel
from jaxlab.systems.infocse import annotation, real_text, world
from jaxlab.systems.infocse import corpus as corpus_lib
from jaxlab.systems.infocse.model import WordAverage
from jaxlab.systems.infocse.positives import Positives
from jaxlab.systems.infocse.task import LossSettings, from_model
from jaxlab.train import claims, figures, task_gradient

SEEDS = 8
DIM, BATCH, ROUNDS, EPOCHS, STEPS = 32, 75, 6, 4, 8
RATES = (0.01, 0.03, 0.1)
CLUSTERS, MIN_COSINE = 4, -1.0
TWIN, RANDOM, ANNOTATED = range(3)
ARMS = {'twin': (TWIN, True), 'random': (RANDOM, True), 'annotate once': (ANNOTATED, False),
        'InfoCSE': (ANNOTATED, True)}  # (rule, whether every round picks by the new encoder)
HARD = {'said': 2, 'marks': 2}  # the world in which documents are easier to tell than meanings
RISE, LEAD = 0.05, 0.02  # least rise of the precision, least lead in retrieval


class Runs(NamedTuple):
  """What was measured, [R, ROUNDS] each or [R, ROUNDS, 4].

  Attributes:
    retrieval: share of sentences whose nearest one in other documents has their meaning.
    kinds: shares of the positives that are RIGHT, TRIVIAL, COARSE and FALSE.
    precision: share of RIGHT ones among the positives that are other sentences.
  """
  retrieval: np.ndarray
  kinds: np.ndarray
  precision: np.ndarray


def make_task(length):
  """The Task of word vectors, without data; each positive lacks one of its words."""
  ids, document = np.zeros((1, length), np.int32), np.zeros(1, np.int32)
  corpus = corpus_lib.from_tokens(ids, ids + 1, document, max_sentences=1, ends=False)
  return from_model(WordAverage(world.VOCABULARY, DIM), corpus, {},
                    positives=Positives(view='cutoff'), settings=LossSettings(temperature=0.1))


def one_run(task):
  """The function of one run: (shared, World, rule, every, rate, key) -> Runs without [R]."""
  gradient = task_gradient(task)

  def run(shared, place, rule, every, rate, key):
    del shared
    documents, sentences, length = place.ids.shape
    flat = {'ids': place.ids.reshape(-1, length),
            'mask': jnp.ones((documents * sentences, length), jnp.uint8)}
    valid = jnp.ones((documents, sentences), bool)
    others = ~jnp.eye(sentences, dtype=bool)
    init_key, run_key = jax.random.split(key)
    params, optimizer = task.init(init_key)['params'], optax.adam(rate)

    def embed(params):
      return task.predict({'params': params}, flat, None)['embeddings']

    def pick(z, key):
      def of_document(key, z, valid, trivial):
        by_model, _ = annotation.annotate(
            key, z, valid, trivial, trivial, max_clusters=CLUSTERS,
            per_cluster=sentences // CLUSTERS, min_cosine=MIN_COSINE)
        by_chance = annotation.choose(z, others & ~trivial, key=key, temperature=jnp.inf)
        return jnp.where(rule == ANNOTATED, by_model.index, by_chance.index)
      positive = jax.vmap(of_document)(jax.random.split(key, documents), z, valid,
                                       place.kind == world.TRIVIAL)
      return jnp.where(rule == TWIN, -1, positive)

    def step(carry, key):
      params, state, positive = carry
      document_key, sentence_key, key = jax.random.split(key, 3)
      document = jax.random.permutation(document_key, documents)[:BATCH]
      sentence = jax.random.randint(sentence_key, (BATCH,), 0, sentences)
      other = positive[document, sentence]
      other = jnp.where(other < 0, sentence, other)
      mask = jnp.ones((BATCH, length), jnp.uint8)
      batch = {'ids': place.ids[document, sentence], 'mask': mask,
               'positive_ids': place.ids[document, other], 'positive_mask': mask,
               'document': document, 'weight': jnp.ones(BATCH)}
      updates, state = optimizer.update(gradient(params, batch, key)[0], state, params)
      return (optax.apply_updates(params, updates), state, positive), None

    def epoch(carry, key):
      params, state, z = carry
      pick_key, step_key = jax.random.split(key)
      positive = pick(z, pick_key)
      (params, state, _), _ = jax.lax.scan(step, (params, state, positive),
                                           jax.random.split(step_key, STEPS))
      kind = jnp.take_along_axis(place.kind, jnp.maximum(positive, 0)[..., None], 2)[..., 0]
      kind = jnp.where(positive < 0, world.TRIVIAL, kind)
      return (params, state, z), jax.nn.one_hot(kind, 4).mean((0, 1))

    def one_round(carry, inputs):
      params, state, z = carry
      number, key = inputs
      now = embed(params).reshape(documents, sentences, -1)
      z = jnp.where((number == 0) | every, now, z)
      (params, state, _), kinds = jax.lax.scan(epoch, (params, state, z),
                                               jax.random.split(key, EPOCHS))
      kinds, vectors = kinds.mean(0), embed(params)
      document = jnp.repeat(jnp.arange(documents), sentences)
      elsewhere = document[:, None] != document
      nearest = jnp.argmax(jnp.where(elsewhere, vectors @ vectors.T, -2.0), axis=1)
      meaning = place.meaning.reshape(-1)
      found = Runs(jnp.mean(meaning[nearest] == meaning), kinds,
                   kinds[world.RIGHT] / jnp.maximum(1 - kinds[world.TRIVIAL], 1e-9))
      return (params, state, z), found

    start = (params, optimizer.init(params), jnp.zeros((documents, sentences, DIM)))
    inputs = jnp.arange(ROUNDS), jax.random.split(run_key, ROUNDS)
    return jax.lax.scan(one_round, start, inputs)[1]

  return run


def measure(seeds, rates, ablate, **options):
  """{arm: {rate: Runs of the seeds}} in the worlds of the seeds; `options` are `world.make`'s."""
  places = {seed: world.make(seed, **options) for seed in seeds}
  task = make_task(next(iter(places.values())).ids.shape[-1])
  cells = [(arm, rate, seed) for arm in ARMS for rate in rates for seed in seeds]
  rules = [ARMS[arm] for arm, _, _ in cells]
  rule = np.array([RANDOM if ablate and rule == ANNOTATED else rule for rule, _ in rules])
  found = parallel.map_runs(
      one_run(task), (), jax.tree.map(lambda *x: np.stack(x), *(places[s] for *_, s in cells)),
      rule, np.array([every for _, every in rules]), np.array([r for _, r, _ in cells], np.float32),
      jax.vmap(jax.random.key)(np.array([seed for *_, seed in cells])))
  block = lambda i: Runs(*(x[i * len(seeds):(i + 1) * len(seeds)] for x in found))
  return {arm: {rate: block(a * len(rates) + r) for r, rate in enumerate(rates)}
          for a, arm in enumerate(ARMS)}


def best(grid):
  """(rate, Runs) of the highest mean final retrieval."""
  rate = max(grid, key=lambda rate: grid[rate].retrieval[:, -1].mean())
  return rate, grid[rate]


def _rounds(values):
  return ' '.join(f'{value:.3f}' for value in values.mean(0))


def judge(chosen):
  """The claims about the world; `chosen` is {arm: (rate, Runs)}."""
  runs = {arm: found for arm, (_, found) in chosen.items()}
  ours = runs['InfoCSE']
  final = lambda arm: runs[arm].retrieval[:, -1]
  rise = claims.margin(ours.precision[:, -1], ours.precision[:, 0])
  table = [claims.Claim(
      f'the annotation gets better from round to round: precision + {RISE}', 'not available',
      f'{_rounds(ours.precision)}; last - first {rise}', claims.verdict(rise.at_least(RISE)))]
  for arm in ('twin', 'random', 'annotate once'):
    lead = claims.margin(final('InfoCSE'), final(arm))
    table.append(claims.Claim(
        f'retrieval across documents {LEAD} above "{arm}"', 'not available',
        f'{final("InfoCSE").mean():.3f} (rate {chosen["InfoCSE"][0]}) v {final(arm).mean():.3f} '
        f'(rate {chosen[arm][0]}), {lead}', claims.verdict(lead.at_least(LEAD))))
  right = {arm: found.kinds[:, -1, world.RIGHT] for arm, found in runs.items()}
  more = [claims.margin(right['InfoCSE'], right[arm]) for arm in ('random', 'annotate once')]
  shares = '; '.join(
      f'{arm} ' + ', '.join(f'{value:.2f}' for value in found.kinds[:, -1].mean(0))
      for arm, found in runs.items())
  table.append(claims.Claim(
      'more right positives than "random" and "annotate once"', 'not available',
      f'right, trivial, coarse, false in the last round: {shares}; {more[0]}, {more[1]}',
      claims.verdict(all(margin.at_least(LEAD) for margin in more))))
  return table


def _limits(hard, text):
  found = {arm: next(iter(grid.values())) for arm, grid in hard.items()}
  show = ', '.join(f'{arm} {runs.retrieval[:, -1].mean():.3f}' for arm, runs in found.items())
  yield claims.Claim(
      'where a sentence has as many words of its document as of its meaning, the start is poor '
      '(specified: no claim)', 'not available',
      f'precision {_rounds(found["InfoCSE"].precision)}; retrieval {show}', claims.NOT_JUDGED)
  metrics = [name for name in ('recall@1', 'mrr@10', 'spearman') if name in text['twin']]
  for name in metrics:
    yield claims.Claim(
        f'real text, word vectors: {name} (specified: no threshold)', 'not available',
        ', '.join(f'{arm} {found[name]:.3f}' for arm, found in text.items()), claims.NOT_JUDGED)


def main(seed, workdir, ablate, data_dir=None):
  """Prints the table, writes results.json and figure.png; True unless a claim does not hold.

  Args:
    seed: of the worlds and runs.
    workdir: folder to write to.
    ablate: whether positives are drawn from the document at random.
    data_dir: folder of real slices for `real_text.measure`, or None for docstrings.
  """
  seeds = [seed * 1000 + i for i in range(SEEDS)]
  grids = measure(seeds, RATES, ablate)
  chosen = {arm: best(grid) for arm, grid in grids.items()}
  hard = measure(seeds, (chosen['InfoCSE'][0],), ablate, **HARD)
  text = real_text.measure(seed, data_dir)
  table = [*judge(chosen), *_limits(hard, text)]
  spell = lambda grid: {arm: {str(rate): {name: x.tolist() for name, x in runs._asdict().items()}
                              for rate, runs in by_rate.items()} for arm, by_rate in grid.items()}
  results = {'grids': spell(grids), 'hard_world': spell(hard), 'real_text': text,
             'best_rates': {arm: rate for arm, (rate, _) in chosen.items()},
             'kinds': ['right', 'trivial', 'coarse', 'false']}
  rounds = np.arange(1, ROUNDS + 1)
  lines = {f'{arm}: retrieval': (rounds, runs.retrieval) for arm, (_, runs) in chosen.items()}
  lines['InfoCSE: precision of the positives'] = rounds, chosen['InfoCSE'][1].precision
  figures.compare(lines, pathlib.Path(workdir) / 'figure.png', xlabel='round', ylabel='share',
                  title=f'{SEEDS} synthetic worlds, each arm at the best of its rates')
  return claims.report('infocse', table, results, workdir, seed=seed, ablate=ablate)
