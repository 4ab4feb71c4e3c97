"""Measures VLA-JEPA's claims on the embedded tabletop: a trained policy acts, the world model
predicts better than a copy, and the causal encodings keep the future out.

All arms are rows of one compiled program (`study`). The switch of `--ablate` takes away the world
model's loss, the causal encoding and the training of the policy. What only some settings decide
(pretraining, encodings, perturbations) is a second table, which decides no exit status.
"""
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import parallel
from jaxlab.models import vjepa2
from jaxlab.systems.vla_jepa import rollout, study
from jaxlab.train import claims, figures
from jaxlab.train.sweep import format_table

SEEDS, EPISODES = 3, 100
CLIPS, DEMOS, DEMOS_OF_RUN = 4096, 200, 80
FIRST, SECOND = 1500, 1500  # updates of the two stages
RATES = (2e-3, 2e-3)
WARMUP, BATCH = 30, 32
BETA = 0.1
PROBE_DRAWS, PROBE_CLIPS, PROBE_TRAIN = 3, 3000, 2500
FINDS = 0.05  # R^2 from which on a probe has found the future (CHOICE)
USES = 0.10  # rise of the error under shuffled latent actions from which on they are used (CHOICE)

VIDEO_CAUSAL, VIDEO_SHARED = 'video, causal_prefix', 'video, shared'
VIDEO_SINGLE = 'video, repeat_frame, weighted'
NO_VIDEO, EQUAL, UNTRAINED = 'no video, no world model', 'no video, equal updates', 'untrained'
LEAKY = 'video, leaky latent actions'


class Arm(NamedTuple):
  """What sets an arm apart.

  Attributes:
    first: what stage 1 learns from.
    second: whether stage 2 is trained.
    beta: weight of the world model's loss in stage 2.
    encoding: key of `study.ENCODINGS`.
    weighted: see `study.Run`.
  """
  first: int
  second: bool = True
  beta: float = 0.0
  encoding: str = 'causal_prefix'
  weighted: float = 0.0


ARMS = {
    VIDEO_CAUSAL: Arm(study.VIDEO, beta=BETA),
    VIDEO_SHARED: Arm(study.VIDEO, beta=BETA, encoding='shared'),
    VIDEO_SINGLE: Arm(study.VIDEO, beta=BETA, encoding='repeat_frame', weighted=1.0),
    NO_VIDEO: Arm(study.NOTHING),
    EQUAL: Arm(study.ROBOT),
    LEAKY: Arm(study.LEAKY, encoding='repeat_frame'),
    UNTRAINED: Arm(study.NOTHING, second=False),
}


def rates(steps, length, peak):
  """Learning rates float32 [length]: warm-up and a cosine over `steps`, 0 behind them."""
  step = np.arange(length)
  shape = np.minimum((step + 1) / WARMUP, 1) * 0.5 * (1 + np.cos(np.pi * step / steps))
  return np.where(step < steps, peak * shape, 0).astype(np.float32)


def make_run(arm, seed):
  """The study.Run of an arm and a training seed."""
  arm, length = ARMS[arm], max(FIRST, SECOND)
  updates = np.zeros((2, length), np.int32)
  updates[0, :FIRST] = arm.first
  updates[1, :SECOND] = study.ROBOT if arm.second else study.NOTHING
  demos = np.random.default_rng([seed, 11]).permutation(DEMOS)[:DEMOS_OF_RUN]
  return study.Run(
      updates, np.stack([rates(FIRST, length, RATES[0]), rates(SECOND, length, RATES[1])]),
      np.float32(arm.beta), np.int32(list(study.ENCODINGS).index(arm.encoding)),
      np.float32(arm.weighted), demos.astype(np.int32), *jax.random.split(jax.random.key(seed)))


def run_arms(arms, seeds, world):
  """{arm: metrics [seeds, ...]}."""
  runs = [make_run(arm, seed) for arm in arms for seed in seeds]
  # An arm a call: XLA's CPU holds some memory of every loop until a program ends.
  results = parallel.map_runs(study.runner(BATCH, EPISODES), world,
                              jax.tree.map(lambda *x: jnp.stack(x), *runs), block=len(seeds))
  return {arm: jax.tree.map(lambda x, i=i: x[i * len(seeds):(i + 1) * len(seeds)], results)
          for i, arm in enumerate(arms)}


