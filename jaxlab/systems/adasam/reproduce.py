"""Measures AdaSAM's claims on handwritten digits: better and flatter than its parts, linear
speed-up.

All runs of an arm (its grid x seeds) are one compiled program: rate, rho, data and keys are its
inputs. The switch of `--ablate` is rho = 0, which makes AdaSAM AMSGrad and SAM SGD; for the
speed-up it is the batch, held at 16.
"""
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import models, optim, parallel
from jaxlab.tasks import classification
from jaxlab.train import claims, figures, task_gradient

TRAIN, TEST = 'train[:1000]', 'train[1000:]'
LABEL_NOISE, DECADES = 0.3, 0.7
BATCH, EPOCHS, CHECKPOINTS = 50, 60, 12
SHARPNESS_RADIUS = 0.05
ADAPTIVE_RATES, PLAIN_RATES, RHOS = (3e-4, 1e-3, 3e-3), (0.03, 0.1, 0.3), (0.1, 0.2, 0.5)
ARMS = {'AdaSAM': (ADAPTIVE_RATES, RHOS), 'AMSGrad': (ADAPTIVE_RATES, (0.0,)),
        'SAM': (PLAIN_RATES, RHOS), 'SGD': (PLAIN_RATES, (0.0,))}
TUNING_SEEDS, TEST_SEEDS = 16, 40
BLOCK = 48  # runs a call: one compilation an arm serves tuning and testing
SPEEDUP_BATCHES, SPEEDUP_SEEDS, SPEEDUP_STEPS, SPEEDUP_LOSS = (16, 32, 64), 3, 1000, 0.15
SETUPS = {  # name -> (decades of spread of the inputs' units, b1)
    'unlike units': (DECADES, 0.9), 'plain digits': (0.0, 0.9), 'unlike units, b1 = 0': (
        DECADES, 0.0)
}


def make_task():
  """The digits Task without data: an MLP of 128 hidden units."""
  spec = classification.DATASETS['digits']
  return classification.from_model(models.MLP(spec.num_classes, (128,)), spec, {})


def make_data(seeds, *, label_noise, decades):
  """Columns of each seed: {'train': [R, 1000, ...], 'test': [R, 797, ...]}."""
  splits = [
      classification.load_arrays(name='digits', train=TRAIN, test=TEST, label_noise=label_noise,
                                 units=decades, seed=seed)[1] for seed in seeds
  ]
  stack = lambda *columns: np.stack(columns)
  return {
      name: jax.tree.map(
          stack,
          *({**split[name], 'weight': np.ones(len(split[name]['label']), np.float32)}
            for split in splits)) for name in ('train', 'test')
  }


def make_optimizer(arm, rate, rho, b1):
  """AdaSAM, or one of the baselines that it is made of; rate and rho may be traced."""
  if arm in ('AdaSAM', 'AMSGrad'):
    return optim.adasam(rate, rho=rho, b1=b1)
  sgd = optax.chain(optax.ema(b1, debias=False), optax.scale(-1.0 * rate))
  return optim.sam(sgd, rho)


def one_step(gradient, optimizer, carry, batch, key):
  """One optimizer step on (params, opt_state)."""
  params, opt_state = carry
  grads, _ = gradient(params, batch, key)
  updates, opt_state = optimizer.update(grads, opt_state, params,
                                        grad_fn=lambda p: gradient(p, batch, key)[0])
  return optax.apply_updates(params, updates), opt_state


def sharpness(gradient, params, batch, key):
  """L(x + r s / ||s||) - L(x) over the whole batch, s the gradient, r = 0.05."""
  mean_loss = lambda sums: sums['loss'][0] / sums['loss'][1]
  grads, here = gradient(params, batch, key)
  scale = SHARPNESS_RADIUS / optax.tree.norm(grads)
  there = gradient(jax.tree.map(lambda p, g: p + scale * g, params, grads), batch, key)[1]
  return mean_loss(there) - mean_loss(here)


def accuracy(task, params, columns):
  """Share of right predictions."""
  return (task.predict({'params': params}, columns, None).argmax(-1) == columns['label']).mean()


