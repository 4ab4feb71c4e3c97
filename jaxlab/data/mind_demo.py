"""A small world of news with a planted signal, written as the official files of MIND or Adressa.

A news has a topic, and most words of its title are of that topic; a user has interests in topics; a
click depends on both. So a model has to find the topics of words, and the interests of a user from
the clicks before. A hundredth of the rows has the quirks of the real files.
"""
import datetime
import json
import pathlib
from typing import NamedTuple

import numpy as np

TOPIC_WORDS, COMMON_WORDS, SUBCATEGORIES, ENTITIES = 40, 100, 3, 12
UNKNOWN_NEWS = 'N999999'
RELATIONS = 5
_SYLLABLES = [a + b for a in 'bdfgklmnprstvz' for b in 'aeiou']
_QUIRKS = 0.01


class World(NamedTuple):
  """What was planted.

  Attributes:
    topic: int [N].
    subcategory: int [N].
    quality: [N], added to the log-odds of a click.
    titles: list of N lists of words.
    abstracts: likewise; some are empty.
    interest: [U, K], rows sum to 1.
    history: list of U arrays of news, clicked before, oldest first; some are empty.
    clicks: int [U], training clicks of each user.
  """
  topic: np.ndarray
  subcategory: np.ndarray
  quality: np.ndarray
  titles: list
  abstracts: list
  interest: np.ndarray
  history: list
  clicks: np.ndarray


class Impression(NamedTuple):
  """One list of news shown to a user.

  Attributes:
    user: number.
    candidates: int [C] news.
    logits: [C], what the clicks were drawn by.
    labels: int [C].
  """
  user: int
  candidates: np.ndarray
  logits: np.ndarray
  labels: np.ndarray


def word(number):
  """A made-up word; numbers have different words.

  >>> word(0), word(71)
  ('baba', 'bebe')
  """
  count = len(_SYLLABLES)
  return _SYLLABLES[number // count % count] + _SYLLABLES[number % count]


def make_world(seed=0, *, users=800, news=400, topics=8):
  """Draws news and users.

  Args:
    seed: of everything; the same seed gives the same files byte for byte.
    users: U.
    news: N.
    topics: K.
  """
  rng = np.random.default_rng([seed, 1])
  topic = rng.integers(0, topics, news)
  zipf = 1 / np.arange(1, COMMON_WORDS + 1)

  def text(k, low, high):
    length = rng.integers(low, high + 1)
    own = k * TOPIC_WORDS + rng.integers(0, TOPIC_WORDS, length)
    common = topics * TOPIC_WORDS + rng.choice(COMMON_WORDS, length, p=zipf / zipf.sum())
    return [word(i) for i in np.where(rng.random(length) < 0.7, own, common)]

  titles = [text(k, 6, 8) for k in topic]
  abstracts = [text(k, 15, 30) if rng.random() >= _QUIRKS else [] for k in topic]
  interest = rng.dirichlet(np.full(topics, 0.3), users)
  by_topic = [np.flatnonzero(topic == k) for k in range(topics)]
  history = []
  for row in interest:
    length = rng.integers(5, 31) * (rng.random() >= 0.05)
    chosen = rng.choice(topics, length, p=row)
    chosen = [k for k in chosen if len(by_topic[k])]
    history.append(np.array([rng.choice(by_topic[k]) for k in chosen], int))
  clicks = np.clip(np.rint(rng.lognormal(1.1, 0.8, users)), 1, 8).astype(int)
  return World(topic, rng.integers(0, SUBCATEGORIES, news), rng.normal(0, 0.5, news), titles,
               abstracts, interest, history, clicks)


def show(world, user, rng, *, candidates=10, position_bias=0.0, most_clicks=3):
  """Shows news; the 1, 2 or 3 (chance .7, .2, .1) best by logit + Gumbel noise are clicked.

  Args:
    world: World.
    user: number.
    rng: NumPy generator.
    candidates: how many news, drawn uniformly.
    position_bias: strength of the presentation bias; the p-th place from 0 costs
      position_bias * log(1 + p).
    most_clicks: bound of the number of clicks.
  """
  shown = rng.choice(len(world.topic), candidates, replace=False)
  logits = 10 * world.interest[user, world.topic[shown]] + world.quality[shown]
  logits = logits - position_bias * np.log1p(np.arange(candidates))
  count = min(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]), most_clicks, candidates - 1)
  best = np.argsort(-(logits + rng.gumbel(size=candidates)))[:count]
  labels = np.zeros(candidates, int)
  labels[best] = 1
  return Impression(user, shown, logits, labels)


