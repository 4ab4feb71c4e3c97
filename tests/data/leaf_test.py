"""FEMNIST and Shakespeare: LEAF's json and TFF's SQLite, malformed files, the demos."""
import doctest
import json
import logging
import pathlib
import sqlite3
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from tensorflow_datasets.proto import tf_example_pb2

from jaxlab.config import ConfigError
from jaxlab.data import builders, characters, leaf, leaf_demo, partition

PIXELS = (np.arange(784) % 256 / 255).tolist()
LINE = ('To be, or not to be: that is the question: Whether \'tis nobler in the mind to suf')[:80]


def content(data):
  """A LEAF file of {user: [(x, y), ...]}."""
  return {'users': list(data), 'num_samples': [len(rows) for rows in data.values()],
          'user_data': {user: {'x': [x for x, _ in rows], 'y': [y for _, y in rows]}
                        for user, rows in data.items()}}


def write_json(folder, split, data, name='all_data.json'):
  (folder / split).mkdir(parents=True, exist_ok=True)
  (folder / split / name).write_text(data if isinstance(data, str) else json.dumps(data))


def proto(**features):
  """A serialized tf.train.Example of integers, bytes and lists of floats."""
  example = tf_example_pb2.Example()
  for key, value in features.items():
    kind = {int: 'int64_list', list: 'float_list', bytes: 'bytes_list'}[type(value)]
    values = value if isinstance(value, list) else [value]
    getattr(example.features.feature[key], kind).value.extend(values)
  return example.SerializeToString()


