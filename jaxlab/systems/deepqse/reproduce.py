"""Measures DeepQSE's claims at small scale: quality against a frozen encoder, and time online.

Quality is that of small trained layers over a frozen encoder, on queries made of the words of
docstrings, or on a folder of real pages; time that of whole encoders with random weights. The
switches of `--ablate` are the query, which becomes blank in the queries' and the sentences'
encoders, and the cache, whose making is then counted as online.
"""
import dataclasses
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.deepqse import cost, demo, experiment, formats, frozen, metrics, snippet
from jaxlab.systems.deepqse.model import CrossDeepQSE, DeepQSE
from jaxlab.systems.deepqse.task import Networks
from jaxlab.train import claims, figures

RUNS = 3
KEPT = 8  # candidates of pages of about 24 sentences
BELOW_FROZEN, BELOW_JOINT, TARGET, FASTER = 0.02, 0.04, 0.02, 3.0
SENTENCES, CANDIDATES, QUERY, SENTENCE = 100, 20, 20, 40  # of the page that is timed
REPETITIONS = 9
CUTOFFS = (1, 3, 5, 10)


def load(data_dir, seed):
  """(frozen.Frozen, split -> [Example, ...]) of a folder, or of docstrings where it is None."""
  with tempfile.TemporaryDirectory() as made:
    if data_dir is None:
      demo.write(made, seed)
    folder = pathlib.Path(data_dir or made)
    splits = {split: formats.read_pages(folder / f'{split}.tsv')[0]
              for split in ('train', 'dev', 'test')}
  encoder = frozen.load() if data_dir is not None else None
  texts = dict.fromkeys(s for e in splits['train'] for s in e.sentences)
  return encoder or frozen.fit(list(texts), seed=seed), splits


def keep(scores, mask):
  """The KEPT best sentences int [R, T, K] by scores [R, T, n]; among equals the earlier first."""
  hidden = np.where(mask > 0, scores, -np.inf)
  return np.argsort(-hidden, axis=-1, kind='stable')[..., :KEPT].astype(np.int32)


def measure(world, seeds, ablate):
  """(name -> test scores [R, T, n], name -> losses [R, steps], share of gold kept [R])."""
  test = world.parts['test']
  mask, labels = world.arrays['mask'][test], world.arrays['label'][test]
  found = {'DeepQSE': experiment.measure(world, 'joint', seeds, False)}
  if ablate:
    found['DeepQSE, blank query'] = experiment.measure(world, 'joint', seeds, True)
  else:
    found['DeepQSE, no document encoder'] = experiment.measure(world, 'joint', seeds, False,
                                                               context='none')
  found['coarse alone'] = experiment.measure(world, 'coarse', seeds, ablate)
  scores, _, start = found['coarse alone']
  kept = keep(scores, mask)
  found['Efficient-DeepQSE'] = experiment.measure(world, 'fine', seeds, ablate, candidates=kept,
                                                  start=start)
  hits = (kept == labels[None, :, None]).any(-1).mean(-1)
  return ({name: scores for name, (scores, *_) in found.items()},
          {name: losses for name, (_, losses, _) in found.items()}, hits)


def time_online():
  """{'joint', 'cache', 'two stages': median seconds a page} of whole encoders, random weights."""
  config = BertConfig(1000, 96, 2, 4, 384, max_position_embeddings=SENTENCES + 64, add_pooler=False)
  document = dataclasses.replace(config, vocab_size=0, num_hidden_layers=1)
  networks = Networks(DeepQSE(config, document), CrossDeepQSE(config, document), 1, CANDIDATES)
  rng = np.random.default_rng(0)
  ids = lambda *shape: rng.integers(2, 1000, shape).astype(np.int32)
  query, title = ids(1, QUERY - 2), ids(1, 1)  # [CLS] and the title's separator stand beside them
  page = snippet.PageCache(title, ids(1, SENTENCES, SENTENCE - 1), None)

  def init(key):
    row = lambda *shape: snippet.task_lib.compose(config, 1, jnp.ones(shape, jnp.int32))
    arguments = row(1, 4), row(1, 2, 4), jnp.ones((1, 2))
    return {name: net.init(key, *arguments)['params']
            for name, net in (('coarse', networks.coarse), ('fine', networks.fine))}

  params = jax.jit(init)(jax.random.key(0))
  build = lambda: snippet.encode_sentences(networks, params['coarse'], title, page.sentences)
  warm = page._replace(vectors=build())
  programs = {'joint': lambda: snippet.joint_scores(networks, params['coarse'], page, query),
              'cache': build,
              'two stages': lambda: snippet.two_stages(networks, params, warm, query)}
  times = {name: [] for name in programs}
  for repetition in range(REPETITIONS + 1):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program())
      if repetition:  # the first one compiles
        times[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in times.items()}


