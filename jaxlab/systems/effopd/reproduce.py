"""Measures EffOPD's claims on sorting digits: fewer steps and tokens to the same accuracy, and an
early direction that only lacks length.

A base is trained on noisy answers, a teacher from it on clean ones, and students of several seeds
are distilled from the base. Every kind of step is compiled once; rates and keys are its inputs. The
switch of `--ablate` is max_k = 0, which never jumps, and beta = 0 in the scaling of an early
checkpoint.
"""
import concurrent.futures
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import models as shared_models
from jaxlab.data import pipeline
from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.models.decoder_lm import DecoderLM, params_from_torch, params_to_torch
from jaxlab.systems.effopd import data, geometry_report, update_geometry
from jaxlab.systems.effopd.experiment import draw_examples, movable_parameters
from jaxlab.systems.effopd.extrapolation import extrapolation
from jaxlab.systems.effopd.rollout import DistillConfig, Models
from jaxlab.systems.effopd.task import from_models, make_validate
from jaxlab.tasks import classification
from jaxlab.train import TrainState, claims, figures, train_step

DECODER = DecoderConfig(vocab_size=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=96, init='scaled')
BASE_STEPS, BASE_BATCH, BASE_RATE, NOISE = 900, 128, 3e-3, 0.7
TEACHER_STEPS, TEACHER_RATE = 500, 1e-3
STEPS, BATCH, RATE, ANSWER = 96, 256, 3e-5, 4
RATES = (3e-5, 1e-4, 3e-4)
MAX_K, VALIDATION = 5, 50
MARKS = (8, 16, 32, 48, 96)
EARLY, BETAS = 10, (0.0, 0.25, 0.5, 0.8, 1.0, 1.5, 3.0)
SEEDS, GRID_SEEDS = 5, 2
OTHER_STEPS, OTHER_RATE, OTHER_SEEDS = 128, 1e-4, 5


class Run(NamedTuple):
  """A run.

  Attributes:
    accuracy: [marks], at the steps `MARKS`.
    accepted: k accepted after the steps 1, 2, 4, ...
    validations: scores computed up to each mark.
    checkpoints: step -> params.
  """
  accuracy: list
  accepted: list
  validations: list
  checkpoints: dict


