"""Who takes part in a round: pure functions of (seed, round), so that a round can be replayed."""
import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from jaxlab import config as config_lib

_SAMPLING = 1  # a stream of randomness


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How the clients of a round are drawn.

  Attributes:
    draw: round number -> ids int64 [K], ascending; a client that is there twice weighs twice.
    smallest: fewest clients that a round may have; with none of them the state stays as it is.
    largest: most clients that a round may have.
    weighting: 'uniform' where the draw has the clients' sizes in it already, None to weigh as the
      algorithm does.
  """
  draw: Callable[[int], np.ndarray]
  smallest: int
  largest: int
  weighting: str | None = None


def _rng(seed, number):
  return np.random.default_rng([seed, _SAMPLING, number])


def sample_uniform(num_clients, cohort_size, seed, round_number):
  """Ids of `cohort_size` distinct clients, uniform without replacement: int64 [cohort_size]."""
  return np.sort(_rng(seed, round_number).choice(num_clients, cohort_size, replace=False))


def uniform(sizes, cohort_size, seed):
  """`cohort_size` distinct clients, all alike."""
  draw = lambda r: sample_uniform(len(sizes), cohort_size, seed, r)
  return Sampler(draw, cohort_size, cohort_size)


def bernoulli(sizes, cohort_size, seed):
  """Each client on its own with chance cohort_size / num_clients; there may be none."""
  chance = cohort_size / len(sizes)
  draw = lambda r: np.flatnonzero(_rng(seed, r).random(len(sizes)) < chance)
  return Sampler(draw, 0, len(sizes))


def by_size(sizes, cohort_size, seed):
  """`cohort_size` draws in proportion to the sizes, with replacement; all draws weigh the same."""
  draw = lambda r: np.sort(
      _rng(seed, r).choice(len(sizes), cohort_size, p=sizes / np.sum(sizes)))
  return Sampler(draw, 1, cohort_size, 'uniform')


def shuffled(sizes, cohort_size, seed):
  """Every client once in a pass over all, `cohort_size` a round; a pass may end with fewer."""
  rounds = -(-len(sizes) // cohort_size)

  def draw(r):
    number, piece = divmod(r, rounds)
    order = _rng(seed, number).permutation(len(sizes))
    return np.sort(order[piece * cohort_size:(piece + 1) * cohort_size])

  return Sampler(draw, len(sizes) - (rounds - 1) * cohort_size, cohort_size)


def cyclic(sizes, cohort_size, seed, *, groups: int):
  """In round r, uniformly among the clients c with c = r modulo `groups`; all of them if few."""
  config_lib.require(1 <= groups <= len(sizes), 'groups', f'1 to the {len(sizes)} clients', groups)

  def draw(r):
    there = np.arange(r % groups, len(sizes), groups)
    return np.sort(_rng(seed, r).choice(there, min(cohort_size, len(there)), replace=False))

  return Sampler(draw, min(cohort_size, len(sizes) // groups),
                 min(cohort_size, -(-len(sizes) // groups)))


def available(sizes, cohort_size, seed, *, masks):
  """The clients of row r, modulo the rows, of a table of who is there.

  Args:
    sizes: of the clients [N].
    cohort_size: of no matter.
    seed: likewise.
    masks: bool [R, N], or the path of a .npy with it.
  """
  del cohort_size, seed
  if isinstance(masks, (str, pathlib.Path)):
    path = pathlib.Path(masks).expanduser()
    config_lib.require(path.is_file() and path.suffix == '.npy', 'masks', 'a .npy file', str(masks))
    masks = np.load(path)
  masks = np.asarray(masks)
  config_lib.require(
      masks.ndim == 2 and masks.shape[1] == len(sizes) and len(masks) and masks.dtype == bool,
      'masks', f'bool [R, {len(sizes)}]', f'{masks.dtype} {list(masks.shape)}')
  counts = masks.sum(1)
  return Sampler(lambda r: np.flatnonzero(masks[r % len(masks)]), int(counts.min()),
                 int(counts.max()))


SAMPLERS = {'uniform': uniform, 'bernoulli': bernoulli, 'by_size': by_size, 'shuffled': shuffled,
            'cyclic': cyclic, 'available': available}


def make_sampler(config, sizes, cohort_size, seed):
  """Makes a Sampler.

  Args:
    config: mapping with 'name', a key of `SAMPLERS`, and its keyword arguments.
    sizes: examples of the clients [N].
    cohort_size: clients a round; what it is of each sampler says that.
    seed: of the run.

  Raises:
    ConfigError: unknown name or key, ill-typed or impossible value.
  """
  sampler = config_lib.choose_named(config, SAMPLERS, 'federated.sampling')
  return config_lib.call(sampler, config, 'federated.sampling', sizes=sizes,
                         cohort_size=cohort_size, seed=seed)
