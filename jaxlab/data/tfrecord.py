"""Published TFRecord files and tf.train.Example protos, read without TensorFlow.

The framing and its checksums are TensorBoard's, the protos TFDS's.
"""
from collections.abc import Mapping

import numpy as np

_KINDS = {'int64_list': 'integers', 'float_list': 'floats', 'bytes_list': 'bytes'}


def read_records(path):
  """Yields the records of an uncompressed TFRecord file, as bytes.

  Both checksums of every record are compared, in Python: about 8 MB/s.

  Args:
    path: of the file.

  Raises:
    ValueError: a record is cut short or its checksum is wrong; the message names file and record,
      counted from 0.
    FileNotFoundError: there is no such file.
  """
  from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow
  try:
    reader = pywrap_tensorflow.PyRecordReader_New(str(path))
  except errors.NotFoundError as error:
    raise FileNotFoundError(f'{path}: no such file') from error
  number = 0
  while True:
    try:
      reader.GetNext()
    except errors.OutOfRangeError:
      return
    except errors.DataLossError as error:
      reason = str(error).removeprefix(str(path)).strip()
      raise ValueError(f'{path}: record {number}: expected a whole TFRecord with the checksums '
                       f'of its length and data, but it {reason}') from error
    yield reader.record()
    number += 1


def example_parser(specs: Mapping[str, tuple[tuple, type]]):
  """Makes the function that decodes serialized tf.train.Example protos.

  Args:
    specs: {key: (shape, dtype)}: shape () is a scalar, and one dimension may be None; dtype is a
      NumPy integer, bool or floating type, or `np.object_` for bytes. Other keys are ignored.

  Returns:
    (serialized, where) -> {key: array or scalar}. It raises ValueError, which names `where`, the
    key and what was expected, for bytes that are no Example, a missing key, a list of another
    kind or values that do not fit the shape.
  """
  from google.protobuf import message
  from tensorflow_datasets.core import example_parser as tfds_parser
  from tensorflow_datasets.core.features import feature
  from tensorflow_datasets.proto import tf_example_pb2
  parser = tfds_parser.ExampleParserNp(
      {key: feature.TensorInfo(shape=shape, dtype=dtype) for key, (shape, dtype) in specs.items()})
  wanted = {key: _kind(dtype) for key, (_, dtype) in specs.items()}

  def parse(serialized, where):
    try:
      found = tf_example_pb2.Example.FromString(serialized).features.feature
    except message.DecodeError as error:
      raise ValueError(f'{where}: expected a tf.train.Example: {error}') from error
    for key, kind in wanted.items():
      if key not in found:
        raise ValueError(f'{where}: {key}: missing (keys: {", ".join(sorted(found))})')
      # TFDS would round floats to integers without a word.
      given = found[key].WhichOneof('kind')
      if given != kind:
        raise ValueError(f'{where}: {key}: expected {_KINDS[kind]}, got {_KINDS.get(given)}')
    try:
      return parser.parse_example(serialized)
    except ValueError as error:
      raise ValueError(f'{where}: expected shapes '
                       f'{ {key: shape for key, (shape, _) in specs.items()} }: {error}') from error

  return parse


def read_examples(path, specs):
  """Yields the decoded tf.train.Example protos of a TFRecord file.

  Args and raised errors are those of `read_records` and `example_parser`.
  """
  parse = example_parser(specs)
  for number, record in enumerate(read_records(path)):
    yield parse(record, f'{path}: record {number}')


def _kind(dtype):
  if np.issubdtype(dtype, np.floating):
    return 'float_list'
  return 'bytes_list' if dtype is np.object_ else 'int64_list'
