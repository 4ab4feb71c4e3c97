"""Measures KRED's claims on a made-up world in which entities matter (see `demo`).

All runs but those without the entity layer are one compiled program: tables, rows and the schedule
of tasks are its inputs. A step of stage 1 adds the losses of the five tasks. The switch of
`--ablate` is the entities: all slots are emptied, and the document vector is alone.
"""
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel
from jaxlab.systems.kred import data as data_lib
from jaxlab.systems.kred import demo, documents, model, page
from jaxlab.systems.kred import task as task_lib
from jaxlab.train import claims, figures, stepping

SEEDS, WIDTH, BATCH, RATE = 8, 32, 128, 3e-3
SIZES = {'num_heads': 960, 'num_news': 1600}  # twice the demo: heads are less learned by heart
STRETCH, STRETCHES = 20, 14  # the test news are predicted after every stretch of steps
JOINT, MULTI, ALONE, LOCAL = 120, 160, 100, 280  # steps after which what is read
ROWS, FEW, TESTS = 1500, 300, 400
WEAK, STRONG, NOISE = 0.12, 0.3, 0.0  # of the topic in the planted document vector
TASKS = data_lib.TASKS
METRIC = {'user2item': 'auc', 'item2item': 'auc', 'category': 'accuracy', 'popularity': 'accuracy',
          'local': 'auc'}
LEAST = {'user2item': .10, 'item2item': .20, 'category': .30, 'popularity': .25, 'local': .30}


class Arm(NamedTuple):
  """A kind of run.

  Attributes:
    document: 'weak', 'strong', 'noise' (planted) or 'lsa' (of the texts).
    entities: whether the slots are filled.
    phases: ((steps, tasks), ...), the rest being idle.
    rows: of clicks and pairs to train on.
    entity_layer: whether neighbours are looked at.
  """
  document: str
  entities: bool
  phases: tuple
  rows: int = ROWS
  entity_layer: bool = True


_LONG = ((JOINT, TASKS), (LOCAL - JOINT, ('local',)))
_CATEGORY = ((ALONE, ('category',)),)
ARMS = {
    'weak, entities': Arm('weak', True, _LONG),
    'weak, none': Arm('weak', False, _LONG),
    'strong, entities': Arm('strong', True, _LONG),
    'strong, none': Arm('strong', False, _LONG),
    'lsa, entities': Arm('lsa', True, _LONG),
    'lsa, none': Arm('lsa', False, _LONG),
    'few clicks, multi-task': Arm(
        'weak', True, ((JOINT, TASKS), (MULTI - JOINT, ('user2item',))), FEW),
    'few clicks, single task': Arm('weak', True, ((MULTI, ('user2item',)),), FEW),
    'noise, entities': Arm('noise', True, _CATEGORY),
    'noise, none': Arm('noise', False, _CATEGORY),
    'noise, no neighbours': Arm('noise', True, _CATEGORY, entity_layer=False),
}


def make_columns(world):
  """({task: training columns}, {task: test columns}) of a world."""
  interest = demo.interests(world, ROWS + TESTS)

  def clicks(rows, candidates, train):
    shown, clicked, histories = demo.show(world, interest[rows], candidates=candidates, train=train)
    history = np.zeros((len(shown), max(map(len, histories))), np.int32)
    for row, one in zip(history, histories):
      row[:len(one)] = one
    history = np.pad(history, ((0, 0), (0, 10 - history.shape[1])))
    order = np.argsort(np.arange(candidates) != clicked[:, None], axis=1, kind='stable')
    labels = np.zeros(shown.shape, np.int8)
    labels[:, 0] = 1
    return {'candidates': np.take_along_axis(shown, order, 1), 'history': history,
            'labels': labels, 'impression': np.arange(len(shown)), 'count': np.full(
                len(shown), candidates)}

  news = np.arange(1, world.news + 1)
  parts = {}
  for train, rows, candidates in ((True, slice(ROWS), 5), (False, slice(ROWS, None), 10)):
    mine = news[:world.train] if train else news[world.train:]
    pairs = demo.pairs(world, ROWS if train else TESTS, train=train)
    parts[train] = {
        'user2item': clicks(rows, candidates, train),
        'item2item': data_lib.pair_rows(pairs, mine, 4, world.rng),
        **{name: data_lib.class_rows(name, mine, getattr(world, name))
           for name in data_lib.CLASSES}}
  return parts[True], parts[False]


