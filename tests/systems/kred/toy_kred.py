"""A tiny Data of KRED that its tests share: 12 news, 9 entities, 5 of them in news."""
import numpy as np

from jaxlab.systems.kred import data as data_lib
from jaxlab.systems.kred import model

NEWS, HEADS, ENTITIES, CATEGORIES = 12, 5, 9, 3


def make_tables(seed=0, slots=4, neighbours=3):
  """Tables with De = 6, Dd = 5; news 3 and entity 2 have no entities and no neighbours."""
  rng = np.random.default_rng(seed)
  above = lambda x: np.concatenate([np.zeros_like(x[:1]), x])
  real = np.arange(slots) < rng.integers(1, slots, (NEWS, 1))
  real[2] = False
  column = lambda low, high: above((rng.integers(low, high, (NEWS, slots)) * real).astype(np.int32))
  vectors = lambda *shape: above(rng.normal(size=shape).astype(np.float32))
  tails = rng.integers(1, ENTITIES + 1, (HEADS, neighbours))
  relations = rng.integers(1, 4, (HEADS, neighbours))
  tails[1] = relations[1] = 0
  return {
      'graph': {'entity': vectors(ENTITIES, 6), 'relation': vectors(3, 6),
                'tails': above(tails.astype(np.int32)),
                'relations': above(relations.astype(np.int32))},
      'news': {'entities': column(1, HEADS + 1), 'frequency': column(1, 5),
               'position': column(1, 3), 'type': column(1, 4), 'document': vectors(NEWS, 5)}}


def make_model(**changes):
  """A KRED of D = 4."""
  return model.KRED(CATEGORIES, **{'features': 4, 'hidden': 5, 'types': 6, **changes})


def make_data(seed=0):
  """Data of random rows of all five tasks."""
  rng = np.random.default_rng([seed, 1])
  news = lambda *shape: rng.integers(1, NEWS + 1, shape).astype(np.int32)
  ids = np.arange(1, NEWS + 1)
  labels = {'category': rng.integers(0, CATEGORIES, NEWS + 1),
            'popularity': rng.integers(0, 4, NEWS + 1), 'local': np.arange(NEWS + 1) % 2}
  shown = np.tile(np.array([1, 0, 0, 0, -1], np.int8), (7, 1))
  clicks = {
      'train': {'row': np.arange(9, dtype=np.int32), 'user': news(9), 'click': news(9),
                'pool': news(9, 3), 'pool_size': np.full(9, 3, np.int32), 'history': news(9, 3)},
      'dev': {'impression': np.arange(7, dtype=np.int32), 'user': news(7), 'history': news(7, 3),
              'candidates': news(7, 5) * (shown >= 0), 'labels': shown,
              'count': np.full(7, 4, np.int32)}}
  pairs = np.stack([news(9), news(9)], 1)
  tasks = {'user2item': clicks,
           'item2item': {'train': data_lib.pair_samples(pairs),
                         'dev': data_lib.pair_rows(pairs, ids, 2, rng)},
           **{name: {split: data_lib.class_rows(name, ids, column) for split in ('train', 'dev')}
              for name, column in labels.items()}}
  return data_lib.Data(make_tables(seed), tasks, CATEGORIES, ids.astype(np.int32), 2)
