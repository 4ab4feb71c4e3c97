"""Meta-World's demonstrations as windows, and its closed loop against a stub environment."""
import io
import json
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.vla_jepa import metaworld as metaworld_config
from jaxlab import systems
from jaxlab.config import ConfigError
from jaxlab.systems.vla_jepa import metaworld, sets, task
from jaxlab.train import phases


def write_demos(folder, leave_out=()):
  """Two episodes of 3 and 2 steps of one task each; pictures of one grey level a step."""
  pictures = []
  for level in range(5):
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 40 * level, np.uint8)).save(file, 'PNG')
    pictures.append(file.getvalue())
  arrays = {
      'jpeg_bytes': np.frombuffer(b''.join(pictures), np.uint8),
      'jpeg_offsets': np.cumsum([0, *map(len, pictures)]),
      'obs': np.arange(5 * 39, dtype=np.float32).reshape(5, 39),
      'action': np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4),
      'episode_task': np.array([1, 0]), 'episode_start': np.array([0, 3]),
      'episode_end': np.array([3, 5])}
  np.savez(folder / 'demos.npz', **{k: v for k, v in arrays.items() if k not in leave_out})
  (folder / 'tasks.json').write_text(json.dumps(
      {'tasks': ['reach-v3', 'push-v3'], 'language': ['reach the goal', 'push the puck']}))
  return arrays


class Line:
  """A stub: the hand moves along a line, and has succeeded beyond `goal`."""

  def __init__(self, goal):
    self.goal, self.place, self.steps = goal, 0.0, 0

  def reset(self, number):
    self.place = float(number)
    return self._observe()

  def step(self, action):
    self.place, self.steps = self.place + float(action[0]), self.steps + 1
    return self._observe(), 0.0, self.place > self.goal, {}

  def _observe(self):
    return {'image': np.full((2, 2, 3), int(self.place) % 256, np.uint8),
            'state': np.full(4, self.place, np.float32)}


class MetaWorldTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def config(self):
    config = metaworld_config.get_config().to_dict()
    config['data'] = {**config['data'], 'folders': (str(self.root),)}
    return config

  def test_windows(self):
    arrays, config = write_demos(self.root), self.config()
    systems.check(config)
    loaded = sets.load(config['data'])
    self.assertLen(loaded.robot, 5)
    self.assertEqual(loaded.instructions, ('push the puck', 'reach the goal'))
    example = loaded.robot[1]
    self.assertEqual(example['video'][0, :, 0, 0, 0].tolist(), [40, 80, 80, 80])
    np.testing.assert_array_equal(example['state'], arrays['obs'][1, :4])
    np.testing.assert_allclose(example['actions'][:2], arrays['action'][1:3], atol=1e-6)
    self.assertEqual(example['action_mask'].tolist(), [1, 1, 0, 0, 0, 0, 0, 0])

  def test_a_run_has_what_it_evaluates_at_its_end(self):
    write_demos(self.root)
    config = self.config()
    config['world_model'] = {**config['world_model'], 'cache': False}
    splits = phases.fit_config(config).eval_splits
    phases.check_splits(task.make_task(config), splits)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'tasks.json: missing; expected a folder'):
      metaworld.read_demos(self.root)
    write_demos(self.root, leave_out=('obs',))
    with self.assertRaisesRegex(ValueError, 'demos.npz: expected the array obs, found jpeg_bytes'):
      metaworld.read_demos(self.root)
    config = self.config()
    config['data']['action_dim'] = 7
    with self.assertRaisesRegex(ConfigError, 'data.action_dim: expected 4, got 7'):
      sets.load(config['data'])

  def test_an_episode_ends_with_its_success(self):
    seen = []

    def policy(images, state, key):
      del key
      seen.append((images.shape, state.tolist()))
      return np.ones((1, 3, 4))

    env = Line(6.5)
    success, frames = metaworld.episode(env, policy, 2, executed=2, key=jax.random.key(0))
    self.assertTrue(success)
    self.assertEqual(env.steps, 5)  # 2 + 5 > 6.5
    self.assertEqual(frames[:, 0, 0, 0].tolist(), [2, 4, 6])
    self.assertEqual(seen[1], ((1, 1, 2, 2, 3), [[4.0] * 4]))

  def test_an_episode_without_success_ends_too(self):
    env = Line(1e9)
    success, frames = metaworld.episode(env, metaworld.random_policy, 0, executed=50,
                                        key=jax.random.key(0))
    self.assertFalse(success)
    self.assertEqual(env.steps, metaworld.MAX_STEPS)
    self.assertLen(frames, 4)


if __name__ == '__main__':
  absltest.main()