def successes(results, condition):
  """int [seeds] of an arm under a perturbation."""
  return results['success'][:, study.CONDITIONS.index(condition)].sum(-1)


def pooled(counts):
  """(low, high) of the Wilson interval of all seeds together."""
  return rollout.wilson(int(np.sum(counts)), EPISODES * len(counts))


def show(counts):
  """'26 [21, 31] (36/19/22)' of successes by seed, in percent."""
  low, high = pooled(counts)
  rate = 100 * np.sum(counts) / (EPISODES * len(counts))
  return f'{rate:.0f} [{100 * low:.0f}, {100 * high:.0f}] ({"/".join(map(str, counts))})'


def compare(better, worse):
  """Status of 'the first arm succeeds more often', from successes by seed.

  Decided only where the pooled intervals are disjoint and every seed has the same sign.
  """
  difference = np.asarray(better) - np.asarray(worse)
  (low, high), (other_low, other_high) = pooled(better), pooled(worse)
  if low > other_high and (difference > 0).all():
    return claims.HOLDS
  if high < other_low and (difference < 0).all():
    return claims.FAILS
  return claims.NOT_JUDGED


def leak(how, seed):
  """Largest |d context state k / d frame| for frames after k, and the smallest for those up to k.

  Of a random encoder with two frames a token, relative to the largest of all.
  """
  config = vjepa2.VJEPA2Config(crop_size=8, patch_size=4, tubelet_size=2, hidden_size=24,
                               num_attention_heads=2, num_hidden_layers=2, pred_hidden_size=0,
                               init_std=0.0)
  keys = jax.random.split(jax.random.key(seed), 3)
  frames = jax.random.normal(keys[0], (1, 8, 8, 8, 3))
  params = jax.jit(vjepa2.Encoder(config).init)(keys[1], frames)
  mix = jax.random.normal(keys[2], (config.tokens_per_step, config.hidden_size))

  @jax.jit
  def states(frames):
    context, _ = vjepa2.context_states(lambda x: vjepa2.Encoder(config).apply(params, x), frames,
                                       how=how, tubelet=2)
    return (context.reshape(3, *mix.shape) * mix).sum((1, 2))

  size = np.abs(jax.jit(jax.jacrev(states))(frames)).max((1, 3, 4, 5))  # [3, 8]
  later = np.arange(8) >= 2 * np.arange(1, 4)[:, None]
  return float(size[later].max() / size.max()), float(size[~later].min() / size.max())


