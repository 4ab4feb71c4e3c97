"""Measures DebiasedRec's claims on a simulated homepage whose true interests are known.

The worlds are written as files and read by the reader of real logs. All worlds of an arm are one
compiled program. The switch of `--ablate` makes every slot unknown.
"""
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxlab import parallel
from jaxlab.data.mind_demo import TOPIC_WORDS
from jaxlab.metrics import ranking
from jaxlab.systems.debiasedrec import data as data_lib
from jaxlab.systems.debiasedrec import simulator
from jaxlab.systems.debiasedrec import task as task_lib
from jaxlab.systems.debiasedrec.model import CNNNews
from jaxlab.train import claims, figures, stepping, task_gradient

TOPICS, SEEDS = 8, 4
STEPS, BATCH, RATE, POINTS = 600, 128, 5e-3, 6
IMPRESSIONS = 16  # of a user; with 8 titles of so few clicks are learned by heart
VOCABULARY = TOPICS * TOPIC_WORDS + 1
DATA = {'history_length': simulator.HISTORY, 'negatives': 4, 'title_length': 8, 'min_count': 1,
        'positions': simulator.SLOTS, 'sizes': 3}
PLAIN = {'user': {'bias': False}, 'click': {'head': 'none'}}
ARMS = {  # parts of the model, and of the loss
    'no debiasing': (PLAIN, {}),
    'DebiasedRec': ({}, {}),
    'in the user model only': ({'click': {'head': 'none'}}, {}),
    'in the click score only': ({'user': {'bias': False}}, {}),
    'no interactions': ({'bias': {'interaction': 'none'}}, {}),
    'PAL': ({**PLAIN, 'click': {'head': 'pal'}}, {'loss_name': 'bce'}),
    'inverse propensities': (PLAIN, {'weighting': 'ipw'}),
    'slot as a feature': ({**PLAIN, 'click': {'head': 'feature', 'serve_slot': (1, 3)}}, {}),
}
ABLATIONS = ('in the user model only', 'in the click score only', 'no interactions')
BASELINES = ('PAL', 'inverse propensities', 'slot as a feature')
WORLDS = {  # policy of the log, and the arms that are trained on it
    'biased': ({'rho': 0.5, 'eta': 1.0}, tuple(ARMS)),
    'random order': ({'rho': 0.0, 'eta': 1.0}, ('DebiasedRec',)),
    'no bias': ({'rho': 0.5, 'eta': 0.0, 'equal_sizes': True}, ('no debiasing', 'DebiasedRec')),
}


def make_data(seed, policy, ablate):
  """The Data of one world, by way of its files; slots are unknown under the ablation."""
  with tempfile.TemporaryDirectory() as folder:
    simulator.write(pathlib.Path(folder) / 'log', seed, impressions=IMPRESSIONS, topics=TOPICS,
                    **policy)
    news, splits = data_lib.read_folder(pathlib.Path(folder) / 'log')
  if ablate:
    splits = {name: split._replace(history_slots=0 * split.history_slots, slots=0 * split.slots)
              for name, split in splits.items()}
  return data_lib.prepare(news, splits, **DATA)


def make_task(arm, data):
  """(Task, ClickModel) of an arm."""
  parts, loss = ARMS[arm]
  model = {'bias': {'dim': 8, 'features': 16, **parts.get('bias', {})},
           'user': {'queries': 16, **parts.get('user', {})},
           'click': {'hidden': 16, **parts.get('click', {})}}
  click = task_lib.make_click_model(data.index.rows, **model)
  news = CNNNews(VOCABULARY, embed=16, features=16, queries=16, dropout=0.0)
  return task_lib.from_models(news, click, data, **loss), click


def train_run(task, click):
  """The function of one run: (None, constants, train, rows, tests, key) -> measurements.

  Measurements are of `POINTS` moments: AUC 'random', of the served score with true labels; 'served'
  and 'with slot', on the biased log; and, where there is one, 'slots' [10], the mean bias score.
  """
  optimizer = optax.adam(RATE)

  def run(shared, constants, train, rows, tests, key):
    del shared
    gradient = task_gradient(task, constants)
    init_key, step_key = jax.random.split(key)
    params = task.init(init_key)['params']

    step = stepping.update_step(gradient, optimizer,
                                stepping.draw_batches(train, rows, BATCH, step_key))

    def stretch(carry, numbers):
      carry, _ = jax.lax.scan(step, carry, numbers)
      variables = {'params': carry[0], 'constants': constants}
      true, log = (task.predict(variables, tests[name], key) for name in ('random', 'test'))
      out = {'random': _auc(true['score'], tests['random']),
             'served': _auc(log['score'], tests['test']),
             'with slot': _auc(log['slot_score'], tests['test'])}
      if click.head == 'additive':
        out['slots'] = click.apply({'params': carry[0]['click']}, tests['test']['slots'],
                                   method='slot_scores').mean(0)
      return carry, out

    start = params, optimizer.init(params)
    return jax.lax.scan(stretch, start, jnp.arange(STEPS).reshape(POINTS, -1))[1]

  return run


def _auc(scores, rows):
  real = rows['labels'] >= 0
  both = ranking.two_class(rows['labels'], real)
  return jnp.where(both, ranking.auc(rows['labels'], scores, real), 0).sum() / both.sum()


