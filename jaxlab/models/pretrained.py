"""Folders of pretrained weights: config.json, model.safetensors or its shards, tokenizer files."""
import json
import pathlib
import shutil
import zipfile

import jax
import numpy as np

from jaxlab.config import ConfigError, require

FORMATS = ('.npz', '.safetensors')
WEIGHTS, INDEX, CONFIG = 'model.safetensors', 'model.safetensors.index.json', 'config.json'
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
                   'vocab.txt', 'vocab.json', 'merges.txt', 'chat_template.jinja')

# Our poolers by their names in sentence-transformers; the roles of special tokens by theirs.
_POOLING = {'cls': 'cls_token', 'mean': 'mean_tokens', 'max': 'max_tokens'}
_ROLES = {'pad': ('[PAD]', '<pad>'), 'unk': ('[UNK]', '<unk>'), 'cls': ('[CLS]', '<s>'),
          'sep': ('[SEP]', '</s>'), 'mask': ('[MASK]', '<mask>')}


def read_json(path):
  """The object in a json file.

  Raises:
    ConfigError: there is no such file.
    ValueError: it is no UTF-8, no json, or no object.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(f'{path}: no such file')
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: expected UTF-8, got byte {error.object[error.start]:#04x} at '
                     f'{error.start}') from error
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: line {error.lineno}, column {error.colno}: expected json: '
                     f'{error.msg}') from error
  if not isinstance(content, dict):
    raise ValueError(f'{path}: expected a json object, got {type(content).__name__}')
  return content


class StoredTensor:
  """A tensor of a safetensors file, which is read each time that NumPy asks for its values.

  Attributes:
    shape: of the tensor.
    T: its transpose, stored likewise.
  """

  def __init__(self, file, name, dtype=None, transposed=False):
    self._file, self._name, self._dtype, self._transposed = file, name, dtype, transposed

  @property
  def shape(self):
    shape = tuple(self._file.get_slice(self._name).get_shape())
    return shape[::-1] if self._transposed else shape

  @property
  def T(self):
    return StoredTensor(self._file, self._name, self._dtype, not self._transposed)

  def __array__(self, dtype=None, copy=None):
    value = self._file.get_tensor(self._name)
    value = value.astype(dtype or self._dtype or value.dtype, copy=False)
    return value.T if self._transposed else value


def read_safetensors_folder(folder):
  """All tensors of a folder, {name: array}; see `open_safetensors_folder`."""
  return {name: np.asarray(tensor) for name, tensor in open_safetensors_folder(folder).items()}


def open_safetensors_folder(folder, dtype=None):
  """{name: StoredTensor} of a folder's model.safetensors or the shards of its index.

  Args:
    folder: of the files.
    dtype: that the values are converted to as they are read; None for the stored one.

  Raises:
    ConfigError: no such folder, or no weights in it.
    ValueError: a file that is no safetensors file, or shards that do not hold what the index says.
  """
  folder = pathlib.Path(folder)
  if (folder / WEIGHTS).is_file():
    return _open_file(folder / WEIGHTS, dtype)
  if not (folder / INDEX).is_file():
    raise ConfigError(f'{folder}: expected {WEIGHTS} or {INDEX}, found neither; weights in other '
                      'forms, such as pytorch_model.bin, must be saved as safetensors first')
  placed = read_json(folder / INDEX).get('weight_map')
  if not isinstance(placed, dict):
    raise ValueError(f'{folder / INDEX}: weight_map: expected an object, got {placed!r}')
  tensors = {}
  for shard in sorted(set(placed.values())):
    if not (folder / shard).is_file():
      raise ValueError(f'{folder / INDEX}: names {shard}, which is not there')
    tensors.update(_open_file(folder / shard, dtype))
  absent = sorted(placed.keys() - tensors.keys())
  if absent:
    raise ValueError(f'{folder / INDEX}: not in the shards: {", ".join(absent)}')
  return tensors


def checked_mapping(tensors, shapes, *, ignored=()):
  """The tensors that a model wants, {name: array}, in the order of `shapes`.

  Args:
    tensors: {name: array}.
    shapes: {name: shape} of what must be there.
    ignored: names that may be left over.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  wrong = [f'{name} is missing' for name in shapes if name not in tensors]
  wrong += [f'{name} is left over' for name in tensors
            if name not in shapes and name not in ignored]
  wrong += [f'{name} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}'
            for name, shape in shapes.items()
            if name in tensors and tuple(tensors[name].shape) != tuple(shape)]
  if wrong:
    raise ValueError(f'the checkpoint is not of this model: {"; ".join(wrong)}')
  return {name: tensors[name] for name in shapes}


