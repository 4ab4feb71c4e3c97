"""Measures UA-FedRec's claims on planted worlds of news: what a few malicious clients can spoil.

The recipe is that of `experiment`: 800 users, 400 news, FedSGD with Adam at the server, 50 users a
round, 250 rounds, 200 under a defence. An arm's AUC is the mean of its last three evaluations, one
each 25 rounds. The switch of `--ablate` takes all three perturbations away: the malicious clients
send the mean gradient of their own clients, and its mean size.
"""
import pathlib

import numpy as np

from jaxlab import parallel
from jaxlab.systems.ua_fedrec.attack import Strength
from jaxlab.systems.ua_fedrec.experiment import (
  BLOCK,
  MODELS,
  OFF,
  RULES,
  Arm,
  make_data,
  make_world,
  one_run,
  run_inputs,
)
from jaxlab.tasks import news as news_task
from jaxlab.train import claims, figures, sweep

SEEDS, LAST = 3, 3
ROUNDS, DEFENDED_ROUNDS = 250, 200
SPREAD = 8  # runs of a call, so that a call of few runs compiles nothing anew
FULL = Strength()
WITHOUT = {'news part': FULL._replace(news_sign=0.0), 'user part': FULL._replace(user=0.0),
           'quantity': FULL._replace(quantity=0.0)}
UA = {0.01: 'UA-FedRec 1 %', 0.03: 'UA-FedRec 3 %', 0.1: 'UA-FedRec 10 %'}


def plain_arms(strength):
  """{label: Arm} without a defence; `strength` is that of the whole attack."""
  return {
      'clean': Arm(), **{label: Arm(share, strength=strength) for share, label in UA.items()},
      'LIE 3 %': Arm(0.03, 'LIE'), 'LIE 10 %': Arm(0.1, 'LIE'),
      'label flip 10 %': Arm(0.1, 'flip'), 'Gaussian 10 %': Arm(0.1, 'Gaussian'),
      'sign_std 3 %': Arm(0.03, 'sign_std'),
      **{f'UA-FedRec 3 %, no {part}': Arm(0.03, strength=without)
         for part, without in WITHOUT.items()},
      'UA-FedRec 3 %, release sign': Arm(0.03, strength=FULL._replace(news_sign=-1.0)),
  }


def defended_arms(strength):
  """{(rule, label): Arm} under the defences."""
  arms = {'clean': Arm(), **{label: Arm(share, strength=strength) for share, label in UA.items()}}
  return {(rule, label): arm for rule in RULES for label, arm in arms.items()}


def lstur_arms(strength):
  """{label: Arm} of the other model."""
  return {'clean': Arm(), UA[0.03]: Arm(0.03, strength=strength),
          UA[0.1]: Arm(0.1, strength=strength)}


def run_arms(model, datas, seeds, arms, rounds, defended=False):
  """{label: AUC [seeds, evaluations]} of {label: Arm}; under a defence the label begins with it."""
  task = news_task.from_models(*MODELS[model](), datas[0])
  rule = lambda label: list(RULES).index(label[0]) if defended else 0
  inputs = run_inputs([(arm, rule(label)) for label, arm in arms.items()], seeds)
  curves = parallel.map_runs(one_run(task, defended, rounds), make_world(datas, seeds, rounds),
                             *inputs, block=SPREAD)
  return dict(zip(arms, curves.reshape(len(arms), len(seeds), -1)))


def final(curve):
  """Mean of the last evaluations [seeds]."""
  return curve[:, -LAST:].mean(1)


