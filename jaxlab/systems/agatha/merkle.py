"""Commitments: keccak-256 Merkle trees over tensors, programs and traces.

A first byte separates what is hashed: 0 chunk, 1 node, 3 tensor, 4 trace leaf, 5 program, 6 line,
7 step. Trees are padded to a power of two with zero leaves, so that no leaf is ever doubled.
keccak-256 is Ethereum's (padding 0x01), not SHA3-256; it comes from pycryptodome, of the extra
[agatha].
"""
import functools
import math
from typing import NamedTuple

import numpy as np

from jaxlab import config as config_lib

CHUNK, LARGE_CHUNK = 32, 1024  # bytes
LARGE = 65536  # bytes above which a tensor has large chunks
ZERO = bytes(32)
DTYPES = {'float32': 1, 'int32': 2, 'uint32': 3, 'bool': 4}
DTYPE_NAMES = {code: name for name, code in DTYPES.items()}


@functools.cache
def _keccak():
  try:
    from Crypto.Hash import keccak
  except ImportError as error:
    raise config_lib.ConfigError("agatha needs: pip install 'jaxlab[agatha]'") from error
  return keccak.new


def keccak256(message):
  """keccak-256 of bytes, 32 bytes."""
  return _keccak()(digest_bits=256, data=message).digest()


def depth_of(count):
  """Levels between the root and `count` leaves: ceil(log2 count), 0 for one."""
  return (max(count, 1) - 1).bit_length()


def node(left, right):
  """The hash of two children."""
  return keccak256(b'\x01' + left + right)


def tree(leaves):
  """The levels of a Merkle tree, leaves (padded with zeros) first, the root's level last.

  Of no leaves it is that of one zero.
  """
  level, padding = list(leaves) or [ZERO], ZERO
  levels = []
  for height in range(depth_of(len(level)), 0, -1):
    missing = (1 << height) - len(level)
    full = (len(level) + 1) // 2
    levels.append(level + [padding] * missing)
    level = [node(*pair) for pair in zip(levels[-1][:2 * full:2], levels[-1][1:2 * full:2])]
    padding = node(padding, padding)
  return [*levels, level]


def root_of(levels):
  """The root of a tree."""
  return levels[-1][0]


def path(levels, index):
  """The siblings from leaf `index` to the root."""
  return tuple(level[index >> height ^ 1] for height, level in enumerate(levels[:-1]))


def climb(leaf, index, siblings):
  """The root that a leaf and its path lead to; None if the index does not fit the path."""
  if index >> len(siblings):
    return None
  for height, sibling in enumerate(siblings):
    leaf = node(sibling, leaf) if index >> height & 1 else node(leaf, sibling)
  return leaf


class Tensor(NamedTuple):
  """A committed tensor.

  Attributes:
    dtype: its code, see `DTYPES`.
    shape: its dimensions.
    chunks: tuple of bytes, the leaves before they are hashed.
    levels: the Merkle tree over them.
    commitment: hash of dtype, shape and root.
  """
  dtype: int
  shape: tuple[int, ...]
  chunks: tuple[bytes, ...]
  levels: list
  commitment: bytes


class Opening(NamedTuple):
  """Proof of one element of a committed tensor: everything but its index."""
  dtype: int
  shape: tuple[int, ...]
  root: bytes
  chunk: bytes
  path: tuple[bytes, ...]


def chunk_bytes(shape):
  """Bytes of a chunk of a tensor of this shape (4 bytes an element)."""
  return LARGE_CHUNK if 4 * math.prod(shape) > LARGE else CHUNK


def words(array):
  """An array as little-endian uint32 [size], NaNs canonical, truth values 0 and 1.

  Raises:
    TypeError: a dtype that has no commitment (bfloat16, float16, 64 bits).
  """
  array = np.asarray(array)
  if array.dtype.name not in DTYPES:
    raise TypeError(f'no commitment for dtype {array.dtype.name}; expected {", ".join(DTYPES)}')
  if array.dtype == np.bool_:
    return array.reshape(-1).astype('<u4')
  bits = np.ascontiguousarray(array).reshape(-1).view('<u4')
  if array.dtype == np.float32:
    bits = np.where((bits & 0x7fffffff) > 0x7f800000, np.uint32(0x7fc00000), bits)
  return bits


def tensor_commitment(dtype, shape, root):
  """The hash that binds dtype, shape and the root over the chunks."""
  dims = b''.join(int(n).to_bytes(8, 'big') for n in shape)
  return keccak256(b'\x03' + bytes([dtype, len(shape)]) + dims + root)


def commit(array):
  """The `Tensor` of an array of float32, int32, uint32 or bool."""
  array = np.asarray(array)
  size = chunk_bytes(array.shape)
  data = words(array).tobytes()
  data += bytes(-len(data) % size) if data else bytes(size)
  chunks = tuple(data[i:i + size] for i in range(0, len(data), size))
  levels = tree([keccak256(b'\x00' + chunk) for chunk in chunks])
  dtype = DTYPES[array.dtype.name]
  return Tensor(dtype, array.shape, chunks, levels,
                tensor_commitment(dtype, array.shape, root_of(levels)))


def open_element(tensor, index):
  """The `Opening` of the element with this flat index."""
  chunk = index * 4 // len(tensor.chunks[0])
  return Opening(tensor.dtype, tensor.shape, root_of(tensor.levels), tensor.chunks[chunk],
                 path(tensor.levels, chunk))


def opened(opening, index):
  """(commitment, value) that an opening proves for a flat index; None if it proves nothing.

  The value is a uint32 bit pattern. Whoever calls compares the commitment.
  """
  size = chunk_bytes(opening.shape)
  leaf = keccak256(b'\x00' + opening.chunk)
  if len(opening.chunk) != size or climb(leaf, index * 4 // size, opening.path) != opening.root:
    return None
  at = index * 4 % size
  return (tensor_commitment(opening.dtype, opening.shape, opening.root),
          int.from_bytes(opening.chunk[at:at + 4], 'little'))


def trace_leaf(index, line_hash, commitment):
  """The leaf of equation `index` in a trace tree."""
  return keccak256(b'\x04' + index.to_bytes(8, 'big') + line_hash + commitment)


def step_leaf(index, value):
  """The leaf of a step's value, 64 bits, in a step tree."""
  return keccak256(b'\x07' + index.to_bytes(8, 'big') + value.to_bytes(8, 'big'))
