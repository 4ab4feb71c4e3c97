"""Which layers carry the reference: measured once, offline, on a few samples."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.models.dit import HIDDEN
from jaxlab.models.dit_sampler import Conditions, velocity
from jaxlab.systems.topi import influence as influence_lib
from jaxlab.systems.topi import sampler

PIVOTAL = 3  # layers that score; with two, one network in nine lost the image at half the budget


def sensitivity(model, params, x, sigma, conditions):
  """Causal ablation: the change of the velocity when one layer's target may not see the reference.

  S_l = ||v_full - v_without||^2 / ||v_full||^2 per sample, where 'without' forbids layer l the
  attention from target queries to reference keys. One program whatever the number of layers.

  Args:
    model: DiT.
    params: its parameters.
    x: noisy targets [B, N, C].
    sigma: their noise levels, a scalar or [B].
    conditions: Conditions without a negative prompt.

  Returns:
    float32 [B, L].
  """
  prompt = conditions.prompt
  n_txt, n_target, n_reference = prompt.txt.shape[1], x.shape[1], conditions.reference.shape[1]
  is_target, is_reference = np.zeros((2, n_txt + n_target + n_reference), bool)
  is_target[n_txt:n_txt + n_target], is_reference[n_txt + n_target:] = True, True
  forbidden = HIDDEN * jnp.asarray(is_target[:, None] & is_reference, jnp.float32)[None, None]
  img = jnp.concatenate([x, conditions.reference], axis=1)

  def velocity_without(switch):
    return model.apply(
        {'params': params}, img, prompt.txt, prompt.pooled, jnp.broadcast_to(sigma, len(x)),
        conditions.img_ids, conditions.txt_ids, conditions.guidance, n_target=n_target,
        txt_mask=prompt.mask, attn_bias=lambda layer: switch[layer] * forbidden)[0]

  full = velocity(model, params, x, sigma, conditions._replace(negative=None))[0]
  square = lambda v: jnp.sum(v * v, axis=(1, 2))
  change = lambda switch: square(full - velocity_without(switch)) / square(full)
  return jax.lax.map(change, jnp.eye(model.num_layers)).T


def attention_mass(model, params, x, sigma, conditions):
  """Share of the target's attention that goes to the reference, mean over heads: [B, L]."""
  scores = velocity(model, params, x, sigma, conditions._replace(negative=None),
                    score_layers=range(model.num_layers))[1]
  return jnp.stack([scores[layer].received.sum(-1).mean(-1) / x.shape[1]
                    for layer in range(model.num_layers)], axis=1)


def layer_influence(model, params, x, sigma, conditions):
  """Influence by each layer alone [B, L, n_c]."""
  scores = velocity(model, params, x, sigma, conditions._replace(negative=None),
                    score_layers=range(model.num_layers))[1]
  return jnp.stack([influence_lib.influence(scores, (layer,))
                    for layer in range(model.num_layers)], axis=1)


def proxy_agreement(by_layer):
  """Spearman correlation of each layer's ranking with the mean ranking of all layers, [L].

  Args:
    by_layer: influence [B, L, n_c] as from `layer_influence`.
  """
  places = stats.rankdata(np.asarray(by_layer), axis=-1)
  mean = places.mean(1)
  correlations = [[stats.spearmanr(layer, overall).statistic for layer in sample]
                  for sample, overall in zip(places, mean)]
  return np.mean(correlations, axis=0)


def profile(model, params, x, sigma, conditions, score='ablation'):
  """The score of each layer [L], mean over samples; devices share the samples.

  Args:
    model: DiT.
    params: its parameters.
    x: noisy targets [S, N, C].
    sigma: [S].
    conditions: Conditions of these samples; a negative prompt is not looked at.
    score: 'ablation', 'mass' (attention to the reference; no substitute on small networks) or
      'proxy' (agreement with the ranking of all layers).
  """
  function = {'ablation': sensitivity, 'mass': attention_mass, 'proxy': layer_influence}[score]
  ids = jnp.broadcast_to(conditions.img_ids, (len(x), *conditions.img_ids.shape[-2:]))
  values = parallel.map_runs(
      _one_sample(function, model), (params, conditions.txt_ids), np.asarray(x), np.asarray(sigma),
      jax.tree.map(np.asarray, (conditions.prompt, conditions.reference, ids,
                                conditions.guidance)))[:, 0]
  return proxy_agreement(values) if score == 'proxy' else values.mean(0)


@functools.lru_cache
def _one_sample(function, model):
  def run(shared, x, sigma, sample):
    params, txt_ids = shared
    prompt, reference, img_ids, guidance = jax.tree.map(lambda leaf: leaf[None], sample)
    conditions = Conditions(prompt, reference, img_ids, txt_ids, guidance)
    return function(model, params, x[None], sigma[None], conditions)
  return run


def pivotal_layers(profile_, count, first=0):
  """The `count` layers of the highest score among those from `first` on; ties by number.

  >>> pivotal_layers([9., 1., 3., 3., 2.], count=2, first=1)
  (2, 3)
  """
  order = np.argsort(-np.asarray(profile_)[first:], kind='stable')[:count]
  return tuple(sorted(int(layer) + first for layer in order))


def pruning_of(settings, model, steps, profile_=None):
  """The Pruning of a mapping; what it leaves out is scaled from the paper's network.

  Args:
    settings: mapping with fields of Pruning; None is left out too. Without `pivotal` it may have
      `num_pivotal`, how many layers are taken from the profile (3), and `pivotal_from`, the first
      that may be taken (`first_layer`; those before it see the whole reference as well).
    model: DiT.
    steps: of the sampler.
    profile_: function that gives the score of the layers, for settings without `pivotal`.

  Raises:
    ConfigError: unknown keys, impossible values, no pivotal layers and no profile.
  """
  filled = {'first_layer': sampler.scaled_first_layer(model.num_layers),
            'interval': sampler.scaled_interval(steps),
            **{name: value for name, value in settings.items() if value is not None}}
  calibrated = 'pivotal' not in filled
  choice = {name: filled.pop(name) for name in ('num_pivotal', 'pivotal_from')
            if calibrated and name in filled}
  pruning = config_lib.call(sampler.Pruning, {'pivotal': (0,), **filled}, 'prune', drop=())
  pruning.check(model.num_layers)
  if not calibrated:
    return pruning
  config_lib.require(profile_ is not None, 'prune.pivotal', 'some layers', None)
  choice = {'num_pivotal': PIVOTAL, 'pivotal_from': pruning.first_layer, **choice}
  for name, value in choice.items():
    config_lib.check_type(value, int, f'prune.{name}')
  config_lib.at_least(1, choice, ('num_pivotal',), 'prune')
  config_lib.require(0 <= choice['pivotal_from'] < model.num_layers, 'prune.pivotal_from',
                     f'a layer of 0..{model.num_layers - 1}', choice['pivotal_from'])
  layers = pivotal_layers(profile_(), choice['num_pivotal'], choice['pivotal_from'])
  return dataclasses.replace(pruning, pivotal=layers)
