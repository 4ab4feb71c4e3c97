"""Measures Hybrid Encoder's claims on a made-up world in which a click needs two interests at once.

Stage 1 trains a text encoder and retrieval; its states of pages and ads are then fixed and cached,
and every ranker is trained on the same lists of hard negatives. All seeds of an arm are one
compiled program. The switch of `--ablate` orders the short list by the retrieval score alone, and
encodes pages and ads anew at each request.
"""
import pathlib
import tempfile
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel
from jaxlab.data import news as news_data
from jaxlab.metrics import retrieval
from jaxlab.models.bert import Bert
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.hybrid_encoder import cost, demo, rankers, serving
from jaxlab.systems.hybrid_encoder import data as data_lib
from jaxlab.systems.hybrid_encoder import task as task_lib
from jaxlab.systems.hybrid_encoder.model import (
    HybridEncoder,
    HybridRanker,
    Siamese,
    own_params,
)
from jaxlab.train import claims, figures, stepping, task_gradient

SEEDS, ADS = 3, 200
WIDTH, HEADS, QUERIES, CODES, HIDDEN = 24, 4, 64, 8, 64
VOCABULARY = demo.INTERESTS * demo.WORDS + 1
STEPS_1, BATCH_1, RATE_1 = 400, 128, 5e-3
STEPS_2, BATCH_2, POINTS = 500, 64, 5
TOP_K, HARD, EVAL_HARD, RECALL_AT = 40, 7, 15, 20
CORPUS, COST_AT = 20_000, (100, 1_000)  # ads of the cost report, the world's repeated


class Arm(NamedTuple):
  """A ranker of the second step.

  Attributes:
    ranker: as `model.HybridRanker` is called.
    rate: the best of a grid that all arms share, on worlds of other seeds; it falls to 0.
    hard: whether its negatives are hard.
  """
  ranker: nn.Module
  rate: float
  hard: bool = True


ARMS = {
    'hybrid': Arm(HybridRanker(CODES, 'mlp', HIDDEN), 1e-2),
    'hybrid, weighted sum': Arm(HybridRanker(CODES), 1e-2),
    'cross encoder': Arm(rankers.CrossRanker(2, HEADS), 1e-2),
    'siamese, trained on the lists': Arm(rankers.SiameseRanker(QUERIES), 1e-2),
    'poly-encoder': Arm(rankers.PolyRanker(CODES, QUERIES), 1e-2),
    'max-sim': Arm(rankers.MaxSimRanker(), 1e-2),
    'hybrid, one code': Arm(HybridRanker(1, 'mlp', HIDDEN), 1e-2),
    'hybrid, random negatives': Arm(HybridRanker(CODES, 'mlp', HIDDEN), 1e-2, hard=False),
}
TEXT = Bert(BertConfig(VOCABULARY, WIDTH, 1, HEADS, 4 * WIDTH, max_position_embeddings=demo.TITLE,
                       type_vocab_size=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                       initializer_range=0.2, add_pooler=False))
SIAMESE = Siamese('attention', QUERIES)


def make_data(seed):
  """(World, Data) of one seed, by way of its files."""
  with tempfile.TemporaryDirectory() as folder:
    world = demo.write(pathlib.Path(folder) / 'log', seed, ads=ADS)
    log = data_lib.read_folder(pathlib.Path(folder) / 'log')
  users = {}
  number = lambda click: users.setdefault(click.user, int(click.user[1:]) - 1)
  splits = {split: data_lib.collect([
      {**click._asdict(), 'user': number(click)} for click in clicks])
            for split, clicks in data_lib.by_day(log.clicks).items()}
  ads = [title for _, title, _ in log.ads.values()]
  vocabulary = news_data.make_vocabulary([*ads, *log.titles], 1)

  def features(texts):
    ids = news_data.encode(['', *texts], vocabulary, demo.TITLE)
    return {'ids': ids, 'mask': (ids > 0).astype(np.int32)}

  columns = {split: (data_lib.train_columns if split == 'train' else data_lib.test_columns)(
      rows, world.pages) for split, rows in splits.items()}
  return world, task_lib.Data(features(log.titles), features(ads), columns)