def impressions(world, seed=0, *, tests=800, candidates=10, position_bias=0.0):
  """{'train', 'dev', 'test': list of `Impression`}, in random order.

  A user's training impressions hold `world.clicks` clicks. The other splits have `tests` each, of
  users drawn uniformly.
  """
  rng = np.random.default_rng([seed, 2])
  draw = lambda user, most=3: show(world, user, rng, candidates=candidates,
                                   position_bias=position_bias, most_clicks=most)
  train = []
  for user, wanted in enumerate(world.clicks):
    while wanted > 0:
      train.append(draw(user, wanted))
      wanted -= train[-1].labels.sum()
  splits = {'train': [train[i] for i in rng.permutation(len(train))]}
  for split in ('dev', 'test'):
    splits[split] = [draw(user) for user in rng.integers(0, len(world.clicks), tests)]
  return splits


def write_mind(folder, seed=0, *, tests=800, candidates=10, position_bias=0.0, **sizes):
  """Writes the world as MIND's files: train, dev and test (without labels), each a folder.

  Besides there is triples.tsv: heads, relations and tails of a knowledge graph inside the topics.

  Args:
    folder: to write to; it is made.
    seed: of the world.
    tests: impressions of dev and of test.
    candidates: news of an impression.
    position_bias: see `show`.
    **sizes: arguments of `make_world`.

  Returns:
    (World, {split: list of Impression}).
  """
  folder = pathlib.Path(folder)
  world = make_world(seed, **sizes)
  splits = impressions(world, seed, tests=tests, candidates=candidates,
                       position_bias=position_bias)
  rng = np.random.default_rng([seed, 3])
  rows = [_news_row(world, news, rng) for news in range(len(world.topic))]
  vectors = _vectors(world, rng)
  for number, (split, shown) in enumerate(splits.items()):
    (folder / split).mkdir(parents=True)
    # As in the real files, dev and test list what is shown there; other news are train's.
    listed = sorted({n for one in shown for n in one.candidates}) if number else range(len(rows))
    _write(folder / split / 'news.tsv', [rows[news] for news in listed])
    start = datetime.datetime(2019, 11, 9 + 6 * min(number, 1) + (number == 2))
    _write(folder / split / 'behaviors.tsv', [
        _behavior_row(world, one, i + 1, start, split != 'test', rng)
        for i, one in enumerate(shown)])
    for name, table in vectors.items():
      _write(folder / split / f'{name}_embedding.vec', [
          '\t'.join([key, *(f'{x:.6f}' for x in vector), '']) for key, vector in table.items()])
  keys = sorted(vectors['entity'])
  same = {key: [k for k in keys if _entity_topic(k) == _entity_topic(key)] for key in keys}
  _write(folder / 'triples.tsv', [
      f'{key}\tP{rng.integers(RELATIONS) + 30}\t{rng.choice(same[key])}' for key in keys
      for _ in range(3)])
  return world, splits


def _write(path, lines):
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8', newline='')


def _entity_topic(key):
  return (int(key[1:]) - 1000) // ENTITIES


