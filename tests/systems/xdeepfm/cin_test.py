"""Properties of the interaction network."""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.xdeepfm import cin as cin_lib
from jaxlab.systems.xdeepfm import model
from jaxlab.systems.xdeepfm.cin import CIN, check_layers

X0 = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
SIZES = (6, 4, 3)


@functools.cache
def start(**options):
  cin = CIN(SIZES, **options)
  return cin, cin.init(jax.random.key(1), X0)['params']


def pooled(x0, params=None, **options):
  cin, first = start(**options)
  return np.asarray(cin.apply({'params': params or first}, x0))


class CINTest(parameterized.TestCase):

  def test_layer_k_has_degree_k_plus_one(self):
    base, scaled = pooled(X0), pooled(1.5 * X0)
    for columns, degree in ((slice(0, 3), 2), (slice(3, 5), 3), (slice(5, 8), 4)):
      np.testing.assert_allclose(scaled[:, columns], base[:, columns] * 1.5**degree, rtol=1e-4)

  def test_one_layer_of_ones_is_twice_fm_and_the_squares(self):
    out = CIN((1,)).apply({'params': {'W1': np.ones((1, 5, 5), np.float32)}}, X0)[:, 0]
    np.testing.assert_allclose(out - (X0**2).sum((1, 2)), 2 * model.fm_term(X0), rtol=1e-4)

  @parameterized.product(split_half=[True, False], activation=['identity', 'tanh'],
                         formulation=['outer', 'scan'], fields=[4, 5])
  def test_sums_that_are_taken_early_are_the_sums_of_the_maps(self, split_half, fields, **options):
    x0 = X0[:, :fields]
    cin = CIN(SIZES, split_half=split_half, use_bias=True, **options)
    params = jax.tree.map(lambda x: x + .1, cin.init(jax.random.key(2), x0)['params'])
    maps, expected = x0, []
    for k, size in enumerate(SIZES, 1):
      maps = np.einsum('hij,bid,bjd->bhd', params[f'W{k}'], maps, x0) + params[f'b{k}'][:, None]
      maps = np.tanh(maps) if options['activation'] == 'tanh' else maps
      cut = size // 2 if split_half and k < len(SIZES) else 0
      expected.append(maps[:, cut:].sum(-1))
      maps = maps[:, :cut] if cut else maps
    np.testing.assert_allclose(cin.apply({'params': params}, x0), np.concatenate(expected, 1),
                               rtol=1e-4, atol=1e-4)

  def test_permuted_fields_with_permuted_filters(self):
    order = np.random.default_rng(1).permutation(5)
    params = {name: w[:, :, order] for name, w in start()[1].items()}
    params['W1'] = params['W1'][:, order]
    np.testing.assert_allclose(pooled(X0[:, order], params), pooled(X0), atol=1e-5)

  def test_an_empty_field_changes_nothing(self):
    wide = np.concatenate([X0, np.zeros((3, 1, 4), np.float32)], 1)
    params = {name: np.pad(w, ((0, 0), (0, int(name == 'W1')), (0, 1)), constant_values=3)
              for name, w in start()[1].items()}
    np.testing.assert_allclose(pooled(wide, params), pooled(X0), atol=1e-5)

  def test_permuted_dimensions_move_the_dnn_alone(self):
    order = np.roll(np.arange(4), 1)
    np.testing.assert_allclose(pooled(X0[..., order]), pooled(X0), atol=1e-5)
    net = model.make_model({'parts': ('cin', 'dnn'), 'dim': 4, 'cin': {'layer_sizes': SIZES},
                            'dnn': {'features': (6,)}}, 9, 5)
    ids = np.random.default_rng(0).integers(0, 9, (3, 5))
    params = net.init(jax.random.key(0), ids)['params']
    moved = {**params, 'embedding': jax.tree.map(lambda x: x[:, order], params['embedding'])}
    logits = [net.apply({'params': p}, ids, method='logits') for p in (params, moved)]
    np.testing.assert_allclose(logits[0]['cin'], logits[1]['cin'], atol=1e-6)
    self.assertGreater(np.abs(logits[0]['dnn'] - logits[1]['dnn']).min(), 1e-4)

  @parameterized.parameters(
      {}, {'split_half': False, 'use_bias': True, 'activation': 'relu'}, {'mask_self': True},
      {'rank': 2})
  def test_formulations_and_checkpoints_agree(self, **options):
    def value_and_gradient(**more):
      cin = CIN(SIZES, **options, **more)
      total = lambda p, x: (cin.apply({'params': p}, x) * jnp.arange(1, 4)[:, None]).sum()
      return jax.value_and_grad(total, (0, 1))(start(**options)[1], X0)

    first = value_and_gradient(formulation='outer', remat=True)
    for more in ({'formulation': 'scan', 'remat': True}, {'formulation': 'outer', 'remat': False}):
      jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4), first,
                   value_and_gradient(**more))
    for leaf in jax.tree.leaves(first[1]):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf))

  @parameterized.parameters({}, {'formulation': 'scan'}, {'activation': 'tanh', 'use_bias': True})
  def test_blocks_of_rows_change_nothing(self, **options):
    x0 = np.random.default_rng(3).normal(size=(7, 5, 4)).astype(np.float32)
    cin = CIN(SIZES, **options)
    params = cin.init(jax.random.key(1), x0)['params']

    def value_and_gradient(block):
      with mock.patch.object(cin_lib, 'BLOCK', block):
        total = lambda p, x: (cin.apply({'params': p}, x) * jnp.arange(1, 8)[:, None]).sum()
        return jax.value_and_grad(total, (0, 1))(params, x0)

    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4),
                 value_and_gradient(3), value_and_gradient(7))

  def test_unrolled_as_on_an_accelerator(self):
    def value_and_gradient():
      cin, params = start()
      return jax.value_and_grad(lambda p, x: cin.apply({'params': p}, x).sum(), (0, 1))(params, X0)

    expected = value_and_gradient()
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      found = value_and_gradient()
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4), found,
                 expected)

  def test_products_in_bfloat16_have_gradients_summed_in_float32(self):
    one, many = (jnp.ones((count, 1, 2), jnp.bfloat16) for count in (1, 600))
    total = lambda h, x: cin_lib.cross_outer(
        h, x, jnp.ones((1, len(h), len(x)))).astype(jnp.float32).sum()
    # A sum of ones in bfloat16 would stop at 256.
    for found in (jax.grad(total, 0)(one, many), jax.grad(total, 1)(many, one)):
      self.assertEqual(found.dtype, jnp.bfloat16)
      np.testing.assert_array_equal(np.asarray(found, np.float32), 600)

  def test_the_mask_ignores_the_lower_triangle(self):
    params = dict(start(mask_self=True)[1])
    changed = {**params, 'W1': params['W1'] + np.tril(np.ones((5, 5)))}
    np.testing.assert_array_equal(pooled(X0, params, mask_self=True),
                                  pooled(X0, changed, mask_self=True))

  def test_impossible_layers(self):
    with self.assertRaisesRegex(ConfigError, 'cin.layer_sizes: expected even sizes'):
      check_layers((5, 4), True, 'cin')
    with self.assertRaisesRegex(ConfigError, 'cin.layer_sizes: expected some sizes'):
      check_layers((), True, 'cin')
    check_layers((4, 5), True, 'cin')
    with self.assertRaisesRegex(ConfigError, 'CIN.layer_sizes: expected even sizes'):
      CIN((1, 3)).init(jax.random.key(0), jnp.ones((1, 2, 3)))
    check_layers((5, 4), False, 'cin')


if __name__ == '__main__':
  absltest.main()
