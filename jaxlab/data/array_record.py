"""What every TFDS builder of jaxlab has in common: array_record files, and no TensorFlow."""
import tensorflow_datasets as tfds


class ArrayRecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A GeneratorBasedBuilder that writes array_record files and needs no TensorFlow."""

  VERSION = tfds.core.Version('1.0.0')
  # There are no downloads to check. TFDS would look for checksums through importlib_resources,
  # which it uses without requiring it.
  url_infos = None

  def __init__(self, *, file_format='array_record', **kwargs):
    super().__init__(file_format=file_format, **kwargs)
