"""Windows of robot folders and clips: both formats give the same samples; padding, errors."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import builders
from jaxlab.systems.vla_jepa import data, normalise, sets
from tests import toy_robot

SPEC = {'action_dim': 3, 'state_dim': 2, 'frames': 4, 'horizon': 3, 'size': 16, 'gripper': 2,
        'drop_pauses': False}


def lerobot(folder, **change):
  return {'name': 'lerobot', 'folders': (str(folder),), 'cameras': (toy_robot.CAMERA,) * 2, **SPEC,
          **change}


class SetsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.folder = self.root / 'lerobot'
    toy_robot.write_lerobot(self.folder)

  def test_both_formats_give_the_same_samples(self):
    toy_robot.write_rlds(self.root / 'rlds')
    ours = sets.load(lerobot(self.folder))
    theirs = sets.load({'name': 'rlds', 'folders': (str(self.root / 'rlds'),),
                        'cameras': ('image',) * 2, **SPEC})
    self.assertEqual(ours.instructions, theirs.instructions)
    self.assertLen(ours.robot, 9)
    for row in range(9):
      for name, value in ours.robot[row].items():
        np.testing.assert_array_equal(value, theirs.robot[row][name], err_msg=name)

  def test_a_window_at_the_end_of_an_episode(self):
    loaded = sets.load(lerobot(self.folder))
    example, episode = loaded.robot[3], toy_robot.episode(0)  # step 3 of 5
    self.assertEqual(example['video'].shape, (2, 4, 16, 16, 3))
    np.testing.assert_array_equal(example['video'][0], episode['image'][[3, 4, 4, 4]])
    np.testing.assert_array_equal(example['video'][0], example['video'][1])
    np.testing.assert_array_equal(example['state'], episode['state'][3])
    self.assertEqual(example['action_mask'].tolist(), [1, 1, 0])
    raw = np.concatenate([episode['action'][3:], np.zeros((1, 3), np.float32)])
    scale = loaded.scales[0].action
    np.testing.assert_array_equal(example['actions'], normalise.normalise(raw, scale))
    unmasked = sets.load(lerobot(self.folder, mask_padding=False)).robot[3]
    self.assertEqual(unmasked['action_mask'].tolist(), [1, 1, 1])

  def test_pauses_held_out_episodes_and_mixtures(self):
    self.assertLen(sets.load(lerobot(self.folder, held_out=1)).test, 4)
    other = self.root / 'other'
    toy_robot.write_lerobot(other)
    both = sets.load(lerobot(self.folder, folders=(str(self.folder), str(other)), held_out=1))
    self.assertLen(both.robot, 10)
    self.assertLen({both.robot[i]['state'].tobytes() for i in range(10)}, 5)

  def test_each_folder_has_its_own_scale(self):
    other = self.root / 'other'
    toy_robot.write_lerobot(other)
    stats = {'action': {'min': [-9, -9, 0], 'max': [9, 9, 1]}}
    (other / 'meta/stats.json').write_text(json.dumps(stats))
    both = sets.load(lerobot(self.folder, folders=(str(self.folder), str(other))))
    self.assertLen(both.scales, 2)
    np.testing.assert_array_equal(both.scales[1].action.high, [9, 9, 1])
    # Steps of the two take turns; the first of each is the same one.
    raw = [normalise.unnormalise(both.robot[i]['actions'], both.scales[i].action) for i in (0, 1)]
    np.testing.assert_allclose(*raw, atol=1e-5)

  def test_quantiles_scale_the_states_too(self):
    toy_robot.write_rlds(self.root / 'rlds')
    config = {'name': 'rlds', 'folders': (str(self.root / 'rlds'),), 'cameras': ('image',) * 2,
              **SPEC, 'normalise': 'quantile'}
    loaded, state = sets.load(config), toy_robot.episode(0)['state'][0]
    states = np.concatenate([toy_robot.episode(i)['state'] for i in range(2)])
    low, high = np.quantile(states, [0.01, 0.99], axis=0)
    wanted = np.clip(2 * (state - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(loaded.robot[0]['state'], wanted, rtol=1e-4)
    self.assertIsNone(sets.load({**config, 'state': False}).scales[0].state)

  @parameterized.parameters(-1, 2, 3)
  def test_more_held_out_than_there_is(self, count):
    config = lerobot(self.folder, held_out=count)
    message = 'data.held_out: expected (at least 0|less than the 2 episodes of .*lerobot)'
    with self.assertRaisesRegex(ConfigError, message):
      sets.check(config)
      sets.load(config)

  def test_a_task_that_is_not_listed(self):
    path = self.folder / 'meta/tasks.jsonl'
    path.write_text(path.read_text().splitlines()[0] + '\n')
    with self.assertRaisesRegex(ValueError, r'tasks.jsonl: expected the task_index 1 of episode 1, '
                                r'found \[0\]'):
      sets.load(lerobot(self.folder))

  def test_clips(self):
    labels = toy_robot.write_clips(self.root)
    loaded = sets.load(lerobot(self.folder, clips=str(self.root), labels=str(labels)))
    self.assertEqual(loaded.instructions[2:], ('moving something up', sets.GENERIC))
    example = loaded.video[0]
    self.assertEqual(example['instruction'], 2)
    images = toy_robot.episode(0)['image']
    self.assertTrue(any((example['video'][1] == images[k:k + 4]).all() for k in (0, 1)))
    self.assertEqual(set(example), {'video', 'instruction'})
    toy_robot.write_video(self.root / '8.webm', images[:3])
    with self.assertRaisesRegex(ValueError, '8.webm: expected at least 4 frames, .* ends after 3'):
      loaded.video[1]

  @parameterized.parameters(
      ({'action_dim': 7}, ValueError, 'expected 7 numbers an action, as the config says, got 3'),
      ({'state_dim': 8}, ValueError, 'observation.state: expected 8 numbers'),
      ({'normalise': 'quantile'}, ValueError, "stats: action: expected 'q01' for quantile"),
      ({'camera': 'x'}, ConfigError, "data: unknown key 'camera'; did you mean 'cameras'"),
      ({'horizon': 0}, ConfigError, 'data.horizon: expected at least 1, got 0'),
      ({'clips': 'x'}, ConfigError, 'data.clips, data.labels: expected both or none'),
      ({'name': 'lerobots'}, ConfigError, "data.name: .*; did you mean 'lerobot'"))
  def test_errors(self, change, kind, message):
    config = lerobot(self.folder, **change)
    with self.assertRaisesRegex(kind, message):
      sets.check(config)
      sets.load(config)

  def test_the_builder_writes_demonstrations(self):
    builder = builders.load('tabletop', config='demos', data_dir=str(self.root / 'tfds'))
    train, test = (builders.arrays(builder, split) for split in ('train', 'test'))
    self.assertEqual(train['image'].shape, (200, 21, 16, 16, 3))
    self.assertLen(test['action'], 40)
    wanted = data.tabletop_episodes(1, 40)
    for name, column in wanted.items():
      np.testing.assert_array_equal(test[name], column, err_msg=name)
    self.assertGreater(train['success'].mean(), 0.9)

  def test_tabletop_windows(self):
    episodes = data.tabletop_episodes(0, 2)
    columns = data.demo_windows(episodes, starts=(0, 18), frames=3, horizon=4)
    self.assertEqual(columns['action_mask'].tolist(), [[1] * 4] * 2 + [[1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(columns['video'][1, 0], episodes['image'][1, [0, 3, 6]])
    np.testing.assert_array_equal(columns['video'][2, 0], episodes['image'][0, [18, 20, 20]])
    clips = data.clip_windows(episodes, 0)
    self.assertEqual(clips['video'].shape, (2, 1, 4, 16, 16, 3))
    self.assertLess(np.abs(clips['motion']).max(), 9 * 0.08 + 1e-4)


if __name__ == '__main__':
  absltest.main()
