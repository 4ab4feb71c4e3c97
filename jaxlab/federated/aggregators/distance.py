"""Rules that compare whole updates by distance: Krum, multi-Krum, Bulyan."""
import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab.federated.aggregators.order import mean_around_median
from jaxlab.federated.aggregators.stack import average, by_blocks, from_rule, squares, sum_in_order

DIRECT = 64  # clients up to which differences are taken directly
DIRECT_BLOCK, GRAM_BLOCK = 500, 8000


def gram(updates, present, center=None):
  """Inner products [n, n] of the updates, less a center [d] where one is given.

  Up to 64 clients no bit depends on who else is in the stack; a matrix product, taken beyond,
  rounds by its shape.
  """
  direct = len(updates) <= DIRECT

  def step(total, columns, *origin):
    moved = columns - origin[0] if origin else columns
    if direct:
      return total + (moved.T[:, :, None] * moved.T[:, None, :]).sum(0), None
    return total + jnp.matmul(moved, moved.T, precision=jax.lax.Precision.HIGHEST), None

  zero = jnp.zeros((len(updates),) * 2, updates.dtype)
  vectors = () if center is None else (center,)
  block = DIRECT_BLOCK if direct else GRAM_BLOCK
  return by_blocks(step, zero, updates, present, vectors, block=block)[0]


def squared_norms(updates, present):
  """Squared norms [n] of the updates."""
  step = lambda total, columns: (total + squares(columns), None)
  zero = jnp.zeros((len(updates), 16), updates.dtype)
  return by_blocks(step, zero, updates, present)[0].sum(1)


