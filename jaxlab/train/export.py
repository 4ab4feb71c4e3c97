"""Parameters as files: {path 'a/b/kernel': array} in npz or safetensors, and checkpoints of them."""
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxlab.config import ConfigError, require
from jaxlab.models.pretrained import read_safetensors_folder
from jaxlab.train.checkpoints import checksums, flatten, newest_step

FORMATS = ('.npz', '.safetensors')


def named(params):
  """{path 'a/b/kernel': leaf} of parameters."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def unnamed(tensors, template, where):
  """Parameters like `template` of what `named` gives; the leaves take its dtypes.

  Args:
    tensors: {path 'a/b/kernel': array}.
    template: pytree of arrays or shapes.
    where: what an error calls the tensors.

  Raises:
    ConfigError: missing or left-over names and wrong shapes, all listed.
  """
  wanted = named(template)
  wrong = [f'{name} is missing' for name in sorted(wanted.keys() - tensors.keys())]
  wrong += [f'{name} is left over' for name in sorted(tensors.keys() - wanted.keys())]
  wrong += [f'{name} has shape {tensors[name].shape}, expected {wanted[name].shape}'
            for name in sorted(wanted.keys() & tensors.keys())
            if tensors[name].shape != wanted[name].shape]
  require(not wrong, where, 'the parameters of this model', '; '.join(wrong))
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: tensors[jax.tree_util.keystr(path, simple=True, separator='/')].astype(
          leaf.dtype), template)


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
    return _safetensors().load_file(path)
  except (OSError, ValueError) as error:
    raise ConfigError(f'--input={path}: cannot be read ({error})') from error


def save_params(params, directory):
  """Makes a checkpoint of parameters, for `init_from`, `evaluate` and `predict`.

  Args:
    params: pytree of arrays.
    directory: folder of the new checkpoint; ConfigError if it holds one.
  """
  directory = pathlib.Path(directory).absolute()
  require(newest_step(directory) is None, '--workdir', 'a folder without checkpoints',
          str(directory))
  leaves = {f'.params{name}': leaf for name, leaf in flatten(params).items()}
  meta = ocp.args.JsonSave({'checksums': checksums(leaves)})
  with ocp.CheckpointManager(directory / 'checkpoints') as manager:
    manager.save(0, args=ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=meta))


def _safetensors():
  try:
    from safetensors import numpy as safetensors  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ConfigError("safetensors files need: pip install 'jaxlab[text]'") from error
  return safetensors
