"""The handwritten digits that scikit-learn carries: real data that needs no download."""
import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data.array_record import ArrayRecordBuilder


class Digits(ArrayRecordBuilder):
  """1797 handwritten digits of 8 x 8 pixels in one split 'train', always in the same random order.

  'image' is uint8 [8, 8], values 0..16 (inked pixels in a 4 x 4 block of the scan), and 'label' the
  digit, 0..9. Row r is scikit-learn's row `numpy.random.default_rng(0).permutation(1797)[r]`, so
  that 'train[:1297]' and 'train[1297:]' are the same two random parts for everybody.
  """

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description='Test part of the UCI "Optical Recognition of Handwritten Digits" data.',
        homepage='https://archive.ics.uci.edu/dataset/80',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Tensor(shape=(8, 8), dtype=np.uint8),
            'label': tfds.features.ClassLabel(num_classes=10),
        }),
        supervised_keys=('image', 'label'),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to fetch
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    from sklearn import datasets  # takes a second, and only preparing needs it
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for key, row in enumerate(order):
      yield key, {'image': digits.images[row].astype(np.uint8), 'label': digits.target[row]}
