"""Partitions of a data set into federated clients: pure NumPy functions of (labels, seed).

A partition is an owner array [N], the client 0..C-1 of each example: every example has one client
by construction. Labels are int [N], classes 0..K-1. `seed` is a non-negative integer, from which
every function makes a random stream of its own, so that no draw elsewhere changes a partition.
Arguments out of range raise ValueError.

There are two Dirichlet partitions, and they are different experiments at the same alpha.
`dirichlet_by_class` (arXiv 1905.12022, 1909.06335) cuts each class into Dirichlet shares, so the
clients' sizes vary too. `dirichlet_by_client` (arXiv 2111.04263) draws the class prior of each
client and keeps the sizes that it is given.
"""
import inspect
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxlab import config as config_lib

MAX_TRIES = 1000


def iid(labels, num_clients, *, seed):
  """Deals the examples at random into clients whose sizes differ by at most one."""
  _require_examples(len(labels), num_clients)
  return _deal(_even(len(labels), num_clients), _stream(seed, 'iid'))


def by_user(users):
  """Makes a client of each distinct user id in `users` [N], in the order of the sorted ids."""
  return np.unique(users, return_inverse=True)[1]


def quantity(labels, num_clients, *, seed, law: Literal['lognormal', 'power'], spread: float,
             min_size: int = 1):
  """Deals the examples at random into clients of unlike sizes, see `quantity_sizes`."""
  sizes = quantity_sizes(len(labels), num_clients, seed=seed, law=law, spread=spread,
                         min_size=min_size)
  return _deal(sizes, _stream(seed, 'quantity'))


def quantity_sizes(num_examples, num_clients, *, seed, law, spread, min_size=1):
  """Draws client sizes [C] that add up to `num_examples`.

  Args:
    num_examples: N >= C * `min_size`.
    num_clients: C.
    seed: of the draw.
    law: 'lognormal': log(size) is normal with standard deviation `spread`; 'power': the r-th
      largest size is proportional to r ** -spread, and which client has it is random.
    spread: >= 0; 0 makes the sizes equal to within one.
    min_size: what every client has before the rest is divided by the law.
  """
  _require(spread >= 0, 'spread', '>= 0', spread)
  _require_examples(num_examples, num_clients, min_size)
  rng = _stream(seed, 'quantity_sizes')
  if law == 'lognormal':
    weights = rng.lognormal(sigma=spread, size=num_clients)
  else:
    _require(law == 'power', 'law', "'lognormal' or 'power'", law)
    weights = rng.permutation(np.arange(1., num_clients + 1) ** -spread)
  rest = num_examples - num_clients * min_size
  bounds = np.floor(np.cumsum(weights)[:-1] * rest / weights.sum()).astype(int)
  return min_size + np.diff(bounds, prepend=0, append=rest)


def shards(labels, num_clients, *, seed, per_client: int):
  """Sorts by label, cuts C * `per_client` equal shards and deals `per_client` to each client.

  Few shards make clients of few classes (arXiv 1602.05629). Equal is to within one example, and
  which examples of a class share a shard is random.
  """
  _require(per_client >= 1, 'per_client', '>= 1', per_client)
  _require_examples(len(labels), num_clients, min_size=per_client)
  rng = _stream(seed, 'shards')
  by_class = _permute_by_class(labels, rng)
  client_of_shard = rng.permutation(np.repeat(np.arange(num_clients), per_client))
  owner = np.empty(len(labels), int)
  owner[by_class] = np.repeat(client_of_shard, _even(len(labels), len(client_of_shard)))
  return owner


def pathological(labels, num_clients, *, seed, classes: int):
  """Gives each client `classes` classes; a class is split evenly among the clients that have it.

  The numbers of clients of any two classes differ by at most one. Raises ValueError if a class
  would have no client or a client no example.
  """
  class_sizes = _count(labels)
  present = np.flatnonzero(class_sizes)
  _require(1 <= classes <= len(present), 'classes', f'1..{len(present)}', classes)
  _require(num_clients * classes >= len(present), 'classes',
           f'num_clients * classes >= {len(present)}, so that each class has a client', classes)
  rng = _stream(seed, 'pathological')
  has = np.zeros((len(class_sizes), num_clients), bool)
  for client in range(num_clients):
    taken = has[present].sum(1) + rng.random(len(present))  # the least taken first, ties at random
    has[present[np.argsort(taken)[:classes]], client] = True
  counts = np.zeros(has.shape, int)
  for k in present:
    clients = rng.permutation(np.flatnonzero(has[k]))
    counts[k, clients] = _even(class_sizes[k], len(clients))
  _require(counts.sum(0).all(), 'num_clients', 'few enough to have an example each', num_clients)
  return _deal_classes(counts, _permute_by_class(labels, rng))