def first_stage(task):
  """The function of a run of stage 1: (None, constants, train, rows, key) -> params."""
  optimizer = optax.adam(RATE_1)

  def run(shared, constants, train, rows, key):
    del shared
    gradient = task_gradient(task, constants)
    init_key, step_key = jax.random.split(key)
    start = task.init(init_key)['params']

    step = stepping.update_step(gradient, optimizer,
                                stepping.draw_batches(train, rows, BATCH_1, step_key))
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(STEPS_1))
    return params

  return run


def second_stage(task):
  """The function of a run of stage 2: (None, constants, train, rows, fixed, test, rate, key) ->
  outputs.

  `fixed` are the parameters that stay. The outputs are the ranker's scores [POINTS, R, 1 + n] of
  the test lists and its parameters.
  """
  def run(shared, constants, train, rows, fixed, test, rate, key):
    del shared
    optimizer = optax.adam(lambda number: rate * (1 - number / STEPS_2))
    gradient = task_gradient(task, constants)
    init_key, step_key = jax.random.split(key)
    ranker = task.init(init_key)['params']['ranker']
    whole = lambda ranker: {**fixed, 'ranker': ranker}

    def ranker_gradient(ranker, batch, key):
      grads, sums = gradient(whole(ranker), batch, key)
      return grads['ranker'], sums

    step = stepping.update_step(ranker_gradient, optimizer,
                                stepping.draw_batches(train, rows, BATCH_2, step_key))

    def stretch(carry, numbers):
      carry, _ = jax.lax.scan(step, carry, numbers)
      out = task.predict({'params': whole(carry[0]), 'constants': constants}, test, key)
      return carry, out['rank_score']

    start = ranker, optimizer.init(ranker)
    (ranker, _), scores = jax.lax.scan(stretch, start, jnp.arange(STEPS_2).reshape(POINTS, -1))
    return scores, ranker

  return run


def states_of(params, data):
  """Features of `task.given_states` by the text encoder of one seed."""
  encoders = task_lib.text_encoders(TEXT)
  pages = jax.jit(lambda p, f: task_lib.in_chunks(lambda x: encoders.pages(p, x), f))
  states, mask = jax.jit(encoders.ads)(params, data.ads)
  real = np.asarray(data.pages['mask']).any(1, keepdims=True)
  vectors = np.asarray(pages(params, {k: np.asarray(v) for k, v in data.pages.items()})) * real
  return {'vectors': vectors}, {'states': np.asarray(states), 'mask': np.asarray(mask)}


@jax.jit
def retrieval_scores(params, vectors, history, ads):
  """u . v [R, A] of all ads, from cached page vectors and states."""
  net = HybridEncoder(SIAMESE, HybridRanker(CODES))
  apply = lambda method, *x: net.apply({'params': {'siamese': params['siamese']}}, *x,
                                       method=method)
  users = apply('user_retrieval', vectors[history], history > 0)
  return users @ apply('ad_retrieval', ads['states'], ads['mask'])[1:].T


def lists(scores, columns, matches, rng):
  """One list a test user: a click, `EVAL_HARD` of the top ads that do not match, all top ads.

  Args:
    scores: [R, A] of the test rows.
    columns: of the test split.
    matches: bool [U, A], which ads a user clicks.
    rng: NumPy generator.

  Returns:
    ({'history', 'candidates' [Q, 1 + n + TOP_K]} of Q users, their rows, bool [Q, TOP_K]: which of
    the top ads match).
  """
  shuffled = rng.permutation(len(columns['user']))
  _, first = np.unique(columns['user'][shuffled], return_index=True)
  rows = shuffled[first]
  clicked = data_lib.Ragged.of([np.flatnonzero(matches[user]) + 1
                                for user in columns['user'][rows]], np.int32)
  top = np.argsort(-scores[rows], axis=1, kind='stable')[:, :TOP_K] + 1
  hard = task_lib.hard_negatives(top, clicked.padded(max(clicked.sizes)), EVAL_HARD, rng)
  candidates = np.concatenate([columns['click'][rows][:, None], hard, top], axis=1)
  right = np.take_along_axis(matches[columns['user'][rows]], top - 1, axis=1)
  return ({'history': columns['history'][rows], 'candidates': candidates.astype(np.int32)}, rows,
          right)