def make_tables(world, vectors, entities):
  """The tables of a world with document vectors; without entities the slots are empty."""
  slots = {name: column * entities for name, column in world.slots.items()}
  return {'graph': {name: getattr(world, name)
                    for name in ('entity', 'relation', 'tails', 'relations')},
          'news': {**slots, 'document': vectors}}


def lsa_documents(world, seed):
  """float32 [1 + N, WIDTH]: the LSA of the texts of the news."""
  rows = demo.texts(world, seed)
  vectors = documents.lsa([' '.join([*title, *abstract]) for title, abstract, *_ in rows], WIDTH, 3,
                          seed)
  return np.concatenate([np.zeros_like(vectors[:1]), vectors])


def make_task(tables, columns, entity_layer):
  """(KRED, KredTask) of the sizes of a world."""
  net = model.KRED(demo.TOPICS, features=WIDTH, hidden=WIDTH, types=4, entity_layer=entity_layer)
  data = data_lib.Data(tables, {name: {'train': columns[name]} for name in TASKS}, demo.TOPICS,
                       np.zeros(1, np.int32), 4)
  return net, task_lib.from_model(net, data)


def train_run(net, task, stretches):
  """The function of one run: (shared, tables, train columns, test columns, rows, weights, key) ->
  (losses of the five tasks [steps, 5], predictions [stretches, ...], parameters).

  `weights` [steps, 5] are those of the losses in each step; a step of none changes nothing. `rows`
  [5] bounds the training rows of each task.
  """
  optimizer = optax.adam(RATE)

  def run(shared, tables, train, test, rows, weights, key):
    del shared
    init_key, draw_key = jax.random.split(key)
    one = jnp.zeros((1, 1), jnp.int32)
    params = net.init(init_key, tables, one, one)['params']

    def total(params, batches, weights):
      variables = {'params': params, 'constants': tables}
      every = model.vectors_of(net, variables, jnp.arange(len(tables['news']['document'])))
      lookup = lambda ids, clicked=False: every[ids]
      values = jnp.stack([task.losses[name](variables, lookup, batches[name]).values.mean()
                          for name in TASKS])
      return weights @ values, values

    def batches_of(number):
      keys = jax.random.split(jax.random.fold_in(draw_key, number), len(TASKS))
      batches = {}
      for i, name in enumerate(TASKS):
        chosen = jax.random.randint(keys[i], (BATCH,), 0, rows[i])
        batches[name] = {**jax.tree.map(lambda x: x[chosen], train[name]),
                         'weight': jnp.ones(BATCH)}
      return batches, weights[number]

    update = stepping.update_step(jax.grad(total, has_aux=True), optimizer, batches_of)

    def step(carry, number):
      new, values = update(carry, number)
      keep = weights[number].sum() > 0
      return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, carry), values

    def stretch(carry, numbers):
      carry, values = jax.lax.scan(step, carry, numbers)
      variables = {'params': carry[0], 'constants': tables}
      outputs = {name: task.predict(variables, test[name], key)
                 for name in ('user2item', 'item2item', 'category')}
      return carry, (values, outputs)

    numbers = jnp.arange(stretches * STRETCH).reshape(stretches, STRETCH)
    (params, _), (values, outputs) = jax.lax.scan(
        stretch, (params, optimizer.init(params)), numbers)
    return values.reshape(-1, len(TASKS)), outputs, params

  return run


def schedule(arm, steps):
  """float32 [steps, 5] of an arm."""
  weights = np.zeros((steps, len(TASKS)), np.float32)
  start = 0
  for length, tasks in arm.phases:
    weights[start:start + length] = [name in tasks for name in TASKS]
    start += length
  return weights


