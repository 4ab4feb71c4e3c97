"""The device axis: collectives, placement, gathering, replication, start-up."""
import os
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import parallel
from jaxlab.config import ConfigError
from jaxlab.train import TrainState
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
COUNTS = [1, 2, 4]


def devices(count):
  assert len(jax.devices()) == 4
  return jax.devices()[:count]


def collectives(x, axis):
  """Everything that a program may ask the axis for."""
  return {'sum': parallel.psum({'x': x}, axis)['x'], 'max': parallel.pmax(x, axis),
          'all': parallel.all_gather(x, axis),
          'placed': parallel.psum(parallel.among_zeros(x, axis), axis),
          'on': jnp.asarray(parallel.on_axis(axis)), 'here': jnp.asarray(parallel.axis_index(axis))}


class CollectivesTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_no_ops_off_the_axis(self):
    x = jnp.array([3.0, 1.0])
    out = self.variant(lambda x: collectives(x, parallel.BATCH))(x)
    for name in ('sum', 'max', 'all', 'placed'):
      np.testing.assert_array_equal(out[name], x)
    self.assertEqual((out['here'], out['on']), (0, False))

  @parameterized.product(axis=[parallel.BATCH, parallel.CLIENTS], count=COUNTS)
  def test_right_on_the_axis(self, axis, count):
    x = jnp.array([[3.0, 1.0], [2.0, 5.0], [7.0, 0.0], [-1.0, 4.0]])[:count]
    program = jax.pmap(lambda x: collectives(x, axis), axis_name=axis, devices=devices(count))
    out = program(x)
    for i in range(count):
      np.testing.assert_array_equal(out['sum'][i], x.sum(0))
      np.testing.assert_array_equal(out['max'][i], x.max(0))
      np.testing.assert_array_equal(out['all'][i], x.ravel())  # in device order
      np.testing.assert_array_equal(out['placed'][i], x.ravel())
    np.testing.assert_array_equal(out['here'], np.arange(count))
    self.assertTrue(out['on'].all())

  def test_sums_of_trees_of_many_shapes_and_types(self):
    rng = np.random.default_rng(0)
    tree = {'scalar': rng.normal(size=4).astype(np.float32),
            'small': rng.normal(size=(4, 3, 2)).astype(np.float32),
            'empty': np.zeros((4, 0, 5), np.float32),
            'large': rng.normal(size=(4, 2, 2**15 + 1)).astype(np.float32),
            'counts': rng.integers(0, 2**31, (4, 7)).astype(np.uint32),
            'half': rng.integers(0, 9, (4, 3)).astype(jnp.bfloat16)}
    program = jax.pmap(lambda tree: parallel.psum((tree, 1), parallel.BATCH),
                       axis_name=parallel.BATCH)
    out, count = program(tree)
    np.testing.assert_array_equal(count, [4] * 4)
    largest = jax.pmap(lambda tree: parallel.pmax(tree, parallel.BATCH),
                       axis_name=parallel.BATCH)(tree)
    for name, x in tree.items():
      self.assertEqual((out[name].dtype, largest[name].dtype), (x.dtype, x.dtype))
      for device in range(4):
        np.testing.assert_array_equal(out[name][device], jax.jit(lambda x: x.sum(0))(x), name)
        np.testing.assert_array_equal(largest[name][device], x.max(0), name)
    # The four small arrays of float32, bfloat16, uint32 and the int, and the large one: the CPU's
    # devices meet five times and not seven.
    reduced = [line for line in program.lower(tree).as_text().splitlines()
               if 'stablehlo.all_reduce' in line]
    self.assertLen(reduced, 5)

  def test_another_axis_does_not_count(self):
    x = jnp.arange(8.0).reshape(4, 2)
    program = jax.pmap(lambda x: collectives(x, parallel.BATCH), axis_name=parallel.CLIENTS)
    out = program(x)
    np.testing.assert_array_equal(out['sum'], x)
    self.assertFalse(out['on'].any())

  def test_a_vmap_that_names_the_axis_counts(self):
    x = jnp.arange(6.0).reshape(3, 2)
    out = jax.vmap(lambda x: collectives(x, parallel.BATCH), axis_name=parallel.BATCH)(x)
    np.testing.assert_array_equal(out['sum'], np.tile(x.sum(0), (3, 1)))
    np.testing.assert_array_equal(out['here'], np.arange(3))


