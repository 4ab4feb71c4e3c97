"""Side-by-side pictures of samples."""
import pathlib

import numpy as np


def preview(latents, like):
  """RGB [B, h, w, 3] in [0, 1] of latents [B, C, h, w]: their three main directions.

  A latent has no colours of its own; the directions and the scale are those of `like`, so that two
  sets of latents can be compared.
  """
  channels = like.shape[1]
  flat = np.moveaxis(np.asarray(like, np.float64), 1, -1).reshape(-1, channels)
  mean = flat.mean(0)
  directions = np.linalg.svd(flat - mean, full_matrices=False)[2][:3].T
  project = lambda x: (np.moveaxis(np.asarray(x, np.float64), 1, -1) - mean) @ directions
  low, high = np.percentile(project(like), [1, 99], axis=(0, 1, 2))
  colours = np.clip((project(latents) - low) / np.maximum(high - low, 1e-12), 0, 1)
  return np.pad(colours, ((0, 0),) * 3 + ((0, 3 - colours.shape[-1]),))


def grid(rows, path):
  """Writes a PNG with a labelled row of pictures for each entry.

  Args:
    rows: label -> [B, H, W] in [-1, 1], or [B, H, W, 3] in [0, 1].
    path: PNG file; its folder is made.
  """
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot
  columns = max(len(images) for images in rows.values())
  figure, axes = pyplot.subplots(len(rows), columns, squeeze=False,
                                 figsize=(1.1 * columns + 1.2, 1.1 * len(rows)))
  for (label, images), line in zip(rows.items(), axes):
    for axis in line:
      axis.set(xticks=[], yticks=[])
      axis.set_frame_on(False)
    line[0].set_ylabel(label, rotation=0, ha='right', va='center', fontsize=8)
    for image, axis in zip(images, line):
      axis.imshow(image, cmap='gray', vmin=-1 if image.ndim == 2 else 0, vmax=1)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