class Stage1(NamedTuple):
  """What stage 1 left of one seed.

  Attributes:
    params: {'text', 'siamese', 'ranker'}.
    constants: cached states, as `task.given_states` reads them.
    train: training columns with 'hard'.
    test: lists, see `lists`.
    right: bool [Q, TOP_K].
    scores: [Q, 1 + n + TOP_K] of retrieval.
    recall: share of the test clicks among the first `RECALL_AT`.
    texts: {'pages', 'ads': token features}.
  """
  params: dict
  constants: dict
  train: dict
  test: dict
  right: np.ndarray
  scores: np.ndarray
  recall: float
  texts: dict


def retrieve(params, world, data, seed):
  """The Stage1 of one seed after its training."""
  pages, ads = states_of(params, data)
  train, test = data.splits['train'], data.splits['test']
  score = lambda rows: np.asarray(retrieval_scores(params, pages['vectors'], rows['history'], ads))
  rng, scores = np.random.default_rng([seed, 31]), score(test)
  found = retrieval.ranks(scores, test['click'] - 1)
  top = np.argsort(-score(train), axis=1, kind='stable')[:, :TOP_K] + 1
  hard = task_lib.hard_negatives(top, train['clicked'], HARD, rng)
  made, rows, right = lists(scores, test, world.match, rng)
  listed = np.take_along_axis(scores[rows], np.maximum(made['candidates'] - 1, 0), axis=1)
  return Stage1(params, {'pages': pages, 'ads': ads}, {**train, 'hard': hard}, made, right, listed,
                retrieval.recall_at(found, RECALL_AT), {'pages': data.pages, 'ads': data.ads})


def quality(scores, stage):
  """{'top1', 'list_mrr', 'hit', 'mrr'}: of the lists with one click, and after both steps."""
  scores = np.where(stage.test['candidates'] > 0, scores, -np.inf)
  one, short = scores[:, :1 + EVAL_HARD], scores[:, 1 + EVAL_HARD:]
  place = 1 + (one[:, 1:] >= one[:, :1]).sum(1)
  order = np.argsort(-short, axis=1, kind='stable')
  right = np.take_along_axis(stage.right, order, axis=1)
  first = np.where(right.any(1), 1 + right.argmax(1), np.inf)
  return {'top1': float((place == 1).mean()), 'list_mrr': float((1 / place).mean()),
          'hit': float((first == 1).mean()), 'mrr': float((1 / first).mean())}


def first_stages(seeds):
  """The Stage1 of each seed."""
  made = [make_data(seed) for seed in seeds]
  task = task_lib.from_model(HybridEncoder(SIAMESE, HybridRanker(CODES)),
                             task_lib.text_encoders(TEXT), made[0][1], task_lib.LossConfig(),
                             corpus_ranks=False)
  params = parallel.map_runs(
      first_stage(task), None,
      parallel.stack_runs([{'pages': data.pages, 'ads': data.ads} for _, data in made]),
      parallel.stack_runs([data.splits['train'] for _, data in made]),
      np.array([len(data.splits['train']['click']) for _, data in made]),
      jax.vmap(jax.random.key)(np.array(seeds)))
  return [retrieve(jax.tree.map(lambda x, i=i: x[i], params), world, data, seed)
          for i, (seed, (world, data)) in enumerate(zip(seeds, made))]


def second_stages(ranker, hard, stages, rates, seeds):
  """(scores [R, POINTS, ...], parameters [R, ...]) of R runs: of a Stage1, a rate and a seed each.
  """
  loss = task_lib.LossConfig(hard=HARD if hard else 0, random=1 if hard else HARD + 1, top_k=TOP_K)
  first = stages[0]
  data = task_lib.Data(first.constants['pages'], first.constants['ads'], {'train': first.train})
  task = task_lib.from_model(HybridEncoder(SIAMESE, ranker), task_lib.given_states(), data, loss,
                             corpus_ranks=False)
  constants, train, params, test = (
      parallel.stack_runs([getattr(stage, name) for stage in stages])
      for name in ('constants', 'train', 'params', 'test'))
  train = {**train, 'hard': hard * train['hard']}  # 0 is no ad
  return parallel.map_runs(
      second_stage(task), None, constants, train,
      np.array([len(stage.train['click']) for stage in stages]), {'siamese': params['siamese']},
      test, np.asarray(rates, np.float32), jax.vmap(jax.random.key)(np.array(seeds)))