class PlacementTest(parameterized.TestCase):

  @parameterized.parameters(*COUNTS)
  def test_place_copies_to_every_device(self, count):
    tree = {'x': np.arange(6.0).reshape(2, 3), 'key': jax.random.key(3), 'n': 4}
    placed = parallel.place(tree, devices=devices(count))
    self.assertEqual(placed['x'].devices(), set(devices(count)))
    self.assertTrue(placed['x'].sharding.is_fully_replicated)
    for copy in placed['x'].addressable_shards:
      np.testing.assert_array_equal(copy.data, tree['x'])
    parallel.assert_replicated(placed)
    toy.assert_trees_equal(placed, tree)

  @parameterized.product(count=COUNTS, device=[0, 1])
  def test_place_gives_every_leaf_a_buffer_of_its_own(self, count, device):
    zero = jax.device_put(jnp.zeros(1000), jax.devices()[device])
    placed = parallel.place({'a': zero, 'b': zero}, devices=devices(count))
    pointers = [shard.data.unsafe_buffer_pointer() for leaf in placed.values()
                for shard in leaf.addressable_shards]
    self.assertLen(set(pointers), 2 * count)  # donating one twice would end the process
    self.assertNotIn(zero.unsafe_buffer_pointer(), pointers)

  @parameterized.product(count=COUNTS, make=[np.zeros, jnp.zeros])
  def test_placed_state_may_be_donated_and_its_source_lives_on(self, count, make):
    zero = make(1000)
    add = lambda state, x: jax.tree.map(lambda leaf: leaf + parallel.psum(x), state)
    program = jax.pmap(add, in_axes=(None, 0), out_axes=None, axis_name=parallel.BATCH,
                       donate_argnums=0, devices=devices(count))
    ones = parallel.shard(np.ones(count, np.float32), devices=devices(count))
    state = parallel.place({'a': zero, 'b': zero}, devices=devices(count))
    for _ in range(2):
      with jax.transfer_guard('disallow'):
        new = program(state, ones)
      self.assertTrue(state['a'].is_deleted())
      parallel.assert_replicated(new)
      state = new
    np.testing.assert_array_equal(state['a'] + state['b'], 4 * count)
    np.testing.assert_array_equal(zero, 0)

  @parameterized.parameters(*COUNTS)
  def test_split_shard_and_gather_are_inverse(self, count):
    batch = {'x': np.arange(24.0).reshape(8, 3), 'id': np.arange(8)}
    rows = parallel.split(batch, devices(count))
    self.assertEqual(rows['x'].shape, (count, 8 // count, 3))
    sharded = parallel.shard(rows, devices=devices(count))
    self.assertLen(sharded['x'].addressable_shards, count)
    for i, shard in enumerate(sharded['id'].addressable_shards):
      np.testing.assert_array_equal(shard.data[0], batch['id'][i * 8 // count:(i + 1) * 8 // count])
    out = jax.pmap(lambda b: b, devices=devices(count))(sharded)
    gathered = parallel.gather_rows(out)
    toy.assert_trees_equal(gathered, batch)
    self.assertIsInstance(gathered['x'], np.ndarray)

  def test_split_needs_a_multiple_of_the_devices(self):
    with self.assertRaises(ValueError):
      parallel.split({'x': np.arange(6)}, devices(4))

  def test_local_devices(self):
    self.assertEqual(parallel.local_devices(), jax.devices())
    self.assertEqual(parallel.local_devices(devices(2)), devices(2))

  def test_to_host(self):
    key = jax.random.key(5)
    tree = parallel.to_host(parallel.place({'x': jnp.arange(3), 'key': key, 'n': 2.5}))
    self.assertTrue(all(type(leaf) is np.ndarray for leaf in tree.values()))
    np.testing.assert_array_equal(tree['x'], [0, 1, 2])
    np.testing.assert_array_equal(tree['key'], jax.random.key_data(key))
    self.assertEqual(tree['n'], 2.5)
    tree['x'][0] = 9  # a copy of its own


class RunsTest(parameterized.TestCase):

  @parameterized.product(runs=[1, 4, 7], block=[None, 1, 4])
  def test_equals_a_python_loop(self, runs, block):
    x, keys = np.arange(runs, dtype=np.float32), jax.vmap(jax.random.key)(np.arange(runs))
    out = parallel.map_runs(one_run, jnp.float32(2), x, keys, block=block)
    self.assertEqual(out['y'].shape, (runs,))
    self.assertIsInstance(out['y'], np.ndarray)
    for i in range(runs):
      expected = one_run(jnp.float32(2), x[i], jax.random.key(i))
      chex.assert_trees_all_close(jax.tree.map(lambda v: v[i], out), expected, rtol=1e-6)


class StackRunsTest(absltest.TestCase):

  def test_unlike_sizes_are_filled_up_with_zeros(self):
    made = parallel.stack_runs([{'x': np.ones((2, 3))}, {'x': np.ones((1, 3))}])
    np.testing.assert_array_equal(made['x'].sum((1, 2)), [6, 3])
    made = parallel.stack_runs([{'x': np.ones((2, 1))}, {'x': np.ones((1, 3))}])
    self.assertEqual(made['x'].shape, (2, 2, 3))
    self.assertEqual(made['x'].sum(), 5)


def one_run(shared, x, key):
  """One of the runs of `map_runs`."""
  return {'y': shared * x, 'noise': jax.random.normal(key, (2,)) + x}


class ReplicatedTest(parameterized.TestCase):

  def test_equal_copies_pass(self):
    tree = {'x': np.array([np.nan, -0.0, 1.0]), 'key': jax.random.key(0), 'host': 'not an array'}
    parallel.assert_replicated({**parallel.place({k: tree[k] for k in ('x', 'key')}), 'host': 1.0})

  @parameterized.parameters(
      ([0.0, 1.0, 2.0, 3.0],), ([1.0, 1.0, 1.0, 1.0 + 2**-23],), ([0.0, -0.0, 0.0, 0.0],),
      ([1, 1, 2, 1],))
  def test_devices_that_disagree_are_noticed(self, values):
    values = np.array(values, np.float32 if isinstance(values[0], float) else np.int32)
    program = jax.pmap(lambda x: {'same': jnp.ones(3), 'b': x}, out_axes=None)
    out = program(values)
    self.assertEqual(out['b'].shape, ())  # the result looks replicated, but is not
    with self.assertRaisesRegex(AssertionError, r"\['b'\]: devices hold different values"):
      parallel.assert_replicated(out)

  def test_keys_that_disagree_are_noticed(self):
    out = jax.pmap(lambda i: {'key': jax.random.key(i)}, out_axes=None)(np.arange(4))
    with self.assertRaisesRegex(AssertionError, r"\['key'\]: devices"):
      parallel.assert_replicated(out)

  def test_a_forgotten_psum(self):
    step = lambda w, x, psum: w - 0.1 * psum((w * x).sum())
    rows = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    for psum, replicated in ((parallel.psum, True), (lambda g: g, False)):
      program = jax.pmap(lambda w, x: step(w, x, psum), in_axes=(None, 0), out_axes=None,
                         axis_name=parallel.BATCH)
      out = program(jnp.ones(()), rows)
      if replicated:
        parallel.assert_replicated(out)
      else:
        self.assertRaises(AssertionError, parallel.assert_replicated, out)


class MemoryTest(parameterized.TestCase):

  def state(self):
    """Parameters of 400 bytes, an optimizer of 800, and small change of 4 + 4 + 4."""
    params = {'w': jnp.zeros(100)}
    zero = jnp.zeros((), jnp.int32)
    return jax.eval_shape(lambda: TrainState(
        zero, params, {}, (params, params), jax.random.key(0), zero, zero, {}))

  def test_the_limit_is_the_state_with_gradients_and_updates(self):
    need = 400 + 800 + 12 + 2 * 400
    with mock.patch.object(parallel, 'device_memory_bytes', return_value=need):
      parallel.check_fits(self.state())
    with mock.patch.object(parallel, 'device_memory_bytes', return_value=need - 1):
      with self.assertRaisesRegex(ConfigError, '^big model: one replica needs about 0.0 GiB'):
        parallel.check_fits(self.state(), 'big model')

  def test_memory_of_a_device(self):
    everything = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    self.assertEqual(parallel.device_memory_bytes(), everything // 4)  # four devices share the host
    gpu = mock.Mock(memory_stats=lambda: {'bytes_limit': 80 << 30})
    with mock.patch.object(jax, 'local_devices', return_value=[gpu]):
      self.assertEqual(parallel.device_memory_bytes(), 80 << 30)


class InitializeTest(parameterized.TestCase):

  def start(self, *args, environment=None):
    """(calls to the runtime, changed settings) of one `initialize`."""
    settings = {}
    clean = {k: v for k, v in os.environ.items()
             if k not in ('TPU_WORKER_HOSTNAMES', 'SLURM_NTASKS')}
    with mock.patch.dict(os.environ, {**clean, **(environment or {})}, clear=True), \
        mock.patch.object(jax.distributed, 'initialize') as runtime, \
        mock.patch.object(jax.config, 'update', settings.__setitem__):
      parallel.initialize(*args)
    return [call.args for call in runtime.call_args_list], settings

  def test_one_host(self):
    self.assertEqual(self.start(), ([], {}))
    self.assertEqual(self.start(None, None, None, 3), ([], {'jax_num_cpu_devices': 3}))

  @parameterized.parameters(
      ('', 2, '0.10.2', f'{parallel._ORDER}=false'), ('', 1, '0.10.2', ''), ('', 2, '0.11.0', ''),
      ('--xla_x=1', 2, '0.10.0', f'--xla_x=1 {parallel._ORDER}=false'),
      (f'{parallel._ORDER}=true', 2, '0.10.2', f'{parallel._ORDER}=true'))
  def test_operations_of_cpu_devices_keep_their_order(self, given, count, version, expected):
    with mock.patch.dict(os.environ, {'XLA_FLAGS': given}), \
        mock.patch.object(jax.config, 'update'), mock.patch.object(jax, '__version__', version):
      parallel.initialize(cpu_devices=count)
      self.assertEqual(os.environ['XLA_FLAGS'], expected)

  def test_flags(self):
    calls, settings = self.start('localhost:1234', 2, 1)
    self.assertEqual(calls, [('localhost:1234', 2, 1)])
    self.assertEqual(settings, {'jax_cpu_collectives_implementation': 'gloo'})

  @parameterized.parameters(
      ({'SLURM_NTASKS': '2'}, 1), ({'SLURM_NTASKS': '1'}, 0),
      ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 1), ({'TPU_WORKER_HOSTNAMES': 'a'}, 0))
  def test_pods_are_noticed(self, environment, calls):
    self.assertLen(self.start(environment=environment)[0], calls)

  @parameterized.parameters(
      (('localhost:1', None, None),), ((None, 2, None),), ((None, None, 0),),
      (('localhost:1', 2, None),), ((None, 2, 0),))
  def test_arguments_go_together(self, args):
    with self.assertRaisesRegex(ConfigError, '--num_processes and --process_id go together'):
      self.start(*args)

  @parameterized.parameters(-1, 2)
  def test_process_out_of_range(self, process):
    with self.assertRaisesRegex(ConfigError, f'^--process_id: expected 0 <= .* 2, got {process}$'):
      self.start('localhost:1', 2, process)

  def test_a_barrier_of_one_process_does_not_wait(self):
    with mock.patch.object(parallel.multihost_utils, 'sync_global_devices') as sync:
      parallel.barrier('x')
      sync.assert_not_called()
      with mock.patch.object(jax, 'process_count', return_value=2):
        parallel.barrier('x')
      sync.assert_called_once_with('x')


if __name__ == '__main__':
  absltest.main()
