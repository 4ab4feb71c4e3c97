"""The protocols against a stub environment that records what it is told."""
import numpy as np
from absl.testing import absltest

from jaxlab.systems.vla_jepa import protocols


class Stub:
  """Counts steps; done after `length` of them, or never."""

  def __init__(self, length=None):
    self.commands, self.length = [], length

  def _observation(self):
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 1] = len(self.commands)
    return {'agentview_image': image, 'robot0_eye_in_hand_image': image, 'image': image}

  def reset(self):
    return self._observation()

  def step(self, action):
    self.commands.append(np.array(action))
    return self._observation(), 0.0, len(self.commands) == self.length, {}


def recorder(seen, horizon=7, gripper=1.0):
  def policy(images, observation, instruction):
    del observation
    seen.append((images, instruction))
    chunk = np.full((horizon, 7), 0.1, np.float32)
    chunk[:, 6] = gripper
    return chunk
  return policy


class LiberoTest(absltest.TestCase):

  def test_idle_steps_rotation_chunks_and_gripper(self):
    env, seen = Stub(), []
    done = protocols.libero_episode(env, recorder(seen), 'open it', 10,
                                    protocols.Libero())
    self.assertFalse(done)
    self.assertLen(env.commands, 20)
    np.testing.assert_array_equal(env.commands[:10], [[0] * 6 + [-1]] * 10)
    np.testing.assert_allclose(env.commands[10:], [[0.1] * 6 + [-1]] * 10, atol=1e-7)
    self.assertEqual([int(images[0, 3, 2, 0]) for images, _ in seen], [10, 17])  # turned around
    self.assertEqual(seen[0][0].shape, (2, 4, 4, 3))
    self.assertEqual(seen[0][1], 'open it')
    self.assertEqual(protocols.libero_action([0] * 6 + [0.2])[6], 1)

  def test_success_is_the_environments_word(self):
    env = Stub(length=13)
    self.assertTrue(protocols.libero_episode(env, recorder([]), '', 10, protocols.LIBERO_PLUS))
    self.assertLen(env.commands, 13)

  def test_libero_plus_tries_once(self):
    self.assertEqual((protocols.Libero().trials, protocols.LIBERO_PLUS.trials), (50, 1))
    self.assertEqual(protocols.MAX_STEPS['libero_10'], 520)


class SimplerTest(absltest.TestCase):

  def test_the_ensemble_takes_what_was_said_of_this_step(self):
    chunks = [np.array([[9.0, 9], [8, 8], [1, 0]]), np.array([[9.0, 9], [1, 0]]),
              np.array([[1.0, 0]])]
    np.testing.assert_allclose(protocols.ensemble(chunks, 0.1), [1, 0])
    opposed = [np.array([[0.0, 0], [-1, 0]]), np.array([[1.0, 0]])]
    near = np.exp([-0.1, 0.1])
    mixed = protocols.ensemble(opposed, 0.1)
    np.testing.assert_allclose(mixed[0], (near[1] - near[0]) / near.sum())
    # A chunk too short for the present step is left out.
    np.testing.assert_allclose(protocols.ensemble([np.ones((1, 2)), np.zeros((1, 2))], 0.1), [0, 0])

  def test_a_sticky_gripper(self):
    memory, commands = protocols.Gripper(), []
    for opening in (1.0, 1.0, 0.0, 1.0, 1.0, 1.0):
      command, memory = protocols.sticky_gripper(opening, memory, 3)
      commands.append(command)
    # The change 1 - 0 is held for three steps, over the change back.
    self.assertEqual(commands, [0.0, 0.0, 1.0, 1.0, 1.0, 0.0])

  def test_episodes(self):
    for robot, gripper in ((protocols.WIDOWX, 1.0), (protocols.GOOGLE, 0.0)):
      env, seen = Stub(length=5), []
      self.assertTrue(protocols.simpler_episode(env, recorder(seen), 'x', 9, robot))
      self.assertLen(seen, 5)  # plans at each step
      self.assertEqual([command[6] for command in env.commands], [gripper] * 5)
      np.testing.assert_allclose(env.commands[0][:3], 0.1, atol=1e-6)

  def test_axis_angle(self):
    np.testing.assert_allclose(protocols.axis_angle([0.3, 0, 0]), [0.3, 0, 0], atol=1e-6)
    turned = protocols.axis_angle([0.1, 0.2, 0.3])
    self.assertGreater(np.abs(turned - [0.1, 0.2, 0.3]).max(), 1e-3)


if __name__ == '__main__':
  absltest.main()
