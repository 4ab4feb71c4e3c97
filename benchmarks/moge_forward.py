"""DINOv2 ViT-S at MoGe's size against transformers' Dinov2Model on the same weights.

  python -m benchmarks.moge_forward [--json=FILE]

An image of 512 x 384 is cut as MoGe cuts it at 1200 tokens: 40 x 30 patches, 560 x 420 pixels. The
features of the last block are compared first. The sides take turns of some passes; the median of
all counts. Exit status 1 if we are slower.
"""
import statistics
import sys
import time

import jax
import numpy as np
from absl import app, flags

from benchmarks import comparison
from jaxlab.models import dinov2, dinov2_weights
from jaxlab.systems.moge2.network import token_grid

TURNS = flags.DEFINE_integer('turns', 5, 'Turns of each side.', lower_bound=1)
PASSES = flags.DEFINE_integer('passes', 4, 'Timed forward passes of a turn.', lower_bound=1)


def main(_):
  import torch
  import transformers
  torch.manual_seed(0)
  model = dinov2.make_encoder('vits14')
  theirs = transformers.Dinov2Model(transformers.Dinov2Config(
      hidden_size=model.width, num_hidden_layers=model.depth, num_attention_heads=model.num_heads,
      patch_size=model.patch, image_size=model.grid * model.patch)).eval()
  params = jax.device_put(dinov2_weights.params_from_torch(
      {name: value.numpy() for name, value in theirs.state_dict().items()}, model))
  rows, columns = token_grid(1200, 512 / 384)
  shape = (1, rows * model.patch, columns * model.patch, 3)
  image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  tensor = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
  apply = jax.jit(lambda params, image: model.apply({'params': params}, image).patches)
  programs = {'ours': lambda: np.asarray(apply(params, image)),
              'peer': lambda: np.asarray(theirs(tensor).last_hidden_state[:, 1:])}
  with torch.no_grad():
    difference = np.abs(programs['ours']() - programs['peer']()).mean()
    # transformers interpolates the positions without MoGe's offset of 0.1.
    print(f'mean difference of the features {difference:.4f}')
    if difference > 0.05:
      sys.exit('the features differ')
    times = {name: [] for name in programs}
    for _ in range(TURNS.value):
      for name, program in programs.items():
        for _ in range(PASSES.value):
          start = time.perf_counter()
          program()
          times[name].append(time.perf_counter() - start)
  times = {name: statistics.median(values) for name, values in times.items()}
  row = {'name': f'ViT-S, {rows} x {columns} patches: transformers', **times, 'unit': 's',
         'ratio': times['peer'] / times['ours']}
  comparison.show([row], 'ours: peer')
  if row['ratio'] < 1:
    sys.exit('slower than PyTorch')


if __name__ == '__main__':
  app.run(main)