def curves_of(scores, stages):
  """{quality: [R, POINTS]} of scores [R, POINTS, ...] of runs of these stages."""
  found = [[quality(point[:len(stage.scores)], stage) for point in points]
           for points, stage in zip(scores, stages)]
  return jax.tree.map(lambda *x: np.reshape(x, (len(stages), -1)),
                      *(point for points in found for point in points))


def measure(seeds):
  """(stages, {arm: {quality: [seeds, POINTS]}}, {arm: parameters of the ranker [seeds, ...]})."""
  stages = first_stages(seeds)
  curves = {'siamese': curves_of([[stage.scores] * POINTS for stage in stages], stages)}
  trained = {}
  for name, arm in ARMS.items():
    scores, trained[name] = second_stages(arm.ranker, arm.hard, stages, [arm.rate] * len(seeds),
                                          seeds)
    curves[name] = curves_of(scores, stages)
  return stages, curves, trained


def measure_cost(stage, trained, cached):
  """What whole requests cost with one seed's checkpoints.

  Returns:
    ({k: {kind: {'multiply_adds', 'ms'}}}, {'ad', 'user': bytes of the cache of one}).
  """
  times = CORPUS // ADS
  tile = lambda x: jnp.asarray(np.concatenate([np.asarray(x)[1:]] * times))
  nets = {'siamese': HybridEncoder(SIAMESE, ARMS['hybrid'].ranker),
          'hybrid': HybridEncoder(SIAMESE, ARMS['hybrid'].ranker),
          'cross': HybridEncoder(SIAMESE, ARMS['cross encoder'].ranker)}
  ranker = {'siamese': 'hybrid', 'hybrid': 'hybrid', 'cross': 'cross encoder'}
  encoders = task_lib.text_encoders(TEXT)
  params = {kind: {**{name: stage.params[name] for name in ('text', 'siamese')},
                   'ranker': jax.tree.map(lambda x: x[0], trained[ranker[kind]])} for kind in nets}
  states, mask = (np.asarray(stage.constants['ads'][name]) for name in ('states', 'mask'))
  apply = lambda method, *x: nets['hybrid'].apply(
      {'params': own_params(params['hybrid'])}, *x, method=method)
  history = stage.test['history'][0]
  pages = jnp.asarray(stage.constants['pages']['vectors'][history])
  keys, values = apply('user_keys', pages)
  user = {'pages': pages, 'keys': keys, 'values': values,
          'features': {name: jnp.asarray(x[history]) for name, x in stage.texts['pages'].items()}}
  ads = {'vectors': tile(apply('ad_retrieval', states, mask)),
         'codes': tile(apply('ad_codes', states, mask)[0]), 'states': tile(states),
         'mask': tile(mask), 'features': jax.tree.map(tile, stage.texts['ads'])}
  kept = serving.AdCache(np.arange(CORPUS), ads['vectors'], ads['codes'], 0)
  cache = {'ad': kept.bytes_per_ad(), 'user': pages.nbytes + keys.nbytes + values.nbytes}
  report = {}
  for k in COST_AT:
    sizes = cost.Sizes(CORPUS, k, len(history), demo.TITLE, WIDTH, CODES, QUERIES,
                       ARMS['cross encoder'].ranker.layers, TEXT.config.num_hidden_layers, HIDDEN)
    report[k] = {}
    for kind, net in nets.items():
      warm = cached or kind != 'hybrid'
      run = cost.request(kind, net, encoders, k, cached=warm)
      report[k][kind] = {'multiply_adds': cost.multiply_adds(kind, sizes, cached=warm),
                         'ms': cost.milliseconds(run, params[kind], user, ads)}
  return report, cache


