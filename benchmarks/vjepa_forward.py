"""V-JEPA 2's encoder against transformers' VJEPA2Model on the same random weights.

  python -m benchmarks.vjepa_forward [--json=FILE]

Clips of 8 frames of 128 x 128, 256 tokens, ViT-S sized; in turns, after a check that both compute
the same. The exit status is 1 where ours is slower.
"""
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import comparison
from jaxlab.models import vjepa2, vjepa2_weights

REPETITIONS = flags.DEFINE_integer('repetitions', 9, 'Timed calls of each.', lower_bound=1)

CONFIG = vjepa2.VJEPA2Config(crop_size=128, patch_size=16, tubelet_size=2, hidden_size=384,
                             num_attention_heads=6, num_hidden_layers=12, pred_hidden_size=0)
FRAMES, BATCHES = 8, (1, 4)
BAR = 1.0


def make_peer():
  """transformers' model of the same shape, its encoder alone."""
  import torch
  from transformers import VJEPA2Config, VJEPA2Model
  torch.manual_seed(0)
  return VJEPA2Model(VJEPA2Config(
      crop_size=CONFIG.crop_size, patch_size=CONFIG.patch_size, tubelet_size=CONFIG.tubelet_size,
      frames_per_clip=FRAMES, hidden_size=CONFIG.hidden_size,
      num_attention_heads=CONFIG.num_attention_heads,
      num_hidden_layers=CONFIG.num_hidden_layers, mlp_ratio=CONFIG.mlp_ratio)).eval()


def main(_):
  import torch
  peer = make_peer()
  params = jax.tree.map(jnp.asarray, vjepa2_weights.params_from_torch(
      {name: value.numpy() for name, value in peer.state_dict().items()}, CONFIG)['encoder'])
  encode = jax.jit(lambda x: vjepa2.Encoder(CONFIG).apply({'params': params}, x))
  rows = []
  for batch in BATCHES:
    frames = np.random.default_rng(0).normal(
        size=(batch, FRAMES, CONFIG.crop_size, CONFIG.crop_size, 3)).astype(np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 1, 4, 2, 3)))

    def ours(frames=frames):
      return jax.block_until_ready(encode(frames))

    def theirs(pixels=pixels):
      with torch.inference_mode():
        return peer(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state.numpy()

    np.testing.assert_allclose(ours(), theirs(), atol=5e-4)
    times = comparison.medians({'ours': ours, 'peer': theirs}, REPETITIONS.value)
    rows.append({'name': f'batch {batch}: transformers', **times, 'unit': 's',
                 'ratio': times['peer'] / times['ours']})
  comparison.show(rows, 'ours: peer')
  if any(row['ratio'] < BAR for row in rows):
    sys.exit('slower than the peer')


if __name__ == '__main__':
  app.run(main)
