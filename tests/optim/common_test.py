"""Every optimizer of jaxlab in the places where optimizers are used: a table, a test a place."""
import doctest
import importlib
import pathlib
import subprocess
import sys
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized

from jaxlab import optim, parallel

GROUPS = {'name': 'adasam', 'learning_rate': 0.0, 'clip_norm': 10.0, 'groups': (
    {'match': 'x', 'rho': 0.01}, {'match': 'y', 'name': 'fedlalr', 'b2': 0.99})}  # fmt: skip
# name -> optimizer of (learning rate, and rho where there is one)
OPTIMIZERS = {
    'adasam': lambda rate, rho=0.01: optim.adasam(rate, rho, b2=0.99),
    'sam': lambda rate, rho=0.01: optim.sam(optax.sgd(rate, momentum=0.9), rho),
    'scale_by_adasam': lambda rate: optax.chain(
        optim.scale_by_adasam(b2=0.99), optax.scale_by_learning_rate(rate)),
    'fedlalr': lambda rate: optim.fedlalr(rate, b2=0.99),
    'fedopt': lambda rate: optax.chain(
        optim.scale_by_fedopt(), optax.scale_by_learning_rate(rate)),
    'fedams': lambda rate: optax.chain(
        optim.scale_by_fedams(), optax.scale_by_learning_rate(rate)),
    'ema': lambda rate: optax.chain(
        optim.scale_by_adasam(b2=0.99), optax.scale_by_learning_rate(rate), optim.ema(0.9)),
    'groups': lambda rate: optim.make_optimizer(
        {**GROUPS, 'groups': [{**group, 'learning_rate': rate} for group in GROUPS['groups']]}),
}
WITH_RHO = ('adasam', 'sam')
RATES = {'sam': 1e-3}  # the others are adaptive and share one rate
PARAMS = {'x': jnp.array([1.5, -1.0]), 'y': jnp.array([[0.5, 2.0]])}


def make(name, rate=None, **kwargs):
  rate = RATES.get(name, 0.03) if rate is None else rate
  return optax.with_extra_args_support(OPTIMIZERS[name](rate, **kwargs))


def parabola(params):
  return sum(jnp.sum((leaf - 1.0) ** 2) for leaf in jax.tree.leaves(params))


def rosenbrock(params):
  x, y = params['x'].ravel(), params['y'].ravel()
  return jnp.sum(0.5 * (1.0 - x) ** 2 + (y - x**2) ** 2)


def one_step(optimizer, loss, params, state):
  gradient = jax.grad(loss)
  updates, state = optimizer.update(gradient(params), state, params, grad_fn=gradient)
  return optax.apply_updates(params, updates), state


def jitted(optimizer, loss=rosenbrock):
  """A compiled step: (params, state) -> (params, state)."""
  return jax.jit(lambda params, state: one_step(optimizer, loss, params, state))


def scanned(optimizer, loss, params, steps):
  """(params, state) after a scan of steps."""
  step = lambda carry, _: (one_step(optimizer, loss, *carry), None)
  return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0]


def looped(optimizer, params=PARAMS, steps=3):
  """(params, state) after a Python loop of compiled steps."""
  step, carry = jitted(optimizer), (params, optimizer.init(params))
  for _ in range(steps):
    carry = step(*carry)
  return carry


def accumulators(state):
  """The leaves of all moments in an optimizer's state."""
  return jax.tree.leaves([tree for field in ('mu', 'nu', 'nu_max')
                          for _, tree in optax.tree.get_all_with_path(state, field)])


