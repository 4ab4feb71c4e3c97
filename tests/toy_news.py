"""A tiny news Task that several tests share: 24 news, 6 users."""
import numpy as np

from jaxlab.data import news as news_data
from jaxlab.models import news as models
from jaxlab.tasks import news as news_task

NEGATIVES = 3


def make_data(seed=0, negatives=NEGATIVES):
  """Data of random titles and clicks; each impression has one click and three other news."""
  rng = np.random.default_rng(seed)
  columns = {'title': [' '.join(rng.choice(list('abcdefgh'), 4)) for _ in range(24)],
             'abstract': [' '.join(rng.choice(list('abcdefgh'), 6)) for _ in range(24)],
             'category': [f'c{i % 3}' for i in range(24)],
             'subcategory': [f's{i % 4}' for i in range(24)]}
  histories = [rng.integers(1, 25, rng.integers(0, 6)) for _ in range(6)]

  def split(rows):
    users = np.sort(np.concatenate([np.arange(6), rng.integers(0, 6, rows - 6)]))
    return news_data.collect([{
        'impression': i, 'user': user, 'time': 0, 'history': histories[user],
        'candidates': 1 + rng.choice(24, 4, replace=False),
        'labels': rng.permutation([1, 0, 0, 0])} for i, user in enumerate(users)])

  return news_task.prepare(columns, {'train': split(16), 'dev': split(11)}, history_length=4,
                           pad_side='back', negatives=negatives, title_length=5, abstract_length=6,
                           min_count=1)


def make_models(table, dropout=0.0):
  """(news encoder, user encoder) of NRMS with D = 4."""
  return (models.NRMSNews(table.vocab_size, embed=4, heads=2, head_dim=2, queries=3,
                          dropout=dropout), models.NRMSUser(heads=2, head_dim=2, queries=3))


def make_task(dropout=0.0, rows=False):
  """The NewsTask of both."""
  data = make_data()
  return news_task.from_models(*make_models(data.table, dropout), data, rows=rows)
