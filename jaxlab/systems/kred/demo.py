"""A small world of news in which entities matter, for each of KRED's five tasks.

An entity's own vector says nothing of its topic: its neighbours do. Five of them are tails of
topics, mostly of its own; three are places, local or not. Its own vector holds its fame. A news has
one to three entities, mostly of its topic. Its category is its topic, its popularity the quartile
of its entities' mean fame, and it is local news if an entity of its title has a local place. Users
click by topic. The last news have entities that no other news has.
"""
import json
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.data import mind_demo

TOPICS, HEADS, NEWS, SLOTS = 8, 480, 800, 3
TOPIC_TAILS, PLACES = 10, 20
TOPIC_NEIGHBOURS, PLACE_NEIGHBOURS = 5, 3
LOCATED, RELATIONS = 1, 5  # the relation of places, and how many there are
_UNSEEN = 0.3  # share of heads that only the test news have
_TRAIN = 0.6  # share of news
_FAME, _PLACE = 2.0, 3.0  # norms of the directions of fame and of places
_HISTORY = (4, 10)


class World(NamedTuple):
  """What was planted. Heads are 1..h, then tails of topics, then places; 0 is none.

  Attributes:
    entity: float32 [1 + n, De].
    relation: float32 [1 + r, De].
    tails: int32 [1 + h, 8], neighbours of the heads.
    relations: int32 [1 + h, 8], by which relation.
    slots: {'entities', 'frequency', 'position', 'type': int32 [1 + N, 3]} of the news.
    category: int [1 + N], -1 for news 0; news 1..`train` are the training news.
    popularity: likewise.
    local: likewise.
    train: number of training news.
    centres: [K, De], unit vectors of the topics.
    rng: NumPy generator that drew it, to go on with.
  """
  entity: np.ndarray
  relation: np.ndarray
  tails: np.ndarray
  relations: np.ndarray
  slots: dict
  category: np.ndarray
  popularity: np.ndarray
  local: np.ndarray
  train: int
  centres: np.ndarray
  rng: np.random.Generator

  @property
  def news(self):
    """N."""
    return len(self.category) - 1

  @property
  def heads(self):
    """h."""
    return len(self.tails) - 1


