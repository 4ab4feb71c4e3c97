"""A made-up homepage whose log is biased: clicks need interest and a look at the card.

Everything is drawn from one seed and written in the extended MIND format that `data` reads. The
true interest is known, so that a test set can have true labels in random slots.
"""
import datetime
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.data.mind_demo import TOPIC_WORDS, word

SLOTS, HISTORY, LOGGED = 10, 12, 60
SEEN_BY_SIZE = np.array([0.0, 0.5, 0.8, 1.0])
ON_TOP = 0.85  # what all but a large card on the first two slots lose
SPLITS = ('train', 'dev', 'test', 'random', 'randomised')


class World(NamedTuple):
  """What was planted.

  Attributes:
    topic: int [N] of the news.
    popularity: [N], in [0, 1]; what the old ranker sorts by.
    titles: list of N texts.
    interest: [U, K], in [0, 1], the largest of a user 1.
  """
  topic: np.ndarray
  popularity: np.ndarray
  titles: list
  interest: np.ndarray


class Shown(NamedTuple):
  """Impressions in the order of the page, slots 1..10.

  Attributes:
    user: int [I].
    news: int [I, 10].
    size: int [I, 10].
    likes: [I, 10], the chance of a click on a card that is seen.
    clicks: bool [I, 10].
  """
  user: np.ndarray
  news: np.ndarray
  size: np.ndarray
  likes: np.ndarray
  clicks: np.ndarray


def make_world(seed, *, users=600, news=400, topics=8):
  """Draws a World of U users, N news and K topics."""
  rng = np.random.default_rng([seed, 11])
  topic = rng.integers(0, topics, news)
  words = [topic[i] * TOPIC_WORDS + rng.integers(0, TOPIC_WORDS, rng.integers(6, 9))
           for i in range(news)]
  interest = rng.dirichlet(np.full(topics, 0.3), users)
  return World(topic, 0.6 * topic / topics + 0.4 * rng.random(news),
               [' '.join(map(word, row)) for row in words],
               interest / interest.max(axis=1, keepdims=True))


def examination(size, eta):
  """Chance [..., 10] that the card of each slot is seen: slot^-eta x of its size x on top.

  Args:
    size: int [..., 10], 1 to 3.
    eta: strength of the position.
  """
  slot = np.arange(1, SLOTS + 1)
  top = np.where((slot <= 2) & (size == 3), 1.0, ON_TOP)
  return slot**-float(eta) * SEEN_BY_SIZE[size] * top


def show(world, users, rng, *, rho=0.5, eta=1.0, equal_sizes=False):
  """Shows ten random news to each of `users` [I] and draws clicks.

  Args:
    world: World.
    users: int [I].
    rng: NumPy generator.
    rho: how far the order follows popularity; None for a random order.
    eta: strength of the position.
    equal_sizes: whether all cards have size 2 and not 2 or 3 on top, 1 or 2 below.

  Returns:
    Shown.
  """
  shape = len(users), SLOTS
  news = np.argpartition(rng.random((len(users), len(world.topic)), np.float32), SLOTS)[:, :SLOTS]
  strength = 0.0 if rho is None else 6 * rho
  order = np.argsort(-(strength * world.popularity[news] + rng.normal(size=shape)))
  news = np.take_along_axis(news, order, axis=1)
  size = rng.integers(1, 3, shape) + (np.arange(SLOTS) < 3)
  if equal_sizes:
    size = np.full(shape, 2)
  likes = 1 / (1 + np.exp(-6 * (world.interest[users[:, None], world.topic[news]] - 0.5)))
  clicks = rng.random(shape) < likes * examination(size, eta)
  return Shown(users, news, size, likes, clicks)


def write(folder, seed=0, *, impressions=8, tests=2, **policy):
  """Writes the world as folders of behaviors.tsv and news.tsv in the extended MIND format.

  A user's history is the first 12 clicks of up to 60 impressions, fixed for all splits. train, dev
  and test are the biased log; `randomised` has clicks in random slots, from which propensities can
  be estimated; `random` has random slots and the true interest as labels.

  Args:
    folder: to write to; it is made.
    seed: of the world.
    impressions: of a user in train.
    tests: of a user in each other split.
    **policy: rho, eta and equal_sizes of `show`, and the sizes of `make_world`.

  Returns:
    (World, {split: Shown}).
  """
  folder = pathlib.Path(folder)
  sizes = {key: policy.pop(key) for key in ('users', 'news', 'topics') if key in policy}
  world = make_world(seed, **sizes)
  rng = np.random.default_rng([seed, 12])
  people = np.arange(len(world.interest))
  logged = show(world, np.repeat(people, LOGGED), rng, **policy)
  history = [_history(logged, slice(u * LOGGED, (u + 1) * LOGGED)) for u in people]
  rows = [f'N{i + 1}\ttopic{k}\ttopic{k}\t{title}\t\t\t\t' for i, (k, title) in enumerate(
      zip(world.topic, world.titles))]
  splits = {}
  for number, split in enumerate(SPLITS):
    policy_here = {**policy, 'rho': None} if split.startswith('random') else policy
    shown = show(world, np.repeat(people, impressions if split == 'train' else tests), rng,
                 **policy_here)
    splits[split] = shown
    labels = shown.likes > 0.5 if split == 'random' else shown.clicks
    start = datetime.datetime(2021, 3, 1 + number)
    (folder / split).mkdir(parents=True)
    _write(folder / split / 'news.tsv', rows)
    _write(folder / split / 'behaviors.tsv', [
        '\t'.join([str(i + 1), f'U{user + 1}', _time(start + datetime.timedelta(seconds=i)),
                   history[user], ' '.join(
                       f'N{n + 1}-{int(label)}@{slot}:{size}' for slot, (n, label, size)
                       in enumerate(zip(shown.news[i], labels[i], shown.size[i]), 1))])
        for i, user in enumerate(shown.user)])
  return world, splits


def _history(logged, part):
  row, column = np.nonzero(logged.clicks[part])
  news, size = logged.news[part][row, column], logged.size[part][row, column]
  return ' '.join(f'N{n + 1}@{slot + 1}:{s}' for n, slot, s in
                  list(zip(news, column, size))[:HISTORY])


def _time(moment):
  half = 'PM' if moment.hour >= 12 else 'AM'
  return (f'{moment.month}/{moment.day}/{moment.year} {(moment.hour - 1) % 12 + 1}:'
          f'{moment:%M:%S} {half}')


def _write(path, lines):
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8', newline='')
