"""Readers, vocabulary, builders and loading of click logs."""
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import systems
from jaxlab.config import ConfigError
from jaxlab.data import builders, documents, pipeline
from jaxlab.systems.xdeepfm import data, demo, formats, vocabulary
from jaxlab.systems.xdeepfm import model as xdeepfm_model
from tests import conftest

assert conftest.FLAGS
ROWS = [
    ['0', '', '-1', '260', *[''] * 10, '05db9164', *[''] * 24, 'ABCDEF01'],
    ['1', '3', '0', *[''] * 11, '68fd1e64', '05db9164', *[''] * 24],
    ['1', '99999', *[''] * 12, '05db9164', *[''] * 25],
]
AVAZU = ('id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,'
         'app_category,device_id,device_ip,device_model,device_type,device_conn_type,'
         'C14,C15,C16,C17,C18,C19,C20,C21')
AVAZU_ROW = ('1000009418151094273,1,14102521,1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,'
             '07d7df22,a99f214a,ddd2926e,44956a24,1,2,15706,320,50,1722,0,35,-1,79')


def write(folder, name, text):
  path = pathlib.Path(folder) / name
  path.write_text(text)
  return path


def records(path, read=formats.read_criteo, parse=formats.criteo_row, **options):
  return [parse(where, row, **options) for where, row in read(path)]


def assert_same(a, b):
  assert len(a) == len(b) > 0
  for x, y in zip(a, b):
    assert x['label'] == y['label']
    np.testing.assert_array_equal(x['tokens'], y['tokens'])


class FormatsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())

  def test_all_forms_of_criteo_are_the_same_records(self):
    raw = write(self.folder, 'train.txt', ''.join('\t'.join(row) + '\n' for row in ROWS))
    header = ['label', *formats.CRITEO]
    floats = [[f'{cell}.0' if 0 < i < 14 and cell else cell for i, cell in enumerate(row)]
              for row in ROWS]
    csv = write(self.folder, 'a.csv', '\n'.join(','.join(row) for row in (header, *floats)))
    challenge = write(self.folder, 'b.csv', '\n'.join(','.join(row) for row in (
        ['Id', 'Label', *formats.CRITEO], *(['7', *row] for row in ROWS))))
    lines = write(self.folder, 'c.jsonl', '\n'.join(
        json.dumps({k: v for k, v in zip(header, row) if v}) for row in ROWS))
    first = records(raw)
    self.assertEqual([row['label'] for row in first], [0, 1, 1])
    self.assertEqual(first[0]['tokens'][:3].tolist(), [formats.ABSENT, -1, 260])
    self.assertEqual(first[0]['tokens'][-1], 0xABCDEF01)
    lower = write(self.folder, 'd.csv', csv.read_text().replace(
        ','.join(header), ','.join(header).lower()))
    lower_lines = write(self.folder, 'e.jsonl', '\n'.join(
        json.dumps({k.lower(): v for k, v in zip(header, row) if v}) for row in ROWS))
    for path in (csv, challenge, lines, lower, lower_lines):
      assert_same(records(path), first)
    bare = write(self.folder, 'bare.tsv', ''.join('\t'.join(row[1:]) + '\n' for row in ROWS))
    self.assertEqual({row['label'] for row in records(bare, labelled=False)}, {-1})
    np.testing.assert_array_equal(records(bare, labelled=False)[2]['tokens'], first[2]['tokens'])

  @parameterized.parameters(
      (lambda r: r[:-1], 'line 2: expected 40 columns, got 38'),
      (lambda r: [*r[:3], 'x', *r[4:]], "line 2, column I3: expected an integer, got 'x'"),
      (lambda r: [*r[:3], '1.5', *r[4:]], "line 2, column I3: expected an integer, got '1.5'"),
      (lambda r: [*r[:14], 'zz', *r[15:]], "column C1: expected 8 hexadecimal digits, got 'zz'"),
      (lambda r: ['2', *r[1:]], "line 2, column label: expected a label 0 or 1, got '2'"),
      (lambda r: ['', *r[1:]], "line 2, column label: expected a label 0 or 1, got ''"))
  def test_a_malformed_row(self, spoil, message):
    rows = [ROWS[0], spoil(ROWS[1])]
    if len(rows[1]) == 39:
      rows[1] = rows[1][:-1]
    path = write(self.folder, 'bad.txt', '\n'.join('\t'.join(row) for row in rows))
    with self.assertRaisesRegex(ValueError, f'^{path}: .*{message}'):
      records(path)

  def test_avazu(self):
    path = write(self.folder, 'train', f'{AVAZU}\n{AVAZU_ROW}\n')
    row, = records(path, formats.read_avazu, formats.avazu_row)
    tokens = dict(zip(formats.AVAZU, row['tokens'].tolist()))
    self.assertEqual(row['label'], 1)
    self.assertLen(row['tokens'], 24)
    # 25 October 2014, 21 h, was a Saturday.
    self.assertEqual([tokens[k] for k in ('hour_of_day', 'weekday', 'is_weekend', 'C1', 'C20')],
                     [21, 5, 1, 1005, -1])
    self.assertEqual(tokens['site_id'], 0x1fbe01fe)
    bad = write(self.folder, 'bad', f'{AVAZU}\n{AVAZU_ROW.replace("14102521", "14102599")}\n')
    with self.assertRaisesRegex(ValueError, "line 2, column hour: expected YYMMDDHH, got '1410259"):
      records(bad, formats.read_avazu, formats.avazu_row)

  @parameterized.parameters(
      ('x 1:2:1', "column 1: expected a number as the label, got 'x'"),
      ('1:2:1', "column 1: expected a label, got '1:2:1'"),
      ('1 1:2', "column 2: expected field:feature:value with ids from 1, got '1:2'"),
      ('1 1:2:1 0:2:1', "column 3: expected field:feature:value with ids from 1, got '0:2:1'"),
      ('1 1:2:nan', 'expected finite values'))
  def test_a_malformed_libffm_line(self, text, message):
    with self.assertRaisesRegex(ValueError, f'^f: line 1.*{message}'):
      formats.libffm_row('f: line 1', text)

  def test_libffm_round_trip(self):
    rng = np.random.default_rng(0)
    for n in range(5):
      row = {'label': n % 2, 'field': rng.integers(0, 4, n), 'feature': rng.integers(0, 99, n),
             'value': rng.normal(size=n).astype(np.float32), 'group': 'u1' if n else ''}
      again = formats.libffm_row('', formats.format_libffm(row))
      for name, value in row.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


