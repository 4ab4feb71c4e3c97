"""Files of the owner: round trips, and errors that name file, row and what was expected."""
import hashlib
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.embmarker import files

RNG = np.random.default_rng(0)


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  @parameterized.parameters(1, 2)
  def test_cache_of_numbers(self, blocks):
    path, vectors = self.folder / 'c', RNG.normal(size=(4, blocks, 3)).astype(np.float32)
    files.write_cache(path, [7, 2**40, 0, 9], vectors)
    self.assertEqual(path.read_bytes()[:8], b'\0' * 7 + b'\7')  # big endian
    self.assertEqual(path.read_bytes()[8:12], vectors[0, 0, 0].astype('<f4').tobytes())
    index, read = files.read_cache(path, 3, blocks=blocks)
    self.assertEqual(index, {7: 0, 2**40: 1, 0: 2, 9: 3})
    np.testing.assert_array_equal(read, vectors)

  def test_cache_of_md5(self):
    names = [hashlib.md5(t.encode()).digest() for t in ('a', 'b')]
    vectors = RNG.normal(size=(2, 5)).astype(np.float32)
    files.write_cache(self.folder / 'c', names, vectors, id_bytes=16)
    index, read = files.read_cache(self.folder / 'c', 5, id_bytes=16)
    np.testing.assert_array_equal(read[index[names[1]], 0], vectors[1])

  def test_cache_errors(self):
    path, vectors = self.folder / 'c', np.ones((2, 3))
    with self.assertRaisesRegex(ConfigError, 'cache: expected a file'):
      files.read_cache(path, 3)
    with self.assertRaisesRegex(ValueError, 'ids: expected 2, one a vector, got 1'):
      files.write_cache(path, [1], vectors)
    with self.assertRaisesRegex(ValueError, 'ids: expected 16 bytes, got'):
      files.write_cache(path, [b'a', b'b'], vectors, id_bytes=16)
    for wrong in (2**64, -1):
      with self.assertRaisesRegex(ValueError, f'ids: expected 0 to 256.*8 - 1, got {wrong}'):
        files.write_cache(path, [1, wrong], vectors)
    files.write_cache(path, [1, 1], vectors)
    with self.assertRaisesRegex(ValueError, 'record 0: expected each id once, got 1'):
      files.read_cache(path, 3)
    with self.assertRaisesRegex(ValueError, r'c: expected records of 24 bytes .* got 40 bytes'):
      files.read_cache(path, 4)

  def test_embeddings(self):
    vectors = RNG.normal(size=(2, 3)).astype(np.float32)
    files.write_embeddings(self.folder / 'e.npz', ['one', 'zwö'], vectors)
    texts, read = files.read_embeddings(self.folder / 'e.npz')
    self.assertEqual(texts, ['one', 'zwö'])
    np.testing.assert_array_equal(read, vectors)
    np.save(self.folder / 'e.npy', vectors)
    self.assertIsNone(files.read_embeddings(self.folder / 'e.npy')[0])
    (self.folder / 't.txt').write_bytes('a b\r\nzwö\n'.encode())
    self.assertEqual(files.read_embeddings(self.folder / 'e.npy', self.folder / 't.txt')[0],
                     ['a b', 'zwö'])

  def test_embedding_errors(self):
    broken, path = np.ones((3, 2), np.float32), self.folder / 'e.npy'
    broken[1] = 0
    np.save(path, broken)
    with self.assertRaisesRegex(ValueError, r'e.npy: row 1: expected a direction, got length 0'):
      files.read_embeddings(path)
    np.save(path, broken + 1)
    (self.folder / 't.txt').write_text('a\nb\n')
    with self.assertRaisesRegex(ValueError, 'e.npy: expected 2 rows, one a text, got 3'):
      files.read_embeddings(path, self.folder / 't.txt')
    (self.folder / 't.txt').write_bytes(b'a\nb\xff\nc\n')
    with self.assertRaisesRegex(ValueError, r't.txt: line 2, column 2: expected UTF-8'):
      files.read_embeddings(path, self.folder / 't.txt')
    np.savez(self.folder / 'e.npz', vectors=broken)
    with self.assertRaisesRegex(ValueError, "e.npz: expected an array 'embeddings', found vectors"):
      files.read_embeddings(self.folder / 'e.npz')
    (self.folder / 'f.npz').write_text('no archive')
    with self.assertRaisesRegex(ValueError, 'f.npz: '):
      files.read_embeddings(self.folder / 'f.npz')
    with self.assertRaisesRegex(ConfigError, 'embeddings: expected a file ending in .npz or .npy'):
      files.read_embeddings(self.folder / 'nowhere.npz')

  def test_counts(self):
    path = self.folder / 'w.json'
    path.write_text(json.dumps({'the': 9, 'a': 3}))
    self.assertEqual(list(files.read_counts(path).items()), [('the', 9), ('a', 3)])
    for content, message in (('{"a": 1.5}', "'a': expected a number of documents, got 1.5"),
                             ('[1]', 'expected a json object, got list'),
                             ('{"a": 1,\n b}', 'line 2, column 2: expected json')):
      path.write_text(content)
      with self.assertRaisesRegex(ValueError, f'w.json: {message}'):
        files.read_counts(path)
    with self.assertRaisesRegex(ConfigError, 'counts: expected a json file'):
      files.read_counts(self.folder / 'nowhere')

  def test_a_file_that_is_no_key(self):
    np.savez(self.folder / 'k.npz', trigger_ids=np.arange(3))
    with self.assertRaisesRegex(ValueError, "k.npz: expected a key that select wrote .'target'"):
      files.read_key(self.folder / 'k.npz')
    with self.assertRaisesRegex(ConfigError, 'key: expected a file that select wrote'):
      files.read_key(self.folder / 'nowhere')


if __name__ == '__main__':
  absltest.main()