@functools.lru_cache
def train_run(task, arm, ascends):
  """The function of one run: (data of all seeds, rate, rho, b1, key, which seed) -> (accuracies
  [CHECKPOINTS], sharpness).

  `ascends` False leaves the second gradient out, where rho is 0 anyway.
  """
  gradient = task_gradient(task)

  def run(data, rate, rho, b1, key, which):
    data = jax.tree.map(lambda x: x[which], data)
    optimizer = make_optimizer(arm, rate, rho if ascends else 0.0, b1)
    init_key, order_key = jax.random.split(key)
    params = task.init(init_key)['params']
    rows = data['train']['label'].shape[0]

    def step(carry, chosen):
      return one_step(gradient, optimizer, carry, jax.tree.map(lambda x: x[chosen], data['train']),
                      key), None

    def epoch(carry, index):
      order = jax.random.permutation(jax.random.fold_in(order_key, index), rows)
      return jax.lax.scan(step, carry, order.reshape(-1, BATCH))[0], None

    def stretch(carry, indices):
      carry, _ = jax.lax.scan(epoch, carry, indices)
      return carry, accuracy(task, carry[0], data['test'])

    (params, _), curve = jax.lax.scan(
        stretch, (params, optimizer.init(params)), jnp.arange(EPOCHS).reshape(CHECKPOINTS, -1))
    return curve, sharpness(gradient, params, data['train'], key)

  return run


def train_runs(task, arm, b1, settings, seeds, data):
  """Trains an arm at each setting with each seed.

  Args:
    task: Task.
    arm: name.
    b1: decay of the first moment.
    settings: list of (rate, rho).
    seeds: positions in `data` and seeds of initialisation and order: list of (position, seed).
    data: what `make_data` gives.

  Returns:
    (accuracy curves [settings, seeds, CHECKPOINTS], sharpness [settings, seeds]).
  """
  grid = list(itertools.product(settings, seeds))
  rates, rhos = np.array([setting for setting, _ in grid], np.float32).T
  which, numbers = np.array([seed for _, seed in grid]).T
  curves, sharp = parallel.map_runs(
      train_run(task, arm, bool(rhos.any())), data, rates, rhos, np.full(len(grid), b1, np.float32),
      jax.vmap(jax.random.key)(numbers), which, block=BLOCK)
  return curves.reshape(len(settings), len(seeds), -1), sharp.reshape(len(settings), len(seeds))


def compare(task, setup, seed, ablate):
  """Tunes each arm on some seeds and tests it at its best setting on others.

  Returns:
    {arm: {'grid': {setting: accuracies}, 'best': (rate, rho), 'accuracy': [TEST_SEEDS],
    'sharpness': [TEST_SEEDS], 'curves': [TEST_SEEDS, CHECKPOINTS]}}; AMSGrad also at AdaSAM's rate,
    for the sharpness at equal rates.
  """
  decades, b1 = SETUPS[setup]
  seeds = list(enumerate(range(seed * 1000, seed * 1000 + TUNING_SEEDS + TEST_SEEDS)))
  tuning, fresh = seeds[:TUNING_SEEDS], seeds[TUNING_SEEDS:]
  data = make_data([number for _, number in seeds], label_noise=LABEL_NOISE, decades=decades)
  results = {}
  for arm, (rates, rhos) in ARMS.items():
    settings = list(itertools.product(rates, (0.0,) if ablate else rhos))
    tuned = train_runs(task, arm, b1, settings, tuning, data)[0][..., -1]
    best = settings[int(tuned.mean(-1).argmax())]
    results[arm] = {'grid': {str(s): tuned[i].tolist() for i, s in enumerate(settings)},
                    **test(task, arm, b1, best, fresh, data)}
  equal = (results['AdaSAM']['best'][0], 0.0)
  results['AMSGrad']['at_equal_rate'] = test(task, 'AMSGrad', b1, equal, fresh, data)
  return results


def test(task, arm, b1, setting, seeds, data):
  """The runs of an arm at one setting on the test seeds."""
  curves, sharp = train_runs(task, arm, b1, [setting], seeds, data)
  return {'best': setting, 'accuracy': curves[0, :, -1], 'sharpness': sharp[0], 'curves': curves[0]}


def speedup(task, seed, batches):
  """Iterations [batches, seeds] until the full clean training loss is below 0.15."""
  data = jax.tree.map(lambda x: x[0], make_data([0], label_noise=0.0, decades=0.0))['train']
  gradient = task_gradient(task)

  def run(data, key, *, batch):
    optimizer = optim.adasam(2.5e-4 * float(np.sqrt(batch / 4)), rho=0.05)
    init_key, draw_key = jax.random.split(key)
    params = task.init(init_key)['params']

    def step(carry, index):
      rows = jax.random.randint(
          jax.random.fold_in(draw_key, index), (batch,), 0, len(data['label']))
      carry = one_step(gradient, optimizer, carry, jax.tree.map(lambda x: x[rows], data), key)
      loss = task.loss({'params': carry[0]}, data, key)
      return carry, loss.values.mean()

    losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(SPEEDUP_STEPS))[1]
    below = losses < SPEEDUP_LOSS
    return jnp.where(below.any(), below.argmax() + 1, SPEEDUP_STEPS)

  keys = jax.vmap(jax.random.key)(np.arange(SPEEDUP_SEEDS) + seed * 1000 + 900)
  return np.stack(
      [parallel.map_runs(functools.partial(run, batch=batch), data, keys) for batch in batches])


