"""UA-FedRec's attack (arXiv 2202.06701): perturbed news model, user model and sizes.

An attacker knows its own clients alone: what they would send honestly (`own_clients`). From that a
`Forge` makes one message, which all malicious clients of the round send (`from_own`). Messages are
gradients {'news': tree, 'user': tree}, on which the server descends. Any encoder of a NewsTask will
do.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.federated.aggregators.stack import flatten
from jaxlab.federated.attacks.crafted import moments, replace
from jaxlab.federated.attacks.quantities import by_moments
from jaxlab.federated.round import Cohort, run_clients
from jaxlab.federated.types import Attack
from jaxlab.tasks import news as news_task

NEWS_SIGNS = {'paper': 1.0, 'release': -1.0, 'none': 0.0}


class Strength(NamedTuple):
  """How much is perturbed; numbers, or scalars that are traced.

  Attributes:
    news_sign: 1 sends the gradient of the similarity loss, so that the server's descent lowers it,
      which is the paper's aim; -1 its negative, as the official code does; 0 leaves the news part
      at the clean mean. See `NEWS_SIGNS`.
    news: lambda_1: the news part has the mean clean norm plus so many deviations.
    user: lambda_2: deviations of the user part from the clean mean, against its sign; 0 for none.
    quantity: lambda_3: deviations of the claimed size above the mean one; 0 for the mean.
  """
  news_sign: float = 1.0
  news: float = 3.0
  user: float = 3.0
  quantity: float = 3.0


class Forge(NamedTuple):
  """How an attacker that knows its own clients alone makes the message of all of them.

  Attributes:
    make: (state, payload, clean messages [K, ...], their sizes [K], key) -> (message, size, state);
      a size of 0 leaves each liar its true one.
    init: params -> state.
    idle: what becomes of the state in a round without a malicious client.
  """
  make: Callable[..., tuple[Any, jax.Array, Any]]
  init: Callable[[Any], Any] = lambda params: ()
  idle: Callable[[Any], Any] = lambda state: state


class Pairs(NamedTuple):
  """State of the attack.

  Attributes:
    near: int32 [N], the news most like each news.
    far: int32 [N], the least like.
    age: int32, rounds since they were found.
  """
  near: jax.Array
  far: jax.Array
  age: jax.Array


def own_clients(algorithm, table, index, sizes, *, count=50):
  """What the attacker learns in a round: clean messages of its own clients at the global model.

  Args:
    algorithm: Algorithm of stateless clients.
    table: mapping of columns.
    index: int32 [M, S, B] rows of the table of all own clients, -1 for padding.
    sizes: float32 [M] numbers of examples, 0 for padding.
    count: clients drawn in a round, without replacement; K is that or M, if it is less.

  Returns:
    Function (payload, key) -> (messages [K, ...], sizes [K], 0 where nobody is).
  """
  count = min(count, len(sizes))

  def learn(payload, key):
    draw_key, client_key = jax.random.split(key)
    order = jnp.where(sizes > 0, jax.random.uniform(draw_key, sizes.shape), -1)
    drawn = jax.lax.top_k(order, count)[1]
    cohort = Cohort(drawn, index[drawn], sizes[drawn])
    return run_clients(algorithm, payload, (), table, cohort, client_key)[:2]

  return learn


def from_own(forge, learn):
  """The Attack of a forge: all malicious clients of a round send the same message.

  A round without a malicious client costs nothing and changes no message.

  Args:
    forge: Forge.
    learn: (payload, key) -> (clean messages, sizes), see `own_clients`.
  """
  def apply(state, payload, messages, weights, malicious, key):
    malicious = malicious & (weights > 0)

    def attack(state):
      learn_key, forge_key = jax.random.split(key)
      message, size, state = forge.make(state, payload, *learn(payload, learn_key), forge_key)
      sent = replace(messages, jax.tree.map(lambda x: x[None], message), malicious)
      return sent, jnp.where(malicious & (size > 0), size, weights).astype(weights.dtype), state

    nothing = lambda state: (messages, weights, forge.idle(state))
    return jax.lax.cond(malicious.any(), attack, nothing, state)

  return Attack(forge.init, apply, idle=forge.idle)


def closest_and_farthest(vectors, chunk=1024):
  """The other news of the largest and of the smallest inner product with each news.

  Args:
    vectors: [N, D], N >= 2.
    chunk: news compared with all others at a time.

  Returns:
    (near int32 [N], far int32 [N]); ties go to the lower number.
  """
  count = len(vectors)
  chunk = min(chunk, count)
  numbers = jnp.arange(count)
  most = jnp.finfo(vectors.dtype).max

  def one(rows):
    scores = jnp.matmul(vectors[rows], vectors.T, precision=jax.lax.Precision.HIGHEST)
    itself = rows[:, None] == numbers
    return (jnp.where(itself, -most, scores).argmax(1).astype(jnp.int32),
            jnp.where(itself, most, scores).argmin(1).astype(jnp.int32))

  rows = jnp.arange(-(-count // chunk) * chunk) % count
  pairs = jax.lax.map(one, rows.reshape(-1, chunk))
  return tuple(x.ravel()[:count] for x in pairs)


def similarity_loss(vectors, near, far, batch_size=128):
  """L_sim = MSE(v, v_far) - MSE(v, v_near), summed over batches of anchors in order.

  Args:
    vectors: [N, D]; the gradient flows through anchors, near and far news alike.
    near: int [N].
    far: int [N].
    batch_size: anchors of a batch; a mean is over batch and dimension.

  Returns:
    Scalar.
  """
  apart = lambda other: jnp.square(vectors - vectors[other]).mean(1)
  anchors = jnp.arange(len(vectors))
  sizes = jnp.minimum(batch_size, len(vectors) - anchors // batch_size * batch_size)
  return ((apart(far) - apart(near)) / sizes).sum()


def similarity_gradient(encode, features, params, near, far, batch_size=128, key=None):
  """The gradient of `similarity_loss` with respect to the parameters of the news encoder.

  Args:
    encode: `NewsTask.encode`.
    features: {name: [N, ...]} of all news.
    params: of the news encoder.
    near: int [N].
    far: int [N].
    batch_size: see `similarity_loss`.
    key: PRNG key of dropout, or None for none.
  """
  loss = lambda params: similarity_loss(news_task.encode_all(encode, params, features, key), near,
                                        far, batch_size)
  return jax.grad(loss)(params)


def push(mean, deviation, scale):
  """mean - scale sign(mean) deviation, and 0 where that is NaN."""
  pushed = mean - scale * jnp.sign(mean) * deviation
  return jnp.where(jnp.isnan(pushed), 0, pushed)


def news_part(raw, clean, present, strength):
  """The news part of the message.

  Args:
    raw: [d] gradient of the similarity loss.
    clean: [K, d] news parts of the clean messages.
    present: bool [K].
    strength: Strength.

  Returns:
    [d] of norm rho |raw| / (|raw| + 1e-6), rho = mean + lambda_1 deviation of the clean norms; the
    clean mean if the sign is 0. NaN entries of `raw` are `push`ed ones.
  """
  mean, deviation = moments(clean, present)
  raw = strength.news_sign * raw
  raw = jnp.where(jnp.isnan(raw), push(mean, deviation, strength.news), raw)
  norms = jnp.sqrt(jnp.square(clean).sum(1, keepdims=True))
  norm_mean, norm_deviation = moments(norms, present)
  rho = norm_mean + strength.news * norm_deviation
  scaled = raw * rho / (jnp.sqrt(jnp.square(raw).sum()) + 1e-6)
  return jnp.where(strength.news_sign == 0, mean, scaled)


def ua_forge(encode, features, strength, *, refresh_every=100, batch_size=128):
  """The Forge of UA-FedRec (arXiv 2202.06701), whose state is Pairs.

  Args:
    encode: `NewsTask.encode`; its dropout acts in the gradient of the similarity loss.
    features: {name: [N, ...]} of all news, news 0 among them.
    strength: Strength.
    refresh_every: age in rounds at which near and far news are found anew, in the first round with
      a malicious client, for the attacker has no other look at the model.
    batch_size: see `similarity_loss`.
  """
  count = len(features['title'])

  def init(params):
    del params
    zeros = jnp.zeros(count, jnp.int32)
    return Pairs(zeros, zeros, jnp.asarray(refresh_every, jnp.int32))

  def find(params):
    pairs = closest_and_farthest(news_task.encode_all(encode, params, features))
    return Pairs(*pairs, jnp.zeros((), jnp.int32))

  def older(state):
    return state._replace(age=state.age + 1)

  def make(state, payload, own, sizes, key):
    present = sizes > 0
    state = jax.lax.cond(state.age >= refresh_every, lambda: find(payload['news']), lambda: state)
    news, unflatten_news = flatten(own['news'])
    user, unflatten_user = flatten(own['user'])
    gradient = similarity_gradient(encode, features, payload['news'], state.near, state.far,
                                   batch_size, key)
    raw = flatten(jax.tree.map(lambda x: x[None], gradient))[0][0]
    message = {'news': unflatten_news(news_part(raw, news, present, strength)),
               'user': unflatten_user(push(*moments(user, present), strength.user))}
    claim = by_moments(scale=strength.quantity, knowledge='own')
    return message, claim(sizes, present, present), older(state)

  return Forge(make, init, older)


def ua_fedrec(encode, features, learn, strength, **options):
  """UA-FedRec (arXiv 2202.06701) as an Attack.

  Args:
    encode: see `ua_forge`.
    features: likewise.
    learn: see `own_clients`.
    strength: Strength.
    **options: others of `ua_forge`.
  """
  return from_own(ua_forge(encode, features, strength, **options), learn)