def main(seed, workdir, ablate):
  """Prints both tables, writes results.json and figure.png; True unless a claim does not hold."""
  seeds = [1000 * seed + i for i in range(SEEDS)]
  parts, _ = study.make_parts()
  world = study.make_world(parts, seed, clips=CLIPS, episodes=DEMOS)
  arms = [UNTRAINED] if ablate else list(ARMS)
  results = run_arms(arms, seeds, world)
  play = rollout.random_success(EPISODES, study.CONDITIONS)
  random = np.stack([play(make_run(arms[0], training_seed).eval_key) for training_seed in seeds])
  results = {**results, 'random actions': {'success': random}}
  trained = UNTRAINED if ablate else VIDEO_CAUSAL
  causal = 'shared' if ablate else 'causal_prefix'

  ours, theirs = (successes(results[arm], 'plain') for arm in (trained, 'random actions'))
  errors = results[trained]
  gain = claims.margin(errors['copy'], errors['l1'])
  probes = study.leak_probes(parts, [10 * seed + i for i in range(PROBE_DRAWS)], PROBE_CLIPS,
                             PROBE_TRAIN)
  found = claims.margin(probes['shared'], np.full(PROBE_DRAWS, FINDS))
  after, before = leak(causal, seed)
  text = lambda how: f'{how} {np.mean(probes[how]):.2f}'
  table = [
      claims.Claim('a trained policy reaches the named block more often than random actions',
                   'not available', f'{show(ours)} v {show(theirs)} %',
                   claims.verdict(pooled(ours)[0] > pooled(theirs)[1])),
      claims.Claim('held-out latent error below copying the current state', 'not available',
                   f'{errors["l1"].mean():.4f} v {errors["copy"].mean():.4f}, {gain}',
                   claims.verdict(gain.at_least())),
      claims.Claim('a linear probe of state 0 finds the motion to come if shared, not if causal',
                   'not available', f'R2 {text("shared")}, causal: {text(causal)}',
                   claims.verdict(found.at_least() and np.max(probes[causal]) < FINDS)),
      claims.Claim('no context state depends on later frames, and all on those before',
                   'leakage-free',
                   f'Jacobian after at most {after:.1e}, before at least {before:.1e}',
                   claims.verdict(after == 0 and before > 1e-4)),
  ]
  comparisons = [] if ablate else _comparisons(results)
  rates_table = [(arm, *(show(successes(result, name)) for name in study.CONDITIONS))
                 for arm, result in results.items()]
  print(format_table(('success in % [95 %] (by seed)', *study.CONDITIONS), rates_table))
  if comparisons:
    print(format_table(claims.Claim._fields, comparisons))
  names = list(study.CONDITIONS)
  figures.compare(
      {arm: (np.arange(len(names)), 100 * result['success'].mean(-1))
       for arm, result in results.items()}, pathlib.Path(workdir) / 'figure.png',
      xlabel=', '.join(names), ylabel='success, %')
  stored = {arm: {name: np.asarray(value).tolist() for name, value in result.items()}
            for arm, result in results.items()}
  return claims.report(
      'vla_jepa', table,
      {'arms': stored, 'probes': {how: np.asarray(x).tolist() for how, x in probes.items()},
       'comparisons': [row._asdict() for row in comparisons]}, workdir, seed=seed, ablate=ablate)


def _comparisons(results):
  """Rows of what this size may or may not decide."""
  rows, used = [], {}
  for arm in (VIDEO_CAUSAL, VIDEO_SINGLE):
    result = results[arm]
    gap = result['shuffled'] / result['l1'] - 1
    used[arm] = claims.margin(gap, np.full(len(gap), USES)).at_least()
    before, after = result['probes'].T
    decode = claims.margin(after, before)
    rows += [
        claims.Claim(f'{arm}: shuffled latent actions raise the error by {100 * USES:.0f} %',
                     'not available', f'{100 * gap.mean():.1f} %', claims.verdict(used[arm])),
        claims.Claim(f'{arm}: latent actions tell the motion better after stage 1',
                     'not available', f'R2 {after.mean():.2f} v {before.mean():.2f}, {decode}',
                     claims.verdict(decode.at_least())),
    ]
  pairs = (('pretraining helps', VIDEO_CAUSAL, NO_VIDEO, 'LIBERO 97.2 v 96.1'),
           ('pretraining helps at equal updates', VIDEO_CAUSAL, EQUAL, 'not available'),
           ('pretraining on single frames, weighted, helps at equal updates', VIDEO_SINGLE, EQUAL,
            'not available'),
           ('causal_prefix beats shared', VIDEO_CAUSAL, VIDEO_SHARED, 'not available'),
           ('causal_prefix beats leaky latent actions', VIDEO_CAUSAL, LEAKY,
            'LIBERO 97.2 v 65.7 (LAPA)'))
  plus = {'camera': '63.3 v 40.3', 'light': '95.6 v 88.2', 'background': '93.6 v 70.5',
          'noise': '66.3 v 38.2', 'layout': '85.1 v 74.6'}
  for text, better, worse, paper in pairs:
    for name in study.CONDITIONS:
      ours, theirs = (successes(results[arm], name) for arm in (better, worse))
      status = compare(ours, theirs)
      why = ''
      if 'pretraining' in text and not used[better]:
        status, why = claims.NOT_JUDGED, '; latent actions unused'
      published = paper
      if name != 'plain':
        published = f'LIBERO-Plus {plus[name]}' if worse == NO_VIDEO else 'not available'
      rows.append(claims.Claim(f'{text}, {name}', published,
                               f'{show(ours)} v {show(theirs)}{why}', status))
  return rows