def make(seed, dim=32, *, num_heads=HEADS, num_news=NEWS):
  """Draws a World of so many heads and news; `dim` is De."""
  rng = np.random.default_rng([seed, 31])
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  centres = unit(rng.normal(size=(TOPICS, dim)))
  fame_way, place_way = unit(rng.normal(size=(2, dim)))
  topic, fame = rng.integers(0, TOPICS, num_heads), rng.normal(size=num_heads)
  local = rng.random(num_heads) < 0.3
  heads = unit(rng.normal(size=(num_heads, dim))) + _FAME * fame[:, None] * fame_way
  tails = 2 * np.repeat(centres, TOPIC_TAILS, 0) + rng.normal(0, 0.1, (TOPICS * TOPIC_TAILS, dim))
  sign = np.where(np.arange(PLACES) < PLACES // 2, 1, -1)
  places = _PLACE * sign[:, None] * place_way + rng.normal(0, 0.15, (PLACES, dim))
  zero = np.zeros((1, dim))
  entity = np.concatenate([zero, heads, tails, places]).astype(np.float32)
  relation = np.concatenate([zero, unit(rng.normal(size=(RELATIONS, dim)))]).astype(np.float32)

  drawn = (num_heads, TOPIC_NEIGHBOURS)
  of = np.where(rng.random(drawn) < 0.7, topic[:, None], rng.integers(0, TOPICS, drawn))
  to_topics = 1 + num_heads + of * TOPIC_TAILS + rng.integers(0, TOPIC_TAILS, drawn)
  here = rng.integers(0, PLACES // 2, (num_heads, PLACE_NEIGHBOURS))
  to_places = 1 + num_heads + len(tails) + here + np.where(local, 0, PLACES // 2)[:, None]
  above = lambda x: np.concatenate([np.zeros_like(x[:1]), x]).astype(np.int32)
  by = np.concatenate([rng.integers(LOCATED + 1, RELATIONS + 1, drawn),
                       np.full((num_heads, PLACE_NEIGHBOURS), LOCATED)], 1)

  train, seen = int(_TRAIN * num_news), int((1 - _UNSEEN) * num_heads)
  category = rng.integers(0, TOPICS, num_news)
  slots = _draw_slots(rng, category, topic, train, seen)
  real = slots['entities'] > 0
  entities = np.maximum(slots['entities'] - 1, 0)
  mean = (fame[entities] * real).sum(1) / real.sum(1) + rng.normal(0, 0.1, num_news)
  borders = np.quantile(mean, (0.25, 0.5, 0.75))
  is_local = (real & (slots['position'] == 1) & local[entities]).any(1)
  first = lambda x: np.concatenate([[-1], x])
  return World(entity, relation, above(np.concatenate([to_topics, to_places], 1)), above(by),
               {name: above(column) for name, column in slots.items()}, first(category),
               first(np.searchsorted(borders, mean)), first(is_local.astype(int)), train, centres,
               rng)


def _draw_slots(rng, category, topic, train, seen):
  """The entity slots [N, 3]: distinct heads, 90 % of the news's topic."""
  columns = {name: np.zeros((len(category), SLOTS), int)
             for name in ('entities', 'frequency', 'position', 'type')}
  for news, k in enumerate(category):
    heads = np.arange(seen) if news < train else np.arange(seen, len(topic))
    own, other = heads[topic[heads] == k], heads[topic[heads] != k]
    count = rng.integers(1, SLOTS + 1)
    of_topic = rng.random(count) < 0.9
    chosen = [*rng.choice(own, min(of_topic.sum(), len(own)), replace=False),
              *rng.choice(other, (~of_topic).sum(), replace=False)]
    chosen = np.array(chosen or [heads[0]], int)
    # The title's come first, as in the files.
    position = np.sort(rng.integers(1, 3, len(chosen)))
    columns['entities'][news, :len(chosen)] = chosen + 1
    columns['position'][news, :len(chosen)] = position
    columns['frequency'][news, :len(chosen)] = rng.integers(1, 4, len(chosen))
    columns['type'][news, :len(chosen)] = chosen % 3 + 1
  return columns


def documents(world, strength, seed):
  """float32 [1 + N, De]: strength * 2 * the topic's centre and a noise of unit length."""
  rng = np.random.default_rng([seed, 32])
  dim = world.centres.shape[1]
  noise = rng.normal(0, dim**-0.5, (world.news, dim))
  vectors = 2 * strength * world.centres[world.category[1:]] + noise
  return np.concatenate([np.zeros((1, dim)), vectors]).astype(np.float32)


def interests(world, users):
  """[U, K] of a Dirichlet(.3)."""
  return world.rng.dirichlet(np.full(TOPICS, 0.3), users)


def show(world, interest, *, candidates, train):
  """Draws an impression of each user: training or test news, and a history of training news.

  Args:
    world: World.
    interest: [R, K].
    candidates: C; the best of 10 * interest + Gumbel noise is clicked.
    train: whether the candidates are training news.

  Returns:
    (candidates int32 [R, C], clicked position [R], histories: R arrays of 4 to 10 news).
  """
  rng = world.rng
  pool = np.arange(1, world.train + 1) if train else np.arange(world.train + 1, world.news + 1)
  shown = np.stack([rng.choice(pool, candidates, replace=False) for _ in interest])
  logits = 10 * np.take_along_axis(interest, world.category[shown], 1)
  by_topic = [1 + np.flatnonzero(world.category[1:world.train + 1] == k) for k in range(TOPICS)]
  histories = [np.array([rng.choice(by_topic[k]) for k in
                         rng.choice(TOPICS, rng.integers(_HISTORY[0], _HISTORY[1] + 1), p=row)])
               for row in interest]
  return (shown.astype(np.int32), (logits + rng.gumbel(size=logits.shape)).argmax(1), histories)


def pairs(world, count, *, train):
  """int32 [count, 2]: pairs of unlike news of one topic, among the training or the test news."""
  news = np.arange(1, world.train + 1) if train else np.arange(world.train + 1, world.news + 1)
  first = world.rng.choice(news, count)
  second = first.copy()
  while (same := second == first).any():
    second[same] = [world.rng.choice(news[world.category[news] == world.category[one]])
                    for one in first[same]]
  return np.stack([first, second], 1).astype(np.int32)


def name_of(entity):
  """Wikidata id and label of entity 1..n."""
  return f'Q{5000 + entity}', mind_demo.word(2000 + entity).capitalize()


def texts(world, seed):
  """N rows (title words, abstract words, title entities, abstract entities) of the news.

  70 % of the words are of the news's topic. An entity stands in the text as often as it occurs.
  """
  rng = np.random.default_rng([seed, 33])
  own, common = mind_demo.TOPIC_WORDS, mind_demo.COMMON_WORDS
  rows = []
  for news in range(1, world.news + 1):
    parts, listed = [], []
    for position, (low, high) in ((1, (6, 8)), (2, (15, 30))):
      length = rng.integers(low, high + 1)
      numbers = np.where(rng.random(length) < 0.7,
                         world.category[news] * own + rng.integers(0, own, length),
                         TOPICS * own + rng.integers(0, common, length))
      words = [mind_demo.word(number) for number in numbers]
      here = [slot for slot in range(SLOTS) if world.slots['entities'][news, slot]
              and world.slots['position'][news, slot] == position]
      for slot in here:
        label = name_of(world.slots['entities'][news, slot])[1]
        for _ in range(world.slots['frequency'][news, slot]):
          words.insert(rng.integers(0, len(words) + 1), label)
      starts = np.cumsum([0] + [len(word) + 1 for word in words])
      found = []
      for slot in here:
        key, label = name_of(world.slots['entities'][news, slot])
        found.append({
            'Label': label, 'Type': 'POG'[world.slots['type'][news, slot] - 1], 'WikidataId': key,
            'Confidence': 1.0, 'SurfaceForms': [label],
            'OccurrenceOffsets': [int(start) for start, word in zip(starts, words)
                                  if word == label]})
      parts.append(words)
      listed.append(found)
    rows.append((*parts, *listed))
  return rows


def write(folder, world, *, users=600, tests=400, seed=0):
  """Writes a world as MIND's files: train, dev and test, all with labels, and triples.tsv ('head
  TAB relation TAB tail'), local.tsv and popularity.tsv ('news TAB class').

  Args:
    folder: to write to; it is made.
    world: World with vectors of width 100, as MIND's files have them.
    users: each with four training impressions.
    tests: impressions of dev and of test.
    seed: of the texts.
  """
  folder = pathlib.Path(folder)
  interest = interests(world, users)
  who = {'train': np.repeat(np.arange(users), 4), 'dev': world.rng.integers(0, users, tests),
         'test': world.rng.integers(0, users, tests)}
  news = [_news_row(world, number, row) for number, row in enumerate(texts(world, seed), 1)]
  vectors = {'entity': [(name_of(i)[0], world.entity[i]) for i in range(1, len(world.entity))],
             'relation': [(f'P{i}', world.relation[i]) for i in range(1, len(world.relation))]}
  histories = {}
  for split, rows in who.items():
    shown, clicked, drawn = show(world, interest[rows], candidates=5 if split == 'train' else 10,
                                 train=split == 'train')
    (folder / split).mkdir(parents=True)
    _write(folder / split / 'news.tsv', news)
    # A user's history is the same in all rows, as in MIND.
    _write(folder / split / 'behaviors.tsv', [
        _behavior_row(i + 1, user, histories.setdefault(user, drawn[i]), shown[i], clicked[i])
        for i, user in enumerate(rows)])
    for name, table in vectors.items():
      _write(folder / split / f'{name}_embedding.vec', [
          '\t'.join([key, *(f'{x:.6f}' for x in vector), '']) for key, vector in table])
  _write(folder / 'triples.tsv', [
      f'{name_of(head)[0]}\tP{relation}\t{name_of(tail)[0]}' for head in range(1, world.heads + 1)
      for tail, relation in zip(world.tails[head], world.relations[head])])
  for name, labels in (('local', world.local), ('popularity', world.popularity)):
    _write(folder / f'{name}.tsv', [f'N{i}\t{labels[i]}' for i in range(1, world.news + 1)])


def _write(path, lines):
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8', newline='')


def _news_row(world, number, row):
  title, abstract, *entities = row
  topic = f'topic{world.category[number]}'
  return '\t'.join([f'N{number}', topic, topic, ' '.join(title), ' '.join(abstract),
                    f'https://example.com/{number}', *map(json.dumps, entities)])


def _behavior_row(number, user, history, shown, clicked):
  items = ' '.join(f'N{news}-{int(place == clicked)}' for place, news in enumerate(shown))
  return '\t'.join([str(number), f'U{user + 1}', '11/9/2019 9:05:58 AM',
                    ' '.join(f'N{news}' for news in history), items])
