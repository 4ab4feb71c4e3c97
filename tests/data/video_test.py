"""Video files and folders of clips."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab.data import video
from tests import toy_robot


class VideoTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.labels = toy_robot.write_clips(self.folder)

  def test_frames_are_rgb_and_in_the_order_asked_for(self):
    images, path = toy_robot.episode(0)['image'], self.folder / '7.webm'
    np.testing.assert_array_equal(video.read_frames(path, [3, 1, 3]), images[[3, 1, 3]])
    np.testing.assert_array_equal(video.read_frames(path, None), images)
    self.assertEqual(video.count_frames(path), 5)

  def test_clips_that_cannot_be_read(self):
    path = self.folder / '7.webm'
    with self.assertRaisesRegex(ValueError, '7.webm: expected at least 10 frames, but .* after 5'):
      video.read_frames(path, [9])
    path.write_bytes(b'')
    for function in (video.count_frames, lambda path: video.read_frames(path, [0])):
      with self.assertRaisesRegex(ValueError, '7.webm: expected a video that can be decoded'):
        function(path)

  def test_labels(self):
    self.assertEqual(video.read_labels(self.labels), {'7': 'moving something up'})
    self.labels.write_text('7;a;b\nno label\n')
    with self.assertRaisesRegex(ValueError, "labels.csv: line 2: expected id;text, got 'no label'"):
      video.read_labels(self.labels)

  def test_resize(self):
    images = np.full((2, 3, 8, 4, 3), 7, np.uint8)
    np.testing.assert_array_equal(video.resize(images, 4), np.full((2, 3, 4, 4, 3), 7))


if __name__ == '__main__':
  absltest.main()
