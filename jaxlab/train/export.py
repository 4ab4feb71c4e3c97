"""Parameters by name, {path "a/b/kernel": array}, and checkpoints of them."""
import pathlib

import jax
import orbax.checkpoint as ocp

from jaxlab.config import require
from jaxlab.train.checkpoints import checksums, flatten, saved_steps


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


def save_params(params, directory):
  """Makes a checkpoint of parameters, for `init_from`, `evaluate` and `predict`.

  Args:
    params: pytree of arrays.
    directory: folder of the new checkpoint; ConfigError if it holds one.
  """
  directory = pathlib.Path(directory).absolute()
  require(not saved_steps(directory)[1], '--workdir', 'a folder without checkpoints',
          str(directory))
  leaves = {f'.params{name}': leaf for name, leaf in flatten(params).items()}
  meta = ocp.args.JsonSave({'checksums': checksums(leaves)})
  with ocp.CheckpointManager(directory / 'checkpoints') as manager:
    manager.save(0, args=ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=meta))