def _entities(world, news, words):
  """Entities of a text: the first words of a topic's list name its entities; 3 at the most."""
  topic, found, offset = world.topic[news], {}, 0
  names = {word(topic * TOPIC_WORDS + i): i for i in range(ENTITIES)}
  for one in words:
    if one in names:
      found.setdefault(one, []).append(offset)
    offset += len(one) + 1
  return [{'Label': name.capitalize(), 'Type': 'POG'[names[name] % 3],
           'WikidataId': f'Q{1000 + topic * ENTITIES + names[name]}', 'Confidence': 1.0,
           'OccurrenceOffsets': offsets, 'SurfaceForms': [name]}
          for name, offsets in list(found.items())[:3]]


def _news_row(world, news, rng):
  title, abstract = world.titles[news], world.abstracts[news]
  listed = [json.dumps(_entities(world, news, words)) for words in (title, abstract)]
  text = ' '.join(title)
  if rng.random() < _QUIRKS:
    text = f'{text} "'  # an unbalanced quote
  if rng.random() < _QUIRKS:
    listed[1] = ''
  topic = world.topic[news]
  return '\t'.join([f'N{news + 1}', f'topic{topic}', f'topic{topic}part{world.subcategory[news]}',
                    text, ' '.join(abstract), f'https://example.com/{news + 1}', *listed])


def _behavior_row(world, impression, number, start, labelled, rng):
  moment = start + datetime.timedelta(seconds=int(rng.integers(86400)))
  time = (f'{moment.month}/{moment.day}/{moment.year} {(moment.hour - 1) % 12 + 1}:'
          f'{moment:%M:%S} {"PM" if moment.hour >= 12 else "AM"}')
  history = [f'N{news + 1}' for news in world.history[impression.user]]
  if history and rng.random() < _QUIRKS:
    history[0] = UNKNOWN_NEWS
  shown = [f'N{news + 1}-{label}' if labelled else f'N{news + 1}'
           for news, label in zip(impression.candidates, impression.labels)]
  return '\t'.join([str(number), f'U{impression.user + 1}', time, ' '.join(history),
                    ' '.join(shown)])


def _vectors(world, rng):
  """{'entity', 'relation': {key: [100]}}; a few entities have none."""
  topics = world.interest.shape[1]
  centres = rng.normal(size=(topics, 100))
  entity = {f'Q{1000 + k * ENTITIES + i}': centres[k] + rng.normal(0, 0.3, 100)
            for k in range(topics) for i in range(ENTITIES) if i or k % 3}
  return {'entity': entity,
          'relation': {f'P{30 + i}': rng.normal(size=100) for i in range(RELATIONS)}}


def write_adressa(folder, seed=0, **sizes):
  """Writes the world as Adressa's seven files of JSON lines.

  Days 1 to 5 hold the histories, day 6 the training clicks, day 7 a click of every user. A click
  goes to the best of ten news that the user might have seen.

  Args:
    folder: to write to; it is made.
    seed: of the world.
    **sizes: arguments of `make_world`.

  Returns:
    World.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  world = make_world(seed, **sizes)
  rng = np.random.default_rng([seed, 4])
  days = [[] for _ in range(7)]
  for user, before in enumerate(world.history):
    for news in before:
      days[rng.integers(5)].append((user, news))
    for day, count in ((5, world.clicks[user]), (6, 1)):
      for _ in range(count):
        shown = show(world, user, rng, most_clicks=1)
        days[day].append((user, shown.candidates[shown.labels.argmax()]))
  for day, events in enumerate(days):
    start = 1483228800 + 86400 * day  # midnight of 1 January 2017
    lines = []
    for i in rng.permutation(len(events)):
      user, news = events[i]
      lines.append({'eventId': len(lines), 'userId': f'cx:{user}', 'id': f'n{news}',
                    'title': ' '.join(world.titles[news]), 'time': start + int(rng.integers(86400)),
                    'url': f'https://example.com/{news}'})
      if rng.random() < _QUIRKS:  # a visit of the front page has no news
        lines.append({'eventId': len(lines), 'userId': f'cx:{user}', 'time': start,
                      'url': 'https://example.com'})
    _write(folder / f'2017010{day + 1}', map(json.dumps, lines))
  return world