def squared_distances(updates, present):
  """Squared distances [n, n] between the updates; rows and columns of the absent mean nothing.

  Up to 64 clients the differences are taken directly, so that equal updates are at distance 0.
  Beyond, they come from inner products about the update of median norm: what all clients share does
  not cancel there, and a few gigantic updates cannot spoil the others' distances.
  """
  if len(updates) <= DIRECT:
    def step(total, columns):
      rows = columns.T
      return total + jnp.square(rows[:, :, None] - rows[:, None, :]).sum(0), None
    zero = jnp.zeros((len(updates),) * 2, updates.dtype)
    return by_blocks(step, zero, updates, present, block=DIRECT_BLOCK)[0]
  by_norm = jnp.argsort(jnp.where(present, squared_norms(updates, present), jnp.inf))
  center = updates[by_norm[jnp.maximum(present.sum() - 1, 0) // 2]]
  products = gram(updates, present, jnp.where(present.any(), center, 0))
  own = jnp.diag(products)
  apart = jnp.maximum(own[:, None] + own[None, :] - 2 * products, 0)
  return jnp.where(jnp.eye(len(own), dtype=bool), 0, apart)


def others(present):
  """bool [n, n]: pairs of two different clients who are both there."""
  return present[:, None] & present[None, :] & ~jnp.eye(len(present), dtype=bool)


def ranks(scores):
  """The rank of each score [n], 0 the lowest; ties by lower index."""
  order = jnp.argsort(scores, stable=True)
  return jnp.zeros(len(scores), jnp.int32).at[order].set(jnp.arange(len(scores), dtype=jnp.int32))


def krum_scores(distances, present, num_malicious):
  """Sum of each client's distances to its n - f - 2 nearest others; +inf for the absent.

  Args:
    distances: [n, n], squared or not.
    present: bool [n].
    num_malicious: f.
  """
  number = present.sum()
  count = jnp.minimum(jnp.maximum(number - num_malicious - 2, 1), number - 1)
  ordered = jnp.sort(jnp.where(others(present), distances, jnp.inf), axis=1).T
  near = jnp.arange(len(present))[:, None] < count  # the absent come last, at +inf
  return jnp.where(present, sum_in_order(jnp.where(near, ordered, 0)), jnp.inf)


def _scores(updates, weights, num_malicious, squared):
  present = weights > 0
  apart = squared_distances(updates, present)
  return krum_scores(apart if squared else jnp.sqrt(apart), present, num_malicious)


def krum(*, num_malicious: int, squared: bool = True):
  """Krum (Blanchard et al. 2017): the update with the smallest sum of distances to its nearest.

  Args:
    num_malicious: f, the number of malicious clients to bear; needs f + 3 clients to be defined,
      and the theory wants 2 f + 3.
    squared: sum squared distances as published, or plain ones.
  """
  config_lib.require(num_malicious >= 0, 'num_malicious', 'at least 0', num_malicious)

  def rule(updates, weights, state, key):
    del key
    scores = _scores(updates, weights, num_malicious, squared)
    keep = (ranks(scores) == 0) & (weights > 0)
    return average(updates, keep), state, {'keep': keep, 'scores': scores}
  return from_rule(rule, minimum=num_malicious + 3)


def multi_krum(*, num_malicious: int, keep: int | None = None, weighted: bool = False,
               squared: bool = True):
  """Multi-Krum: the mean of the clients with the lowest Krum scores, computed once.

  Args:
    num_malicious: f; needs f + 3 clients.
    keep: how many to average, of at least as many clients; n - f by default.
    weighted: by the claimed sizes, which quantity-enhanced attackers like, or evenly.
    squared: sum squared distances, or plain ones.
  """
  config_lib.require(num_malicious >= 0, 'num_malicious', 'at least 0', num_malicious)
  config_lib.require(keep is None or keep >= 1, 'keep', 'at least 1', keep)

  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    scores = _scores(updates, weights, num_malicious, squared)
    count = jnp.maximum(present.sum() - num_malicious, 1) if keep is None else keep
    kept = (ranks(scores) < count) & present
    shares = jnp.where(kept, weights, 0) if weighted else kept
    return average(updates, shares), state, {'keep': kept, 'scores': scores}
  return from_rule(rule, minimum=max(num_malicious + 3, keep or 0))


def bulyan_order(distances, present, num_malicious):
  """Bulyan's picks by iterated Krum.

  Args:
    distances: squared distances [n, n].
    present: bool [n].
    num_malicious: f.

  Returns:
    int32 [n], the number of each client's pick, n for those who are not among the n - 2 f picks.
  """
  n = len(present)
  # Sorted once; a pick takes a client out of every row.
  nearest = jnp.argsort(jnp.where(others(present), distances, jnp.inf), axis=1, stable=True)
  ordered = jnp.take_along_axis(distances, nearest, axis=1)
  itself = nearest == jnp.arange(n)[:, None]

  def pick(i, order):
    left = present & (order == n)
    count = jnp.maximum(left.sum() - num_malicious - 2, 1)
    there = left[nearest] & ~itself
    near = there & (jnp.cumsum(there, axis=1) <= count)
    scores = jnp.where(left, jnp.where(near, ordered, 0).sum(1), jnp.inf)
    chosen = jnp.argmin(scores)
    wanted = i < present.sum() - 2 * num_malicious
    return jnp.where((jnp.arange(n) == chosen) & wanted, i, order)

  picks = max(n - 2 * num_malicious, 1)
  return jax.lax.fori_loop(0, picks, pick, jnp.full(n, n, jnp.int32))


def bulyan(*, num_malicious: int):
  """Bulyan (El Mhamdi et al. 2018): iterated Krum, then the values nearest to the median.

  With f < 3 the last picks sum one distance alone, and the two nearest clients tie: the lower index
  is picked, so that there the order of the clients matters.

  Args:
    num_malicious: f; needs 4 f + 3 clients.
  """
  config_lib.require(num_malicious >= 0, 'num_malicious', 'at least 0', num_malicious)

  def rule(updates, weights, state, key):
    del key
    present = weights > 0
    order = bulyan_order(squared_distances(updates, present), present, num_malicious)
    keep = order < len(order)
    count = jnp.maximum(keep.sum() - 2 * num_malicious, 1)
    step = lambda carry, columns: (carry, mean_around_median(columns, keep, count))
    aggregate = by_blocks(step, (), updates, present, output=())[1]
    return aggregate, state, {'keep': keep, 'order': order}
  return from_rule(rule, minimum=4 * num_malicious + 3)
