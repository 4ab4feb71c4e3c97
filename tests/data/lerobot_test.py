"""LeRobot folders: what is read, and what is said of folders that cannot be."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.data import lerobot
from tests import toy_robot
from tests.toy_robot import CAMERA


class LeRobotTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'set'
    toy_robot.write_lerobot(self.folder)

  def test_reads_steps_frames_and_statistics(self):
    data = lerobot.open_folder(self.folder, action_dim=3)
    self.assertEqual(data.lengths, {0: 5, 1: 4})
    wanted = toy_robot.episode(1)
    columns = lerobot.read_steps(data, 1)
    np.testing.assert_array_equal(columns['action'].astype(np.float32), wanted['action'])
    self.assertEqual(data.tasks[int(columns['task_index'][0])], 'push the block')
    frames = lerobot.read_camera(data, 1, CAMERA, np.array([2, 0, 9]))
    np.testing.assert_array_equal(frames, wanted['image'][[2, 0, 3]])  # past the end: the last
    actions = np.concatenate([toy_robot.episode(i)['action'] for i in range(2)])
    np.testing.assert_allclose(data.stats['action']['max'], actions.max(0))
    stats = {'action': {'min': [0, 0, 0], 'max': [1, 2, 3]}}
    (self.folder / 'meta/stats.json').write_text(json.dumps(stats))
    data = lerobot.open_folder(self.folder)
    self.assertEqual(data.stats['action']['max'].tolist(), [1, 2, 3])
    more = {'action': {'max': [9, 9, 9], 'q99': [1, 1, 1]}}
    (self.folder / 'meta/stats_gr00t.json').write_text(json.dumps(more))
    stats = lerobot.open_folder(self.folder).stats['action']
    self.assertEqual((stats['max'].tolist(), stats['q99'].tolist()), ([1, 2, 3], [1, 1, 1]))
    (self.folder / 'meta/stats_gr00t.json').write_text('{"action": [1]}')
    with self.assertRaisesRegex(ValueError, 'stats_gr00t.json: action: expected numbers by name'):
      lerobot.open_folder(self.folder)

  def test_another_width_than_the_config(self):
    with self.assertRaisesRegex(
        ValueError, 'info.json: features.action.shape: expected 7 numbers an action, as the '
        'config says, got 3'):
      lerobot.open_folder(self.folder, action_dim=7)
    info = json.loads((self.folder / 'meta/info.json').read_text())
    info['features']['action']['shape'] = [4]
    (self.folder / 'meta/info.json').write_text(json.dumps(info))
    with self.assertRaisesRegex(ValueError, 'parquet: action: expected 4 numbers a row'):
      lerobot.read_steps(lerobot.open_folder(self.folder), 0)

  @parameterized.parameters(
      ({'chunks_size': 0}, 'info.json: chunks_size: expected a number of episodes, got 0'),
      ({'video_path': None}, 'info.json: video_path: missing'),
      ({'features': {'action': {'shape': []}}},
       r'features.action.shape: expected a list of one number, got \[\]'))
  def test_an_info_without_what_is_asked_for(self, change, message):
    path = self.folder / 'meta/info.json'
    info = json.loads(path.read_text())
    features = {**info['features'], **change.pop('features', {})}
    path.write_text(json.dumps({**info, 'features': features, **change}))
    with self.assertRaisesRegex(ValueError, message):
      lerobot.read_camera(lerobot.open_folder(self.folder), 0, CAMERA, [0])

  def test_no_episodes(self):
    (self.folder / 'meta/episodes.jsonl').write_text('')
    with self.assertRaisesRegex(ValueError, 'episodes.jsonl: expected a line for each episode'):
      lerobot.open_folder(self.folder)

  def test_missing_statistics(self):
    (self.folder / 'meta/episodes_stats.jsonl').unlink()
    with self.assertRaisesRegex(ValueError, 'stats.json: missing, and episodes_stats.jsonl too'):
      lerobot.open_folder(self.folder)

  def test_a_video_that_ends_early(self):
    data = lerobot.open_folder(self.folder)
    path = self.folder / f'videos/chunk-000/{CAMERA}/episode_000000.mp4'
    toy_robot.write_video(path, toy_robot.episode(0)['image'][:3])
    with self.assertRaisesRegex(ValueError, 'episode_000000.mp4: expected at least 5 frames, but '
                                'the video ends after 3'):
      lerobot.read_camera(data, 0, CAMERA, np.arange(8))
    path.write_bytes(b'no video')
    with self.assertRaisesRegex(ValueError, 'episode_000000.mp4: expected a video'):
      lerobot.read_camera(data, 0, CAMERA, [0])
    with self.assertRaisesRegex(ValueError, "expected the video 'observation.images.wrist'"):
      lerobot.read_camera(data, 0, 'observation.images.wrist', [0])

  def test_files_that_are_not_there_or_ill_formed(self):
    data = lerobot.open_folder(self.folder)
    table = self.folder / 'data/chunk-000/episode_000001.parquet'
    table.write_bytes(b'PAR')
    with self.assertRaisesRegex(ValueError, 'episode_000001.parquet: expected a parquet file'):
      lerobot.read_steps(data, 1)
    table.unlink()
    with self.assertRaisesRegex(ValueError, 'no such file, though .* lists episode 1'):
      lerobot.read_steps(data, 1)
    (self.folder / 'meta/tasks.jsonl').write_text('{"task_index": 0}\n')
    with self.assertRaisesRegex(ValueError, 'tasks.jsonl: line 1: task: missing'):
      lerobot.open_folder(self.folder)
    (self.folder / 'meta/info.json').write_text('{"codebase_version": "v3.0"}')
    with self.assertRaisesRegex(ValueError, "expected v2.0 or v2.1, got 'v3.0'"):
      lerobot.open_folder(self.folder)
    with self.assertRaisesRegex(ValueError, 'info.json: missing'):
      lerobot.open_folder(self.folder / 'nowhere')


if __name__ == '__main__':
  absltest.main()
