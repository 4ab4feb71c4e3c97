"""Latents as tokens of a diffusion transformer, and where the tokens stand.

The autoencoder is outside of this package: latents come from files and go to files. The only
encoder here is `pack` itself, which makes tokens of pixels too.
"""
import numpy as np


def pack(latents, patch=2):
  """Latents [B, C, h, w] as tokens [B, h w / patch^2, C patch^2], channels in the order (c, y, x).

  Raises:
    ValueError: the patch does not divide a side.
  """
  batch, channels, height, width = latents.shape
  if height % patch or width % patch:
    raise ValueError(f'latents: expected sides that {patch} divides, got {height} x {width}')
  x = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
  return x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch**2)


def unpack(tokens, height, width, patch=2):
  """The inverse of `pack`; `height` and `width` are those of the latents."""
  x = tokens.reshape(len(tokens), height // patch, width // patch, -1, patch, patch)
  return x.transpose(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def _grid(first, rows, columns):
  grid = np.stack(np.meshgrid(first, rows, columns, indexing='ij'), axis=-1)
  return grid.reshape(-1, 3).astype(np.float32)


def flux_ids(grids, n_txt):
  """Positions (image, row, column) of a FLUX type network.

  Args:
    grids: (rows, columns) in tokens of the target, then of each reference image; image number i
      stands at (i, 0.., 0..).
    n_txt: text tokens, all at 0.

  Returns:
    (img_ids float32 [n, 3], txt_ids float32 [n_txt, 3]).
  """
  ids = [_grid([image], np.arange(rows), np.arange(columns))
         for image, (rows, columns) in enumerate(grids)]
  return np.concatenate(ids), np.zeros((n_txt, 3), np.float32)


def qwen_ids(grids, n_txt):
  """Positions of a Qwen-Image type network: rows and columns from the centre, text beyond them.

  Args and result are those of `flux_ids`.
  """
  centred = lambda size: np.arange(size) - (size - size // 2)
  ids = [_grid([image], centred(rows), centred(columns))
         for image, (rows, columns) in enumerate(grids)]
  first = max(max(rows // 2, columns // 2) for rows, columns in grids)
  text = np.repeat(first + np.arange(n_txt, dtype=np.float32)[:, None], 3, axis=1)
  return np.concatenate(ids), text
