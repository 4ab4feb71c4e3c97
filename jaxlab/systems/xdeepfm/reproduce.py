"""Measures xDeepFM's claims on a world with a planted cross of three fields.

All runs of an arm (its seeds) are one compiled program. The switch of `--ablate` is the degree: the
CIN has one layer, which crosses two fields only, and the DNN, which can cross any, is off.
"""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel
from jaxlab.metrics import binary
from jaxlab.systems.xdeepfm import data as data_lib
from jaxlab.systems.xdeepfm import demo, formats
from jaxlab.systems.xdeepfm import task as task_lib
from jaxlab.systems.xdeepfm.model import make_model
from jaxlab.train import claims, figures, stepping, task_gradient

TRAIN, TEST, SEEDS = 16_000, 4_000, 6
STEPS, BATCH, RATE, POINTS = 600, 512, 1e-2, 6
LAYOUT = data_lib.Layout(demo.FIELDS * demo.VALUES, demo.FIELDS, demo.FIELDS, True)
NORMAL = {'name': 'normal', 'scale': 0.1}
ARMS = {'LR': ('linear',), 'FM': ('linear', 'fm'), 'DNN': ('linear', 'dnn'),
        'CIN': ('linear', 'cin'), 'CIN, relu': ('linear', 'cin'),
        'xDeepFM': ('linear', 'cin', 'dnn'), 'DeepFM': ('linear', 'fm', 'dnn')}
PAPER = {  # test AUC on Criteo, tables 2 and 3
    'LR': .7577, 'FM': .7900, 'DNN': .7993, 'CIN': .8012, 'xDeepFM': .8052, 'DeepFM': .8025
}


def make_task(arm, ablate):
  """The Task of an arm, without data."""
  parts = tuple(part for part in ARMS[arm] if not (ablate and 'cin' in ARMS[arm] and part == 'dnn'))
  config = {'parts': parts, 'dim': 8, 'linear': {'init': NORMAL}}
  if parts != ('linear',):
    config['embedding'] = {'init': NORMAL}
  if 'cin' in parts:
    config['cin'] = {'layer_sizes': (16,) if ablate else (16, 16), 'init': NORMAL,
                     'activation': 'relu' if 'relu' in arm else 'identity'}
  if 'dnn' in parts:
    config['dnn'] = {'features': (32, 32)}
  model = make_model(config, LAYOUT.num_features, LAYOUT.num_fields)
  return task_lib.from_model(model, LAYOUT, {})


def worlds(seeds):
  """(training columns [R, N, ...], test columns, true test probabilities [R, M])."""
  made = [demo.make(seed, TRAIN + TEST) for seed in seeds]
  cut = lambda part: {'ids': np.stack([world.ids[part] for world in made]),
                      'label': np.stack([world.label[part] for world in made])}
  return (cut(slice(TRAIN)), cut(slice(TRAIN, None)),
          np.stack([world.probability[TRAIN:] for world in made]))


def train_run(task):
  """The function of one run: (shared, train, test ids, key) -> test logits [POINTS, M]."""
  gradient, optimizer = task_gradient(task), optax.adam(RATE)

  def run(shared, train, ids, key):
    del shared
    init_key, draw_key = jax.random.split(key)
    params = task.init(init_key)['params']

    def batch_of(number):
      chosen = jax.random.randint(jax.random.fold_in(draw_key, number), (BATCH,), 0, TRAIN)
      return {**jax.tree.map(lambda x: x[chosen], train), 'weight': jnp.ones(BATCH)}, key

    step = stepping.update_step(gradient, optimizer, batch_of)

    def stretch(carry, numbers):
      carry, _ = jax.lax.scan(step, carry, numbers)
      return carry, task.predict({'params': carry[0]}, {'ids': ids}, key)['logit']

    numbers = jnp.arange(STEPS).reshape(POINTS, -1)
    return jax.lax.scan(stretch, (params, optimizer.init(params)), numbers)[1]

  return run


def measure(seeds, ablate):
  """{arm: {'auc', 'logloss': [R, POINTS], 'logits': [R, M]}} and the worlds' test columns."""
  train, test, truth = worlds(seeds)
  keys = jax.vmap(jax.random.key)(np.array(seeds))
  results = {}
  for arm in ARMS:
    logits = parallel.map_runs(train_run(make_task(arm, ablate)), (), train, test['ids'], keys)
    score = lambda metric: np.array([[metric(label, point) for point in points]
                                     for label, points in zip(test['label'], logits)])
    results[arm] = {'auc': score(binary.auc), 'logloss': score(binary.log_loss),
                    'logits': logits[:, -1]}
  best = np.array([binary.auc(label, p) for label, p in zip(test['label'], truth)])
  return results, test['label'], best