def measure(seeds, ablate):
  """{world: {arm: {measurement: [seeds, POINTS, ...]}}}."""
  results = {}
  for world, (policy, arms) in WORLDS.items():
    made = [make_data(seed, policy, ablate) for seed in seeds]
    constants = [{'news': data.table.features, 'inverse_propensity': 1 / data.propensity}
                 for data in made]
    stack = parallel.stack_runs
    inputs = (stack(constants), stack([data.splits['train'] for data in made]),
              np.array([len(data.splits['train']['row']) for data in made]),
              stack([{name: data.splits[name] for name in ('random', 'test')} for data in made]),
              jax.vmap(jax.random.key)(np.array(seeds)))
    results[world] = {arm: parallel.map_runs(train_run(*make_task(arm, made[0])), None, *inputs)
                      for arm in arms}
  return results


def judge(results):
  """The claims."""
  last = lambda arm, what='random', world='biased': results[world][arm][what][:, -1]
  ours, plain = last('DebiasedRec'), last('no debiasing')
  mean = lambda values: f'{values.mean():.3f}'
  gain = claims.margin(ours, plain)
  parts = {arm: last(arm).mean() for arm in ABLATIONS}
  between = all(plain.mean() - 0.005 <= auc <= ours.mean() + 0.01 for auc in parts.values())
  trap = claims.margin(last('DebiasedRec', 'with slot'), last('DebiasedRec', 'served'))
  curve = last('DebiasedRec', 'slots', 'random order').mean(0)
  truth = slot_truth()
  order = stats.spearmanr(curve, truth).statistic if np.ptp(curve) else 0.0
  steps = int((np.diff(curve) < 0).sum())
  cost = claims.margin(last('no debiasing', world='no bias'), last('DebiasedRec', world='no bias'))
  listed = lambda arms: ', '.join(f'{arm} {mean(last(arm))}' for arm in arms)
  return [
      claims.Claim(
          'random slots, true interest: AUC at least .01 above no debiasing', 'not available',
          f'{mean(ours)} v {mean(plain)}, {gain}', claims.verdict(gain.at_least(0.01))),
      claims.Claim(
          'each part alone: not below no debiasing - .005 nor above DebiasedRec + .01',
          'not available', listed(ABLATIONS), claims.verdict(between)),
      claims.Claim(
          'the biased log misleads: with the slot score at least .05 above the served score',
          'not available', f'{mean(last("DebiasedRec", "with slot"))} v '
          f'{mean(last("DebiasedRec", "served"))}, {trap}; no debiasing '
          f'{mean(last("no debiasing", "served"))}', claims.verdict(trap.at_least(0.05))),
      claims.Claim(
          'random order: the bias score falls with the slot, rank correlation with what is seen at '
          'least .9', 'not available', f'{" ".join(f"{x:.2f}" for x in curve)}: {order:.3f}, falls '
          f'at {steps} of {len(curve) - 1} steps',
          claims.verdict(order >= 0.9 and steps == len(curve) - 1)),
      claims.Claim(
          'a log without bias: at most .005 lost to no debiasing', 'not available',
          f'{mean(last("DebiasedRec", world="no bias"))} v '
          f'{mean(last("no debiasing", world="no bias"))}, lost {cost}',
          claims.verdict(cost.mean <= 0.005)),
      claims.Claim('other ways to remove the bias, random slots, true interest', 'not available',
                   f'{listed(BASELINES)} (specified: no threshold)', claims.NOT_JUDGED),
      claims.Claim('the joint effect of position and size: without interactions', 'not available',
                   f'{listed(("DebiasedRec", "no interactions"))}; '
                   f'{claims.margin(ours, last("no interactions"))} (specified: no threshold)',
                   claims.NOT_JUDGED),
  ]


def slot_truth():
  """log of the chance that a card of each slot is seen, in the mean over its sizes, [10]."""
  sizes = np.array([[1], [2]]) + (np.arange(simulator.SLOTS) < 3)
  return np.log(simulator.examination(sizes, WORLDS['random order'][0]['eta'])).mean(0)


def main(seed, workdir, ablate):
  """Prints the table, writes results.json and figures; True unless a claim does not hold."""
  seeds = [seed * 1000 + i for i in range(SEEDS)]
  results = measure(seeds, ablate)
  steps = np.arange(1, POINTS + 1) * STEPS // POINTS
  biased, workdir = results['biased'], pathlib.Path(workdir)
  figures.compare({arm: (steps, out['random']) for arm, out in biased.items()},
                  workdir / 'figure.png', xlabel='step', ylabel='AUC',
                  title='random slots, true interest')
  ours = biased['DebiasedRec']
  figures.compare({'random slots, true interest': (steps, ours['random']),
                   'biased log, served score': (steps, ours['served']),
                   'biased log, with the slot score': (steps, ours['with slot'])},
                  workdir / 'two_evaluations.png', xlabel='step', ylabel='AUC',
                  title='DebiasedRec in both evaluations')
  plain = jax.tree.map(lambda x: x.tolist(), results)
  return claims.report('debiasedrec', judge(results), {'seeds': seeds, 'worlds': plain}, workdir,
                       seed=seed, ablate=ablate)