def _table(hit, overlap, hits, seconds, encoder, ablate):
  """The claims; `hit` name -> hit@1 [R], `overlap` likewise of what learns nothing."""
  points = lambda x: f'{100 * np.mean(x):.1f}'
  judged = hit['DeepQSE, blank query' if ablate else 'DeepQSE']
  joint, efficient = hit['DeepQSE'], hit['Efficient-DeepQSE']
  below = claims.margin(judged, np.full(RUNS, overlap['frozen cosine']))
  gap = claims.margin(efficient, joint)
  cold = seconds['two stages'] + seconds['cache']
  online = cold if ablate else seconds['two stages']
  ms = lambda name: f'{1e3 * seconds[name]:.1f}'
  tokens = cost.tokens(SENTENCES, CANDIDATES, QUERY, 0, SENTENCE)
  table = [
      claims.Claim(
          f'DeepQSE is at most {100 * BELOW_FROZEN:.0f} points hit@1 below the frozen encoder',
          'above representation models (figures not read)',
          f'{points(judged)} v {points(overlap["frozen cosine"])} ({encoder}), {below}',
          claims.verdict(below.mean >= -BELOW_FROZEN)),
      claims.Claim(
          f'Efficient-DeepQSE, {KEPT} kept, is within {100 * BELOW_JOINT:.0f} points of DeepQSE',
          'no loss (figures not read)',
          f'{points(efficient)} v {points(joint)}, {gap}; stage 1 loses {points(1 - hits)} % of '
          'the gold sentences', claims.verdict(gap.mean >= -BELOW_JOINT)),
      claims.Claim(
          f'online time a page at least {FASTER:.0f}x less: {SENTENCES} sentences, {CANDIDATES} '
          'candidates', 'significantly faster (figures not read)',
          f'{ms("joint")} v {1e3 * online:.1f} ms, {seconds["joint"] / online:.1f}x; cache '
          f'{ms("cache")} ms a page, cold {seconds["joint"] / cold:.1f}x; {tokens.joint} v '
          f'{tokens.online} tokens a layer',
          claims.verdict(seconds['joint'] / online >= FASTER)),
      claims.Claim(
          f'target: within {100 * TARGET:.0f} points', 'no loss',
          f'{gap}: {"met" if gap.mean >= -TARGET else "missed"} (a target, not required)',
          claims.NOT_JUDGED),
  ]
  for name in ('BM25', 'TF-IDF', 'cosine + .05 BM25', 'first sentences in order'):
    ahead = claims.margin(joint, np.full(RUNS, overlap[name]))
    table.append(claims.Claim(
        f'DeepQSE against {name}', 'above word overlap (figures not read)',
        f'{points(joint)} v {points(overlap[name])}, {ahead}: '
        f'{"above" if ahead.at_least() else "below" if ahead.mean < 0 else "a tie"} (specified: no '
        'threshold)', claims.NOT_JUDGED))
  for name, text in (('coarse alone', 'sentences encoded behind the query against without'),
                     ('DeepQSE, no document encoder', 'the document encoder against none')):
    if name in hit:
      table.append(claims.Claim(text, 'helps (figures not read)',
                                f'{points(joint)} v {points(hit[name])}, '
                                f'{claims.margin(joint, hit[name])} (specified: no threshold)',
                                claims.NOT_JUDGED))
  return table


def main(seed, workdir, ablate, data_dir=None):
  """Prints the table, writes results.json and a figure; True unless a claim does not hold.

  `data_dir` is a folder of train.tsv, dev.tsv and test.tsv in the format of 8 columns.
  """
  workdir = pathlib.Path(workdir)
  encoder, splits = load(data_dir, seed)
  world = experiment.build(encoder, splits, seed)
  scores, losses, hits = measure(world, [seed * 1000 + i for i in range(RUNS)], ablate)
  test = world.parts['test']
  labels, mask = world.arrays['label'][test], world.arrays['mask'][test]
  at = lambda x: metrics.precision_at(x, labels, mask, CUTOFFS)
  plain = {name: at(x[test]) for name, x in world.overlap.items()}
  trained = {name: [at(x) for x in runs] for name, runs in scores.items()}
  hit = {name: np.array([found['prec@1'] for found in runs]) for name, runs in trained.items()}
  table = _table(hit, {name: found['prec@1'] for name, found in plain.items()}, hits,
                 seconds := time_online(), encoder.name, ablate)
  lines = {name: [list(found.values()) for found in runs] for name, runs in trained.items()}
  lines |= {name: [list(found.values())] for name, found in plain.items()}
  figures.compare({name: (CUTOFFS, values) for name, values in lines.items()},
                  workdir / 'figure.png', xlabel='k', ylabel='gold sentence among the best k',
                  title=f'{len(test)} queries; {encoder.name}')
  for name, values in lines.items():
    print(f'{name:30}', '  '.join(f'@{k} {100 * value:.1f}'
                                  for k, value in zip(CUTOFFS, np.mean(values, 0))))
  results = {'encoder': encoder.name, 'trained': trained, 'not trained': plain,
             'stage 1 hits': hits.tolist(), 'seconds': seconds,
             'losses': {name: values.tolist() for name, values in losses.items()}}
  return claims.report('deepqse', table, results, workdir, seed=seed, ablate=ablate)
