"""The networks of the golden files of the diffusion transformer, and what tests do with them."""
import functools

import jax
import numpy as np

from jaxlab.models import dit_sampler, dit_weights
from jaxlab.models.dit import DiT, init_params


def flux_model(**change):
  return DiT(**{'in_channels': 16, 'text_dim': 24, 'num_double': 2, 'num_single': 2, 'num_heads': 2,
                'head_dim': 16, 'axes': (4, 6, 6), 'pooled_dim': 12, 'guidance': True, **change})


def topi_model():
  return flux_model(num_single=3, guidance=False)


def qwen_model():
  return flux_model(num_single=0, pooled_dim=0, guidance=False, family='qwen')


def state_dict(golden, prefix):
  """The weights of a golden file as diffusers names and lays them out."""
  state = {}
  for key in golden.unread():
    if key.startswith(prefix):
      module, leaf = key.removeprefix(prefix).rsplit('.', 1)
      value = golden[key]
      state[f'{module}.{"bias" if leaf == "bias" else "weight"}'] = (
          value.T if leaf == 'kernel' else value)
  return state


def params(golden, prefix, model):
  """Our parameters of a golden file."""
  return dit_weights.params_from_torch(state_dict(golden, prefix), model)


@functools.cache
def random_params(model):
  """Parameters away from the start, where the velocity is 0; NumPy, so that nothing compiles."""
  rng = np.random.default_rng(0)

  def leaf(path, like):
    x = rng.normal(size=like.shape).astype(np.float32)
    kind = path[-1].key
    return x / like.shape[0]**.5 if kind == 'kernel' else .1 * x + (kind == 'scale')

  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.partial(jax.jit, static_argnums=0, static_argnames='prune_from')
def velocity(model, params, x, sigma, conditions, **options):
  """`dit_sampler.velocity` without the scores, compiled."""
  return dit_sampler.velocity(model, params, x, sigma, conditions, **options)[0]
