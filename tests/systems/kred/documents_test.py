"""Document vectors: files by news id, and the two encoders of words."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.kred import documents

TEXTS = ['red apple pear', 'apple pear red', 'ship sea wind', 'sea wind ship', 'red sea']
NEWS = ['N1', 'N2', 'N3', 'N4', 'N5']


class DocumentsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_files(self):
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.savez(self.folder / 'a.npz', news=NEWS[::-1], vector=vectors[::-1])
    (self.folder / 'a.vec').write_text(''.join(
        '\t'.join([name, *map(repr, map(float, row))]) + '\n' for name, row in zip(NEWS, vectors)))
    for name in ('a.npz', 'a.vec'):
      found = documents.encode({'name': 'file', 'path': str(self.folder / name)}, NEWS, TEXTS)
      np.testing.assert_array_equal(found, vectors)
    with self.assertRaisesRegex(ValueError, "a.npz: expected a vector of every news; 1 of 2 have "
                                "none, the first is 'N9'"):
      documents.read_file(self.folder / 'a.npz', ['N1', 'N9'])
    with self.assertRaisesRegex(ConfigError, 'data.documents.path: expected a file'):
      documents.read_file(self.folder / 'b.npz', NEWS)
    np.savez(self.folder / 'c.npz', vector=vectors)
    with self.assertRaisesRegex(ConfigError, "expected a .npz with 'news' and 'vector'"):
      documents.read_file(self.folder / 'c.npz', NEWS)

  def test_encoders_put_like_texts_together(self):
    path = self.folder / 'glove.txt'
    path.write_text('red 1 0\napple 1 0\npear 1 0.1\nship 0 1\nsea 0 1\nwind 0 1\n')
    for config in ({'name': 'lsa', 'dim': 2, 'min_count': 2},
                   {'name': 'glove', 'path': str(path), 'min_count': 2}):
      found = documents.encode(config, NEWS, TEXTS)
      self.assertEqual((found.shape, found.dtype), ((5, 2), np.float32))
      np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
      self.assertGreater(found[0] @ found[1], 0.99)
      self.assertLess(found[0] @ found[2], 0.5)

  def test_too_few_words(self):
    with self.assertRaisesRegex(ConfigError, 'data.documents.dim: expected less than the 6 words'):
      documents.encode({'name': 'lsa', 'dim': 6, 'min_count': 2}, NEWS, TEXTS)


if __name__ == '__main__':
  absltest.main()
