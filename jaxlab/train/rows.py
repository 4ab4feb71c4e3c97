"""Row-wise updates: of a table only the rows that a batch looks at enter a training step.

A Task that names them (`Task.rows`) has their parameters and optimizer state gathered,
differentiated, updated and scattered back into the donated state, so that a step costs what the
rows touched cost. All other rows, and their optimizer state, rest: no momentum moves them. On rows
that every step touches this is the dense update. Norms over the gradient are exact, those over
parameters (trust ratios) are of the rows at hand.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import parallel
from jaxlab.config import ConfigError, require


class TableRows:
  """Stands in for a table [V, ...] inside a loss: `table[ids]` finds the rows at hand.

  It is no array: whatever else a loss wants of the table, such as the sum of its squares, fails.

  Attributes:
    shape: of the whole table.
    ndim: of the whole table.
    dtype: of its rows.
  """

  def __init__(self, shape, ids, rows):
    self.shape, self.ndim, self.dtype = shape, len(shape), rows.dtype
    self._ids, self._rows = ids, rows

  def __getitem__(self, ids):
    """Rows of `ids`: 0 where an id is out of range, NaN where `Task.rows` had not named it."""
    if not isinstance(ids, jax.Array | np.ndarray):
      raise TypeError('with row-wise updates a table can only be looked up, table[ids]; its other '
                      'rows are not there')
    place = jnp.minimum(jnp.searchsorted(self._ids, ids), len(self._ids) - 1)
    spread = lambda x: x.reshape(x.shape + (1,) * (self.ndim - 1))
    beyond = (ids < 0) | (ids >= self.shape[0])
    known = jnp.where(spread(self._ids[place] == ids), self._rows[place], jnp.nan)
    return jnp.where(spread(beyond), 0, known).astype(self.dtype)


class Table(NamedTuple):
  """The rows of one table that a step touches.

  Attributes:
    ids: int32 [K], each once, ascending; filled up with V, which is no row.
    shape: of the whole table, [V, ...].
    dtype: of its rows.
  """
  ids: jax.Array
  shape: tuple[int, ...]
  dtype: jnp.dtype


class Touched:
  """The tables of a step, by the path of their parameter.

  Args:
    tables: {path, a tuple of keys: Table}.
    paths: the paths of all parameters.
  """

  def __init__(self, tables, paths):
    self._tables, self._paths = tables, paths

  def _map(self, function, tree, *rest):
    """Applies `function(table, leaf, ...)` to the leaves that belong to a table."""
    if not self._tables:
      return rest[-1] if rest else tree

    def leaf(path, *leaves):
      table = self._tables.get(_parameter_of(path, self._paths))
      return leaves[-1] if table is None else function(table, *leaves)

    return jax.tree_util.tree_map_with_path(leaf, tree, *rest)

  def gather(self, tree):
    """The tree, of parameters or an optimizer's state, with the rows [K, ...] of the tables."""
    def rows(table, leaf):
      if leaf.shape != table.shape:
        raise ConfigError(f'optimizer: expected one that keeps state of the shape of a table, '
                          f'{table.shape}, for row-wise updates, got {leaf.shape}')
      # What fills up is a copy of the last row: some state, such as a floor of nu, may never be 0.
      return leaf.at[table.ids].get(mode='clip', indices_are_sorted=True)
    return self._map(rows, tree)

  def scatter(self, tree, rows):
    """Puts what `gather` took from `tree`, and has changed, back; other leaves come from `rows`."""
    put = lambda table, leaf, new: leaf.at[table.ids].set(new, mode='drop', indices_are_sorted=True)
    return self._map(put, tree, rows)

  def stand_in(self, params):
    """The gathered parameters with a `TableRows` for each table, as a loss takes them."""
    return self._map(lambda table, rows: TableRows(table.shape, table.ids, rows), params)

  def check(self, optimizer, params):
    """Raises ConfigError if the optimizer moves a row without gradient: it would have to move all.

    Args:
      optimizer: GradientTransformationExtraArgs.
      params: the trainable parameters, None elsewhere.
    """
    if not self._tables:
      return
    with jax.ensure_compile_time_eval():
      ones = jax.tree.map(lambda x: np.ones((1,) * x.ndim, x.dtype), params)
      zeros = jax.tree.map(np.zeros_like, ones)
      state, moved = optimizer.init(ones), []
      for _ in range(2):  # a warm-up starts at a rate of 0
        updates, state = optimizer.update(zeros, state, ones, grad_fn=lambda p: zeros,
                                          local_grads=zeros)
        self._map(lambda table, leaf: moved.append(bool(np.any(leaf))), updates)
    require(not any(moved), 'optimizer', 'no weight decay or noise on a table with row-wise '
            'updates: the L2 of a whole table moves every row in every step', 'some')


NOTHING = Touched({}, ())


def touched(task, batch, params, trainable, axis=parallel.BATCH):
  """The rows that a step on `batch` touches, those of all devices on `axis`.

  Args:
    task: Task; without `rows` nothing is touched and all methods give back what they get.
    batch: mapping of this device's rows.
    params: all parameters.
    trainable: pytree of bools shaped like `params`; tables that are not trained stay whole.
    axis: name of the device axis.

  Raises:
    ConfigError: `task.rows` names a parameter that is not there.
  """
  if task.rows is None:
    return NOTHING
  trained = {_keys(path): keep for path, keep in jax.tree_util.tree_leaves_with_path(trainable)}
  leaves, unique, rows = by_path(params), {}, {}
  for name, ids in task.rows(batch).items():
    leaf = table_of(name, leaves)
    if trained[_path(name)]:
      key = id(ids), leaf.shape[0]  # tables that share their ids share the sorting
      if key not in unique:
        unique[key] = _unique(parallel.all_gather(jnp.ravel(ids), axis), leaf.shape[0])
      rows[name] = unique[key]
  return of_rows(rows, params)


def of_rows(rows, params):
  """The `Touched` of known rows.

  Args:
    rows: {name: int32 [K], each id once, ascending, filled up with V}, as `Task.rows` names tables.
    params: all parameters.

  Raises:
    ConfigError: a name is no parameter.
  """
  leaves = by_path(params)
  tables = {_path(name): Table(ids, table_of(name, leaves).shape, table_of(name, leaves).dtype)
            for name, ids in rows.items()}
  return Touched(tables, tuple(leaves))


def by_path(params):
  """{path, a tuple of keys: leaf} of all parameters."""
  return {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def table_of(name, leaves):
  """The leaf of a name of `Task.rows` among those of `by_path`; ConfigError if there is none."""
  require(_path(name) in leaves, 'Task.rows', f'one of {["/".join(p) for p in leaves]}', name)
  return leaves[_path(name)]


def _path(name):
  return tuple(name.split('/'))


def _unique(ids, size):
  """Each id of 0..size-1 once, ascending, filled up with `size` to a static length."""
  ids = jnp.where((ids < 0) | (ids >= size), size, ids).astype(jnp.int32)
  return jnp.unique(ids, size=min(len(ids), size + 1), fill_value=size)


def _keys(path):
  return tuple(getattr(key, 'key', key) for key in path)


def _parameter_of(path, paths):
  """The longest of `paths` that ends the path of a leaf, or None."""
  keys = _keys(path)
  found = [p for p in paths if keys[-len(p):] == p]
  return max(found, key=len, default=None)
