"""Checkpoints: what is saved comes back, bit for bit, and what does not fit is refused."""
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import parallel
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.train import checkpoints
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too


class Central(NamedTuple):
  """What `load_collection` looks at in the state of a central run."""
  params: Any
  running: Any


class Federated(NamedTuple):
  """Likewise of a federated one."""
  server: Central


def make_state():
  """A state of every kind of leaf, with values that no decimal holds."""
  return {
      'params': {'w': jnp.arange(6.0).reshape(2, 3) / 3},
      'half': jnp.asarray([1.0, -0.0, jnp.inf], jnp.bfloat16), 'count': jnp.asarray(7, jnp.int32),
      'keys': (jax.random.key(3), jax.random.split(jax.random.key(4), 2)), 'nothing': {},
  }


def batches():
  data = pipeline.from_arrays({'id': np.arange(20)})
  return iter(pipeline.train_batches(data, batch_size=4, seed=0))


class CheckpointTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def checkpointer(self, keep=2):
    made = checkpoints.Checkpointer(self.folder / 'checkpoints', keep)
    self.addCleanup(made.close)
    return made


class LeavesTest(parameterized.TestCase):

  def test_unflatten_is_the_inverse_of_flatten(self):
    state = make_state()
    leaves = checkpoints.flatten(parallel.place(state))
    self.assertEqual(sorted(leaves), [
        "['count']", "['half']", "['keys'][0]", "['keys'][1]",
        "['params']['w']"])
    self.assertTrue(all(type(leaf) is np.ndarray for leaf in leaves.values()))
    again = checkpoints.unflatten(jax.eval_shape(make_state), leaves)
    toy.assert_trees_equal(state, again)
    for key, restored in zip(state['keys'], again['keys'], strict=True):
      self.assertEqual((restored.dtype, restored.shape), (key.dtype, key.shape))

  @parameterized.parameters(
      {'x': [1.0, 2.0], 'y': [0, 1]}, {'x': [1.0, 3.0], 'y': [0, 2]},
      {'x': [1.0, 3.0], 'z': [0, 1]},
      {'x': [[1.0], [3.0]], 'y': [0, 1]}, {'x': [1.0, 3.0], 'y': [0.0, 1.0]}, {'x': [1.0, 3.0]})
  def test_the_fingerprint_sees_values_paths_shapes_and_types(self, **other):
    fingerprint = lambda tree: checkpoints.fingerprint(
        {name: jnp.asarray(leaf) for name, leaf in tree.items()})
    base = {'x': [1.0, 3.0], 'y': [0, 1]}
    self.assertEqual(fingerprint(base), fingerprint(dict(reversed(base.items()))))
    self.assertNotEqual(fingerprint(base), fingerprint(other))

  def test_the_fingerprint_does_not_see_the_devices(self):
    tree = {'w': np.arange(3, dtype=np.float32)}
    self.assertEqual(checkpoints.fingerprint(tree), checkpoints.fingerprint(parallel.place(tree)))


class SaveTest(CheckpointTest):

  def test_state_iterator_and_meta_come_back(self):
    state, iterator = parallel.place(make_state()), batches()
    for _ in range(7):
      next(iterator)
    writer = self.checkpointer()
    writer.save(7, state, iterator, {'phase': 3, 'note': 'x'})
    coming = [next(iterator)['id'] for _ in range(4)]  # the write goes on in the background
    writer.wait()
    metas = []

    def template(meta):
      metas.append(meta)
      return jax.eval_shape(make_state)

    step, again, resumed, meta = self.checkpointer().restore(template, lambda *_: batches())
    self.assertEqual(step, 7)
    toy.assert_trees_equal(state, again)
    self.assertIsInstance(again['params']['w'], np.ndarray)
    self.assertEqual((metas[0]['phase'], meta['phase'], meta['note']), (3, 3, 'x'))
    for expected in coming:
      np.testing.assert_array_equal(next(resumed)['id'], expected)

  def test_a_donated_state_was_saved_before(self):
    state = parallel.place({'w': jnp.ones(1000)}, devices=jax.devices()[:1])
    writer = self.checkpointer()
    writer.save(1, state, None, {})
    add = jax.pmap(lambda state, x: {'w': state['w'] + x}, in_axes=(None, 0), out_axes=None,
                   donate_argnums=0, devices=jax.devices()[:1])
    self.assertEqual(float(add(state, np.ones(1))['w'][0]), 2)
    writer.wait()
    saved = self.checkpointer().restore(lambda meta: {'w': jnp.zeros(1000)})[1]
    np.testing.assert_array_equal(saved['w'], 1)

  @parameterized.parameters((1, [3, 4]), (2, [3, 4]), (3, [2, 3, 4]))
  def test_the_newest_stay(self, keep, kept):
    writer = self.checkpointer(keep)
    for step in range(1, 5):
      writer.save(step, {'w': np.full(2, step)}, None, {})
      writer.wait()
    writer.close()  # where older ones are removed
    folders = sorted(int(path.name) for path in (self.folder / 'checkpoints').iterdir())
    self.assertEqual(folders, kept)  # at least two, or a damaged one would end the run
    step, state, iterator, _ = self.checkpointer(keep).restore(lambda meta: {'w': np.zeros(2, int)})
    self.assertEqual((step, state['w'].tolist(), iterator), (4, [4, 4], None))

  def test_a_step_that_is_there_is_left_alone(self):
    writer = self.checkpointer()
    writer.save(1, {'w': np.ones(2)}, None, {})
    writer.save(1, {'w': np.zeros(2)}, None, {})
    writer.wait()
    state = self.checkpointer().restore(lambda meta: {'w': np.zeros(2)})[1]
    np.testing.assert_array_equal(state['w'], 1)

  def test_nothing_to_restore(self):
    self.assertIsNone(self.checkpointer().restore(lambda meta: self.fail('there is no meta')))

  def test_without_a_folder_nothing_is_kept(self):
    nowhere = checkpoints.Checkpointer(None)
    nowhere.save(1, {'w': np.ones(2)}, None, {})
    nowhere.wait()
    self.assertIsNone(nowhere.restore(lambda meta: {'w': np.ones(2)}))
    nowhere.close()
    self.assertEmpty(list(self.folder.iterdir()))

  def test_another_structure_names_what_is_missing_and_left_over(self):
    writer = self.checkpointer()
    writer.save(5, {'w': np.ones(2), 'old': np.ones(1)}, None, {})
    writer.wait()
    with self.assertRaisesRegex(
        ConfigError, r'checkpoint 5 has another structure: '
        r'''missing \["\['new'\]"\], left over \["\['old'\]"\]'''):
      self.checkpointer().restore(lambda meta: {'w': np.ones(2), 'new': np.ones(1)})

  @parameterized.parameters(
      (jnp.ones((3, 2)), r'float32\[3, 2\]'), (jnp.ones(6), r'float32\[6\]'),
      (jnp.ones((2, 3), jnp.bfloat16), r'bfloat16\[2, 3\]'), (jax.random.key(0), r'uint32\[2\]'))
  def test_other_shapes_and_types_are_no_damage(self, leaf, description):
    writer = self.checkpointer()
    writer.save(5, {'w': jnp.ones((2, 3))}, None, {})
    writer.wait()
    with self.assertRaisesRegex(
        ConfigError, rf"has another structure: \['w'\] is float32\[2, 3\], expected {description}"):
      self.checkpointer().restore(lambda meta: {'w': leaf})
    self.assertTrue((self.folder / 'checkpoints' / '5').exists())

  def test_a_checksum_of_every_leaf_is_in_the_meta(self):
    writer = self.checkpointer()
    writer.save(1, {'w': np.ones(2), 'b': np.ones(1)}, None, {})
    writer.wait()
    meta = json.loads((self.folder / 'checkpoints' / '1' / 'meta' / 'metadata').read_text())
    self.assertEqual(sorted(meta['checksums']), ["['b']", "['w']"])


