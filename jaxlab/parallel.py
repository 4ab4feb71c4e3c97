"""The device axis: collectives that are no-ops off the axis, placement, gathering to the host,
multi-host start-up.

Programs are `jax.pmap`ped over one axis (`BATCH` in centralised training, `CLIENTS` in federated
rounds) with the state un-replicated: `in_axes=None` in, `out_axes=None` out. `out_axes=None` takes
device 0's value and does not check that the devices agree, so tests call `assert_replicated` on
every state that comes back.
"""
import functools
import logging
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.config import ConfigError

_log = logging.getLogger(__name__)

BATCH = 'batch'
CLIENTS = 'clients'
_SMALL = 2**16  # elements of a leaf that travels with others


def on_axis(axis):
  """True while tracing under a pmap or vmap that names `axis`."""
  try:
    jax.lax.axis_size(axis)
  except NameError:
    return False
  return True


def psum(tree, axis=BATCH):
  """Sum over `axis`; the identity off the axis."""
  return _elementwise(jax.lax.psum, tree, axis)


def pmax(tree, axis=BATCH):
  """Element-wise maximum over `axis`; the identity off the axis."""
  return _elementwise(jax.lax.pmax, tree, axis)


def _elementwise(collective, tree, axis):
  """A collective that sees each element for itself.

  On the CPU the devices meet once for every array, which takes longer than the work on a small one:
  there the small leaves of a type travel as one array.
  """
  if not on_axis(axis):
    return tree
  if jax.default_backend() != 'cpu' or jax.lax.axis_size(axis) == 1:
    return collective(tree, axis)
  leaves, treedef = jax.tree.flatten(tree)
  together = {}
  for i, leaf in enumerate(leaves):
    leaves[i] = leaf = jnp.asarray(leaf)
    together.setdefault(leaf.dtype if leaf.size <= _SMALL else i, []).append(i)
  for group in together.values():
    result = collective(jnp.concatenate([leaves[i].ravel() for i in group]), axis)
    ends = np.cumsum([leaves[i].size for i in group])
    for i, part in zip(group, jnp.split(result, ends[:-1])):
      leaves[i] = part.reshape(leaves[i].shape)
  return treedef.unflatten(leaves)


def all_gather(tree, axis=BATCH):
  """Concatenates [B, ...] of all devices to [D * B, ...]; the identity off the axis."""
  return jax.lax.all_gather(tree, axis, tiled=True) if on_axis(axis) else tree


def among_zeros(x, axis=BATCH):
  """[D * B, ...] with this device's x [B, ...] in its place, so that the `psum` is `all_gather`."""
  if not on_axis(axis):
    return x
  zeros = jnp.zeros((jax.lax.axis_size(axis), *x.shape), x.dtype)
  return zeros.at[jax.lax.axis_index(axis)].set(x).reshape(-1, *x.shape[1:])


def axis_index(axis=BATCH):
  """The device's position on `axis`; 0 off the axis."""
  return jax.lax.axis_index(axis) if on_axis(axis) else 0


def initialize(coordinator_address=None, num_processes=None, process_id=None, cpu_devices=None):
  """Starts the multi-host runtime when the arguments, Slurm or a TPU pod say that there are several
  processes.

  Call it before anything touches a device. With no arguments on a single host it only sets the
  number of CPU devices and, where there are several, XLA's option `_ORDER`.

  Args:
    coordinator_address: 'host:port' of process 0.
    num_processes: number of processes of the job.
    process_id: this process, 0 <= process_id < num_processes.
    cpu_devices: number of devices to split the host CPU into; only the CPU backend looks at it.

  Raises:
    ConfigError: some of the three process arguments are given and others are missing or out of
      range.
  """
  if cpu_devices is not None:
    jax.config.update('jax_num_cpu_devices', cpu_devices)
    if cpu_devices > 1:
      _keep_order()
  given = [coordinator_address is not None, num_processes is not None, process_id is not None]
  if any(given):
    if not all(given):
      raise ConfigError('--coordinator, --num_processes and --process_id go together')
    if not 0 <= process_id < num_processes:
      raise ConfigError(f'--process_id: expected 0 <= id < {num_processes}, got {process_id}')
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(coordinator_address, num_processes, process_id)
  elif (',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') or
        int(os.environ.get('SLURM_NTASKS', '1')) > 1):
    jax.distributed.initialize()
  if jax.process_count() > 1:
    _log.info('process %d of %d, %d local devices', jax.process_index(), jax.process_count(),
                 jax.local_device_count())


_ORDER = '--xla_cpu_enable_concurrency_optimized_scheduler'


def _keep_order():
  """Has the CPU's devices run their operations one after the other, unless XLA_FLAGS has a say.

  By default XLA looks for operations that could run side by side. With a device a core it finds no
  free core for them and hands the work of a device from core to core, which costs small models a
  tenth of their time and more.
  """
  given = os.environ.get('XLA_FLAGS', '')
  # XLA ends the process at a flag that it does not know; these versions know it.
  if jax.__version__.startswith('0.10.') and _ORDER not in given:
    os.environ['XLA_FLAGS'] = f'{given} {_ORDER}=false'.strip()