def write_safetensors_folder(folder, tensors, config, *, tokenizer_from=None):
  """Writes what `read_safetensors_folder` reads; transformers opens it too.

  Args:
    folder: to write to; it is made.
    tensors: {name: array}.
    config: what config.json holds, 'model_type' and 'architectures' among it.
    tokenizer_from: folder whose tokenizer files are copied, a `tokenizers.Tokenizer`, or None.
  """
  from safetensors.numpy import save_file
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
  save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})  # transformers insists on it
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
  if isinstance(tokenizer_from, str | pathlib.Path):
    for name in TOKENIZER_FILES:
      if (pathlib.Path(tokenizer_from) / name).is_file():
        shutil.copy(pathlib.Path(tokenizer_from) / name, folder / name)
  elif tokenizer_from is not None:
    tokenizer_from.save(str(folder / 'tokenizer.json'))


def check_pooling(pooler):
  """Raises ConfigError unless sentence-transformers has the pooler."""
  if pooler not in _POOLING:
    raise ConfigError(f'pooler: expected one of {", ".join(_POOLING)}, which sentence-transformers '
                      f'knows, got {pooler!r}')


def write_sentence_transformers_folder(folder, pooler, *, width, max_length):
  """Puts the files beside an encoder's that make sentence-transformers open its folder.

  modules.json (the encoder, its pooling, vectors of length 1), 1_Pooling/config.json,
  sentence_bert_config.json, and a tokenizer_config.json where there is none.

  Args:
    folder: that `write_safetensors_folder` wrote.
    pooler: 'cls', 'mean' or 'max'.
    width: D of the vectors.
    max_length: most tokens of a text.

  Raises:
    ConfigError: another pooler.
  """
  check_pooling(pooler)
  folder = pathlib.Path(folder)
  types = {'': 'Transformer', '1_Pooling': 'Pooling', '2_Normalize': 'Normalize'}
  files = {
      'modules.json': [
          {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{name}'}
          for i, (path, name) in enumerate(types.items())],
      '1_Pooling/config.json': {
          'word_embedding_dimension': width,
          **{f'pooling_mode_{mode}': name == pooler for name, mode in _POOLING.items()}},
      'sentence_bert_config.json': {'max_seq_length': max_length, 'do_lower_case': False}}
  if not (folder / 'tokenizer_config.json').is_file():
    files['tokenizer_config.json'] = _tokenizer_config(folder / 'tokenizer.json', max_length)
  for path in types:
    (folder / path).mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def _tokenizer_config(path, max_length):
  """What transformers has to know of a tokenizer.json: the roles of its special tokens."""
  there = {token['content'] for token in read_json(path).get('added_tokens', ())}
  roles = {f'{role}_token': next((name for name in names if name in there), None)
           for role, names in _ROLES.items()}
  return {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': max_length,
          **{role: token for role, token in roles.items() if token is not None}}


def write_tensors(path, tensors):
  """Writes {name: array} to a .npz or .safetensors file; ConfigError at another ending."""
  path = pathlib.Path(path)
  require(path.suffix in FORMATS, '--output', f'a file ending in {" or ".join(FORMATS)}', str(path))
  if path.suffix == '.npz':
    np.savez(path, **tensors)
  else:
    _safetensors().save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)


def read_tensors(path):
  """{name: array} of a .npz or .safetensors file, or of a folder with model.safetensors or shards.

  Raises:
    ConfigError: another ending, or what cannot be read.
  """
  path = pathlib.Path(path)
  require(path.suffix in FORMATS or path.is_dir(), '--input',
          f'a folder or a file ending in {" or ".join(FORMATS)}', str(path))
  try:
    if path.is_dir():
      return read_safetensors_folder(path)
    if path.suffix == '.npz':
      with np.load(path) as file:
        return dict(file)
    _safetensors()  # says what to install
    return {name: np.asarray(tensor) for name, tensor in _open_file(path, None).items()}
  except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
    raise ConfigError(f'--input={path}: cannot be read ({error})') from error


def unstack_layers(params):
  """Parameters with 'layers_0', 'layers_1', ... for stacked 'layers'; others as they are."""
  if 'layers' not in params:
    return params
  rest = {name: tree for name, tree in params.items() if name != 'layers'}
  count = len(jax.tree.leaves(params['layers'])[0])
  return {**rest, **{f'layers_{i}': jax.tree.map(lambda x: x[i], params['layers'])
                     for i in range(count)}}


def stack_layers(params):
  """The inverse of `unstack_layers`; the stacked leaves are NumPy arrays."""
  layers = {name: tree for name, tree in params.items() if name.startswith('layers_')}
  if not layers:
    return params
  rest = {name: tree for name, tree in params.items() if name not in layers}
  in_order = [layers[f'layers_{i}'] for i in range(len(layers))]
  return {**rest, 'layers': jax.tree.map(lambda *x: np.stack(x), *in_order)}


def _open_file(path, dtype):
  from safetensors import SafetensorError, safe_open
  try:
    file = safe_open(path, framework='numpy')
    return {name: StoredTensor(file, name, dtype) for name in file.keys()}
  except (SafetensorError, OSError, ValueError) as error:
    raise ValueError(f'{path}: expected a safetensors file: {error}') from error


def _safetensors():
  try:
    from safetensors import numpy as safetensors  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ConfigError("safetensors files need: pip install 'jaxlab[text]'") from error
  return safetensors
