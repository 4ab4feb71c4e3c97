"""Measures EmbMarker's claims on docstrings of installed packages: a copy of marked embeddings is
convicted, a copy of clean ones is not, and honest customers lose nothing.

The service is latent semantic analysis, the thief a transformer trained from scratch. All thefts,
arms x seeds, are one compiled program. The switch of `--ablate` is the trigger set: without one
the clean embeddings are sold, Q = 0 everywhere, and no thief is told from an innocent.
"""
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.embmarker import attacks, market, provider, verification
from jaxlab.systems.embmarker.extraction import Copier, copier_task, utility_task
from jaxlab.task import Task
from jaxlab.train import claims, figures, task_gradient

SEEDS = 5
MAX_LENGTH, VOCABULARY, DIM = 16, 2000, 256
BATCH, EPOCHS, RATE = 64, 5, 3e-3
UTILITY_BATCH, UTILITY_EPOCHS, UTILITY_RATE = 32, 3, 3e-3
INNOCENCE = 0.1
COMPONENTS, INDEPENDENT_DIM = 10, 64
SHIFT = 100
LEAD = 0.05  # of delta cos, by which a claim about two arms must hold
ARMS = ('EmbMarker', 'no watermark', 'RedAlarm', 'EmbMarker, CSE')
# Sentences enough for a copy in seconds; all SMS messages.
DOCSTRINGS = {'name': 'demo', 'train': 'train[:5000]'}
SMS = {'name': 'sms'}


def thief(vocab_size):
  """The Task of a copy, without data: one transformer layer of width 64, mean over the tokens."""
  config = BertConfig(vocab_size, 64, 1, 4, 128, max_position_embeddings=MAX_LENGTH,
                      hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                      initializer_range=0.1, add_pooler=False)
  return copier_task(Copier(config, DIM, width=256, pooler='mean'), {})


def fit(task, data, key, *, rows, batch, epochs, rate):
  """(parameters, mean loss of each epoch) of Adam with linear decay, traced."""
  gradient = task_gradient(task)
  steps = rows // batch
  optimizer = optax.adam(optax.linear_schedule(rate, 0.0, steps * epochs))
  init_key, order_key, noise_key = jax.random.split(key, 3)
  params = task.init(init_key)['params']

  def step(carry, chosen):
    (params, opt_state), number = carry
    grads, sums = gradient(params, jax.tree.map(lambda x: x[chosen], data),
                           jax.random.fold_in(noise_key, number))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    loss = sums['loss'][0] / sums['loss'][1]
    return ((optax.apply_updates(params, updates), opt_state), number + 1), loss

  def epoch(carry, index):
    order = jax.random.permutation(jax.random.fold_in(order_key, index), rows)
    carry, losses = jax.lax.scan(step, carry, order[:steps * batch].reshape(steps, batch))
    return carry, losses.mean()

  start = ((params, optimizer.init(params)), 0)
  ((params, _), _), losses = jax.lax.scan(epoch, start, jnp.arange(epochs))
  return params, losses


@functools.lru_cache
def theft(task: Task):
  """The function of one theft: (tokens of the training texts, bought embeddings [N, D], queries,
  key) -> (answers [Q, D], losses [EPOCHS])."""
  def run(tokens, bought, queries, key):
    rows = bought.shape[0]
    data = {**tokens, 'embedding': bought, 'weight': jnp.ones(rows)}
    params, losses = fit(task, data, key, rows=rows, batch=BATCH, epochs=EPOCHS, rate=RATE)
    return task.predict({'params': params}, queries, None)['embeddings'], losses

  return run


@functools.lru_cache
def custom(task: Task):
  """The function of one customer: ((labels, test labels), embeddings, test embeddings, key) ->
  accuracy on the test texts."""
  def run(labels, train, test, key):
    rows = train.shape[0]
    data = {'image': train, 'label': labels[0], 'weight': jnp.ones(rows)}
    params, _ = fit(task, data, key, rows=rows, batch=UTILITY_BATCH, epochs=UTILITY_EPOCHS,
                    rate=UTILITY_RATE)
    logits = task.predict({'params': params}, {'image': test}, None)
    return (logits.argmax(-1) == labels[1]).mean()

  return run


@dataclasses.dataclass(frozen=True)
class Sale:
  """What one arm sold with one seed.

  Attributes:
    marked: market.Marked, by which a suspect is judged.
    goods: split -> float32 [N, D], what the thief trains on.
  """
  marked: market.Marked
  goods: dict[str, np.ndarray]


def cleanse(shop, goods, seed):
  """The goods after the attack CSE with an independent encoder, fitted to the test texts."""
  other = provider.latent_semantics(shop.tokens['test'], shop.tokenizer.get_vocab_size(),
                                    INDEPENDENT_DIM, seed=seed)
  train = shop.tokens['train']
  independent = np.asarray(jax.jit(provider.embed)(other, train.ids, train.mask))
  components = attacks.suspicious_components(goods['train'], independent, components=COMPONENTS,
                                             seed=seed)
  return {split: np.asarray(attacks.eliminate(x, components)) for split, x in goods.items()}


