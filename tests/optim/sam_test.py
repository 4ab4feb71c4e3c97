"""SAM: the perturbed gradient, the unperturbed value, the wrapper around an optimizer."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim

PARAMS = {'a': jnp.array([3.0, 0.0]), 'b': {'c': jnp.array([[4.0]])}}


def loss(params, scale=1.0):
  return scale * (jnp.sum(params['a'] ** 4) + jnp.sum(params['b']['c'] ** 2))


GRADIENT = jax.grad(loss)


class SAMGradientTest(parameterized.TestCase):

  def test_the_perturbation_has_one_norm_over_all_leaves(self):
    point = optim.sam_gradient(PARAMS, PARAMS, lambda p: p, rho=0.5)
    expected = {'a': jnp.array([3.3, 0.0]), 'b': {'c': jnp.array([[4.4]])}}
    chex.assert_trees_all_close(point, expected, rtol=1e-6)

  @parameterized.parameters({'mask': {'a': True, 'b': False}},
                            {'mask': lambda params: {'a': True, 'b': {'c': params is None}}})
  def test_masked_leaves_are_neither_perturbed_nor_counted(self, mask):
    point = optim.sam_gradient(PARAMS, PARAMS, lambda p: p, rho=0.5, trainable_mask=mask)
    chex.assert_trees_all_close(point['a'], jnp.array([3.5, 0.0]), rtol=1e-6)
    chex.assert_trees_all_equal(point['b'], PARAMS['b'])

  def test_a_zero_gradient_perturbs_nothing(self):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    point = optim.sam_gradient(zeros, PARAMS, lambda p: p, rho=0.5)
    chex.assert_trees_all_equal(point, PARAMS)

  def test_low_precision_is_perturbed_in_float32_and_cast_back(self):
    params = jnp.full(300, 256.0, jnp.float16)  # squares overflow float16
    point = optim.sam_gradient(params, params, lambda p: p, rho=17.4)
    chex.assert_type(point, jnp.float16)
    chex.assert_trees_all_equal(point, jnp.full(300, 257.0, jnp.float16))

  def test_integers_stay(self):
    params = {'n': jnp.array([7]), 'x': jnp.array([1.0])}
    grads = jax.grad(lambda p: p['x'].sum(), allow_int=True)(params)
    point = optim.sam_gradient(grads, params, lambda p: p, rho=0.5)
    chex.assert_trees_all_close(point, {'n': jnp.array([7]), 'x': jnp.array([1.5])})

  def test_a_negative_radius_is_refused(self):
    with self.assertRaisesRegex(ValueError, '^rho: expected'):
      optim.sam_gradient(PARAMS, PARAMS, GRADIENT, rho=-0.1)


class SAMValueAndGradTest(absltest.TestCase):

  def test_value_and_aux_are_those_of_the_unperturbed_point(self):
    with_aux = lambda params, scale: (loss(params, scale), {'params': params})
    (value, aux), grads = jax.jit(optim.sam_value_and_grad(with_aux, 0.5, has_aux=True))(
        PARAMS, scale=2.0)
    np.testing.assert_allclose(value, 2 * (81 + 16), 1e-6)
    chex.assert_trees_all_equal(aux['params'], PARAMS)
    gradient = lambda p: GRADIENT(p, 2.0)
    expected = optim.sam_gradient(gradient(PARAMS), PARAMS, gradient, 0.5)
    chex.assert_trees_all_close(grads, expected, rtol=1e-6)
    self.assertGreater(float(grads['a'][0]), 2 * 4 * 3.3**3)

  def test_without_aux(self):
    value, grads = optim.sam_value_and_grad(loss, 0.0)(PARAMS)
    np.testing.assert_allclose(value, 81 + 16, 1e-6)
    chex.assert_trees_all_close(grads, GRADIENT(PARAMS), rtol=1e-6)


class SAMTest(parameterized.TestCase):

  def update(self, optimizer, **kwargs):
    return optimizer.update(GRADIENT(PARAMS), optimizer.init(PARAMS), PARAMS,
                            **{'grad_fn': GRADIENT, **kwargs})

  def test_the_optimizer_gets_the_perturbed_gradient(self):
    updates, state = self.update(optim.sam(optax.sgd(0.1), rho=0.5))
    gradient = optim.sam_gradient(GRADIENT(PARAMS), PARAMS, GRADIENT, 0.5)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.1 * g, gradient))
    self.assertEqual(state.count, 1)
    self.assertEmpty(jax.tree.leaves(state.inner_state))  # no copy of the parameters

  def test_it_takes_the_step_of_opaque_sam_of_optax(self):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    theirs = optax.contrib.sam(optax.adam(0.1), ascent, opaque_mode=True)
    expected, _ = self.update(theirs, grad_fn=lambda p, _: GRADIENT(p))
    updates, _ = self.update(optim.sam(optax.adam(0.1), 0.5))
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)

  def test_local_gradients_perturb_each_device_its_own_way(self):
    local = {'a': jnp.array([0.0, 1.0]), 'b': {'c': jnp.array([[0.0]])}}
    points = []
    self.update(optim.sam(optax.sgd(0.1), 0.5, perturb='per_device'), local_grads=local,
                grad_fn=lambda p: points.append(p) or GRADIENT(p))
    expected = {'a': jnp.array([3.0, 0.5]), 'b': PARAMS['b']}
    chex.assert_trees_all_close(points[0], expected, atol=1e-6)

  def test_masked_leaves_are_not_perturbed(self):
    points = []
    self.update(optim.sam(optax.sgd(0.1), 0.5, mask={'a': True, 'b': False}),
                grad_fn=lambda p: points.append(p) or GRADIENT(p))
    expected = {'a': jnp.array([3.5, 0.0]), 'b': PARAMS['b']}
    chex.assert_trees_all_close(points[0], expected, rtol=1e-6)

  def test_the_radius_may_start_at_zero(self):
    optimizer = optim.sam(optax.sgd(0.1), lambda count: 0.5 * (count >= 1))
    first, state = self.update(optimizer)
    second, _ = optimizer.update(GRADIENT(PARAMS), state, PARAMS, grad_fn=GRADIENT)
    plain, _ = self.update(optim.sam(optax.sgd(0.1), 0), grad_fn=None)
    chex.assert_trees_all_close(first, plain)
    self.assertLess(float(second['a'][0]), float(first['a'][0]))

  def test_extra_arguments_reach_the_optimizer(self):
    seen = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), lambda g, state, params, *, value: (value, state))
    updates, _ = self.update(optim.sam(seen, 0.5), value=PARAMS)
    chex.assert_trees_all_equal(updates, PARAMS)

  def test_the_second_gradient_is_traced_once(self):
    optimizer = optim.sam(optax.sgd(0.1), 0.5)
    gradient = jax.grad(chex.assert_max_traces(loss, n=1))
    step = jax.jit(lambda s, state: optimizer.update(s, state, PARAMS, grad_fn=gradient))
    state = optimizer.init(PARAMS)
    for _ in range(3):
      _, state = step(GRADIENT(PARAMS), state)

  @parameterized.parameters(
      ({'rho': -1.0}, {}, 'rho'), ({'perturb': 'all'}, {}, 'perturb'),
      ({}, {'grad_fn': None}, 'grad_fn'), ({'perturb': 'per_device'}, {}, 'local_grads'))
  def test_errors_name_the_argument(self, options, arguments, key):
    with self.assertRaisesRegex(ValueError, f'^{key}: '):
      self.update(optim.sam(optax.sgd(0.1), **options), **arguments)

  def test_update_needs_params(self):
    optimizer = optim.sam(optax.sgd(0.1))
    with self.assertRaisesRegex(ValueError, '^params: '):
      optimizer.update(PARAMS, optimizer.init(PARAMS), grad_fn=GRADIENT)


if __name__ == '__main__':
  absltest.main()