def dirichlet_by_class(labels, num_clients, *, seed, alpha: float, min_size: int = 1,
                       balanced: bool = False):
  """Cuts each class among the clients in shares drawn from Dirichlet(alpha, ..., alpha).

  Args:
    labels: int [N].
    num_clients: C.
    seed: of the draw.
    alpha: > 0; small means few classes a client.
    min_size: the partition is drawn anew until each client has this many examples.
    balanced: a client that has N / C examples gets no share of the classes that follow.

  Raises:
    ValueError: `min_size` was not reached in `MAX_TRIES` draws.
  """
  _require(alpha > 0, 'alpha', '> 0', alpha)
  _require_examples(len(labels), num_clients, min_size)
  class_sizes = _count(labels)
  best = 0
  for attempt in range(MAX_TRIES):
    rng = _stream(seed, 'dirichlet_by_class', attempt)
    proportions = rng.dirichlet(np.full(num_clients, float(alpha)), len(class_sizes))
    if balanced:
      counts = _balanced_cut(proportions, class_sizes)
    else:
      counts = _cut(np.cumsum(proportions, 1), class_sizes)
    smallest = counts.sum(0).min()
    if smallest >= min_size:
      return _deal_classes(counts, _permute_by_class(labels, rng))
    best = max(best, smallest)
  raise ValueError(f'min_size: no draw of {MAX_TRIES} gave every client {min_size} examples, the '
                   f'best gave {best}; lower min_size or num_clients, or raise alpha ({alpha})')


def cut_by_class(labels, proportions, permuted):
  """The rule of `dirichlet_by_class`: class k is cut at floor(cumsum(p_k)[:-1] * n_k).

  Args:
    labels: int [N].
    proportions: [K, C]; the last client takes what the cuts leave.
    permuted: int [N], the ids of the examples of class 0 in the order of dealing, then of 1, ...
  """
  class_sizes = _count(labels, len(proportions))
  return _deal_classes(_cut(np.cumsum(proportions, 1), class_sizes), permuted)


def dirichlet_by_client(labels, num_clients, *, seed, alpha: float,
                        sizes: Sequence[int] | None = None):
  """Fills clients of given sizes, each from a class prior of its own drawn from Dirichlet(alpha).

  The clients draw side by side, in random order. A class that has run out has probability 0 from
  then on, and the priors are renormalised.

  Args:
    labels: int [N].
    num_clients: C.
    seed: of the draw.
    alpha: > 0; small means few classes a client.
    sizes: [C], adding up to N; by default equal to within one.
  """
  _require(alpha > 0, 'alpha', '> 0', alpha)
  _require_examples(len(labels), num_clients)
  sizes = np.asarray(_even(len(labels), num_clients) if sizes is None else sizes)
  _require(len(sizes) == num_clients and sizes.min() >= 0 and sizes.sum() == len(labels), 'sizes',
           f'{num_clients} sizes that add up to {len(labels)}', sizes.tolist())
  rng = _stream(seed, 'dirichlet_by_client')
  class_sizes = _count(labels)
  priors = rng.dirichlet(np.full(len(class_sizes), float(alpha)), num_clients)
  counts = np.zeros(priors.shape, int)
  while (wanted := sizes - counts.sum(1)).any():
    left = class_sizes - counts.sum(0)
    drawn = rng.multinomial(wanted, _normalise(priors * (left > 0), otherwise=left))
    for k in np.flatnonzero(drawn.sum(0) > left):  # k runs out: so this takes K rounds at the most
      drawn[:, k] = rng.multivariate_hypergeometric(drawn[:, k], left[k])
    counts += drawn
  return _deal_classes(counts.T, _permute_by_class(labels, rng))


def like(counts, labels, *, seed):
  """Partitions more data, such as the test set, in the proportions that the clients have already.

  Args:
    counts: int [C, K], see `report`. A class that no client has is divided evenly.
    labels: int [M], of the data to partition.
    seed: of the draw.
  """
  class_sizes = _count(labels, counts.shape[1])
  _require(len(class_sizes) == counts.shape[1], 'labels', f'classes 0..{counts.shape[1] - 1}',
           len(class_sizes) - 1)
  shares = np.where(counts.sum(0) > 0, counts, 1).T
  # In integers, so that no rounding gives an example to a client that has no share.
  bounds = np.cumsum(shares, 1)[:, :-1] * class_sizes[:, None] // shares.sum(1, keepdims=True)
  dealt = np.diff(bounds, prepend=0, append=class_sizes[:, None])
  return _deal_classes(dealt, _permute_by_class(labels, _stream(seed, 'like')))


PARTITIONS = {function.__name__: function for function in (
    iid, by_user, quantity, shards, pathological, dirichlet_by_class, dirichlet_by_client)}
BLIND = (iid.__name__, quantity.__name__)  # these look at the number of examples alone


def check(config, where='partition'):
  """Checks the name and the options as `make_partition` does, but without the data.

  Args:
    config: as there.
    where: dotted path of `config` in the experiment, for messages.
  """
  function = config_lib.choose_named(config, PARTITIONS, where)
  config_lib.check_arguments(function, config, where,
                             injected=('labels', 'num_clients', 'seed', 'users'))