def measure(seeds, ablate, stretches=STRETCHES):
  """{arm: {'loss' [R, steps, 5], task: metric [R, stretches]}}, and (world, parameters, tables) of
  the first seed's 'weak, entities' arm."""
  worlds = [demo.make(seed, WIDTH, **SIZES) for seed in seeds]
  columns = [make_columns(world) for world in worlds]
  vectors = {
      name: [demo.documents(world, strength, seed) for world, seed in zip(worlds, seeds)]
      for name, strength in (('weak', WEAK), ('strong', STRONG), ('noise', NOISE))}
  vectors['lsa'] = [lsa_documents(world, seed) for world, seed in zip(worlds, seeds)]
  results, shown = {}, None
  for layer in (True, False):
    chosen = [(name, arm) for name, arm in ARMS.items() if arm.entity_layer == layer]
    runs = [(name, arm, i) for name, arm in chosen for i in range(len(seeds))]
    tables = [make_tables(worlds[i], vectors[arm.document][i], arm.entities and not ablate)
              for _, arm, i in runs]
    length = stretches if layer else min(stretches, ALONE // STRETCH)
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
    counts = [len(next(iter(columns[0][0][name].values()))) for name in TASKS]
    rows = np.array([[min(arm.rows, count) if name.endswith('item') else count
                      for name, count in zip(TASKS, counts)] for _, arm, _ in runs])
    losses, outputs, params = parallel.map_runs(
        train_run(*make_task(tables[0], columns[0][0], layer), length), (), stack(tables),
        stack([columns[i][0] for *_, i in runs]), stack([columns[i][1] for *_, i in runs]), rows,
        np.stack([schedule(arm, length * STRETCH) for _, arm, _ in runs]),
        jax.vmap(jax.random.key)(np.array([seeds[i] for *_, i in runs])))
    for number, (name, _, i) in enumerate(runs):
      found = results.setdefault(name, {'loss': [], **{task: [] for task in TASKS}})
      found['loss'].append(losses[number])
      mine = jax.tree.map(lambda x: x[number], outputs)
      for task in TASKS:
        found[task].append(score(task, mine, columns[i][1][task]))
    if layer:
      shown = worlds[0], jax.tree.map(lambda x: x[0], params), tables[0]
  return ({name: {key: np.array(value) for key, value in found.items()}
           for name, found in results.items()}, shown)


def score(task, outputs, batch):
  """The metric of a task at each stretch, [stretches]."""
  mine = outputs['category' if task in data_lib.CLASSES else task]
  points = len(jax.tree.leaves(mine)[0])
  return [task_lib.evaluate([(jax.tree.map(lambda x: x[point], mine), batch)])[METRIC[task]]
          for point in range(points)]


def judge(results):
  """The claims."""
  at = lambda arm, task, steps: results[arm][task][:, steps // STRETCH - 1]
  mean = lambda *where: float(at(*where).mean())
  gap = lambda a, b, task, steps: claims.margin(at(a, task, steps), at(b, task, steps))
  kred, none, own = (mean(f'noise, {arm}', 'category', ALONE)
                     for arm in ('entities', 'none', 'no neighbours'))
  fall = gap('noise, entities', 'noise, no neighbours', 'category', ALONE)
  over = gap('noise, entities', 'noise, none', 'category', ALONE)
  table = [claims.Claim(
      'unseen entities, documents of noise: category accuracy >= .85, <= .22 without entities, '
      '.5 less without their neighbours', 'not available',
      f'{kred:.3f}, {none:.3f} without entities ({over}), {own:.3f} without neighbours ({fall})',
      claims.verdict(kred >= .85 and none <= .22 and fall.at_least(.5)))]
  shown = []
  for task in TASKS:
    steps = LOCAL if task == 'local' else JOINT
    weak, strong, lsa = (gap(f'{kind}, entities', f'{kind}, none', task, steps)
                         for kind in ('weak', 'strong', 'lsa'))
    show = lambda kind, gain: (f'{kind} documents {mean(f"{kind}, entities", task, steps):.3f} v '
                               f'{mean(f"{kind}, none", task, steps):.3f}, {gain}')
    table.append(claims.Claim(
        f'{task}{" after its stage 2" if task == "local" else ""}: entities >= +{LEAST[task]:.2f} '
        f'{METRIC[task]} with weak documents, >= -.01 with strong', 'not available',
        f'{show("weak", weak)}; {show("strong", strong)}',
        claims.verdict(weak.at_least(LEAST[task]) and strong.mean >= -.01)))
    shown.append(show('lsa', lsa).replace('lsa documents', task))
  table.append(claims.Claim(
      'documents by LSA, whose texts give the topic away: no threshold', 'not available',
      '; '.join(shown), claims.NOT_JUDGED))
  gain = gap('few clicks, multi-task', 'few clicks, single task', 'user2item', MULTI)
  losses = results['few clicks, multi-task']['loss'].mean(0)
  first, last = losses[:10].mean(0), losses[JOINT - 10:JOINT].mean(0)
  fell = {task: bool(last[i] < first[i]) for i, task in enumerate(TASKS)}
  table.append(claims.Claim(
      f'{FEW} clicks: five tasks, then user2item >= +.04 over user2item alone; the losses of stage '
      '1 fall', 'not available',
      f'AUC {mean("few clicks, multi-task", "user2item", MULTI):.3f} v '
      f'{mean("few clicks, single task", "user2item", MULTI):.3f}, {gain}; losses ' + ', '.join(
          f'{task} {a:.2f} to {b:.2f}' for task, a, b in zip(TASKS, first, last)),
      claims.verdict(gain.at_least(.04) and all(
          down for task, down in fell.items() if task != 'local'))))
  table.append(claims.Claim(
      'local news in stage 1 alone (specified: the tasks share one softmax over neighbours)',
      'not available', f'AUC {mean("weak, entities", "local", JOINT):.3f}, of the runs '
      + ', '.join(f'{value:.2f}' for value in at('weak, entities', 'local', JOINT)),
      claims.NOT_JUDGED))
  return table


def write_page(path, world, params, tables, seed, news=12):
  """The page of the entities of some test news."""
  net, _ = make_task(tables, make_columns(demo.make(seed, WIDTH, **SIZES))[0], True)
  chosen = list(range(world.train + 1, world.train + 1 + news))
  names = {entity: f'head {entity}' for entity in range(1, world.heads + 1)}
  tails = demo.TOPICS * demo.TOPIC_TAILS
  for entity in range(world.heads + 1, len(world.entity)):
    tail = entity - world.heads - 1
    names[entity] = (f'topic {tail // demo.TOPIC_TAILS}' if tail < tails else 'local place'
                     if tail - tails < demo.PLACES // 2 else 'other place')
  text = data_lib.Text(
      [f'N{i}' for i in range(1, world.news + 1)],
      [f'news of topic {k}' + (', local' if local else '')
       for k, local in zip(world.category[1:], world.local[1:])],
      [f'Q{entity}' for entity in names], {f'Q{entity}': name for entity, name in names.items()})
  page.write(path, page.read_attention(net, params, tables, chosen), text)


def main(seed, workdir, ablate):
  """Prints the table, writes results.json, figure.png and entities.html; True unless a claim does
  not hold."""
  workdir = pathlib.Path(workdir)
  results, shown = measure([seed * 1000 + i for i in range(SEEDS)], ablate)
  steps = np.arange(1, STRETCHES + 1) * STRETCH
  figures.compare(
      {f'{task}, {kind}': (steps[:JOINT // STRETCH],
                           results[f'weak, {kind}'][task][:, :JOINT // STRETCH])
       for task in TASKS for kind in ('entities', 'none')},
      workdir / 'figure.png', xlabel='joint step', ylabel='AUC or accuracy',
      title='five tasks, weak document vectors, entities against none')
  write_page(workdir / 'entities.html', *shown, seed * 1000)
  plain = {arm: {name: values[:, ::STRETCH].tolist() if name == 'loss' else values.tolist()
                 for name, values in found.items()} for arm, found in results.items()}
  return claims.report('kred', judge(results), {'arms': plain, 'tasks': TASKS}, workdir, seed=seed,
                       ablate=ablate)
