"""The attacks that UA-FedRec is compared with, under the same knowledge: the own clients alone."""
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.ua_fedrec.attack import Forge


def uninformed(attack):
  """The Forge of a stateless attack on messages that sees the attacker's own clean ones alone.

  Sizes stay true; `attacks.enhanced` lies about them.

  Args:
    attack: Attack whose malicious clients all send the same, with knowledge 'own'.
  """
  def make(state, payload, own, sizes, key):
    present = sizes > 0
    made, _, _ = attack.apply((), payload, own, sizes, present, key)
    return jax.tree.map(lambda x: x[jnp.argmax(present)], made), jnp.zeros_like(sizes[0]), state
  return Forge(make)


def flip_clicks(table, rows, rng):
  """Label flip: in these samples a random news that was not clicked changes place with the click.

  Args:
    table: columns of `data.news.click_samples`.
    rows: rows to poison; those without another news stay.
    rng: numpy Generator.

  Returns:
    The columns, with 'click' and 'pool' changed.
  """
  return _exchange(table, rows, rng.integers(0, np.maximum(table['pool_size'][rows], 1)))


def least_popular_clicks(table, rows, rate):
  """Popularity perturbation: the least popular news of the impression takes the click's place.

  Args:
    table: columns of `data.news.click_samples`.
    rows: rows to poison; those without another news stay.
    rate: click-through rates [N + 1], see `data.news.popularity`.

  Returns:
    The columns, with 'click' and 'pool' changed.
  """
  return _exchange(table, rows, np.where(_shown(table)[rows], rate[table['pool'][rows]],
                                         np.inf).argmin(1))


def click_rates(table):
  """Clicks of each news over the samples that show it, [N + 1] (`data.news.click_samples`)."""
  clicks = np.bincount(table['click'], minlength=table['pool'].max(initial=0) + 1)
  shown = np.bincount(table['pool'][_shown(table)], minlength=len(clicks)) + clicks
  return clicks / np.maximum(shown, 1)


def _shown(table):
  return np.arange(table['pool'].shape[1]) < table['pool_size'][:, None]


def _exchange(table, rows, place):
  rows, place = (x[table['pool_size'][rows] > 0] for x in (np.asarray(rows), place))
  click, pool = table['click'].copy(), table['pool'].copy()
  click[rows], pool[rows, place] = table['pool'][rows, place], table['click'][rows]
  return {**table, 'click': click, 'pool': pool}