class CommonTest(parameterized.TestCase):

  @parameterized.product(name=tuple(OPTIMIZERS), loss=(parabola, rosenbrock))
  def test_it_converges(self, name, loss):
    params, _ = jax.jit(lambda: scanned(make(name), loss, PARAMS, 2000))()
    self.assertLess(float(loss(params)), 2e-3)
    self.assertGreater(float(loss(PARAMS)), 1.0)

  @parameterized.parameters(*OPTIMIZERS)
  def test_bfloat16_parameters_have_float32_moments(self, name):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    optimizer = make(name)
    state = optimizer.init(params)
    updates, new_state = optimizer.update(
        jax.grad(parabola)(params), state, params, grad_fn=jax.grad(parabola))
    chex.assert_type(jax.tree.leaves(updates), jnp.bfloat16)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
    moments = accumulators(new_state)
    self.assertEqual(bool(moments), name != 'sam')  # what `sam` wraps keeps its own dtypes
    chex.assert_type(moments, jnp.float32)

  @parameterized.parameters(*OPTIMIZERS)
  def test_scan_and_donated_jit_are_the_eager_step(self, name):
    optimizer = make(name)
    first = PARAMS, optimizer.init(PARAMS)
    expected = one_step(optimizer, rosenbrock, *first)
    scan = jax.jit(lambda: scanned(optimizer, rosenbrock, PARAMS, 1))
    chex.assert_trees_all_close(scan(), expected, atol=1e-5)
    donated = jax.jit(lambda carry: one_step(optimizer, rosenbrock, *carry), donate_argnums=0)
    params, state = jax.tree.map(jnp.copy, PARAMS), optimizer.init(PARAMS)
    chex.assert_trees_all_close(donated((params, state)), expected, atol=1e-5)

  @parameterized.parameters(*OPTIMIZERS)
  def test_vmap_is_a_loop_over_clients(self, name):
    clients = jax.tree.map(lambda x: jnp.stack([x, -x, 2 * x]), PARAMS)
    run = jax.jit(lambda params: scanned(make(name), rosenbrock, params, 3))
    together = jax.jit(jax.vmap(run))(clients)
    for i in range(3):
      alone = run(jax.tree.map(lambda x: x[i], clients))
      chex.assert_trees_all_close(jax.tree.map(lambda x: x[i], together), alone, rtol=1e-4)

  @parameterized.parameters(*OPTIMIZERS)
  def test_two_devices_stay_replicas_and_equal_one(self, name):
    optimizer, devices = make(name), jax.devices()[:2]
    weights = jnp.array([[1.0, 3.0], [2.0, 4.0]])

    def step(params, state, weights):
      total = parallel.psum(weights.sum())
      local = jax.grad(lambda p: rosenbrock(p) * weights.sum() / total)
      gradient = lambda p: parallel.psum(local(p))
      updates, state = optimizer.update(gradient(params), state, params, grad_fn=gradient)
      return optax.apply_updates(params, updates), state

    many = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=None,
                    devices=devices)
    one = jax.jit(step)
    pair = single = PARAMS, optimizer.init(PARAMS)
    for _ in range(3):
      pair, single = many(*pair, weights), one(*single, weights)
      parallel.assert_replicated(pair)
    chex.assert_trees_all_close(jax.device_get(pair), jax.device_get(single), atol=1e-5)

  @parameterized.parameters(*OPTIMIZERS)
  def test_masked_leaves_pass_through(self, name):
    hidden = optax.MaskedNode()
    optimizer = optax.masked(make(name), {'x': True, 'y': False})
    loss = lambda part: jnp.sum(part['x'] ** 4)
    gradient = lambda part: {'x': jax.grad(loss)(part)['x'], 'y': hidden}
    grads = {'x': gradient(PARAMS)['x'], 'y': jnp.full((1, 2), 7.0)}
    state = optimizer.init(PARAMS)
    updates, state = optimizer.update(grads, state, PARAMS, grad_fn=gradient)
    chex.assert_trees_all_equal(updates['y'], grads['y'])
    part = {'x': PARAMS['x'], 'y': hidden}
    alone, _ = make(name).update(gradient(part), make(name).init(part), part, grad_fn=gradient)
    chex.assert_trees_all_close(updates['x'], alone['x'])
    self.assertTrue(all(moment.shape == (2,) for moment in accumulators(state)))

  @parameterized.parameters(*(name for name in OPTIMIZERS if name != 'groups'))
  def test_hyperparameters_are_injected(self, name):
    schedule = optax.linear_schedule(RATES.get(name, 0.03), 0.0, 10)
    rho = {'rho': 0.02} if name in WITH_RHO else {}
    injected = optax.inject_hyperparams(OPTIMIZERS[name])(schedule, **rho)
    params, state = looped(injected)
    carry = PARAMS, make(name).init(PARAMS)
    step = jax.jit(lambda rate, rho, carry: one_step(make(name, rate, **rho), rosenbrock, *carry))
    for i in range(3):
      carry = step(schedule(i), rho, carry)
    chex.assert_trees_all_close(params, carry[0], rtol=1e-5)
    changed = {key: jnp.array(0.3) for key in rho}
    state.hyperparams.update(changed)
    chex.assert_trees_all_close(jitted(injected)(params, state)[0],
                                step(schedule(3), changed, carry)[0], rtol=1e-5)

  @parameterized.parameters(*OPTIMIZERS)
  def test_multi_steps_of_equal_batches_are_single_steps(self, name):
    several = optax.MultiSteps(make(name), every_k_schedule=2)
    params, _ = looped(several, steps=6)
    chex.assert_trees_all_close(params, looped(make(name))[0], rtol=1e-4)

  @parameterized.parameters(*OPTIMIZERS)
  def test_apply_if_finite_skips_a_bad_gradient(self, name):
    optimizer = optax.apply_if_finite(make(name), 3)
    step = jax.jit(lambda scale, carry: one_step(
        optimizer, lambda params: scale * rosenbrock(params), *carry))
    carry = step(1.0, step(1.0, (PARAMS, optimizer.init(PARAMS))))
    skipped = step(jnp.nan, carry)
    chex.assert_trees_all_equal(skipped[0], carry[0])
    chex.assert_trees_all_equal(skipped[1].inner_state, carry[1].inner_state)
    chex.assert_trees_all_close(step(1.0, skipped)[0], looped(make(name))[0], rtol=1e-5)

  @parameterized.parameters(*OPTIMIZERS)
  def test_a_checkpoint_resumes_bit_for_bit(self, name):
    optimizer = make(name)
    step = jitted(optimizer)
    middle = step(*step(PARAMS, optimizer.init(PARAMS)))
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
      path = pathlib.Path(folder) / 'checkpoint'
      checkpointer.save(path, middle)
      checkpointer.wait_until_finished()
      restored = checkpointer.restore(path, jax.eval_shape(lambda: middle))
    chex.assert_trees_all_equal(restored, middle)
    chex.assert_trees_all_equal(step(*step(*restored)), step(*step(*middle)))


