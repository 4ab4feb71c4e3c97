"""RLDS records: what is read, and what is said of records that cannot be."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab.data import rlds
from tests import toy_robot


class RldsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'set'
    toy_robot.write_rlds(self.folder)

  def read(self, **change):
    options = {'cameras': ('image',), 'action_dim': 3, 'state_dim': 2, **change}
    return list(rlds.read_episodes(self.folder, **options))

  def test_reads_episodes(self):
    episodes = self.read()
    for i, episode in enumerate(episodes):
      wanted = toy_robot.episode(i)
      np.testing.assert_array_equal(episode['action'], wanted['action'])
      np.testing.assert_array_equal(episode['state'], wanted['state'])
      self.assertEqual(episode['instruction'], toy_robot.TASKS[i])
      np.testing.assert_array_equal(rlds.decode_images(episode['image'], 'x'), wanted['image'])

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'record 0: .*expected shapes|record 0: steps/action'):
      self.read(action_dim=7)
    with self.assertRaisesRegex(ValueError, 'record 0: steps/observation/wrist: missing'):
      self.read(cameras=('wrist',))
    with self.assertRaisesRegex(ValueError, 'here: image 1: expected PNG or JPEG'):
      rlds.decode_images([self.read()[0]['image'][0], b'x'], 'here')
    with self.assertRaisesRegex(ValueError, 'expected files of TFRecords, found none'):
      list(rlds.read_episodes('/nowhere', cameras=(), action_dim=1, state_dim=1))


if __name__ == '__main__':
  absltest.main()
