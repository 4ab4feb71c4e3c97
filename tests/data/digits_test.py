import tempfile

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest
from sklearn import datasets

from jaxlab.data import builders, digits


class DigitsTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data_dir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.builder = builders.load('digits', data_dir=cls.data_dir)

  def test_all_rows_in_the_documented_order(self):
    source = datasets.load_digits()
    order = np.random.default_rng(0).permutation(1797)
    self.assertEqual(order[:10].tolist(), [360, 1773, 1482, 600, 850, 196, 968, 1742, 567, 1168])
    columns = builders.arrays(self.builder, 'train')
    np.testing.assert_array_equal(columns['image'], source.images[order])
    np.testing.assert_array_equal(columns['label'], source.target[order])
    self.assertEqual(columns['image'].dtype, np.uint8)
    self.assertEqual((columns['image'].min(), columns['image'].max()), (0, 16))

  def test_parts_are_ranges_of_rows(self):
    whole, first, rest = (builders.arrays(self.builder, split)
                          for split in ('train', 'train[:1297]', 'train[1297:]'))
    for name in ('image', 'label'):
      self.assertLen(first[name], 1297)
      self.assertLen(rest[name], 500)
      np.testing.assert_array_equal(np.concatenate([first[name], rest[name]]), whole[name])

  def test_is_an_ordinary_tfds_builder(self):
    builder = tfds.builder('digits', data_dir=self.data_dir)
    self.assertIsInstance(builder, digits.Digits)
    self.assertEqual(builder.info.features['label'].num_classes, 10)
    self.assertEqual(list(builder.info.splits), ['train'])
    example = builder.as_data_source('train')[0]
    self.assertEqual(example['label'], 6)
    self.assertEqual(example['image'][0].tolist(), [0, 0, 1, 13, 7, 0, 0, 0])

  def test_prepares_array_record_by_itself(self):
    with tempfile.TemporaryDirectory() as data_dir:
      builder = digits.Digits(data_dir=data_dir)
      builder.download_and_prepare()
      self.assertLen(builder.as_data_source('train'), 1797)


if __name__ == '__main__':
  absltest.main()