def from_start(params, optimizer, key, hooks=()):
  """The state before the first step."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {}, optimizer.init(params), key, zero, zero,
                    {hook.name: hook.init(params) for hook in hooks})


def make_step(task):
  """(state, constants, batch, rate) -> state, compiled once: Adam behind a clip to norm 1."""
  def step(state, constants, batch, rate):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(),
                            optax.scale(-1.0 * rate))
    everything = jax.tree.map(lambda _: True, state.params)
    return train_step(state, constants, batch, task=task, optimizer=optimizer,
                      trainable=everything)[0]

  return jax.jit(step)


ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale(-1.0))


def supervised(params, task, *, steps, rate, seed):
  """Parameters after Adam steps with a cosine schedule on the data's answers."""
  dataset = pipeline.columns(task.dataset('train'))

  def train(params, dataset, key):
    schedule = optax.cosine_decay_schedule(rate, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    everything = jax.tree.map(lambda _: True, params)

    def step(state, _):
      draw = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
      rows = jax.random.randint(draw, (BASE_BATCH,), 0, len(dataset['prompt']))
      batch = {name: column[rows] for name, column in dataset.items()}
      batch['weight'] = jnp.ones(BASE_BATCH)
      return train_step(state, {}, batch, task=task, optimizer=optimizer,
                        trainable=everything)[0], None

    return jax.lax.scan(step, from_start(params, optimizer, key), length=steps)[0].params

  return jax.jit(train)(params, dataset, jax.random.key(seed))


def prepare(seed):
  """(student model, base params, teacher params) of a seed."""
  model = DecoderLM(DECODER)
  draw = lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  settings = DistillConfig(max_new=ANSWER, objective='supervised')
  task = lambda noise: from_models(
      Models(model, draw), data.sorting(noise=noise, seed=seed), settings)
  base = supervised(draw(jax.random.key(seed)), task(NOISE), steps=BASE_STEPS, rate=BASE_RATE,
                    seed=seed)
  return model, base, supervised(base, task(0.0), steps=TEACHER_STEPS, rate=TEACHER_RATE,
                                 seed=seed + 1)


class Laboratory:
  """What all runs of a seed of the experiment share: models, data, compiled functions."""

  def __init__(self, seed):
    self.seed = seed
    self.model, self.base, self.teacher = prepare(seed)
    self.problems = data.sorting(seed=seed)
    self.test = pipeline.columns(self.problems.datasets['test'])
    self.models = Models(self.model, lambda key: self.base, [self.model], [lambda: self.teacher])
    settings = {name: DistillConfig(max_new=ANSWER, objective=name)
                for name in ('opd', 'reinforce')}
    self.steps = {name: make_step(from_models(self.models, self.problems, value))
                  for name, value in settings.items()}
    self.validate = make_validate(self.models, self.problems, settings['opd'])

  def accuracy(self, params, number=0):
    """Share of right answers, one sampled for each test prompt."""
    key = jax.random.fold_in(jax.random.key(self.seed + 77), number)
    return self.validate(params, self.test, key)

  def batch(self, rng):
    """A batch of random training prompts."""
    columns = pipeline.columns(self.problems.datasets['train'])
    rows = rng.integers(0, len(columns['row']), BATCH)
    return {**{name: x[rows] for name, x in columns.items()}, 'weight': np.ones(BATCH, np.float32)}

  def run(self, seed, *, rate=RATE, max_k=0, examples=VALIDATION, objective='opd', keep=(),
          device=None):
    """Distils (or reinforces) the base; the same seed sees the same prompts and keys."""
    with jax.default_device(device):
      rng = np.random.default_rng([self.seed, seed])
      hook = extrapolation(
          self.validate, draw_examples(self.problems, examples, seed), seed=seed, max_k=max_k,
          mask=movable_parameters('official'))
      place = functools.partial(jax.device_put, device=device)
      state = from_start(place(self.base), ADAM, jax.random.key(self.seed * 1000 + seed), [hook])
      constants = {'teacher_0': place(self.teacher)} if objective == 'opd' else {}
      accuracy, validations, kept = [], [], {}
      for step in range(1, STEPS + 1):
        state = self.steps[objective](state, constants, self.batch(rng), rate)
        state = hook.apply(state, step)
        if step in keep:
          kept[step] = jax.device_get(state.params)
        if step in MARKS:
          accuracy.append(self.accuracy(state.params))
          validations.append(int(state.hooks[hook.name].evaluations))
    accepted = np.asarray(state.hooks[hook.name].accepted)
    return Run(accuracy, accepted[accepted >= 0].tolist(), validations, kept)

  def runs(self, settings):
    """`run` with each of some keyword arguments, devices side by side."""
    devices = jax.local_devices()
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
      jobs = [pool.submit(self.run, device=devices[i % len(devices)], **setting)
              for i, setting in enumerate(settings)]
      return [job.result() for job in jobs]


def norm_scaling(lab, run, beta_of):
  """{beta: accuracy} of the early checkpoint of a run, scaled towards the norm of its end."""
  base, early, final = (params_to_torch(params) for params in (
      lab.base, run.checkpoints[EARLY], run.checkpoints[STEPS]))
  result = {}
  for beta in BETAS:
    scaled = {name: update_geometry.scale_to_norm(base[name], early[name], final[name],
                                                  beta_of(beta)) for name in base}
    result[beta] = lab.accuracy(params_from_torch(scaled, DECODER))
  return result


def geometry(lab, runs, folder):
  """The `geometry_report` of runs, {label: Run}, over all their checkpoints."""
  named = {label: {step: params_to_torch(params) for step, params in run.checkpoints.items()}
           for label, run in runs.items()}
  return geometry_report.report(params_to_torch(lab.base), named, folder, directions=5)


def interventions(lab, run):
  """{what: accuracy}: base embeddings in the trained model, one module kind trained, low rank."""
  base, final = (params_to_torch(params) for params in (lab.base, run.checkpoints[STEPS]))
  layers = range(DECODER.num_hidden_layers)
  changed = {'trained': final, 'base embedding': update_geometry.swap_embedding(final, base)}
  for kind in update_geometry.KINDS:
    changed[f'only {kind}'] = update_geometry.in_window(base, final, layers, [kind])
  rank = max(1, DECODER.hidden_size // 10)
  changed[f'rank {rank}'] = {
      name: update_geometry.top_rank(base[name], value, rank)
            if update_geometry.place_of(name) else value for name, value in final.items()}
  return {name: lab.accuracy(params_from_torch(tree, DECODER)) for name, tree in changed.items()}


def other_trainer(seed, max_k):
  """Accuracies [2, OTHER_STEPS] of a classifier of digits without and with the hook.

  It is supervised training with a cautious rate: no distillation, no text.
  """
  spec, splits = classification.load_arrays(name='digits', train='train[:1297]',
                                            test='train[1297:]')
  task = classification.from_model(shared_models.MLP(spec.num_classes, (64,)), spec, {})
  step = make_step(task)

  @jax.jit
  def accuracy(params, columns):
    right = task.predict({'params': params}, columns, None).argmax(-1) == columns['label']
    return right.mean()

  def run(seed, max_k):
    rng = np.random.default_rng([seed, 0x0D])
    chosen = rng.permutation(len(splits['train']['label']))
    validation = {name: x[chosen[:200]] for name, x in splits['train'].items()}
    score = lambda params, examples, key: float(accuracy(params, examples))
    hook = extrapolation(score, validation, seed=seed, max_k=max_k)
    params = task.init(jax.random.key(seed))['params']
    state, curve = from_start(params, ADAM, jax.random.key(seed), [hook]), []
    for number in range(1, OTHER_STEPS + 1):
      rows = chosen[200:][rng.integers(0, len(chosen) - 200, 64)]
      batch = {**{name: x[rows] for name, x in splits['train'].items()},
               'weight': np.ones(64, np.float32)}
      state = hook.apply(step(state, {}, batch, OTHER_RATE), number)
      curve.append(float(accuracy(state.params, splits['test'])))
    return curve

  return np.array([[run(seed * 1000 + i, k) for i in range(OTHER_SEEDS)] for k in (0, max_k)])


def tokens(run, step):
  """Sampled tokens up to a mark, those of the validation included."""
  return ANSWER * (step * BATCH + run.validations[MARKS.index(step)] * VALIDATION)


def first_at_least(curve, target):
  """First number (from 1) of a curve that reaches the target; the length + 1 if none does."""
  reached = np.asarray(curve) >= target
  return int(reached.argmax()) + 1 if reached.any() else len(curve) + 1


def main(seed, workdir, ablate):
  """Prints the table, writes results.json and figures; True unless a claim does not hold."""
  workdir, max_k = pathlib.Path(workdir), 0 if ablate else MAX_K
  lab = Laboratory(seed)
  seeds, few = range(SEEDS), range(GRID_SEEDS)
  keep = (EARLY, 29, STEPS)
  settings = [{'seed': s, 'max_k': k, 'keep': keep if k == 0 else ()}
              for k in (0, max_k) for s in seeds]
  settings += [{'seed': s, 'rate': rate, 'max_k': k, 'keep': keep if k == 0 else ()}
               for rate in RATES[1:] for k in (0, max_k) for s in few]
  settings += [{'seed': s, 'rate': RATES[-1], 'objective': 'reinforce', 'keep': keep} for s in few]
  runs = lab.runs(settings)
  plain, jumping = runs[:SEEDS], runs[SEEDS:2 * SEEDS]
  grid = {rate: (runs[start:start + GRID_SEEDS], runs[start + GRID_SEEDS:start + 2 * GRID_SEEDS])
          for rate, start in zip(RATES[1:], range(2 * SEEDS, len(runs), 2 * GRID_SEEDS))}
  reinforced = runs[-GRID_SEEDS:]
  at = lambda some, mark: np.array([run.accuracy[MARKS.index(mark)] for run in some])
  line = lambda some: ' '.join(f'{at(some, mark).mean():.3f}' for mark in MARKS)

  half = claims.margin(at(jumping, 48), at(plain, 96))
  end = claims.margin(at(jumping, 96), at(plain, 96))
  cost = np.mean([tokens(run, 48) for run in jumping]) / np.mean([tokens(run, 96) for run in plain])
  scaled = [norm_scaling(lab, run, lambda beta: 0.0 if ablate else beta) for run in plain]
  curve = {beta: np.array([run[beta] for run in scaled]) for beta in BETAS}
  base = lab.accuracy(lab.base)
  best = np.mean([curve[beta] for beta in (0.5, 0.8, 1.0)], axis=0)
  lift = claims.margin(best, curve[0.0])
  large = [norm_scaling(lab, run, float) for run in grid[RATES[-1]][0]]
  changed = interventions(lab, plain[0])
  shape = geometry(lab, {'OPD': grid[RATES[-1]][0][0], 'RL': reinforced[0]}, workdir)
  others = other_trainer(seed, max_k)
  to_end = np.array([[first_at_least(c, without[-1]) for c in (without, with_hook)]
                     for without, with_hook in zip(*others)])
  sooner = claims.margin(0.5 * to_end[:, 0], to_end[:, 1])

  spectra = '; '.join(
      f'{label} effective rank {r["spectrum"][STEPS]["effrank"]:.1f}, spectral / Frobenius '
      f'{r["spectrum"][STEPS]["ratio"]:.3f}' for label, r in shape.items())
  early = '; '.join(f'{label} ' + ', '.join(
      f'step {step}: {value:.2f}' for step, value in r['alignment'].items() if step < STEPS)
      for label, r in shape.items())
  table = [
      claims.Claim(
          f'rate {RATE:g}: EffOPD at step 48 has what plain OPD has at step 96',
          'about 3x in steps', f'at {MARKS}: {line(jumping)} v {line(plain)}; {half}',
          claims.verdict(half.at_least())),
      claims.Claim('the same counted in sampled tokens, validation included: at most 0.7x',
                   'not available', f'{cost:.2f}x the tokens; {half}',
                   claims.verdict(half.at_least() and cost <= 0.7)),
      claims.Claim('EffOPD is ahead at step 96', 'equal or slightly above', str(end),
                   claims.verdict(end.at_least())),
      claims.Claim(
          f'step {EARLY} scaled to the final norm: +10 points at beta .5 to 1, below the base at 3',
          '10 % of training recovers about 80 % of the gain',
          ', '.join(f'{beta:g}: {curve[beta].mean():.3f}' for beta in BETAS) +
          f'; base {base:.3f}, end {at(plain, 96).mean():.3f}; {lift}',
          claims.verdict(lift.at_least(0.1) and curve[3.0].mean() < base)),
      claims.Claim(
          f'the hook in another trainer, digits at rate {OTHER_RATE:g}: half the steps to the end',
          'not available', f'{to_end[:, 1].mean():.1f} v {to_end[:, 0].mean():.1f} steps of '
          f'{OTHER_STEPS}; half - ours {sooner}', claims.verdict(sooner.at_least())),
      *(claims.Claim(
          f'rate {rate:g}: EffOPD against plain OPD, {GRID_SEEDS} seeds', 'not available',
          f'{line(b)} v {line(a)} (the gain is that of a cautious rate)', claims.NOT_JUDGED)
        for rate, (a, b) in grid.items()),
      claims.Claim(
          f'norm scaling at rate {RATES[-1]:g}', 'not available', ', '.join(
              f'{beta:g}: {np.mean([run[beta] for run in large]):.3f}' for beta in BETAS) +
          ' (the early direction is the final one in the near-linear regime only)',
          claims.NOT_JUDGED),
      claims.Claim('updates of OPD have a lower effective rank than those of RL',
                   '964 -> 778 (1.5B); spectral / Frobenius .332 -> .396', spectra,
                   claims.NOT_JUDGED),
      claims.Claim("OPD's directions are there early", 'up to 0.9 in the middle layers', early,
                   claims.NOT_JUDGED),
      claims.Claim(
          'interventions on the end of plain OPD', '10 % of the rank recovers over 95 %',
          ', '.join(f'{name} {value:.3f}' for name, value in changed.items()), claims.NOT_JUDGED),
  ]
  plot = lambda some: (MARKS, [run.accuracy for run in some])
  figures.compare({f'EffOPD ({RATE:g})': plot(jumping), f'OPD ({RATE:g})': plot(plain)},
                  workdir / 'figure.png', xlabel='step', ylabel='sampled accuracy',
                  title='sorting four digits', target=float(at(plain, 96).mean()))
  figures.compare({f'OPD, step {EARLY}': (BETAS, [list(run.values()) for run in scaled])},
                  workdir / 'norm_scaling.png', xlabel='beta', ylabel='sampled accuracy',
                  target=base)
  light = lambda some: [run._replace(checkpoints={})._asdict() for run in some]
  results = {'base': base, 'teacher': lab.accuracy(lab.teacher), 'plain': light(plain),
             'jumping': light(jumping), 'reinforced': light(reinforced),
             'grid': {str(rate): [light(a), light(b)] for rate, (a, b) in grid.items()},
             'norm_scaling': scaled, 'norm_scaling_at_the_large_rate': large,
             'geometry': shape, 'interventions': changed, 'other_trainer': others.tolist()}
  return claims.report('effopd', table, results, workdir, seed=seed, ablate=ablate)