class CollectionTest(CheckpointTest):

  def save(self, state, step=1):
    writer = self.checkpointer()
    writer.save(step, state, None, {})
    writer.wait()

  def test_of_a_central_and_of_a_federated_run(self):
    params = {'layer': {'w': np.arange(3.0)}, 'b': np.ones(1)}
    self.save(Central(params, {'stats': {'mean': np.full(2, 4.0)}}))
    for folder in (self.folder, self.folder / 'checkpoints', str(self.folder)):
      toy.assert_trees_equal(checkpoints.load_collection(folder, params), params)
    running = checkpoints.load_collection(self.folder, {'stats': {'mean': np.zeros(2)}}, 'running')
    np.testing.assert_array_equal(running['stats']['mean'], 4)

  def test_of_a_server(self):
    params = {'w': np.arange(3.0)}
    self.save(Federated(Central(params, {})))
    toy.assert_trees_equal(checkpoints.load_collection(self.folder, params), params)

  def test_the_newest_is_read(self):
    self.save({'w': np.zeros(1)}, step=9)
    self.save({'w': np.ones(1)}, step=10)
    self.assertEqual(checkpoints.read_leaves(self.folder)["['w']"], 1)

  @parameterized.parameters('meta', 'state', 'a bit')
  def test_a_damaged_one_is_reported_and_passed_over(self, part):
    def damage(step):
      folder = self.folder / 'checkpoints' / str(step)
      if part == 'state':
        for file in (folder / 'state').rglob('*'):
          if file.is_file():
            file.write_bytes(file.read_bytes()[:-9])
        return
      meta = json.loads((folder / 'meta' / 'metadata').read_text())
      meta['checksums'][".params['w']"] ^= 1
      text = json.dumps(meta)
      (folder / 'meta' / 'metadata').write_text(text[:-9] if part == 'meta' else text)

    params = {'w': np.zeros(3)}
    for step in (1, 2):
      self.save(Central({'w': np.full(3, step)}, {}), step)
    damage(2)
    with self.assertLogs('jaxlab', 'WARNING') as logs:
      read = checkpoints.load_collection(self.folder, params)
    np.testing.assert_array_equal(read['w'], 1)
    self.assertLen(logs.output, 1)
    self.assertIn('checkpoint 2 is damaged (', logs.output[0])
    self.assertTrue((self.folder / 'checkpoints' / '2').exists())  # a reader moves nothing
    damage(1)
    with self.assertRaisesRegex(ConfigError, 'expected a whole checkpoint, found damaged .*: 1, 2'):
      checkpoints.load_collection(self.folder, params)

  def test_shapes_must_fit(self):
    self.save(Central({'w': np.ones((2, 3))}, {}))
    with self.assertRaisesRegex(
        ConfigError, r"params\['w'\] has shape \(2, 3\), expected \(3, 2\)"):
      checkpoints.load_collection(self.folder, {'w': np.ones((3, 2))})

  def test_paths_must_fit(self):
    self.save(Central({'w': np.ones(2)}, {}))
    with self.assertRaisesRegex(ConfigError, r'has another structure: .*v.*left over .*w'):
      checkpoints.load_collection(self.folder, {'v': np.ones(2)})

  @parameterized.parameters('', 'nowhere', 'checkpoints')
  def test_no_checkpoint(self, path):
    (self.folder / 'checkpoints').mkdir()
    with self.assertRaisesRegex(ConfigError, f'{path}.*: no checkpoint there'):
      checkpoints.read_leaves(self.folder / path)


if __name__ == '__main__':
  absltest.main()