def judge(plain, defended):
  """The claims on curves {label: [seeds, evaluations]}."""
  auc = {label: final(curve) for label, curve in {**plain, **defended}.items()}
  mean = lambda label: f'{auc[label].mean():.3f}'
  drop = {label: claims.margin(auc['clean'], auc[label]) for label in plain}
  table = []
  for share, least in ((0.1, 0.12), (0.03, 0.07), (0.01, 0.02)):
    label = UA[share]
    held = drop[label].at_least(least) and auc['clean'].mean() >= 0.7
    if share == 0.1:
      held &= auc[label].mean() <= 0.6
    table.append(claims.Claim(
        f'{100 * share:g} % malicious: AUC at least {least} lower than the clean .70 or more'
        + (', and at most .60' if share == 0.1 else ''),
        'AUC .50-.55 on MIND at 1 %' if share == 0.01 else 'not available',
        f'{mean("clean")} v {mean(label)}, {drop[label]}', claims.verdict(held)))
  lie = claims.margin(auc['LIE 3 %'], auc[UA[0.03]])
  table.append(claims.Claim('3 %: at least .04 more harmful than LIE', 'more harmful',
                            f'{mean("LIE 3 %")} v {mean(UA[0.03])}, {lie}',
                            claims.verdict(lie.at_least(0.04))))
  for other in ('label flip 10 %', 'Gaussian 10 %'):
    ahead = claims.margin(auc[other], auc[UA[0.03]])
    table.append(claims.Claim(f'3 %: at least .05 more harmful than {other}', 'more harmful',
                              f'{mean(other)} v {mean(UA[0.03])}, {ahead}',
                              claims.verdict(ahead.at_least(0.05))))
  for part in WITHOUT:
    label = f'UA-FedRec 3 %, no {part}'
    needed = claims.margin(auc[label], auc[UA[0.03]])
    unclear = abs(needed.mean) <= 2 * needed.error
    table.append(claims.Claim(
        f'3 %: at least .02 less harmful without the {part}', 'less harmful',
        f'{mean(label)} v {mean(UA[0.03])}, {needed}',
        claims.NOT_JUDGED if unclear else claims.verdict(needed.at_least(0.02))))
  for rule in RULES:
    gap = {share: claims.margin(auc[rule, 'clean'], auc[rule, label])
           for share, label in UA.items()}
    held = (gap[0.1].at_least(0.08) and gap[0.03].at_least(0.03)
            and gap[0.03].mean < drop[UA[0.03]].mean)
    table.append(claims.Claim(
        f'{rule}: AUC at least .08 lower at 10 %, .03 at 3 %, there less than without it',
        'reduces, does not remove',
        f'clean {mean((rule, "clean"))}; 10 %: {gap[0.1]}; 3 %: {gap[0.03]}; 1 %: {gap[0.01]}',
        claims.verdict(held)))
  return table


def reported(plain, lstur):
  """Lines that are printed and not judged: where others do more harm, the other sign and model."""
  auc = {label: f'{final(curve).mean():.3f}, best {curve.max(1).mean():.3f}'
         for label, curve in plain.items()}
  other = {label: f'{final(curve).mean():.3f}' for label, curve in lstur.items()}
  row = lambda text, *labels: claims.Claim(
      text, 'not available', '; '.join(f'{label} {auc[label]}' for label in labels),
      claims.NOT_JUDGED)
  return [row('10 %: LIE may be the more harmful', UA[0.1], 'LIE 10 %'),
          row('3 %: sign_std on all parameters ends lower, after it has learnt more', UA[0.03],
              'sign_std 3 %'),
          row('3 %: the sign of the official code', UA[0.03], 'UA-FedRec 3 %, release sign'),
          claims.Claim('LSTUR', 'not available', '; '.join(
              f'{label} {value}' for label, value in other.items()), claims.NOT_JUDGED)]


def main(seed, workdir, ablate):
  """Prints the table, writes results.json and figure.png; True unless a claim does not hold."""
  seeds = [seed * 1000 + i for i in range(SEEDS)]
  datas = [make_data(one) for one in seeds]
  strength = OFF if ablate else FULL
  plain = run_arms('NRMS', datas, seeds, plain_arms(strength), ROUNDS)
  defended = run_arms('NRMS', datas, seeds, defended_arms(strength), DEFENDED_ROUNDS, True)
  lstur = run_arms('LSTUR', datas, seeds, lstur_arms(strength), ROUNDS)

  named = {**plain, **{f'{label}, {rule}': curve for (rule, label), curve in defended.items()},
           **{f'LSTUR, {label}': curve for label, curve in lstur.items()}}
  print(sweep.format_table(['arm', 'AUC', 'sd', 'best'], [
      (label, f'{final(curve).mean():.3f}', f'{final(curve).std(ddof=1):.3f}',
       f'{curve.max(1).mean():.3f}') for label, curve in named.items()]))
  lines = {label: (BLOCK * np.arange(1, curve.shape[1] + 1), curve)
           for label, curve in plain.items() if label in ('clean', *UA.values(), 'LIE 3 %')}
  figures.compare(lines, pathlib.Path(workdir) / 'figure.png', xlabel='round', ylabel='test AUC',
                  title=f'NRMS, planted news, mean of {SEEDS} seeds')
  results = {'seeds': seeds, 'auc': {label: curve.tolist() for label, curve in named.items()}}
  return claims.report('ua_fedrec', judge(plain, defended) + reported(plain, lstur), results,
                       workdir, seed=seed, ablate=ablate)