def barrier(name):
  """Waits until every process of the job has reached the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _local_mesh(axis, devices):
  return Mesh(local_devices(devices), (axis,))


def place(tree, axis=BATCH, devices=None):
  """Copies a host pytree to every local device, so that a pmap with `in_axes=None` moves nothing
  and may donate it.

  Every leaf gets a buffer of its own: two leaves that share one (optax's zeros) cannot both be
  donated.
  """
  sharding = NamedSharding(_local_mesh(axis, devices), PartitionSpec())

  def leaf(x):
    if isinstance(x, jax.Array) and not x.sharding.is_equivalent_to(sharding, x.ndim):
      # Whatever `may_alias` says, the device that holds x would give x's own buffer to the result.
      x = jax.device_put(x, x.sharding, may_alias=False)
    return jax.device_put(x, sharding, may_alias=False)

  return jax.tree.map(leaf, tree)


def local_devices(devices=None):
  """This process's devices among `devices` (all of the job by default)."""
  return [d for d in (devices or jax.devices()) if d.process_index == jax.process_index()]


def split(batch, devices=None):
  """Cuts leaves [B, ...], this process's rows, into [local devices, B / local devices, ...]."""
  count = len(local_devices(devices))
  cut = lambda x: np.reshape(x, (count, len(x) // count) + np.shape(x)[1:])
  return jax.tree.map(cut, batch)


def shard(tree, axis=BATCH, devices=None):
  """Starts the copy of leaves [local devices, ...] to the devices, one row each."""
  return jax.device_put(tree, NamedSharding(_local_mesh(axis, devices), PartitionSpec(axis)))


def stack_runs(trees):
  """Stacks the arguments of runs for `map_runs`, filled up with zeros where their sizes differ.

  Args:
    trees: one pytree of arrays a run, alike but for the sizes of their axes.
  """
  def stack(*arrays):
    shape = np.max([x.shape for x in arrays], axis=0)
    return np.stack([np.pad(x, [(0, n - m) for n, m in zip(shape, x.shape)]) for x in arrays])
  return jax.tree.map(stack, *trees)


def map_runs(function, shared, *arguments, block=None):
  """Independent runs as one program: devices side by side, runs of a device one after the other.

  Args:
    function: pure function (shared, *one run's arguments) -> pytree of arrays. Compiled once for a
      function object and shapes.
    shared: pytree that all runs see.
    *arguments: pytrees with a leading axis [R]; any R.
    block: runs a call of the program, so that different R share one compilation; all at once by
      default.

  Returns:
    The stacked results [R, ...] as NumPy arrays.
  """
  count = jax.local_device_count()
  runs = len(jax.tree.leaves(arguments)[0])
  size = -(-(block or runs) // count) * count
  program, results = _map_program(function), []
  for start in range(0, runs, size):
    rows = np.arange(start, start + size) % runs
    cut = jax.tree.map(lambda x: x[rows].reshape((count, -1) + x.shape[1:]), arguments)
    results.append(
        jax.tree.map(lambda x: np.asarray(x).reshape((-1,) + x.shape[2:]), program((shared, cut))))
  return jax.tree.map(lambda *blocks: np.concatenate(blocks)[:runs], *results)


@functools.lru_cache
def _map_program(function):
  def one_device(both):
    shared, inputs = both
    return jax.lax.map(lambda one: function(shared, *one), inputs)
  # Axes of one argument: as many leaves as arguments would be taken for them, in jax 0.10.2.
  return jax.pmap(one_device, in_axes=((None, 0),))


def to_host(tree):
  """This process's copy of a replicated pytree as NumPy; PRNG keys become their raw data."""
  def leaf(x):
    if isinstance(x, jax.Array):
      if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
      x = x.addressable_data(0)
    return np.array(x)
  return jax.tree.map(leaf, tree)


def gather_rows(tree):
  """Merges pmapped [local devices, B, ...] to the rows [devices * B, ...] of all processes."""
  rows = jax.tree.map(lambda x: np.reshape(np.asarray(x), (-1,) + x.shape[2:]), tree)
  if jax.process_count() > 1:
    rows = multihost_utils.process_allgather(rows, tiled=True)
  return rows


def assert_replicated(tree):
  """Raises AssertionError naming the first leaf whose copies differ in any bit, anywhere."""
  checksums = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not isinstance(leaf, jax.Array):
      continue
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    copies = [np.asarray(s.data).tobytes() for s in leaf.addressable_shards]
    if any(copy != copies[0] for copy in copies[1:]):
      raise AssertionError(f'{jax.tree_util.keystr(path)}: devices hold different values')
    checksums.append(zlib.crc32(copies[0]))
  if jax.process_count() > 1:
    everywhere = multihost_utils.process_allgather(np.array(checksums))
    if (everywhere != everywhere[0]).any():
      raise AssertionError('processes hold different values')


def device_memory_bytes():
  """Bytes that one device can hold: the accelerator's limit, or a share of the host's memory."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()


def check_fits(state, what='model'):
  """Raises ConfigError with the estimate if a replica cannot fit on one device.

  Args:
    state: the train state as `jax.ShapeDtypeStruct`s with fields `params` and others; gradients and
      updates are counted as two more copies of the parameters. Activations are not counted.
    what: the name to print.
  """
  size = lambda tree: sum(
      int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)
      if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
  need, have = size(state) + 2 * size(state.params), device_memory_bytes()
  if need > have:
    raise ConfigError(
        f'{what}: one replica needs about {need / 2**30:.1f} GiB for parameters, optimizer state '
        f'and gradients, and a device holds {have / 2**30:.1f} GiB')
