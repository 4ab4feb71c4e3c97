"""GloVe files: words with spaces, words without vectors, bad lines."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import glove


class GloveTest(parameterized.TestCase):

  def write(self, text):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'glove.txt'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path

  def test_table(self):
    path = self.write('the 1 2\n. . . 5 6\nword 3 4e-1\nthe 9 9\n')
    table = glove.read_table(path, {'word': 1, 'rare': 2, 'the': 3})
    np.testing.assert_allclose(table, [[0, 0], [3, 0.4], [0, 0], [1, 2]])
    self.assertEqual(table.dtype, np.float32)
    np.testing.assert_allclose(glove.read_vectors(path, {'. . .'})['. . .'], [5, 6])

  @parameterized.parameters(
      ('the 1 2\na 1\n', 'glove.txt: line 2: expected a word and 2 floats'),
      ('the 1 2\na 1 x\n', 'glove.txt: line 2: expected 2 floats after the word'),
      (b'the 1 2\ncaf\xe9 1 2\n', 'glove.txt: line 2, column 4: expected UTF-8, got byte 0xe9'),
      ('', 'glove.txt: line 1: expected a word and floats, got an empty file'))
  def test_bad_lines(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      glove.read_vectors(self.write(text), {'the', 'a'})

  def test_a_mark_at_the_beginning_is_no_part_of_the_word(self):
    self.assertIn('the', glove.read_vectors(self.write('\ufeffthe 1 2\n'), {'the'}))

  def test_nothing_to_read(self):
    with self.assertRaisesRegex(ConfigError, 'no such file'):
      glove.read_vectors('/nowhere/glove.txt', {})
    with self.assertRaisesRegex(ConfigError, 'has none of the 1 words'):
      glove.read_table(self.write('the 1 2\n'), {'word': 1})


if __name__ == '__main__':
  absltest.main()