def judge(results, best):
  """The claims."""
  final = lambda arm, what='auc': results[arm][what][:, -1]
  over = lambda arm, other, what='auc': claims.margin(final(arm, what), final(other, what))
  show = lambda *arms: ', '.join(f'{arm} {final(arm).mean():.3f}' for arm in arms)
  first = over('FM', 'LR')
  table = []
  for arm, text in (('CIN', 'CIN with a linear part'), ('xDeepFM', 'xDeepFM')):
    fm, lr = over(arm, 'FM'), over(arm, 'LR')
    table.append(claims.Claim(
        f'{text} learns a cross of three fields: AUC > FM + .10, > LR + .20; FM > LR + .05',
        f'Criteo: {PAPER[arm]:.4f} v FM {PAPER["FM"]:.4f}, LR {PAPER["LR"]:.4f}',
        f'{show(arm, "FM", "LR")}; over FM {fm}, over LR {lr}, FM over LR {first}',
        claims.verdict(fm.at_least(0.10) and lr.at_least(0.20) and first.at_least(0.05))))
  ties = (('xDeepFM', 'DNN', 'xDeepFM against a plain DNN', '.8052 v .7993'),
          ('CIN', 'DNN', 'CIN against a plain DNN', '.8012 v .7993'),
          ('CIN', 'xDeepFM', 'CIN against xDeepFM', 'not available'),
          ('xDeepFM', 'DeepFM', 'xDeepFM against DeepFM', '.8052 v .8025'),
          ('CIN', 'CIN, relu', 'identity against relu in the CIN', 'identity best'))
  for arm, other, text, paper in ties:
    loss = over(arm, other, 'logloss')
    table.append(claims.Claim(text, paper, f'{show(arm, other)}; AUC {over(arm, other)}, log loss '
                              f'{loss} (specified: no threshold)', claims.NOT_JUDGED))
  table.append(claims.Claim('the true probabilities', 'not available', f'AUC {best.mean():.3f}',
                            claims.NOT_JUDGED))
  return table


def read_sample(folder):
  """The claim on a folder of Criteo's sample in two formats: the records are the same."""
  folder = pathlib.Path(folder)
  both = [[formats.criteo_row(where, row) for where, row in formats.read_criteo(folder / name)]
          for name in ('criteo_sample.txt', 'criteo_sample_raw.tsv')]
  same = len(both[0]) == len(both[1]) and all(
      a['label'] == b['label'] and (a['tokens'] == b['tokens']).all() for a, b in zip(*both))
  positives = sum(int(row['label']) for row in both[0])
  return claims.Claim('a csv with header and the raw form of the same rows are the same records',
                      'not available', f'{len(both[0])} rows, {positives} positives, '
                      f'{"equal" if same else "not equal"}', claims.verdict(same))


def main(seed, workdir, ablate, data_dir=None):
  """Prints the table, writes results.json and figures; True unless a claim does not hold."""
  workdir = pathlib.Path(workdir)
  results, labels, best = measure([seed * 1000 + i for i in range(SEEDS)], ablate)
  table = judge(results, best)
  if data_dir is not None:
    table.append(read_sample(data_dir))
  steps = np.arange(1, POINTS + 1) * STEPS // POINTS
  figures.compare({arm: (steps, r['auc']) for arm, r in results.items()}, workdir / 'figure.png',
                  xlabel='step', ylabel='test AUC', target=float(best.mean()),
                  title='a planted cross of three fields; dashed: the true probabilities')
  curves = {}
  for arm in ('FM', 'DNN', 'CIN', 'xDeepFM'):
    probability = 1 / (1 + np.exp(-results[arm]['logits'].astype(np.float64)))
    mean, share, _ = binary.calibration(labels.ravel(), probability.ravel(), 20)
    curves[arm] = mean, share[None]
  curves['perfect'] = np.linspace(0, 1, 2), np.linspace(0, 1, 2)[None]
  figures.compare(curves, workdir / 'calibration.png', xlabel='predicted', ylabel='observed',
                  title='calibration on the test rows')
  plain = {arm: {what: r[what].tolist() for what in ('auc', 'logloss')}
           for arm, r in results.items()}
  return claims.report('xdeepfm', table, {'arms': plain, 'true_auc': best.tolist()}, workdir,
                       seed=seed, ablate=ablate)
