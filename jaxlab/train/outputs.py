"""Files of predictions: npz for arrays of any shape, TSV and JSONL with a line an example."""
import json
import pathlib

import numpy as np

from jaxlab.config import require

FORMATS = ('.npz', '.tsv', '.jsonl')


def check_path(path, formats=FORMATS):
  """Raises ConfigError unless the file's name ends in one of `formats` and its folder is there."""
  path = pathlib.Path(path)
  require(path.suffix in formats, '--output', f'a file ending in {", ".join(formats)}', str(path))
  require(path.parent.is_dir(), '--output', 'a file in a folder that is there', str(path))


def write(path, outputs):
  """Writes outputs, in the format that the name of the file says.

  TSV has a header and a column an output, or name[i] for each number of an output that is a vector.
  JSONL has an object a line.

  Args:
    path: file to write.
    outputs: {name: array [N, ...]}.

  Raises:
    ConfigError: an unknown ending, or an output of more than two dimensions in a TSV.
  """
  check_path(path)
  suffix = pathlib.Path(path).suffix
  if suffix == '.npz':
    np.savez(path, **outputs)
    return
  rows = zip(*(np.asarray(values).tolist() for values in outputs.values()))
  if suffix == '.jsonl':
    text = (json.dumps(dict(zip(outputs, row))) for row in rows)
  else:
    text = _tsv(outputs, rows)
  with open(path, 'w', encoding='utf-8') as file:
    file.writelines(f'{line}\n' for line in text)


def _tsv(outputs, rows):
  names = []
  for name, values in outputs.items():
    require(values.ndim <= 2, '--output', f'.npz or .jsonl for {name}, which has more than a row '
            'of numbers an example', list(values.shape))
    names += [name] if values.ndim == 1 else [f'{name}[{i}]' for i in range(values.shape[1])]
  yield '\t'.join(names)
  for row in rows:
    cells = (cell for part in row for cell in (part if isinstance(part, list) else [part]))
    yield '\t'.join(map(str, cells))
