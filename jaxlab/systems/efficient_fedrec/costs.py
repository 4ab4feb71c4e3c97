"""What a client of a round sends, receives and computes."""
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.federated.client import ClientData

BERT_BASE, BERT_WIDTH = 109_482_240, 768  # numbers in BERT-base-uncased, its pooler among them
NEWS_WIDTH, NEWS_QUERIES, USER_QUERIES = 400, 384, 200


def published_numbers(union):
  """{'whole', 'down', 'up': numbers on the wire} of the published sizes with a union of so many.

  The user model is attention of 20 heads x 20 and a pooling of 200; the news model BERT-base, a
  pooling of 384 and a dense layer to 400.
  """
  pooling = lambda width, queries: width * queries + queries + queries + 1
  dense = lambda inputs, outputs: inputs * outputs + outputs
  user = 3 * dense(NEWS_WIDTH, NEWS_WIDTH) + pooling(NEWS_WIDTH, USER_QUERIES)
  news = BERT_BASE + pooling(BERT_WIDTH, NEWS_QUERIES) + dense(BERT_WIDTH, NEWS_WIDTH)
  vectors = union * NEWS_WIDTH
  return {'whole': user + news, 'down': user + vectors + union, 'up': user + vectors}


def sparse_whole_numbers(params, table, titles):
  """Numbers that an average client sends of the whole model if it sends its own words' rows only.

  That shows which words its news have.

  Args:
    params: of the whole model.
    table: columns of the training samples.
    titles: word ids [N, T].
  """
  words = params['news']['words']['embedding']
  others = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) - int(np.prod(words.shape))
  rows = []
  for user in np.unique(table['user']):
    mine = table['user'] == user
    ids = [np.unique(table[name][mine]) for name in ('click', 'pool', 'history')]
    rows.append(len(np.unique(titles[np.concatenate(ids)])))
  return others + float(np.mean(rows)) * words.shape[1]


def client_milliseconds(algorithms, params, table, cohort, repeats=30):
  """{name: (best, median) milliseconds of a client's work in a round}, interleaved in one run.

  Args:
    algorithms: {name: Algorithm}.
    params: of the whole model.
    table: columns of the training samples.
    cohort: Cohort of which the first client is timed.
    repeats: timed calls of each.
  """
  table = jax.tree.map(jnp.asarray, table)
  one = jax.tree.map(lambda x: x[:1], cohort)
  key, calls = jax.random.key(0), {}
  for name, algorithm in algorithms.items():
    payload, _ = jax.jit(algorithm.broadcast)(algorithm.init(params), one, table, key)
    work = jax.jit(lambda payload, table, index, bound, key, client=algorithm.client: client(
        payload, (), ClientData(table, index, bound), key))
    arguments = payload, table, jnp.asarray(one.index[0]), jnp.ones((), jnp.int32), key
    jax.block_until_ready(work(*arguments))
    calls[name] = (work, arguments)
  times = {name: [] for name in calls}
  for _ in range(repeats):
    for name, (work, arguments) in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(work(*arguments))
      times[name].append(1e3 * (time.perf_counter() - start))
  return {name: (min(values), float(np.median(values))) for name, values in times.items()}
