"""xDeepFM and its baselines: one class that sums the logits of its parts.

All parts see the same field vectors. A part is a module (Features, train) -> logits [B].
"""
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.nn.embedding import FieldEmbed, Table, pool_fields
from jaxlab.systems.xdeepfm.cin import CIN, check_layers

INITIALIZERS = {
    'truncated_normal': nn.initializers.truncated_normal, 'normal': nn.initializers.normal,
    'uniform': lambda scale: lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -scale, scale),
    'xavier_uniform': lambda _: nn.initializers.xavier_uniform(),
    'xavier_normal': lambda _: nn.initializers.xavier_normal(),
    'he_uniform': lambda _: nn.initializers.he_uniform(),
    'he_normal': lambda _: nn.initializers.he_normal(),
}
SECTIONS = ('embedding', 'linear', 'cin', 'dnn', 'cross', 'pnn')  # of a model's config
NAMES = {
    'lr': ('linear',), 'fm': ('linear', 'fm'), 'dnn': ('dnn',), 'fnn': ('fnn',), 'pnn': ('pnn',),
    'wide_deep': ('linear', 'dnn'), 'dcn': ('cross', 'dnn'), 'dcnv2': ('cross', 'dnn'),
    'deepfm': ('linear', 'fm', 'dnn'), 'cin': ('cin',), 'xdeepfm': ('linear', 'cin', 'dnn'),
}


def initializer(name: str, scale: float = 0.1):
  """The initializer of a config: `scale` is the deviation or half width; xavier and he have none.

  Raises:
    ConfigError: an unknown name.
  """
  return config_lib.choose(name, INITIALIZERS, 'init.name')(scale)


class Features(NamedTuple):
  """What the parts look at.

  Attributes:
    ids: [B, K] feature ids.
    values: [B, K], or None where all are 1.
    field: [B, K], or None where slot f is field f.
    vectors: X0 [B, m, D], or None where no part looks at it.
    numeric: [B, n] numbers that have no vector; n may be 0.
  """
  ids: jax.Array
  values: jax.Array | None
  field: jax.Array | None
  vectors: jax.Array | None
  numeric: jax.Array

  def flat(self):
    """[B, m D + n]: the vectors of all fields, and the numbers."""
    flat = self.vectors.reshape(self.vectors.shape[0], -1)
    return jnp.concatenate([flat, self.numeric.astype(flat.dtype)], -1)


def fm_term(vectors):
  """Sum over pairs of fields of inner products [B]: half of ((sum_f e)^2 - sum_f e^2) over D."""
  total = vectors.sum(1)
  return 0.5 * (total**2 - (vectors**2).sum(1)).sum(-1).astype(jnp.float32)


def inner_products(vectors):
  """<e_i, e_j> of the pairs i < j, [B, m (m - 1) / 2]."""
  i, j = np.triu_indices(vectors.shape[1], k=1)
  return jnp.einsum('bid,bjd->bij', vectors, vectors)[:, i, j]


def outer_products(vectors):
  """PNN's outer form (arXiv 1611.00144, equation 9): s s^T [B, D^2] of the sum s over fields."""
  total = vectors.sum(1)
  return (total[:, :, None] * total[:, None, :]).reshape(len(total), -1)


class Linear(nn.Module):
  """b + sum of value * w[id] over all pairs + numeric . v."""
  num_features: int
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x, train):
    rows = Table(self.num_features, (), self.kernel_init, 'weight', name='table')(x.ids)
    logit = pool_fields(rows, x.values).sum(-1) + self.param('bias', nn.initializers.zeros, ())
    if x.numeric.shape[-1]:
      logit += x.numeric @ self.param('numeric', self.kernel_init, (x.numeric.shape[-1],))
    return logit


class FM(nn.Module):
  """Second-order term of a factorization machine; it has no parameters of its own."""

  def __call__(self, x, train):
    return fm_term(x.vectors)


class CINLogit(CIN):
  """CIN, then a linear layer.

  Attributes:
    residual: adds the sum of p+ itself to the logit.
  """
  residual: bool = False

  @nn.compact
  def __call__(self, x, train):
    pooled = super().__call__(x.vectors)
    out = nn.Dense(1, kernel_init=self.kernel_init, name='out')(pooled)[:, 0]
    return out + pooled.sum(-1) if self.residual else out