def make_partition(config, labels, num_clients, seed, users=None):
  """Partitions by config.

  Args:
    config: {name: a key of `PARTITIONS`, and the options of that function}.
    labels: int [N].
    num_clients: C.
    seed: of the partition.
    users: user ids [N], for 'by_user'.

  Returns:
    List of C increasing index arrays.

  Raises:
    ConfigError: unknown name or option, or a value that does not work with these data.
  """
  function = config_lib.choose_named(config, PARTITIONS, 'partition')
  given = {'labels': labels, 'num_clients': num_clients, 'seed': seed, 'users': users}
  injected = {key: given[key] for key in inspect.signature(function).parameters if key in given}
  if function is by_user:
    config_lib.require(users is not None, 'partition.name', 'data with user ids for by_user', None)
    found = len(np.unique(users))
    config_lib.require(num_clients == found, 'num_clients', f'the {found} users', num_clients)
  return index_arrays(config_lib.call(function, config, 'partition', **injected), num_clients)


def index_arrays(owner, num_clients):
  """The increasing example indices of each client, a list of `num_clients` arrays."""
  ends = np.cumsum(np.bincount(owner, minlength=num_clients))
  return np.split(np.argsort(owner, kind='stable'), ends[:-1])


class Report(NamedTuple):
  """How unlike the clients are.

  Attributes:
    counts: int [C, K], examples of each class.
    effective_classes: [C], exp(entropy of the client's labels): 1..K, and 0 for an empty client.
    gini: of the sizes: 0 when all are equal, towards 1 when one client has everything.
  """
  counts: np.ndarray
  effective_classes: np.ndarray
  gini: float


def report(parts, labels):
  """Describes a partition given as index arrays of clients and labels [N]."""
  num_classes = labels.max() + 1
  counts = np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])
  sizes = counts.sum(1)
  shares = counts / np.maximum(sizes, 1)[:, None]
  entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
  ranks = np.arange(1, len(sizes) + 1)
  gini = (2 * ranks - len(sizes) - 1) @ np.sort(sizes) / (len(sizes) * sizes.sum())
  return Report(counts, np.where(sizes > 0, np.exp(entropy), 0), float(gini))


def _require(condition, key, expected, value):
  if not condition:
    raise ValueError(f'{key}: expected {expected}, got {value!r}')


def _require_examples(num_examples, num_clients, min_size=1):
  _require(min_size >= 0, 'min_size', '>= 0', min_size)
  _require(1 <= num_clients <= num_examples // max(min_size, 1), 'num_clients',
           f'1 or more, with {max(min_size, 1)} of the {num_examples} examples each', num_clients)


def _count(labels, num_classes=0):
  """Examples of each class, of `num_classes` at least."""
  _require(labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer), 'labels', 'int [N]',
           f'{labels.dtype} {list(labels.shape)}')
  return np.bincount(labels, minlength=num_classes)


def _stream(seed, name, *more):
  return np.random.default_rng([seed, zlib.crc32(name.encode()), *more])


def _even(total, parts):
  """Sizes [parts] that add up to `total` and differ by at most one."""
  return total // parts + (np.arange(parts) < total % parts)


def _normalise(weights, otherwise):
  """Rows that add up to 1; a row of zeros becomes `otherwise` normalised."""
  weights = np.where(weights.sum(-1, keepdims=True) > 0, weights, otherwise)
  return weights / weights.sum(-1, keepdims=True)


def _permute_by_class(labels, rng):
  """The example ids sorted by label, in random order within a class."""
  shuffled = rng.permutation(len(labels))
  return shuffled[np.argsort(labels[shuffled], kind='stable')]


def _deal(sizes, rng):
  return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


def _deal_classes(counts, permuted):
  """Gives client c the next `counts[k, c]` examples of class k, in the order of `permuted`."""
  owner = np.empty(len(permuted), int)
  owner[permuted] = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
  return owner


def _cut(cumulative, class_sizes):
  """Counts [K, C] when class k is cut at the fractions `cumulative[k, :-1]` of its size."""
  bounds = np.floor(cumulative[:, :-1] * class_sizes[:, None]).astype(int)
  return np.diff(bounds, prepend=0, append=class_sizes[:, None])


def _balanced_cut(proportions, class_sizes):
  """Cuts class by class, without a share for the clients that have N / C examples already."""
  counts = np.zeros(proportions.shape, int)
  for k in np.flatnonzero(class_sizes):
    hungry = counts.sum(0) * len(counts[k]) < class_sizes.sum()
    shares = np.cumsum(_normalise(proportions[k] * hungry, otherwise=hungry))
    # Divided by its end, so that rounding leaves nothing for a last client that has its share.
    counts[k] = _cut(shares[None] / shares[-1], class_sizes[k:k + 1])[0]
  return counts
