"""Row-wise rounds: of a table only the rows that the clients of a round look at take part in it.

Where a Task names them (`Task.rows`), those of the whole cohort are gathered from the state of the
server, sent, trained, aggregated and scattered back; all other rows, and their optimizer state,
rest (`train.rows`). Every client is sent and sends the same rows, so that a message is as large as
what the round touches, and nobody's own rows show in it. Distances between messages run over these
rows; the others would be zero in each.
"""
import jax
import numpy as np
import optax

from jaxlab import config as config_lib
from jaxlab import optim
from jaxlab.data import pipeline
from jaxlab.federated import aggregators
from jaxlab.federated.clients import padded_steps
from jaxlab.train import rows as rows_lib

BLOCK = 128  # their number is rounded up, so that rounds share compiled shapes


class RoundRows:
  """Which rows rounds touch, found on the host.

  Args:
    task: Task with `rows`.
    dataset: MapDataset of the training examples, as the clients see them.
    params: shapes of all parameters.

  Raises:
    ConfigError: `task.rows` names a parameter that is not there.
  """

  def __init__(self, task, dataset, params):
    self._dataset, self._name_rows = dataset, jax.jit(task.rows)
    leaves = rows_lib.by_path(params)
    self._sizes = {name: rows_lib.table_of(name, leaves).shape[0]
                   for name in _tables(task, dataset)}

  def __call__(self, examples):
    """The rows that the clients of some rounds look at.

    Args:
      examples: R arrays of numbers, the examples of all clients of each round.

    Returns:
      {name of a table: int32 [R, K]}, each row once, ascending, filled up with V. Those of the
      first example, which stands where batches are padded, are among them. K is the same for all
      tables: a multiple of BLOCK, or the rows of the largest.
    """
    found = [self._of_examples(one) for one in examples]
    most = max(len(rows) for one in found for rows in one.values())
    size = min(BLOCK * padded_steps(-(-max(1, most) // BLOCK)), max(self._sizes.values()))
    return {name: np.stack([np.pad(one[name], (0, size - len(one[name])), constant_values=count)
                            for one in found]) for name, count in self._sizes.items()}

  def _of_examples(self, examples):
    """{name: int32 [n]} of the rows that some examples name, each once, ascending."""
    # Filled up with the first example, to few lengths, so that few programs are compiled.
    padding = padded_steps(len(examples) + 1) - len(examples)
    batch = pipeline.take(self._dataset, np.pad(examples, (0, padding)))
    unique = lambda ids, count: np.unique(ids[(ids >= 0) & (ids < count)]).astype(np.int32)
    return {name: unique(np.asarray(ids), self._sizes[name])
            for name, ids in self._name_rows(batch).items()}


def _tables(task, dataset):
  """The names of the tables whose rows a Task names."""
  return list(jax.eval_shape(task.rows, pipeline.take(dataset, np.zeros(1, np.int32))))


def check(task, settings, params):
  """Raises ConfigError if rounds of `settings` cannot leave rows of the tables alone.

  Args:
    task: Task; without `rows` all is well.
    settings: FederatedConfig.
    params: shapes of all parameters.
  """
  if task.rows is None:
    return
  algorithm = settings.make_algorithm(None)
  config_lib.require(algorithm.init_client is None, 'federated.algorithm.name',
                     'one whose clients keep no state between rounds under row-wise updates',
                     settings.algorithm['name'])
  for name in settings.rules:
    config_lib.require(name not in aggregators.WHOLE_MODEL, 'federated.aggregator.name',
                       f'none of {", ".join(aggregators.WHOLE_MODEL)} under row-wise updates, '
                       'which leave the other rows alone', name)
  if settings.client_optimizer:
    touched = rows_lib.of_rows(dict.fromkeys(_tables(task, task.dataset('train'))), params)
    optimizer = optim.make_optimizer(settings.client_optimizer)
    touched.check(optax.with_extra_args_support(optimizer), params)
