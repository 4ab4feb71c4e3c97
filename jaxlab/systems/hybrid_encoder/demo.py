"""A made-up world of ads in which a click needs two interests at once, written as files.

A page is about one interest, an ad about two, a user has three; an ad is clicked if and only if
both of its interests are the user's. A product of two pooled vectors can hardly say 'both'.
"""
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.data.mind_demo import word

INTERESTS, WORDS, TITLE = 12, 20, 6
DAY = 86_400


class World(NamedTuple):
  """What was planted. Word w of interest k has the number k * WORDS + w.

  Attributes:
    interest: bool [U, 12], three a user.
    both: int [A, 2], the interests of an ad.
    ad_words: int [A, 6], in turn of its two interests.
    page_words: int [U * N, 6]; the pages of user u are u * N .. u * N + N - 1.
    pages: int, N of a user.
  """
  interest: np.ndarray
  both: np.ndarray
  ad_words: np.ndarray
  page_words: np.ndarray
  pages: int

  @property
  def match(self):
    """bool [U, A]: the ad is one that the user clicks."""
    return self.interest[:, self.both].all(-1)


def make_world(seed, *, users=1500, ads=200, pages=8):
  """Draws a World.

  Args:
    seed: of everything.
    users: U.
    ads: A.
    pages: N, of a user: one of each interest, the rest by a share of each that is Dirichlet(.5),
      in random order.
  """
  rng = np.random.default_rng([seed, 21])
  three = np.argsort(rng.random((users, INTERESTS)), axis=1)[:, :3]
  interest = np.zeros((users, INTERESTS), bool)
  np.put_along_axis(interest, three, True, axis=1)
  both = np.argsort(rng.random((ads, INTERESTS)), axis=1)[:, :2]
  share = rng.dirichlet(np.full(3, 0.5), users).cumsum(axis=1)
  more = (rng.random((users, pages - 3, 1)) > share[:, None, :2]).sum(-1)
  which = np.concatenate([np.tile(np.arange(3), (users, 1)), more], axis=1)
  topic = np.take_along_axis(three, rng.permuted(which, axis=1), axis=1)

  def words(topics):
    return topics * WORDS + rng.integers(0, WORDS, topics.shape)

  return World(interest, both, words(np.tile(both, TITLE // 2)),
               words(np.repeat(topic.reshape(-1, 1), TITLE, axis=1)), pages)


def write(folder, seed=0, *, train_days=8, test_users=(300, 500), shown=10, **sizes):
  """Writes ads.tsv, pages.tsv and clicks.tsv; see `data` for the formats.

  A user clicks all ads that match, on one day: training users on the first days, then a day of
  validation and one of test.

  Args:
    folder: to write to; it is made.
    seed: of the world.
    train_days: days of training.
    test_users: users of the validation day and of the test day, beside those of training.
    shown: ads shown at a click, one of which is clicked and none of the others would be.
    **sizes: arguments of `make_world`; `users` are those of training.

  Returns:
    World.
  """
  train = sizes.pop('users', 1500)
  world = make_world(seed, users=train + sum(test_users), **sizes)
  rng = np.random.default_rng([seed, 22])
  day = np.concatenate([rng.integers(0, train_days, train),
                        np.repeat([train_days, train_days + 1], test_users)])
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  text = lambda words: ' '.join(map(word, words))
  _write(folder / 'ads.tsv', [f'A{i + 1}\t{text(row)}\t\tadvertiser{i % 20}'
                              for i, row in enumerate(world.ad_words)])
  _write(folder / 'pages.tsv', [f'P{i + 1}\t{text(row)}'
                                for i, row in enumerate(world.page_words)])
  lines = []
  for user, matches in enumerate(world.match):
    history = '\x01'.join(f'P{user * world.pages + i + 1}' for i in range(world.pages))
    others = np.flatnonzero(~matches)
    for ad in np.flatnonzero(matches):
      beside = rng.permutation(np.append(rng.choice(others, shown - 1, replace=False), ad))
      lines.append((int(day[user] * DAY + rng.integers(DAY)), user, history, ad, beside))
  _write(folder / 'clicks.tsv', [
      f'U{user + 1}\t{history}\tA{ad + 1}\t{" ".join(f"A{i + 1}" for i in beside)}\t{time}'
      for time, user, history, ad, beside in sorted(lines, key=lambda line: line[:2])])
  return world


def _write(path, lines):
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8', newline='')