class DNN(nn.Module):
  """ReLU layers and a linear one over a flat input; dropout before the activation.

  Attributes:
    features: widths of the hidden layers.
    dropout: rate, in [0, 1).
    kernel_init: initializer of the kernels; biases start at 0.
    dtype: compute dtype; logits are float32.
  """
  features: Sequence[int]
  dropout: float = 0.0
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    """Maps Features, or a flat input [B, F], to logits [B]."""
    h = (x.flat() if isinstance(x, Features) else x).astype(self.dtype)
    for width in self.features:
      h = nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype)(h)
      h = nn.relu(nn.Dropout(self.dropout, deterministic=not train)(h))
    return nn.Dense(1, kernel_init=self.kernel_init, name='out')(h.astype(jnp.float32))[:, 0]


class PNN(nn.Module):
  """Product network (arXiv 1611.00144): a DNN over the vectors and their products."""
  dnn: DNN
  products: Literal['inner', 'outer', 'both'] = 'inner'

  @nn.compact
  def __call__(self, x, train):
    parts = [x.flat()]
    if self.products in ('inner', 'both'):
      parts.append(inner_products(x.vectors))
    if self.products in ('outer', 'both'):
      parts.append(outer_products(x.vectors))
    return self.dnn(jnp.concatenate(parts, -1), train)


STAGE = 'fnn/stage'  # the path of a parameter


class FNN(nn.Module):
  """A DNN whose vectors come from a trained FM: two phases of one run.

  While 'stage' is 0 the logit is that of linear part and FM; `start_dnn`, the surgery of the second
  phase, sets it to 1 and the logit is the DNN's. 'stage' itself is never trained.
  """
  linear: Linear
  dnn: DNN

  @nn.compact
  def __call__(self, x, train):
    stage = jax.lax.stop_gradient(self.param('stage', nn.initializers.zeros, ()))
    machine = self.linear(x, train) + fm_term(x.vectors)
    return (1 - stage) * machine + stage * self.dnn(x, train)


def start_dnn(params):
  """The parameters of an FNN at the border between its two phases."""
  return {**params, 'fnn': {**params['fnn'], 'stage': jnp.ones(())}}


class CrossNet(nn.Module):
  """x_{l+1} = x_0 * (W x_l + b) + x_l: W a row (DCN, arXiv 1708.05123) or a matrix (DCNv2).

  DCN's own form is x_0 (x_l . w) + b + x_l: there b is added, not multiplied.
  """
  layers: int
  matrix: bool = False
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x0):
    """Maps [B, F] to [B, F]."""
    x, width = x0, x0.shape[-1]
    for layer in range(self.layers):
      w = self.param(f'w{layer}', self.kernel_init, (width, width if self.matrix else 1))
      b = self.param(f'b{layer}', nn.initializers.zeros, (width,))
      x = x0 * (x @ w + b) + x if self.matrix else x0 * (x @ w) + b + x
    return x


class CrossLogit(CrossNet):
  """A linear layer on the output of a CrossNet over the flat vectors."""

  @nn.compact
  def __call__(self, x, train):
    crossed = super().__call__(x.flat().astype(jnp.float32))
    return nn.Dense(1, kernel_init=self.kernel_init, name='out')(crossed)[:, 0]


