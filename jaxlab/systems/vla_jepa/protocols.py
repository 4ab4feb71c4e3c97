"""The closed-loop protocols of LIBERO, LIBERO-Plus and SimplerEnv around a policy, on the host.

An environment is anything with `reset() -> observation` and `step(action [7]) -> (observation,
reward, done, info)`; a policy maps (images uint8 [V, H, W, 3], observation, instruction) to a chunk
of actions [H, 7] in the environment's own units, its gripper 0 or 1.
"""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Libero(NamedTuple):
  """The numbers of LIBERO's evaluation (arXiv 2306.03310), and of LIBERO-Plus (2510.13626).

  Attributes:
    trials: of each task; LIBERO-Plus runs each perturbed task once.
    cameras: observations that are images.
    idle: steps without motion before the policy is asked, in which the objects come to rest.
    seed: of the environments.
  """
  trials: int = 50
  cameras: tuple[str, ...] = ('agentview_image', 'robot0_eye_in_hand_image')
  idle: int = 10
  seed: int = 7


LIBERO_PLUS = Libero(trials=1)
MAX_STEPS = {'libero_spatial': 250, 'libero_object': 280, 'libero_goal': 300, 'libero_10': 520}
_IDLE = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


def libero_images(observation: Mapping[str, Any], cameras):
  """uint8 [V, H, W, 3] of an observation, turned by 180 degrees as the training images are."""
  return np.stack([np.asarray(observation[camera])[::-1, ::-1] for camera in cameras])


def libero_action(action):
  """The command of an action: the gripper 0 or 1 becomes 1 (open) or -1 (close)."""
  action = np.array(action, np.float32)
  action[6] = 1 - 2 * (action[6] > 0.5)
  return action


def libero_episode(env, policy: Callable, instruction, max_steps, protocol):
  """Runs one episode, whole chunks open loop; True if the environment says done in time.

  Args:
    env: environment.
    policy: (images, observation, instruction) -> chunk.
    instruction: text.
    max_steps: of the suite, without the idle ones.
    protocol: Libero.
  """
  observation = env.reset()
  for _ in range(protocol.idle):
    observation = env.step(_IDLE)[0]
  steps = 0
  while steps < max_steps:
    images = libero_images(observation, protocol.cameras)
    for action in policy(images, observation, instruction):
      observation, _, done, _ = env.step(libero_action(action))
      steps += 1
      if done:
        return True
      if steps == max_steps:
        break
  return False


class Simpler(NamedTuple):
  """The numbers of SimplerEnv's evaluation (arXiv 2405.05941) of one robot.

  Attributes:
    memory: chunks whose predictions for the present step are averaged.
    alpha: of the weights softmax(alpha * cosine(newest prediction, each)).
    sticky: steps that a gripper change of the Google robot is held; 0 for the WidowX robot, whose
      gripper is commanded each step.
  """
  memory: int
  sticky: int
  alpha: float = 0.1


WIDOWX, GOOGLE = Simpler(memory=7, sticky=0), Simpler(memory=2, sticky=10)


def ensemble(chunks, alpha):
  """The present action [A] from the newest chunks, oldest first: chunk i of n was made n - 1 - i
  steps ago.

  Args:
    chunks: sequence of [H, A]; those that do not reach the present step are left out.
    alpha: see Simpler.
  """
  ages = range(len(chunks) - 1, -1, -1)
  predictions = np.stack([chunk[age] for chunk, age in zip(chunks, ages) if age < len(chunk)])
  newest = predictions[-1]
  norms = np.linalg.norm(predictions, axis=1) * np.linalg.norm(newest)
  weights = np.exp(alpha * predictions @ newest / np.maximum(norms, 1e-7))
  return (weights / weights.sum()) @ predictions


class Gripper(NamedTuple):
  """What the Google robot's gripper remembers.

  Attributes:
    previous: opening of the last action, or None.
    held: command that is being held.
    left: steps for which it still is; 0 for none.
  """
  previous: float | None = None
  held: float = 0.0
  left: int = 0


def sticky_gripper(opening, memory, sticky):
  """(relative command, Gripper): a change of the opening by more than 0.5 is held for some steps.

  Args:
    opening: of the present action, 0 to 1.
    memory: Gripper.
    sticky: steps that a command is held.
  """
  change = 0.0 if memory.previous is None else memory.previous - opening
  if memory.left == 0 and abs(change) > 0.5:
    memory = memory._replace(held=change, left=sticky)
  command = memory.held if memory.left else change
  return command, Gripper(opening, memory.held, max(memory.left - 1, 0))


def axis_angle(euler):
  """Rotation vector [3] of roll, pitch and yaw."""
  from scipy.spatial.transform import Rotation
  return Rotation.from_euler('xyz', euler).as_rotvec().astype(np.float32)


def simpler_episode(env, policy: Callable, instruction, max_steps, robot: Simpler, camera='image'):
  """Runs one episode that plans anew at each step; True if the environment says done in time.

  Args:
    env: environment.
    policy: as in `libero_episode`; its gripper is the opening.
    instruction: text.
    max_steps: of the episode.
    robot: `WIDOWX` or `GOOGLE`.
    camera: the observation that is the image.
  """
  observation, chunks, memory = env.reset(), [], Gripper()
  for _ in range(max_steps):
    image = np.asarray(observation[camera])[None]
    chunks = [*chunks, np.asarray(policy(image, observation, instruction))][-robot.memory:]
    action = ensemble(chunks, robot.alpha)
    if robot.sticky:
      grip, memory = sticky_gripper(action[6], memory, robot.sticky)
    else:
      grip = 2.0 * (action[6] > 0.5) - 1
    command = np.concatenate([action[:3], axis_angle(action[3:6]), [grip]]).astype(np.float32)
    observation, _, done, _ = env.step(command)
    if done:
      return True
  return False