class VocabularyTest(absltest.TestCase):
  TOKENS = np.array([[5, 7], [5, 8], [5, 7], [6, 7], [formats.ABSENT, 7]], np.int64)

  def count(self, blocks):
    return vocabulary.count(np.array_split(self.TOKENS, blocks))

  def test_counts_do_not_depend_on_the_blocks(self):
    for a, b in zip(self.count(1), self.count(4)):
      np.testing.assert_array_equal(a, b)
    self.assertEqual(self.count(2)[1].tolist(), [3, 1, 4, 1])

  def test_one_rare_id_a_field(self):
    words = vocabulary.from_counts(*self.count(1), [2, 1])
    # Field 0: absent 0, rare 1, token 5; field 1: absent 3, rare 4, tokens 7 and 8.
    self.assertEqual(words.size, 7)
    seen = words.encode(self.TOKENS)
    np.testing.assert_array_equal(seen, [[2, 5], [2, 6], [2, 5], [1, 5], [0, 5]])
    np.testing.assert_array_equal(words.encode(np.array([[7, 5], [-3, formats.ABSENT]])),
                                  [[1, 4], [1, 3]])  # a token of another field is not known here

  def test_the_official_way_tells_rare_tokens_apart_by_their_count(self):
    words = vocabulary.from_counts(*self.count(1), [4, 5], rare='count')
    # Field 0: absent 0, unseen 1, counts 2..4; field 1: absent 5, unseen 6, counts 7..10.
    self.assertEqual(words.size, 11)
    np.testing.assert_array_equal(words.encode(self.TOKENS)[:4],
                                  [[4, 10], [4, 7], [4, 10], [2, 10]])
    with self.assertRaisesRegex(ConfigError, "rare: expected 'one' or 'count', got 'two'"):
      vocabulary.from_counts(*self.count(1), [4, 5], rare='two')

  def test_hashing(self):
    words = vocabulary.hashed(2, 1000)
    tokens = np.random.default_rng(0).integers(0, 2**32, (500, 2))
    ids = words.encode(tokens)
    self.assertEqual(words.size, 2002)
    self.assertBetween(ids[:, 0].min(), 1, 50)
    self.assertBetween(ids[:, 1].max(), 1950, 2001)
    self.assertGreater(len(np.unique(ids[:, 0])), 350)
    np.testing.assert_array_equal(words.encode(np.full((1, 2), formats.ABSENT)), [[0, 1001]])

  def test_small_integers_stay_apart_from_buckets(self):
    values = np.array([-3, -1, 0, 1, 2, 3, 4, 99999, formats.ABSENT])
    tokens = vocabulary.integer_tokens(values)
    self.assertLen(set(tokens.tolist()), 8)  # 3 and 4 share a bucket
    self.assertEqual(tokens[-1], formats.ABSENT)


class LoadTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())
    rng = np.random.default_rng(0)
    pool = ['05db9164', '68fd1e64', 'deadbeef', '']
    rows = [[str(i % 2), *(str(x) for x in rng.integers(-1, 50, 13)),
             *rng.choice(pool, 26)] for i in range(60)]
    self.path = write(self.folder, 'log.txt', ''.join('\t'.join(row) + '\n' for row in rows))

  def load(self, **options):
    return data.load(**{'name': 'criteo', 'file': str(self.path), 'min_count': 2, **options})

  def test_splits_and_integers(self):
    layout, splits, _ = self.load()
    sizes = [len(splits[name]) for name in ('train', 'validation', 'test')]
    self.assertEqual(sum(sizes), 60)
    self.assertGreater(sizes[0], 30)
    self.assertEqual((layout.num_fields, layout.univalent, layout.numeric), (39, True, 0))
    columns = pipeline.columns(splits['train'])
    self.assertEqual(columns['ids'].shape, (sizes[0], 39))
    self.assertLess(columns['ids'].max(), layout.num_features)
    streamed = pipeline.columns(self.load(stream=True)[1]['train'])
    for name, column in columns.items():
      np.testing.assert_array_equal(streamed[name], column)
    dense, splits, _ = self.load(integers='dense', buckets=50)
    self.assertEqual((dense.num_features, dense.num_fields, dense.numeric), (26 * 51, 26, 13))
    self.assertEqual(pipeline.columns(splits['train'])['numeric'].shape, (sizes[0], 13))
    vector, splits, _ = self.load(integers='vector')
    columns = pipeline.columns(splits['train'])
    self.assertEqual((vector.num_fields, vector.univalent), (39, False))
    self.assertEqual(len(np.unique(columns['ids'][:, :13])), 13)
    self.assertTrue((columns['values'][:, 13:] == 1).all())

  def test_a_file_that_changes_is_read_again(self):
    before = sum(map(len, self.load()[1].values()))
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write('\t'.join(ROWS[0]) + '\n')
    self.assertEqual(sum(map(len, self.load()[1].values())), before + 1)

  def test_a_malformed_row_stops_the_preparation(self):
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write('0\tx\n' * 20)
    with self.assertRaisesRegex(ValueError, 'line 6[0-9]: expected 40 columns, got 2'):
      self.load()

  def test_no_file(self):
    with self.assertRaisesRegex(ConfigError, "data.file: expected a file, got '/nowhere'"):
      data.load(name='criteo', file='/nowhere')

  def test_reading_rows_to_score(self):
    layout, _, encode = self.load()
    rows = pipeline.columns(data.read_file('criteo', self.path, layout, encode))
    self.assertEqual(rows['ids'].shape, (60, 39))
    whole = pipeline.columns(self.load(train='train+validation+test', count_on='train')[1]['train'])
    order = lambda ids: ids[np.lexsort(ids.T)]
    np.testing.assert_array_equal(order(rows['ids']), order(whole['ids']))

  def test_pairs(self):
    lines = ['1 1:1:0.5 1:2:2 3:5:1%7', '0 2:3:1%8', '1 1:2:1 2:3:1 3:4:1%7'] * 20
    path = write(self.folder, 'pairs.txt', '\n'.join(lines))
    layout, splits, encode = data.load(name='libffm', file=str(path))
    self.assertEqual(layout, data.Layout(5, 3, 3, False))
    self.assertEqual(sum(map(len, splits.values())), 60)
    rows = pipeline.columns(data.read_file('libffm', path, layout, encode))
    np.testing.assert_array_equal(rows['values'][:2], [[.5, 2, 1], [1, 0, 0]])
    np.testing.assert_array_equal(rows['field'][:2], [[0, 0, 2], [1, -1, -1]])
    self.assertLen(np.unique(rows['group']), 2)
    for text, message in (
        ('1 1:1:1\n1 1:9:1', 'more.txt: row 2: feature 9: expected ids up to 5'),
        ('1 4:1:1', 'more.txt: row 1: field 4: expected ids up to 3'),
        ('1 1:1:1 1:1:1 1:1:1 1:1:1', 'more.txt: row 1: expected at most 3 pairs, got 4'),
        ('', 'more.txt: expected rows, got none'),
        ('nan 1:1:1', "more.txt: line 1, column 1: expected a number as the label, got 'nan'"),
        ('1 1:1:1e39', 'more.txt: line 1: expected finite values')):
      with self.assertRaisesRegex(ValueError, message):
        data.read_file('libffm', write(self.folder, 'more.txt', text), layout, encode)
    with self.assertRaisesRegex(ConfigError, 'nowhere.txt: no such file'):
      data.read_file('libffm', f'{self.folder}/nowhere.txt', layout, encode)

  def test_a_model_of_univalent_rows_scores_others_as_they_are(self):
    lines = ['1 1:1:1 2:3:1', '0 1:2:1 2:4:1'] * 30
    path = write(self.folder, 'one.txt', '\n'.join(lines))
    layout, _, encode = data.load(name='libffm', file=str(path))
    self.assertEqual(layout, data.Layout(4, 2, 2, True))
    model = xdeepfm_model.make_model({'name': 'fm', 'dim': 3}, 4, 2)
    params = jax.tree.map(lambda x: jnp.sin(jnp.arange(1.0, x.size + 1).reshape(x.shape)),
                          model.init(jax.random.key(0), np.zeros((1, 2), np.int32)))
    table = params['params']['embedding']['table']['embedding']
    linear = params['params']['linear']
    weights, bias = linear['table']['weight'], linear['bias']
    for share, text in ((1, '1 1:2:1 2:3:1'), (1, '1 2:3:1 1:2:1'), (0, '1 2:3:1'),
                        (0.5, '1 1:2:0.5 2:3:1')):
      rows = pipeline.columns(data.read_file(
          'libffm', write(self.folder, 'more.txt', text), layout, encode))
      logit = model.apply(params, *(rows.get(key) for key in ('ids', 'values', 'field')))
      expected = bias + share * weights[1] + weights[2] + share * table[1] @ table[2]
      np.testing.assert_allclose(logit, [expected], rtol=1e-5, err_msg=text)


class DemoTest(absltest.TestCase):

  def test_is_written_and_parsed(self):
    world = demo.make(3, 50)
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'demo.txt'
      demo.write(path, world, groups=5)
      rows = [formats.libffm_row(where, text) for where, text in documents.read_lines(path)]
    np.testing.assert_array_equal([row['feature'] for row in rows], world.ids)
    np.testing.assert_array_equal([row['label'] for row in rows], world.label)
    self.assertEqual({row['group'] for row in rows}, set('01234'))
    self.assertBetween(demo.make(0, 4000).probability.mean(), .3, .7)

  def test_the_builders_are_known_to_the_house(self):
    self.assertEqual(systems.load('xdeepfm').CONFIG_KEYS, ('model', 'data', 'penalty', 'rows'))
    self.assertContainsSubset(data.SOURCES, builders.BUILDERS)
    self.assertTrue(os.environ['TFDS_DATA_DIR'])


if __name__ == '__main__':
  absltest.main()