class CTRModel(nn.Module):
  """Sum of the logits of the parts over shared field vectors.

  Attributes:
    num_features: V.
    num_fields: m.
    dim: D.
    parts: name -> module (Features, train) -> [B].
    embedding_init: initializer of the table.
    dtype: compute dtype of the vectors.
  """
  num_features: int
  num_fields: int
  dim: int
  parts: Mapping[str, nn.Module]
  embedding_init: nn.initializers.Initializer = nn.initializers.truncated_normal(0.1)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def logits(self, ids, values=None, field=None, numeric=None, train=False):
    """{part: logits [B]}; arguments are those of a call."""
    if numeric is None:
      numeric = jnp.zeros((len(ids), 0))
    vectors = None
    if set(self.parts) != {'linear'}:
      vectors = FieldEmbed(self.num_features, self.num_fields, self.dim, self.embedding_init,
                           self.dtype, name='embedding')(ids, values, field)
    features = Features(ids, values, field, vectors, numeric)
    return {name: part.copy(name=name)(features, train) for name, part in self.parts.items()}

  def __call__(self, ids, values=None, field=None, numeric=None, train=False):
    """Maps rows to logits [B] of a click.

    Args:
      ids: [B, K] feature ids; those out of 0..V-1 must have value 0.
      values: [B, K], 0 on padding, or None for ones.
      field: [B, K], or None where slot f is field f and K = m.
      numeric: [B, n] numbers for the linear part and the DNN, or None.
      train: whether dropout is on, with rng 'dropout'.
    """
    return sum(self.logits(ids, values, field, numeric, train).values())


def make_model(config, num_features, num_fields):
  """Builds the CTRModel of a config; also its check.

  Args:
    config: mapping with
      name: a key of `NAMES`, for its parts; or `parts`, a sequence of linear, fm, cin, dnn, pnn,
        fnn, cross.
      dim: D.
      embedding, linear, cin, dnn, cross, pnn: the arguments of each (those of the parts in use),
        with `init` {name, scale} as `initializer` takes it.
    num_features: V.
    num_fields: m.

  Raises:
    ConfigError: an unknown key, a wrong type or an impossible value.
  """
  if ('name' in config) == ('parts' in config):
    config_lib.check_keys(config, ('name', 'parts', 'dim', *SECTIONS), 'model')
    raise config_lib.ConfigError('model.name: expected either it or model.parts')
  name = config.get('name')
  parts = config.get('parts') or config_lib.choose(name, NAMES, 'model.name')
  needs = {'linear': ('linear',), 'fm': (), 'cin': ('cin',), 'dnn': ('dnn',), 'pnn': ('dnn', 'pnn'),
           'fnn': ('linear', 'dnn'), 'cross': ('cross',)}
  sections = {'embedding', *(s for part in parts for s in config_lib.choose(part, needs,
                                                                            'model.parts'))}
  config_lib.check_keys(config, ('name', 'parts', 'dim', *sorted(sections)), 'model')
  config_lib.require(isinstance(config.get('dim'), int) and config['dim'] >= 1, 'model.dim',
                     'an integer of at least 1', config.get('dim'))

  def build(module, section, scale=0.1, init='truncated_normal', **more):
    where, given = f'model.{section}', dict(config.get(section, {}))
    config_lib.check_keys(given, ('init', *inspect.signature(module).parameters), where)
    init = config_lib.call(initializer, given.pop('init', {'name': init, 'scale': scale}),
                           f'{where}.init', drop=())
    return config_lib.call(functools.partial(module, parent=None), given, where, kernel_init=init,
                           **more)

  def dnn():
    module = build(DNN, 'dnn', init='xavier_uniform')
    config_lib.require(0 <= module.dropout < 1, 'model.dnn.dropout', 'a number in [0, 1)',
                       module.dropout)
    return module

  def cin():
    module = build(CINLogit, 'cin')
    check_layers(module.layer_sizes, module.split_half, 'model.cin')
    return module

  linear = lambda: build(Linear, 'linear', num_features=num_features)
  makers = {
      'linear': linear,
      'fm': lambda: FM(parent=None),
      'cin': cin,
      'dnn': dnn,
      'pnn': lambda: config_lib.call(functools.partial(PNN, parent=None), config.get('pnn', {}),
                                     'model.pnn', dnn=dnn()),
      'fnn': lambda: FNN(linear(), dnn(), parent=None),
      'cross': lambda: build(CrossLogit, 'cross', init='xavier_uniform', matrix=name == 'dcnv2'),
  }
  given = config.get('embedding', {})
  config_lib.check_keys(given, ('init',), 'model.embedding')
  init = config_lib.call(initializer, given.get('init', {'name': 'truncated_normal'}),
                         'model.embedding.init', drop=())
  return CTRModel(num_features, num_fields, config['dim'], {part: makers[part]() for part in parts},
                  init, parent=None)
