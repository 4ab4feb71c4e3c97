"""A tiny Networks and pages of random ids."""
import functools

import jax
import numpy as np

from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.deepqse import task as task_lib

VOCABULARY, CLS, SENTENCES, CANDIDATES = 30, 1, 5, 3


@functools.cache
def networks(kind='efficient', layers=1):
  """Networks of width 8."""
  config = BertConfig(VOCABULARY, 8, layers, 2, 16, max_position_embeddings=24, add_pooler=False,
                      hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                      initializer_range=0.5)
  settings = task_lib.ModelConfig(kind, candidates=CANDIDATES)
  return task_lib.make_networks(settings, config, CLS)


def columns(seed, pages, sentences=SENTENCES):
  """Columns of `pages` pages of 2 to `sentences` sentences; id 2 is the separator."""
  rng = np.random.default_rng(seed)

  def texts(*shape, length=4):
    ids = rng.integers(3, VOCABULARY, (*shape, length + 1)).astype(np.int32)
    count = rng.integers(0, length + 1, shape)[..., None]
    ids = np.where(np.arange(length + 1) == count, 2, ids)
    return np.where(np.arange(length + 1) > count, 0, ids)

  real = rng.integers(2, sentences + 1, pages)
  body = texts(pages, sentences, length=5) * (np.arange(sentences) < real[:, None])[..., None]
  return {'query': texts(pages), 'title': texts(pages, length=2), 'sentences': body,
          'label': rng.integers(0, real).astype(np.int32), 'lang': np.zeros(pages, np.int32)}


@functools.cache
def task_and_params(kind='efficient'):
  """(Task, params, columns) on 8 pages."""
  rows = columns(0, 8)
  task = task_lib.from_networks(networks(kind), {'train': rows, 'test': columns(1, 6)})
  return task, jax.jit(task.init)(jax.random.key(0))['params'], rows
