"""TFRecord files: framing against TensorBoard's writer, damage, tf.train.Example protos."""
import pathlib
import struct
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from jaxlab.data import tfrecord

RECORDS = [b'first', b'', bytes(range(256)) * 3]
SPECS = {'image': ((2, 3), np.float32), 'label': ((), np.int64), 'name': ((), np.object_),
         'more': ((None,), np.int64)}
GOOD = {'image': [0.5, 1., 2., 3., 4., 5.], 'label': 7, 'name': b'\xff\x00x', 'more': [1, 2, 3]}


def example(**features):
  """A serialized tf.train.Example of integers, floats and bytes, or lists of them."""
  proto = tf_example_pb2.Example()
  for key, values in features.items():
    values = values if isinstance(values, list) else [values]
    kind = {int: 'int64_list', float: 'float_list', bytes: 'bytes_list'}[type(values[0])]
    getattr(proto.features.feature[key], kind).value.extend(values)
  return proto.SerializeToString()


class RecordsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder, 'some.tfrecord')

  def write(self, records):
    with open(self.path, 'wb') as file:
      writer = RecordWriter(file)
      for record in records:
        writer.write(record)

  def test_reads_what_was_written(self):
    for records in (RECORDS, []):
      self.write(records)
      self.assertEqual(list(tfrecord.read_records(self.path)), records)

  def test_the_checksum_is_the_masked_crc32c(self):
    crc = 0xe3069283  # of '123456789', the check value of the CRC catalogues
    masked = ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff
    self.write([b'123456789'])
    content = self.path.read_bytes()[:-4] + struct.pack('<I', masked)
    self.path.write_bytes(content)
    self.assertEqual(list(tfrecord.read_records(self.path)), [b'123456789'])

  # Record 1 is the empty one: its length stands at bytes 21..28, its checksums from 29 and 33.
  @parameterized.parameters((21, 1, 'header crc'), (29, 1, 'header crc'), (33, 1, 'event crc'),
                            (12, 0, 'event crc'), (40, 2, 'header crc'), (100, 2, 'event crc'))
  def test_a_flipped_bit(self, position, number, what):
    self.write(RECORDS)
    content = bytearray(self.path.read_bytes())
    content[position] ^= 4
    self.path.write_bytes(content)
    records = tfrecord.read_records(self.path)
    self.assertEqual([next(records) for _ in range(number)], RECORDS[:number])
    with self.assertRaisesRegex(
        ValueError, rf'some.tfrecord: record {number}: expected a whole TFRecord.*failed {what}'):
      next(records)

  @parameterized.parameters((4, 0, 'header'), (10, 0, 'header crc'), (15, 0, 'data'),
                            (19, 0, 'data crc'), (300, 2, 'data'))
  def test_cut_short(self, size, number, what):
    self.write(RECORDS)
    self.path.write_bytes(self.path.read_bytes()[:size])
    with self.assertRaisesRegex(
        ValueError, rf'some.tfrecord: record {number}: .*has truncated record in {what}$'):
      list(tfrecord.read_records(self.path))

  def test_no_file(self):
    with self.assertRaisesRegex(FileNotFoundError, 'some.tfrecord: no such file'):
      list(tfrecord.read_records(self.path))

  def test_examples(self):
    self.write([example(**GOOD), example(**{**GOOD, 'label': 8})])
    first, second = tfrecord.read_examples(self.path, SPECS)
    np.testing.assert_array_equal(first['image'], [[.5, 1, 2], [3, 4, 5]])
    self.assertEqual(first['image'].dtype, np.float32)
    self.assertEqual((first['label'], first['name'], second['label']), (7, b'\xff\x00x', 8))
    self.assertEqual(first['more'].tolist(), [1, 2, 3])

  @parameterized.parameters(
      ({'label': None}, 'label: missing .keys: image, more, name'),
      ({'label': 7.5}, 'label: expected integers, got floats'),
      ({'image': [1] * 6}, 'image: expected floats, got integers'),
      ({'name': 7}, 'name: expected bytes, got integers'),
      ({'label': [7, 8]}, 'expected shapes .*label'),
      ({'image': [1.] * 5}, r"expected shapes .*'image': \(2, 3\).*image.*size 5"),
  )
  def test_malformed_examples(self, change, message):
    features = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    self.write([example(**GOOD), example(**features)])
    examples = tfrecord.read_examples(self.path, SPECS)
    next(examples)
    with self.assertRaisesRegex(ValueError, f'some.tfrecord: record 1: {message}'):
      next(examples)

  def test_no_example(self):
    self.write([b'junk'])
    with self.assertRaisesRegex(ValueError, 'record 0: expected a tf.train.Example'):
      list(tfrecord.read_examples(self.path, SPECS))

  def test_other_keys_are_ignored(self):
    parse = tfrecord.example_parser({'label': ((), np.int64)})
    self.assertEqual(parse(example(**GOOD), 'here'), {'label': 7})


if __name__ == '__main__':
  absltest.main()
