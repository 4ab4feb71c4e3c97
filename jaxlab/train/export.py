"""Parameters as one file, {path 'a/b/kernel': array} in npz or safetensors, and back."""
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxlab.config import ConfigError, require
from jaxlab.train.checkpoints import checksums, flatten, load_collection, newest_step

FORMATS = ('.npz', '.safetensors')


def _names(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def export_params(workdir, template, path):
  """Writes the parameters of the newest checkpoint of a run to a file.

  Args:
    workdir: of the run, central or federated.
    template: pytree of arrays shaped like the parameters.
    path: .npz or .safetensors file to write.

  Returns:
    Names of the arrays.

  Raises:
    ConfigError: no checkpoint, other parameters, or an unknown ending.
  """
  path = pathlib.Path(path)
  require(path.suffix in FORMATS, '--output', f'a file ending in {" or ".join(FORMATS)}', str(path))
  arrays = _names(load_collection(workdir, template))
  if path.suffix == '.npz':
    np.savez(path, **arrays)
  else:
    _safetensors().save_file(arrays, path)
  return sorted(arrays)


def import_params(path, template, directory):
  """Makes a checkpoint of the parameters in a file, for `init_from`, `evaluate` and `predict`.

  Args:
    path: .npz or .safetensors file, as `export_params` writes it.
    template: pytree of arrays; names and shapes must agree.
    directory: folder of the new checkpoint; it may not hold one.

  Raises:
    ConfigError: missing or left-over names and wrong shapes, all listed; a file that cannot be
      read; a folder that holds a checkpoint.
  """
  path, directory = pathlib.Path(path), pathlib.Path(directory).absolute()
  require(path.suffix in FORMATS, '--input', f'a file ending in {" or ".join(FORMATS)}', str(path))
  require(newest_step(directory) is None, '--workdir', 'a folder without checkpoints',
          str(directory))
  try:
    if path.suffix == '.npz':
      with np.load(path) as file:
        arrays = dict(file)
    else:
      arrays = _safetensors().load_file(path)
  except (OSError, ValueError) as error:
    raise ConfigError(f'--input={path}: cannot be read ({error})') from error
  wanted = _names(template)
  wrong = [f'{name} is missing' for name in sorted(wanted.keys() - arrays.keys())]
  wrong += [f'{name} is left over' for name in sorted(arrays.keys() - wanted.keys())]
  wrong += [f'{name} has shape {arrays[name].shape}, expected {wanted[name].shape}'
            for name in sorted(wanted.keys() & arrays.keys())
            if arrays[name].shape != wanted[name].shape]
  require(not wrong, f'--input={path}', 'the parameters of this model', '; '.join(wrong))
  params = jax.tree_util.tree_map_with_path(
      lambda where, leaf: arrays[jax.tree_util.keystr(where, simple=True, separator='/')].astype(
          leaf.dtype), template)
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