def judge(stages, curves, costs, cache, ablate):
  """The claims; `costs` and `cache` are those of `measure_cost`."""
  last = lambda arm, what='top1': curves[arm][what][:, -1]
  ours = 'siamese' if ablate else 'hybrid'
  mean = lambda arm, what='top1': f'{last(arm, what).mean():.3f}'
  recall, chance = np.array([stage.recall for stage in stages]), RECALL_AT / ADS
  gain, cross = claims.margin(last(ours), last('siamese')), claims.margin(
      last(ours), last('cross encoder'))
  hard = claims.margin(last('hybrid'), last('hybrid, random negatives'))
  ratio = lambda k, kind, other, what: costs[k][kind][what] / costs[k][other][what]
  cheaper = {what: ratio(COST_AT[-1], 'cross', 'hybrid', what) for what in ('multiply_adds', 'ms')}
  dearer = {what: ratio(COST_AT[-1], 'hybrid', 'siamese', what) for what in ('multiply_adds', 'ms')}
  listed = lambda what: ', '.join(f'{arm} {mean(arm, what)}' for arm in curves)
  table = [
      claims.Claim(f'stage 1: Recall@{RECALL_AT} of {ADS} ads at least 5 times chance',
                   'not available', f'{recall.mean():.3f} v {chance:.3f}',
                   claims.verdict(recall.mean() >= 5 * chance)),
      claims.Claim(f'ranking, first among {1 + EVAL_HARD}: at least .10 above siamese',
                   'outperforms significantly', f'{mean(ours)} v {mean("siamese")}, {gain}; '
                   f'siamese trained on the lists {mean("siamese, trained on the lists")}',
                   claims.verdict(gain.at_least(0.10))),
      claims.Claim('ranking: at most .05 below the cross encoder', 'comparable',
                   f'{mean(ours)} v {mean("cross encoder")}, {cross}',
                   claims.verdict(cross.mean >= -0.05)),
      claims.Claim('hard negatives: not worse than random ones by more than .01', 'not available',
                   f'{mean("hybrid")} v {mean("hybrid, random negatives")}, {hard}; their order is '
                   'not judged', claims.verdict(hard.mean >= -0.01)),
      claims.Claim(f'a request with {COST_AT[-1]} candidates: at least 10x cheaper than cross',
                   'very little extra cost', f'{cheaper["multiply_adds"]:.0f}x in multiply-adds, '
                   f'{cheaper["ms"]:.0f}x in ms; over siamese {dearer["multiply_adds"]:.1f}x, '
                   f'{dearer["ms"]:.1f}x (target: 3x)',
                   claims.verdict(min(cheaper.values()) >= 10)),
  ]
  for k in COST_AT:
    table.append(claims.Claim(
        f'cost of a request: {CORPUS} ads, {k} candidates', 'not available', '; '.join(
            f'{kind} {one["multiply_adds"] / 1e6:.2f} M multiply-adds, {one["ms"]:.2f} ms'
            for kind, one in costs[k].items()), claims.NOT_JUDGED))
  table.append(claims.Claim(
      'cached of an ad (codes and vector) and of a user (vectors, keys, values of the pages)',
      'not available', f'{cache["ad"] / 1e6:.6f} and {cache["user"] / 1e6:.6f} MB',
      claims.NOT_JUDGED))
  for what, text in (('list_mrr', f'MRR of the click among {1 + EVAL_HARD}'),
                     ('hit', 'after both steps: the first ad is one that the user clicks'),
                     ('mrr', 'after both steps: MRR of the first such ad')):
    table.append(claims.Claim(text, 'not available', listed(what), claims.NOT_JUDGED))
  return table


def main(seed, workdir, ablate):
  """Prints the table, writes results.json and figure.png; True unless a claim does not hold."""
  seeds = [seed * 1000 + i for i in range(SEEDS)]
  stages, curves, trained = measure(seeds)
  costs, cache = measure_cost(stages[0], trained, not ablate)
  steps = np.arange(1, POINTS + 1) * STEPS_2 // POINTS
  figures.compare({arm: (steps, values['top1']) for arm, values in curves.items()},
                  pathlib.Path(workdir) / 'figure.png', xlabel='step of stage 2',
                  ylabel=f'click first among {1 + EVAL_HARD}', title='ranking after stage 1')
  plain = {arm: {name: values.tolist() for name, values in by_name.items()}
           for arm, by_name in curves.items()}
  results = {'seeds': seeds, 'recall': [stage.recall for stage in stages], 'arms': plain,
             'costs': {str(k): by_kind for k, by_kind in costs.items()}, 'cache_bytes': cache}
  return claims.report('hybrid_encoder', judge(stages, curves, costs, cache, ablate), results,
                       workdir, seed=seed, ablate=ablate)