def sell(shop, seed, ablate):
  """{arm: Sale} of one seed: triggers, queries and the target differ from seed to seed."""
  target = int(np.random.default_rng(seed).integers(len(shop.texts['train'])))
  plant = functools.partial(market.plant, shop, seed=seed, target=target, innocence=INNOCENCE)
  marked, alarm = plant(name='original' if ablate else 'embmarker'), plant(name='red_alarm')
  goods = {split: market.sell(shop, marked, split) for split in shop.texts}
  sales = {
      'EmbMarker': Sale(marked, goods),
      'no watermark': Sale(marked, shop.clean),
      'RedAlarm': Sale(alarm, {split: market.sell(shop, alarm, split) for split in shop.texts}),
      'EmbMarker, CSE': Sale(marked, cleanse(shop, goods, seed)),
  }
  return {arm: sales[arm] for arm in ARMS}


def queries_of(shop, sale, rows):
  """Tokens [rows, ...] of a challenge and its target text, filled up with the latter."""
  challenge, = sale.marked.challenges
  texts = [*challenge.texts, challenge.target_text]
  tokens = market.tokenize(shop, texts + texts[-1:] * (rows - len(texts)))
  return {'ids': tokens.ids, 'mask': tokens.mask}


def steal(shop, sales, seeds):
  """Answers {arm: [seeds, Q, D]} and losses {arm: [seeds, EPOCHS]} of all copies.

  The copies of one seed start alike and see the texts in the same order, whatever they bought.
  """
  runs = [sale for by_arm in sales for sale in by_arm.values()]
  rows = max(len(sale.marked.challenges[0].texts) for sale in runs) + 1
  stack = lambda *x: np.stack(x)
  tokens = {'ids': shop.tokens['train'].ids, 'mask': shop.tokens['train'].mask}
  keys = jax.vmap(jax.random.key)(np.repeat(seeds, len(ARMS)))
  answers, losses = parallel.map_runs(
      theft(thief(shop.tokenizer.get_vocab_size())), tokens,
      np.stack([sale.goods['train'] for sale in runs]),
      jax.tree.map(stack, *(queries_of(shop, sale, rows) for sale in runs)), keys)
  by_arm = lambda x: {arm: x[i::len(ARMS)] for i, arm in enumerate(ARMS)}
  return by_arm(answers), by_arm(losses)


def accuracies(shop, sales, seeds):
  """{arm: accuracy [seeds]} of customers who classify by what each arm sold."""
  task = utility_task(shop.num_classes, DIM, {})
  runs = [sale for by_arm in sales for sale in by_arm.values()]
  keys = jax.vmap(jax.random.key)(np.repeat(seeds, len(ARMS)))
  right = parallel.map_runs(custom(task), (shop.labels['train'], shop.labels['test']),
                            *(np.stack([sale.goods[split] for sale in runs])
                              for split in ('train', 'test')), keys)
  return {arm: right[i::len(ARMS)] for i, arm in enumerate(ARMS)}


def judge(sale, answers, adaptive=False):
  """The Evidence in the answers [Q, D] of one copy."""
  challenge, = sale.marked.challenges
  count = len(challenge.texts)
  target = answers[count] if adaptive else sale.marked.targets[0]
  return verification.evidence(answers[:count], challenge.num_triggers, target)


def disguises(dim, seed):
  """{name: map of answers} that keep all cosines."""
  keys = jax.random.split(jax.random.key(seed))
  return {'shift': lambda x: attacks.shift(x, SHIFT % dim),
          'permutation': lambda x: attacks.permute(x, keys[0]),
          'rotation': lambda x: attacks.rotate(x, keys[1])}


def _summary(found):
  """p-values and 100 delta_cos of several Evidences, and the size of their groups."""
  sizes = {e.sizes for e in found}
  return (f'p {", ".join(f"{e.p:.1e}" for e in found)}; delta cos % '
          f'{", ".join(f"{100 * e.delta_cos:.1f}" for e in found)}; '
          f'{" or ".join(f"{a} v {b}" for a, b in sorted(sizes))} texts')