def judge(results):
  """The claims over the three set-ups."""
  def against(setup, arm, other, what='accuracy'):
    return claims.margin(results[setup][arm][what], results[setup][other][what])

  def figures_of(setup, what='accuracy'):
    return ', '.join(f'{arm} {np.mean(r[what]):.4f}' for arm, r in results[setup].items())

  units, plain, bare = SETUPS
  first = {other: against(units, 'AdaSAM', other) for other in ('AMSGrad', 'SAM', 'SGD')}
  flatter = against(units, 'AMSGrad', 'AdaSAM', 'sharpness')
  sam = against(units, 'SAM', 'SGD')
  gain = against(plain, 'AdaSAM', 'AMSGrad')
  mean_sharpness = lambda runs: np.mean(runs['sharpness'])
  adasam, amsgrad = results[plain]['AdaSAM'], results[plain]['AMSGrad']
  equal, tuned = (
      mean_sharpness(adasam) / mean_sharpness(r) for r in (amsgrad['at_equal_rate'], amsgrad))
  without = against(bare, 'AdaSAM', 'AMSGrad')
  return [
      claims.Claim(f'{units}: AdaSAM is ahead of AMSGrad, SAM and SGD',
                   'best on the GLUE average (figures not read)',
                   figures_of(units) + ''.join(f'; over {other} {m}' for other, m in first.items()),
                   claims.verdict(all(m.at_least() for m in first.values()))),
      claims.Claim(f'{units}: AdaSAM is flatter than AMSGrad',
                   'not available', f'{figures_of(units, "sharpness")}; {flatter}',
                   claims.verdict(flatter.at_least())),
      claims.Claim(f'{units}: SAM is ahead of SGD', 'not available', str(sam),
                   claims.verdict(sam.at_least())),
      claims.Claim(
          f'{plain}: AdaSAM is 1 point ahead of AMSGrad, at most 0.75x as sharp at the same rate',
          'not available',
          f'{figures_of(plain)}; {gain}; sharpness {equal:.2f}x at the same rate, {tuned:.2f}x '
          "at AMSGrad's own", claims.verdict(gain.at_least(0.01) and equal <= 0.75)),
      claims.Claim(f'{plain}: AdaSAM is ahead of SAM', 'not available',
                   f'{against(plain, "AdaSAM", "SAM")} (specified as a tie on these inputs)',
                   claims.NOT_JUDGED),
      claims.Claim(f'{bare}: AdaSAM is ahead of AMSGrad', 'not available',
                   f'{figures_of(bare)}; {without}', claims.verdict(without.at_least())),
  ]


def main(seed, workdir, ablate):
  """Prints the table, writes results.json and figure.png; True unless a claim does not hold."""
  task = make_task()
  results = {setup: compare(task, setup, seed, ablate) for setup in SETUPS}
  iterations = speedup(task, seed, [SPEEDUP_BATCHES[0]] * 3 if ablate else SPEEDUP_BATCHES)
  means = iterations.mean(-1)
  falls = means[:-1] / means[1:]
  table = judge(results)
  table.append(claims.Claim(
      'linear speed-up: twice the batch, at most 1 / 1.7 of the iterations', 'O(1 / sqrt(bT))',
      ', '.join(f'b = {b}: {n:.0f}' for b, n in zip(SPEEDUP_BATCHES, means)) +
      '; ratios ' + ', '.join(f'{f:.2f}' for f in falls), claims.verdict((falls >= 1.7).all())))
  first = results['unlike units']
  epochs = np.arange(1, CHECKPOINTS + 1) * EPOCHS // CHECKPOINTS
  figures.compare(
      {
          f'{arm} (rate {r["best"][0]:g}, rho {r["best"][1]:g})': (epochs, r['curves'])
          for arm, r in first.items()
      },
      pathlib.Path(workdir) / 'figure.png', xlabel='epoch', ylabel='clean test accuracy',
      title='digits in unlike units, 30 % label noise')
  plain = jax.tree.map(lambda x: x.tolist() if isinstance(x, np.ndarray) else x, results)
  return claims.report('adasam', table, {'setups': plain, 'iterations': iterations.tolist()},
                       workdir, seed=seed, ablate=ablate)
