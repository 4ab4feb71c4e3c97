"""ToPi's sampling against sampling with all tokens; the unpruned forward pass against diffusers.

  python -m benchmarks.topi_speed [--json=FILE]

1024 target, 1024 reference and 256 text tokens, FLUX-type blocks at reduced width. First one
forward pass of the same random weights as diffusers' FluxTransformer2DModel; then whole sampling
runs of 28 steps with ToPi (anchors and scoring inside the time) and without, in turns: at tau = .9,
the tau of the quality table, and at 50 % pruned. The network of the sampling runs is not trained:
its queries and keys share a bias, so that attention goes by position as in networks that edit a
region, and the target covers the middle quarter of the reference. What tau keeps follows from these
choices and is printed; a trained network may keep more. The exit status is 1 below the bars.
"""
import functools
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import comparison
from jaxlab.models import dit_sampler, dit_tokens, dit_weights, rectified_flow
from jaxlab.models.dit import DiT, init_params
from jaxlab.models.dit_sampler import Conditions, Prompt
from jaxlab.systems.topi import cost, sampler

REPETITIONS = flags.DEFINE_integer('repetitions', 5, 'Timed sampling runs.', lower_bound=1)
PASSES = flags.DEFINE_integer('passes', 7, 'Timed forward passes.', lower_bound=1)

N_TXT, GRID, STEPS = 256, (32, 32), 28
N_TARGET = GRID[0] * GRID[1]
TEXT_DIM, POOLED_DIM, CHANNELS = 256, 64, 64
HEADS, HEAD_DIM, AXES, DOUBLE, SINGLE = 4, 64, (16, 24, 24), 2, 4
SHARPNESS = 3.0  # scale of the normalised queries and keys; it decides what tau keeps
BARS = {'diffusers': 1.0, 'tau': 1.3, '50 %': 1.2}


def make_model(**options):
  """The network, without or with an embedding of guidance."""
  return DiT(CHANNELS, TEXT_DIM, DOUBLE, SINGLE, HEADS, HEAD_DIM, AXES, pooled_dim=POOLED_DIM,
             **options)


def make_conditions(target_ids=None):
  """Random conditions of one sample; `target_ids` are the positions of the target."""
  keys = jax.random.split(jax.random.key(1), 3)
  ids, txt_ids = dit_tokens.flux_ids([GRID, GRID], N_TXT)
  if target_ids is not None:
    ids = np.concatenate([target_ids, ids[N_TARGET:]])
  normal = lambda key, *shape: jax.random.normal(key, (1, *shape))
  return Conditions(Prompt(normal(keys[0], N_TXT, TEXT_DIM), normal(keys[1], POOLED_DIM)),
                    normal(keys[2], N_TARGET, CHANNELS), ids, txt_ids)


def forward_row():
  """Our forward pass against diffusers' on the same weights; None without diffusers."""
  try:
    import diffusers
    import torch
  except ImportError:
    print('diffusers is not installed: the forward pass is not compared')
    return None
  torch.manual_seed(0)
  theirs = diffusers.FluxTransformer2DModel(
      in_channels=CHANNELS, num_layers=DOUBLE, num_single_layers=SINGLE, num_attention_heads=HEADS,
      attention_head_dim=HEAD_DIM, joint_attention_dim=TEXT_DIM, pooled_projection_dim=POOLED_DIM,
      guidance_embeds=False, axes_dims_rope=AXES).eval()
  model = make_model()
  params = jax.tree.map(jnp.asarray, dit_weights.params_from_torch(
      {name: value.numpy() for name, value in theirs.state_dict().items()}, model))
  c, x = make_conditions(), jax.random.normal(jax.random.key(2), (1, N_TARGET, CHANNELS))
  ours = jax.jit(lambda x: dit_sampler.velocity(model, params, x, 0.6, c)[0])
  tensor = lambda a: torch.from_numpy(np.array(a))
  arguments = {'hidden_states': tensor(jnp.concatenate([x, c.reference], axis=1)),
               'encoder_hidden_states': tensor(c.prompt.txt),
               'pooled_projections': tensor(c.prompt.pooled), 'timestep': torch.tensor([0.6]),
               'img_ids': tensor(c.img_ids), 'txt_ids': tensor(c.txt_ids), 'return_dict': False}

  def peer():
    with torch.inference_mode():
      return theirs(**arguments)[0][:, :N_TARGET].numpy()

  np.testing.assert_allclose(ours(x), peer(), atol=4e-4)
  times = comparison.medians({'ours': lambda: ours(x), 'peer': peer}, PASSES.value)
  return {'name': f'forward, width {model.width}: diffusers', 'ours': times['ours'],
          'peer': times['peer'], 'unit': 's', 'ratio': times['peer'] / times['ours']}