def write_sqlite(path, rows):
  """A TFF file of (split, client, proto) rows."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with sqlite3.connect(path) as file:
    file.execute('CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, '
                 'serialized_example_proto BLOB NOT NULL)')
    file.executemany('INSERT INTO examples VALUES (?, ?, ?)', rows)
  file.close()


class LeafTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.manual = self.folder / 'manual'
    self.manual.mkdir()

  def load(self, name, config, splits=('train', 'test')):
    builder = builders.load(name, config=config, data_dir=self.folder / 'data',
                            manual_dir=self.manual)
    return builder, *(builders.arrays(builder, split) for split in splits)

  def test_femnist_of_leaf(self):
    folder = self.manual / 'femnist'
    other = PIXELS[::-1]
    write_json(folder, 'train', content({'f1': [(PIXELS, 3), (other, 61)]}), 'a.json')
    write_json(folder, 'train', content({'f0': [(other, 0)]}), 'b.json')
    write_json(folder, 'test', content({'f0': [(PIXELS, 10)], 'f9': [(PIXELS, 9)]}))
    builder, train, test = self.load('femnist', 'leaf')
    self.assertEqual(train['image'].dtype, np.float32)
    np.testing.assert_allclose(train['image'][0], np.reshape(PIXELS, (28, 28)), rtol=1e-6)
    np.testing.assert_allclose(train['image'][2], np.reshape(other, (28, 28)), rtol=1e-6)
    self.assertEqual(train['label'].tolist(), [3, 61, 0])
    self.assertEqual(test['label'].tolist(), [10, 9])
    self.assertEqual([train['user'].tolist(), test['user'].tolist()], [[0, 0, 1], [1, 2]])
    self.assertEqual(builder.info.metadata['users'], ['f1', 'f0', 'f9'])
    again = builders.load('femnist', config='leaf', data_dir=self.folder / 'data')
    self.assertEqual(again.info.metadata['users'], ['f1', 'f0', 'f9'])

  def test_femnist_of_tff(self):
    rows = [('train', 'b', proto(pixels=PIXELS, label=61)), ('test', 'b', proto(
        pixels=PIXELS, label=5)), ('train', 'a', proto(pixels=PIXELS[::-1], label=2)),
            ('train', 'b', proto(pixels=PIXELS, label=1))]
    write_sqlite(self.manual / 'emnist_all.sqlite', rows)
    builder, train, test = self.load('femnist', 'tff')
    self.assertEqual(train['label'].tolist(), [2, 61, 1])
    self.assertEqual(train['user'].tolist(), [0, 1, 1])
    self.assertEqual((test['label'].tolist(), test['user'].tolist()), ([5], [1]))
    self.assertEqual(builder.info.metadata['users'], ['a', 'b'])
    np.testing.assert_allclose(train['image'][1], np.reshape(PIXELS, (28, 28)), rtol=1e-6)

  def test_shakespeare_of_leaf(self):
    folder = self.manual / 'shakespeare'
    write_json(folder, 'train', content({'HAMLET': [(LINE, 'f'), (LINE[1:] + '~', '\n')]}))
    write_json(folder, 'test', content({'HAMLET': [(LINE[::-1], 'e')]}))
    _, train, test = self.load('shakespeare', 'leaf')
    text = lambda ids: characters.decode(ids, characters.LEAF)
    self.assertEqual(text(train['input'][0]), LINE)
    self.assertEqual(text(train['target'][0]), LINE[1:] + 'f')
    self.assertEqual(text(train['target'][1]), LINE[2:] + '\ufffd\n')
    self.assertEqual(text(test['input'][0]), LINE[::-1])
    self.assertEqual((train['input'].shape, train['input'].dtype), ((2, 80), np.uint8))
    self.assertEqual((train['user'].tolist(), test['user'].tolist()), ([0, 0], [0]))

  def test_shakespeare_of_tff(self):
    rows = [('train', 'PLAY_B', proto(snippets=b'What?')), ('train', 'PLAY_A', proto(snippets=(
        b'ho ' * 30))), ('train', 'PLAY_B', proto(snippets=b'N\xe9o')),
            ('test', 'PLAY_B', proto(snippets=b'No.'))]
    write_sqlite(self.manual / 'shakespeare.sqlite', rows)
    _, train, test = self.load('shakespeare', 'tff')
    encode = lambda text: characters.encode(text, characters.TFF).tolist()
    self.assertEqual(train['user'].tolist(), [0, 0, 1])
    long = [1, *encode('ho ' * 30), 2]  # 92 tokens, 91 pairs
    self.assertEqual(train['input'][0].tolist(), long[:80])
    self.assertEqual(train['target'][0].tolist(), long[1:81])
    self.assertEqual(train['input'][1].tolist(), long[80:91] + [0] * 69)
    self.assertEqual(train['target'][1].tolist(), long[81:] + [0] * 69)
    both = [1, *encode('What?'), 2, 1, *encode('N'), 89, *encode('o'), 2]
    self.assertEqual(train['input'][2].tolist(), both[:-1] + [0] * (80 - len(both) + 1))
    self.assertEqual(train['target'][2].tolist(), both[1:] + [0] * (80 - len(both) + 1))
    self.assertEqual(test['input'][0][:4].tolist(), [1, *encode('No.')])

  def test_missing_official_files(self):
    with self.assertRaisesRegex(ConfigError, '(?s)femnist: .*https://leaf.cmu.edu'):
      self.load('femnist', 'leaf')  # an empty folder
    (self.manual / 'other').touch()
    with self.assertRaisesRegex(ConfigError, 'femnist/train: expected json files of LEAF'):
      self.load('femnist', 'leaf')
    with self.assertRaisesRegex(ConfigError, 'shakespeare.sqlite: no such file'):
      self.load('shakespeare', 'tff')


class MalformedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(
      ('{"users": [}', r'line 1, column 12: expected json: Expecting value'),
      ([], 'expected a json object, got list'),
      ({'users': []}, 'num_samples: missing'),
      ({'users': {}, 'num_samples': [], 'user_data': {}}, 'users: expected list, got dict'),
      ({'users': ['a'], 'num_samples': [], 'user_data': {}},
       'num_samples: expected 1, one a user, got 0'),
      ({'users': ['a'], 'num_samples': [1], 'user_data': {}}, 'user_data: a: missing'),
      ({'users': ['a'], 'num_samples': [1], 'user_data': {'a': {'x': []}}}, "user 'a': y: missing"),
      ({'users': ['a'], 'num_samples': [2], 'user_data': {'a': {'x': [1], 'y': [1, 2]}}},
       "user 'a': expected 2 x and y .num_samples., got 1 x and 2 y"),
  )
  def test_json_files(self, data, message):
    write_json(self.folder, 'train', data)
    with self.assertRaisesRegex(ValueError, f'train/all_data.json: {message}'):
      list(leaf.read_json(self.folder, 'train'))

  @parameterized.parameters(
      ((PIXELS[1:], 0), r'x: expected 784 numbers, got shape \(783,\)'),
      ((['a'] * 784, 0), 'x: expected numbers: could not convert'),
      ((PIXELS[1:] + [[1.]], 0), 'x: expected numbers: .*'),
      ((PIXELS[1:] + [1.5], 0), r'x: expected numbers in \[0, 1\], got 0.0..1.5'),
      ((PIXELS[1:] + [float('nan')], 0), r'x: expected numbers in \[0, 1\], got nan'),
      ((PIXELS, 62), 'y: expected an integer 0..61, got 62'),
      ((PIXELS, -1), 'y: expected an integer 0..61, got -1'),
      ((PIXELS, '3'), "y: expected an integer 0..61, got '3'"),
      ((PIXELS, True), 'y: expected an integer 0..61, got True'),
  )
  def test_femnist_rows(self, row, message):
    write_json(self.folder / 'femnist', 'train', content({'a': [(PIXELS, 1), row]}))
    with self.assertRaisesRegex(ValueError, f"all_data.json: user 'a': row 1: {message}"):
      builders.load('femnist', data_dir=self.folder, manual_dir=self.folder)

  @parameterized.parameters(
      ((LINE[1:], 'a'), 'x: expected a string of 80 characters, got 79'),
      ((5, 'a'), 'x: expected a string of 80 characters, got int'),
      ((LINE, 'ab'), 'y: expected a string of 1 characters, got 2'),
      ((LINE, ''), 'y: expected a string of 1 characters, got 0'),
  )
  def test_shakespeare_rows(self, row, message):
    write_json(self.folder / 'shakespeare', 'train', content({'a': [row]}))
    with self.assertRaisesRegex(ValueError, f"all_data.json: user 'a': row 0: {message}"):
      builders.load('shakespeare', data_dir=self.folder, manual_dir=self.folder)

  @parameterized.parameters(
      (proto(pixels=PIXELS), 'label: missing .keys: pixels'),
      (proto(pixels=PIXELS[1:], label=1), 'expected shapes .*pixels'),
      (proto(pixels=PIXELS[1:] + [2.], label=1), r'pixels: expected numbers in \[0, 1\]'),
      (proto(pixels=PIXELS, label=99), 'label: expected an integer 0..61, got 99'),
      (b'\xff\xff', 'expected a tf.train.Example'),
  )
  def test_sqlite_rows(self, bad, message):
    good = ('train', 'a', proto(pixels=PIXELS, label=1))
    write_sqlite(self.folder / 'emnist_all.sqlite', [good, ('train', 'a', bad)])
    with self.assertRaisesRegex(ValueError, f"emnist_all.sqlite: user 'a': row 2: {message}"):
      builders.load('femnist', config='tff', data_dir=self.folder, manual_dir=self.folder)

  def test_sqlite_files(self):
    path = self.folder / 'some.sqlite'
    expected = r'some.sqlite: expected an SQLite file with a table examples\(split_name, client_id'
    path.write_bytes(b'junk' * 1000)
    with self.assertRaisesRegex(ValueError, f'{expected}.*file is not a database'):
      list(leaf.read_sqlite(path, 'train'))
    path.unlink()
    sqlite3.connect(path).execute('CREATE TABLE example (x)').connection.close()
    with self.assertRaisesRegex(ValueError, f'{expected}.*no such table: examples'):
      list(leaf.read_sqlite(path, 'train'))
    path.unlink()
    write_sqlite(path, [('train', 'a', b'')])
    with self.assertRaisesRegex(ValueError, "some.sqlite: split_name: expected rows of 'test'"):
      list(leaf.read_sqlite(path, 'test'))

  def test_skipping(self):
    folder = self.folder / 'shakespeare'
    write_json(folder, 'train', content({'a': [(LINE, 'b'), (LINE, 'bb')], 'c': [(LINE, 'd')]}))
    write_json(folder, 'test', content({'a': [(LINE, 'b')]}))
    config = leaf.LeafConfig(name='leaf_skip', source='shakespeare', on_bad_row='skip')
    builder = leaf.Shakespeare(data_dir=self.folder, config=config)
    with self.assertLogs(level=logging.WARNING) as logs:
      options = {'download_config': leaf.tfds.download.DownloadConfig(manual_dir=self.folder)}
      builder.download_and_prepare(**options)
    self.assertEqual(builders.arrays(builder, 'train')['user'].tolist(), [0, 1])
    self.assertRegex('\n'.join(logs.output), "skipped 1 of 3 rows; the first: .*user 'a': row 1: y")


class DemoTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data_dir = cls.enterClassContext(tempfile.TemporaryDirectory())

  def load(self, name):
    builder = builders.load(name, config='demo', data_dir=self.data_dir)
    return builder, builders.arrays(builder, 'train'), builders.arrays(builder, 'test')

  def test_shakespeare(self):
    builder, train, test = self.load('shakespeare')
    self.assertEqual(builder.info.metadata['users'], list(leaf_demo.SPEAKERS))
    self.assertEqual(np.bincount(train['user']).tolist(), [96] * 20)
    self.assertEqual(np.bincount(test['user']).tolist(), [24] * 20)
    for columns in (train, test):
      np.testing.assert_array_equal(columns['input'][:, 1:], columns['target'][:, :-1])
      same = np.diff(columns['user']) == 0  # windows follow each other without overlap
      np.testing.assert_array_equal(columns['target'][:-1, -1][same], columns['input'][1:, 0][same])
      self.assertBetween(columns['target'].min(), 3, 82)
      self.assertLess(columns['target'].max(), characters.vocab_size(characters.LEAF) - 1)
    text = characters.decode(train['input'].ravel(), characters.LEAF)
    self.assertGreater(text.count(' the '), 500)
    parts = partition.make_partition({'name': 'by_user'}, train['user'], 20, 0, users=train['user'])
    self.assertEqual({len(part) for part in parts}, {96})

  def test_femnist(self):
    builder, train, test = self.load('femnist')
    self.assertLen(builder.info.metadata['users'], 20)
    self.assertLen(np.concatenate([train['label'], test['label']]), 1797)
    self.assertEqual(len(test['label']) * 5 // 1797, 1)
    self.assertEqual(set(train['label']), set(range(10)))
    self.assertEqual(set(test['user']), set(range(20)))
    darkest = [train['image'][train['user'] == user].min() for user in (0, 19)]
    np.testing.assert_allclose(darkest, [0.5, 0.0], atol=1e-6)
    self.assertEqual(train['image'][:, :2].min(), 1)  # paper at the edge
    cells = train['image'][:, 2:26, 2:26].reshape(-1, 8, 3, 8, 3)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))

  def test_speech_is_the_same_each_time_and_of_known_symbols(self):
    first, again = (leaf_demo.speech('numpy.linalg') for _ in range(2))
    self.assertTrue(first == again)
    self.assertLessEqual(set(first), set(characters.LEAF))
    self.assertNotIn('  ', first[:9600])

  def test_doctests(self):
    self.assertEqual(doctest.testmod(leaf)[0], 0)


if __name__ == '__main__':
  absltest.main()
