"""Efficient-FedRec as a federated Algorithm: news vectors down, their gradients up."""
import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxlab import parallel
from jaxlab.federated.algorithms import ServerState, server_step
from jaxlab.federated.client import full_gradient
from jaxlab.federated.types import Algorithm
from jaxlab.tasks import news as news_task
from jaxlab.train import task_gradient


def union_of(cohort, table, num_news, size):
  """The news that the clients of the round may need, sorted: all candidates, all histories, news 0.

  All news of an impression count, drawn as negatives or not, so that the union does not depend on
  the draw.

  Args:
    cohort: this device's Cohort; the union is that of all devices.
    table: columns with 'click', 'pool', 'history', see `data.news.click_samples`.
    num_news: N, news 0 among them.
    size: M, width of the result.

  Returns:
    (int32 [M] sorted, filled up with N; int32 scalar, the true size, which may be larger than M).
  """
  rows = cohort.index.ravel()
  used = jnp.zeros(num_news, bool)
  for name in ('click', 'pool', 'history'):
    ids = table[name][jnp.maximum(rows, 0)]
    real = (rows >= 0).reshape((-1,) + (1,) * (ids.ndim - 1))
    used = used.at[jnp.where(real, ids, 0)].set(True)
  used = parallel.pmax(used.at[0].set(True).astype(jnp.int32), parallel.CLIENTS)
  ids = jnp.nonzero(used, size=size, fill_value=num_news)[0].astype(jnp.int32)
  return ids, used.sum(dtype=jnp.int32)


def efficient_fedrec(task, constants, server_optimizer, *, union_size: int,
                     train_news: bool = True, share_dropout: bool = True, chunk: int = 128):
  """Efficient-FedRec (arXiv 2109.05446): FedSGD in two stages, the news encoder on the server.

  The server encodes the union of the cohort's news and sends vectors and user model. A client sends
  the mean gradients of both over its samples. The server pulls the mean gradient of the vectors
  through its news encoder. Where both stages share their dropout this is the gradient of the pooled
  loss with respect to the whole model.

  A round whose union is larger than `union_size` is refused.

  Args:
    task: NewsTask.
    constants: the Flax collection 'constants' of the task.
    server_optimizer: GradientTransformation over {'news', 'user'}.
    union_size: M, the number of vectors that are sent, most of them real; at most N, all news.
    train_news: False keeps the news encoder as it is (an ablation).
    share_dropout: True encodes with the dropout of the second stage; False, as the official code,
      without any.
    chunk: news encoded together on the server; memory is bounded by it.

  Returns:
    Algorithm. A message is {'user': tree, 'vectors': [M, D]}, whose sums have a meaning.
  """
  features = constants['news']
  num_news = len(features['title'])
  size = min(union_size, num_news)
  encode = functools.partial(news_task.encode_all, task.encode, chunk=chunk)
  # Padding of the union is encoded as news 0, and nobody refers to it.
  some = lambda ids: news_task.gather(features, jnp.where(ids < num_news, ids, 0))

  def init(params):
    return ServerState(params, server_optimizer.init(params))

  def broadcast(state, cohort, table, key):
    ids, needed = union_of(cohort, table, num_news, size)
    vectors = encode(state.params['news'], some(ids), key if share_dropout else None)
    vectors = jnp.where(needed <= size, vectors, jnp.nan)
    return {'ids': ids, 'vectors': vectors, 'user': state.params['user']}, (ids, key)

  def client(payload, client_state, data, key):
    place = lambda ids: jnp.searchsorted(payload['ids'], ids)

    def loss(variables, batch, key):
      params, vectors = variables['params'], variables['params']['vectors']
      _, user_key = jax.random.split(key)  # as the Task's own loss, which encodes with the other
      return task.click_loss(params['user'], vectors[place(batch['candidates'])],
                             vectors[place(batch['history'])], batch, user_key)

    gradient = task_gradient(dataclasses.replace(task, loss=loss), constants)
    params = {'user': payload['user'], 'vectors': payload['vectors']}
    grads, sums = full_gradient(gradient, params, data, key)
    means = {name: value / jnp.maximum(weight, 1e-30) for name, (value, weight) in sums.items()}
    return grads, client_state, means

  def server(state, aux, aggregate, participants, key):
    del participants, key
    ids, dropout_key = aux
    news = state.params['news']
    if train_news:
      _, pull = jax.vjp(lambda params: encode(params, some(ids), dropout_key), news)
      # Nobody refers to padding, but secure sums leave noise of rounding on it: not news 0's.
      vectors = jnp.where((ids < num_news)[:, None], aggregate['vectors'], 0)
      news_gradient, = pull(vectors)
    else:
      news_gradient = jax.tree.map(jnp.zeros_like, news)
    new = server_step(state, {'news': news_gradient, 'user': aggregate['user']}, server_optimizer)
    if not train_news:  # nor may momentum or weight decay move it
      new = new._replace(params={**new.params, 'news': news})
    return new

  return Algorithm(init, broadcast, client, server, needs_full_gradient=True)