def positional_params(model):
  """Random parameters in which queries and keys share a bias: attention by position."""
  keys = jax.random.split(jax.random.key(3), 3)
  params = init_params(model, keys[0])
  noise = lambda path, leaf: leaf + 0.02 * jax.random.normal(
      jax.random.fold_in(keys[1], zlib.crc32(jax.tree_util.keystr(path).encode())), leaf.shape)
  params = jax.tree_util.tree_map_with_path(noise, params)
  direction = jnp.tile(jax.random.normal(keys[2], (HEADS * HEAD_DIM,)), 2)

  def shape(path, leaf):
    names = [key.key for key in path]
    if names[-2] in ('img_qkv', 'qkv_mlp') and names[-1] == 'bias':
      return leaf.at[:len(direction)].add(4 * direction)
    return leaf * SHARPNESS if names[-2].endswith(('q_norm', 'k_norm')) else leaf

  return jax.tree_util.tree_map_with_path(shape, params)


def sampling_rows():
  """Whole sampling runs with ToPi against the same without."""
  model = make_model()
  params = positional_params(model)
  rows, columns = (GRID[0] / 4 + np.arange(GRID[0]) / 2 for _ in range(2))
  middle = np.stack(np.meshgrid([0], rows, columns, indexing='ij'), -1).reshape(-1, 3)
  c = make_conditions(middle.astype(np.float32))
  noise = jax.random.normal(jax.random.key(4), (1, N_TARGET, CHANNELS))
  sigmas = rectified_flow.sigma_grid(STEPS, N_TARGET)
  common = {'pivotal': (3, 4), 'first_layer': sampler.scaled_first_layer(model.num_layers),
            'interval': sampler.scaled_interval(STEPS)}
  budgets = {'tau': {'tau': 0.9}, '50 %': {'pruned': 0.5}}
  kept = {}

  def pruned(name):
    out = sampler.sample(model, params, noise, c, sigmas,
                         sampler.Pruning(**common, **budgets[name]))
    kept[name] = out.kept
    return jax.block_until_ready(out.latents)

  plain = lambda: jax.block_until_ready(dit_sampler.sample(model, params, noise, c, sigmas))
  programs = {'plain': plain, **{name: functools.partial(pruned, name) for name in budgets}}
  times = comparison.medians(programs, REPETITIONS.value)
  flops = functools.partial(cost.sampling_flops, model, N_TXT, N_TARGET, total=N_TARGET,
                            first_layer=common['first_layer'])
  full = flops(kept=[N_TARGET] * STEPS)
  made = []
  for name in budgets:
    late = [k for step, k in enumerate(kept[name]) if step % common['interval']]
    anchors = STEPS - len(late)
    less = full / flops(kept=kept[name], scored=anchors * len(common['pivotal']))
    label = f'{name}: keeps {np.mean(late) / N_TARGET:.2f}, FLOPs {less:.2f} x fewer: all tokens'
    made.append({'name': label, 'ours': times[name], 'peer': times['plain'], 'unit': 's',
                 'ratio': times['plain'] / times[name]})
  return made


def main(_):
  forward = forward_row()
  rows = ([forward] if forward else []) + sampling_rows()
  print(f'{N_TARGET} target, {N_TARGET} reference, {N_TXT} text tokens, {DOUBLE} + {SINGLE} blocks '
        f'on {jax.devices()[0].device_kind}')
  comparison.show(rows, 'ours: peer')
  under = [row['name'] for row in rows for bar, least in BARS.items()
           if bar in row['name'] and row['ratio'] < least]
  if under:
    sys.exit(f'below the bar: {"; ".join(under)}')


if __name__ == '__main__':
  app.run(main)
