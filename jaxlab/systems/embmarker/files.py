"""Files: embeddings and their texts, the owner's key, word counts, the official cache."""
import io
import json
import pathlib
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.config import require
from jaxlab.systems.embmarker.verification import Challenge
from jaxlab.systems.embmarker.watermark import KeySpec, check_counts, check_embeddings

ENDINGS = ('.npz', '.npy')


class Key(NamedTuple):
  """All that the owner keeps.

  Attributes:
    spec: KeySpec.
    triggers: the trigger words.
    tokenizer: the json of the tokenizer whose tokens they are.
    challenge: Challenge.
    max_length: tokens of a text that are searched for triggers.
  """
  spec: KeySpec
  triggers: tuple[str, ...]
  tokenizer: str
  challenge: Challenge
  max_length: int


def read_texts(path):
  """The lines of a UTF-8 file, one text each; ValueError names file, line and column of a bad one.
  """
  path = pathlib.Path(path)
  require(path.is_file(), 'texts', 'a file with a text a line', str(path))
  texts = []
  for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
    try:
      texts.append(line.removesuffix(b'\r').decode('utf-8'))
    except UnicodeDecodeError as error:
      raise ValueError(f'{path}: line {number}, column {error.start + 1}: expected UTF-8, got byte '
                       f'{line[error.start]:#04x}') from error
  return texts[:-1] if texts and not texts[-1] else texts


def read_embeddings(path, texts=None):
  """(texts or None, float32 [N, D]) of a file.

  Args:
    path: .npz with 'embeddings' [N, D] and, where it has them, 'texts' [N], or .npy of [N, D].
    texts: file with a text a line, in place of those in `path`.

  Raises:
    ConfigError: no such file.
    ValueError: another content, rows that are no directions, or as many texts as rows are not.
  """
  path = pathlib.Path(path)
  require(path.suffix in ENDINGS and path.is_file(), 'embeddings',
          f'a file ending in {" or ".join(ENDINGS)}', str(path))
  own = None
  try:
    loaded = np.load(path)
    if path.suffix == '.npy':
      vectors = loaded
    else:
      with loaded:
        if 'embeddings' not in loaded:
          raise ValueError(f"expected an array 'embeddings', found {', '.join(loaded) or 'none'}")
        vectors = loaded['embeddings']
        own = [str(t) for t in loaded['texts']] if 'texts' in loaded else None
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path}: {error}') from error
  own = own if texts is None else read_texts(texts)
  return own, check_embeddings(vectors, str(path), rows=None if own is None else len(own))


def write_embeddings(path, texts: Sequence[str], embeddings):
  """Writes the .npz that `read_embeddings` reads."""
  require(pathlib.Path(path).suffix == '.npz', 'output', 'a file ending in .npz', str(path))
  np.savez(path, texts=np.array(texts, np.str_), embeddings=np.asarray(embeddings, np.float32))


def write_key(path, key):
  """Writes a Key as .npz."""
  require(pathlib.Path(path).suffix == '.npz', 'key', 'a file ending in .npz', str(path))
  np.savez(path, trigger_ids=key.spec.trigger_ids, target=key.spec.target,
           max_triggers=key.spec.max_triggers, triggers=np.array(key.triggers, np.str_),
           tokenizer=key.tokenizer, texts=np.array(key.challenge.texts, np.str_),
           num_triggers=key.challenge.num_triggers, target_text=key.challenge.target_text,
           max_length=key.max_length)


def read_key(path):
  """The Key of a file; ConfigError if there is none, ValueError if it is another file."""
  path = pathlib.Path(path)
  require(path.is_file(), 'key', 'a file that select wrote', str(path))
  try:
    with np.load(path) as file:
      a = dict(file)
    spec = KeySpec(a['trigger_ids'], a['target'], int(a['max_triggers']))
    challenge = Challenge(tuple(map(str, a['texts'])), a['num_triggers'], str(a['target_text']))
    return Key(spec, tuple(map(str, a['triggers'])), str(a['tokenizer']), challenge,
               int(a['max_length']))
  except (KeyError, OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path}: expected a key that select wrote ({error})') from error


def read_counts(path):
  """{token: documents} of a json file, in its order.

  Raises:
    ConfigError: no such file.
    ValueError: no json object of whole numbers.
  """
  path = pathlib.Path(path)
  require(path.is_file(), 'counts', 'a json file', str(path))
  try:
    counts = json.loads(path.read_text(encoding='utf-8'))
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: expected UTF-8: {error}') from error
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: line {error.lineno}, column {error.colno}: expected json: '
                     f'{error.msg}') from error
  if not isinstance(counts, dict):
    raise ValueError(f'{path}: expected a json object, got {type(counts).__name__}')
  check_counts(counts, path)
  return counts


def _record(dim, blocks, id_bytes):
  return np.dtype([('id', f'V{id_bytes}'), ('vectors', '<f4', (blocks, dim))])


def write_cache(path, ids, vectors, *, id_bytes=8):
  """Writes the official cache: records of an id and one or more blocks of float32, little endian.

  Args:
    path: file.
    ids: non-negative integers, written big endian, or bytes such as an md5.
    vectors: [N, D], or [N, blocks, D] (titles and bodies of news).
    id_bytes: length of an id, 8; 16 for AG News.

  Raises:
    ValueError: an id that does not fit, or as many ids as vectors are not.
  """
  vectors = np.asarray(vectors, np.float32)
  vectors = vectors[:, None] if vectors.ndim == 2 else vectors
  if len(ids) != len(vectors):
    raise ValueError(f'ids: expected {len(vectors)}, one a vector, got {len(ids)}')
  out = io.BytesIO()
  for i, vector in zip(ids, vectors):
    if not isinstance(i, bytes) and not 0 <= i < 256**id_bytes:
      raise ValueError(f'ids: expected 0 to 256**{id_bytes} - 1, got {i}')
    name = i if isinstance(i, bytes) else int(i).to_bytes(id_bytes, 'big')
    if len(name) != id_bytes:
      raise ValueError(f'ids: expected {id_bytes} bytes, got {name!r}')
    out.write(name + vector.astype('<f4').tobytes())
  pathlib.Path(path).write_bytes(out.getvalue())


def read_cache(path, dim, *, blocks=1, id_bytes=8):
  """({id: record number}, vectors [N, blocks, D] mapped from the disk) of the official cache.

  Args:
    path: file.
    dim: D, 1536 in the paper.
    blocks: vectors a record, 2 in MIND's file, of which the first is used.
    id_bytes: 8 for ids that are integers; of another length they are bytes.

  Raises:
    ConfigError: no such file.
    ValueError: its size is no multiple of a record's, or an id stands twice.
  """
  path = pathlib.Path(path)
  require(path.is_file(), 'cache', 'a file', str(path))
  record = _record(dim, blocks, id_bytes)
  size = path.stat().st_size
  if not size or size % record.itemsize:
    raise ValueError(f'{path}: expected records of {record.itemsize} bytes (an id of {id_bytes}, '
                     f'{blocks} x {dim} floats), got {size} bytes')
  records = np.memmap(path, record, 'r')
  names = [bytes(i) for i in records['id']]
  ids = [int.from_bytes(name, 'big') for name in names] if id_bytes == 8 else names
  index = {name: number for number, name in enumerate(ids)}
  if len(index) != len(ids):
    twice = next(name for number, name in enumerate(ids) if index[name] != number)
    raise ValueError(f'{path}: record {ids.index(twice)}: expected each id once, got {twice!r}')
  return index, records['vectors']