class RoomTest(parameterized.TestCase):

  def test_it_imports_nothing_but_jax_optax_and_numpy(self):
    code = ('import sys; from jaxlab import optim; heavy = {"flax", "tensorflow_datasets", "grain",'
            '"matplotlib", "orbax", "ml_collections", "sklearn", "torch"}; '
            'print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))')
    root = pathlib.Path(__file__).parents[2]
    out = subprocess.run([sys.executable, '-c', code], cwd=root, check=True, capture_output=True,
                         text=True)
    self.assertEqual(out.stdout.strip(), '[]')

  @parameterized.parameters('adasam', 'factory', 'fedlalr', 'sam')
  def test_docstrings_run(self, module):
    module = importlib.import_module(f'jaxlab.optim.{module}')
    results = doctest.testmod(module)
    self.assertGreater(results.attempted, 0)
    self.assertEqual(results.failed, 0)

  def test_every_function_of_the_room_is_in_the_table_or_serves_one_that_is(self):
    makers = {'adasam', 'sam', 'scale_by_adasam', 'fedlalr', 'scale_by_fedopt',
              'scale_by_fedams', 'ema', 'make_optimizer'}
    serving = {'averaged', 'begin_round', 'synchronize', 'sam_gradient', 'sam_value_and_grad'}
    functions = {name for name in optim.__all__ if not name.endswith('State')}
    self.assertEqual(functions, makers | serving)
    self.assertLen(OPTIMIZERS, len(makers))
    np.testing.assert_array_equal(sorted(optim.__all__), optim.__all__)


if __name__ == '__main__':
  absltest.main()
