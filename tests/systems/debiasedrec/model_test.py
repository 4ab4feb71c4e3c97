"""The modules of DebiasedRec: kinds of bias, invariances, what is served."""
import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.debiasedrec import model

WIDTH, ROWS = 4, (5, 3, 4)


def make_inputs(kinds=2, seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  slots = lambda length: np.stack([rng.integers(0, ROWS[k], (3, length)) for k in range(kinds)], -1)
  real = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
  return normal(3, 4, WIDTH), slots(4), real, normal(3, 5, WIDTH), slots(5)


def make_model(kinds=2, *, user=None, **click):
  bias = model.BiasEncoder(ROWS[:kinds], 3, 6)
  net = model.ClickModel(bias, model.BiasUser(**{'queries': 5, **(user or {})}), hidden=4, **click)
  return net, jax.jit(net.init)(jax.random.key(1), *make_inputs(kinds))['params']


def scores(net, params, inputs):
  return net.apply({'params': params}, *inputs, method='train_scores')


def serve(net, params, inputs):
  return net.apply({'params': params}, *inputs[:4], method='serve')


class BiasEncoderTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 3)
  def test_any_number_of_kinds(self, kinds):
    net, params = make_model(kinds)
    inputs = make_inputs(kinds)
    preference, bias = scores(net, params, inputs)
    self.assertEqual(bias.shape, (3, 5))
    self.assertGreater(np.ptp(bias), 0)
    pairs = kinds * (kinds - 1) // 2
    self.assertEqual(params['bias']['joint']['kernel'].shape, (3 * (kinds + pairs), 6))
    self.assertTrue(np.isfinite(preference).all())

  def test_no_products_are_products_of_weight_zero(self):
    net, params = make_model()
    slots = make_inputs()[4]
    kernel = params['bias']['joint']['kernel']
    zeroed = {**params['bias'], 'joint': {
        **params['bias']['joint'], 'kernel': kernel.at[6:].set(0)}}
    cut = {**zeroed, 'joint': {**zeroed['joint'], 'kernel': kernel[:6]}}
    plain = net.bias.clone(interaction='none')
    np.testing.assert_allclose(net.bias.apply({'params': zeroed}, slots),
                               plain.apply({'params': cut}, slots), atol=1e-6)
    self.assertGreater(np.abs(net.bias.apply({'params': params['bias']}, slots) -
                              plain.apply({'params': cut}, slots)).max(), 1e-3)

  def test_a_table_has_a_vector_for_each_cell(self):
    table = model.BiasEncoder(ROWS, 3, 6, 'table')
    cells = np.stack(np.meshgrid(*map(np.arange, ROWS), indexing='ij'), -1).reshape(-1, 3)
    out = table.apply(table.init(jax.random.key(0), cells), cells)
    self.assertLen(np.unique(np.asarray(out), axis=0), np.prod(ROWS))


class UserTest(parameterized.TestCase):

  @parameterized.parameters({}, {'heads': 2, 'head_dim': 2})
  def test_order_and_padding_change_nothing(self, **user):
    net, params = make_model(user=user)
    clicked, slots, real, *_ = make_inputs()
    run = lambda *x: net.apply({'params': params}, *x, method='user_vector')
    vector, weights = run(clicked, slots, real)
    order = np.array([2, 0, 3, 1])
    shuffled, moved = run(clicked[:, order], slots[:, order], real[:, order])
    np.testing.assert_allclose(shuffled, vector, atol=1e-5)
    np.testing.assert_allclose(moved, weights[:, order], atol=1e-5)
    nonsense = np.where(real[..., None], clicked, 9), np.where(real[..., None], slots, 1)
    np.testing.assert_allclose(run(*nonsense, real)[0], vector, atol=1e-5)
    np.testing.assert_array_equal(vector[2], np.zeros(WIDTH))  # without clicks
    np.testing.assert_allclose(weights.sum(1), [1, 1, 0], atol=1e-6)

  def test_slots_of_the_history_change_how_much_a_click_counts(self):
    net, params = make_model()
    clicked, slots, real, *_ = make_inputs()
    run = lambda net, params: net.apply({'params': params}, clicked, 0 * slots, real,
                                        method='user_vector')[1]
    changed = net.apply({'params': params}, clicked, slots, real, method='user_vector')[1]
    self.assertGreater(np.abs(changed - run(net, params)).max(), 1e-4)
    blind, params = make_model(user={'bias': False})
    same = blind.apply({'params': params}, clicked, slots, real, method='user_vector')[1]
    np.testing.assert_array_equal(same, run(blind, params))

  def test_heads_must_fit(self):
    with self.assertRaisesRegex(ConfigError, 'model.user.heads: expected heads x head_dim = 4, .* '
                                'got 6'):
      make_model(user={'heads': 3, 'head_dim': 2})


class ServeTest(parameterized.TestCase):

  def test_the_preference_alone_is_served(self):
    net, params = make_model()
    inputs = make_inputs()
    other = (*inputs[:4], (inputs[4] + 1) % 3)
    (preference, bias), (again, changed) = (scores(net, params, x) for x in (inputs, other))
    np.testing.assert_array_equal(serve(net, params, inputs), preference)
    np.testing.assert_array_equal(preference, again)
    self.assertGreater(np.abs(changed - bias).max(), 1e-4)

  def test_a_common_slot_shifts_all_alike(self):
    net, params = make_model()
    inputs = make_inputs()
    fixed = net.clone(serve_slot=(2, 1))
    shift = serve(fixed, params, inputs) - serve(net, params, inputs)
    expected = net.apply({'params': params}, np.array([2, 1]), method='slot_scores')
    np.testing.assert_allclose(shift, np.full((3, 5), expected), atol=1e-5)

  def test_a_slot_as_a_feature_is_served_in_one_place(self):
    net, params = make_model(head='feature', serve_slot=(2, 1))
    inputs = make_inputs()
    there = np.broadcast_to([2, 1], inputs[4].shape)
    np.testing.assert_allclose(serve(net, params, inputs),
                               scores(net, params, (*inputs[:4], there))[0], atol=1e-6)
    moved = scores(net, params, inputs)[0] - serve(net, params, inputs)
    self.assertGreater(np.ptp(moved), 1e-4)  # it is not the same for all candidates

  def test_no_head_has_no_bias(self):
    net, params = make_model(head='none')
    self.assertNotIn('score', params)
    self.assertFalse(np.any(scores(net, params, make_inputs())[1]))


if __name__ == '__main__':
  absltest.main()