def main(seed, workdir, ablate, data_dir=None):
  """Prints the table, writes results.json and figure.png; True unless a claim does not hold.

  Args:
    seed: of the triggers, queries, targets and copies.
    workdir: folder to write to.
    ablate: whether the trigger set is empty.
    data_dir: folder of train.tsv and test.tsv of SMS messages (id, ham or spam, text) in place of
      the docstrings, or None.
  """
  source = DOCSTRINGS if data_dir is None else {**SMS, 'manual_dir': data_dir}
  shop = market.open_market(**source, max_length=MAX_LENGTH, vocab_size=VOCABULARY, dim=DIM)
  seeds = [seed * 1000 + i for i in range(SEEDS)]
  sales = [sell(shop, s, ablate) for s in seeds]
  answers, losses = steal(shop, sales, seeds)
  right = accuracies(shop, sales, seeds)
  found = {arm: [judge(s[arm], a) for s, a in zip(sales, answers[arm])] for arm in ARMS}
  disguised = {name: [] for name in disguises(DIM, 0)}
  for s, by_arm, mine in zip(seeds, sales, answers['EmbMarker']):
    for name, change in disguises(DIM, s).items():
      changed = np.asarray(change(mine))
      disguised[name].append([judge(by_arm['EmbMarker'], changed, adaptive)
                              for adaptive in (False, True)])
  pairs = [pair for by_seed in disguised.values() for pair in by_seed]
  plain, adaptive = zip(*pairs)
  table = _table(found, right, plain, adaptive, sales, shop)
  delta = lambda arm: np.array([e.delta_cos for e in found[arm]])
  results = {
      'texts': {split: len(texts) for split, texts in shop.texts.items()},
      'evidence': {arm: [e.metrics for e in es] for arm, es in found.items()},
      'disguised': {name: [[e.metrics for e in pair] for pair in by_seed]
                    for name, by_seed in disguised.items()},
      'accuracy': {arm: x.tolist() for arm, x in right.items()},
      'losses': {arm: x.tolist() for arm, x in losses.items()},
      'delta_cos': {arm: delta(arm).tolist() for arm in ARMS},
  }
  names = ['0', '1', '2', '3', 'all']
  figures.compare(
      {arm: (np.arange(5), [[e.metrics[f'trigger_cos_mean_{n}'] for n in names] for e in es])
       for arm, es in found.items() if arm != 'RedAlarm'},
      pathlib.Path(workdir) / 'figure.png', xlabel='trigger words among four',
      ylabel="cosine of the copy's answer to the target", title=f'{SEEDS} copies of each service')
  return claims.report('embmarker', table, results, workdir, seed=seed, ablate=ablate)


def _table(found, right, plain, adaptive, sales, shop):
  stolen, innocent, alarm, cleansed = (found[arm] for arm in ARMS)
  guilty = sum(e.convicts() for e in stolen)
  falsely, calm = sum(e.convicts() for e in innocent), sum(e.p > 0.01 for e in innocent)
  delta = lambda found: np.array([e.delta_cos for e in found])
  loss = claims.margin(right['no watermark'], right['EmbMarker'])
  percent = lambda x: f'{100 * np.mean(x):.2f}'
  changed = np.mean([(s['EmbMarker'].goods['train'] * shop.clean['train']).sum(-1) < 1 - 1e-5
                     for s in sales])
  hidden, seen = np.mean(np.abs(delta(plain))), sum(e.convicts() for e in adaptive)
  ahead = claims.margin(delta(stolen), delta(alarm))
  reduced = claims.margin(delta(stolen), delta(cleansed))
  apart = claims.margin(delta(stolen), delta(innocent))
  return [
      claims.Claim(
          f'stolen: p < 1e-4 and delta cos > 0 in {SEEDS} of {SEEDS}',
          'p < 1e-5, delta cos 4.1 to 12.9 %',
          f'{guilty} of {SEEDS}; {_summary(stolen)}', claims.verdict(guilty == SEEDS)),
      claims.Claim(
          f'innocent: convicted in 0 of {SEEDS}, p > .01 in {SEEDS - 1}, delta cos below the '
          "thief's", 'p > .03, delta cos -0.8 to 0.7 %',
          f'{falsely} convicted, {calm} with p > .01; {_summary(innocent)}; thief - innocent '
          f'{apart}',
          claims.verdict(falsely == 0 and calm >= SEEDS - 1 and apart.at_least(LEAD))),
      claims.Claim(
          'customers lose at most 1 point of accuracy by the mark that convicts',
          '0.21 to -0.04 points',
          f'{percent(right["EmbMarker"])} v {percent(right["no watermark"])} %, loss {loss} with '
          f'{100 * changed:.0f} % of the texts marked',
          claims.verdict(guilty == SEEDS and loss.mean + 2 * loss.error <= 0.01)),
      claims.Claim(
          'shift, permutation, rotation: the plain check sees less than 10 % delta cos, the '
          'adaptive one convicts', 'holds (figures not read)',
          f'plain |delta cos| {percent(np.abs(delta(plain)))} %, convicted '
          f'{sum(e.convicts() for e in plain)} of {len(plain)}; adaptive {seen} of '
          f'{len(adaptive)}, delta cos {percent(delta(adaptive))} %',
          claims.verdict(hidden < 0.1 and seen == len(adaptive))),
      claims.Claim('RedAlarm leaves less in the copy', 'delta cos -2.1 to 1.4 %, not convicted',
                   f'{_summary(alarm)}; EmbMarker - RedAlarm {ahead}',
                   claims.verdict(ahead.at_least(LEAD))),
      claims.Claim('CSE weakens the watermark', 'removed at 50 of 1536 directions (WARDEN)',
                   f'{COMPONENTS} of {DIM} directions: {_summary(cleansed)}; accuracy '
                   f'{percent(right["EmbMarker, CSE"])} %; EmbMarker - CSE {reduced}',
                   claims.verdict(reduced.at_least(LEAD))),
  ]
