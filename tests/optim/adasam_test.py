"""AdaSAM against its golden vectors, and the properties that paper and docstring promise."""
import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jaxlab import optim, parallel
from tests.golden_reader import Golden

MOMENTS = {'m': 'mu', 'v': 'nu', 'vhat': 'nu_max'}


def sgd_as_moments(learning_rate):
  """SGD with the state of AdaSAM's moments: m = g, while v and vhat stay as they start."""
  moments = optim.scale_by_adasam()
  update = lambda g, state, params: (
      jax.tree.map(lambda x: -learning_rate * x, g), state._replace(mu=g))
  return optax.GradientTransformation(moments.init, update)


def without_maximum(**kwargs):
  """AdaSAM's moments with vhat := v."""
  moments = optim.scale_by_adasam(**kwargs)
  forget = lambda state: state._replace(nu_max=jax.tree.map(jnp.zeros_like, state.nu_max))
  return optax.GradientTransformation(
      moments.init, lambda g, state, params: moments.update(g, forget(state), params))


def warmup_then_decay(count):
  count = count.astype(jnp.result_type(float))
  return 0.05 * jnp.minimum(1, (count + 1) / 4) * (1 - count / 40)


logit = functools.partial(optim.adasam, 0.05, 0.1)
quad = given = functools.partial(optim.adasam, 0.05, 0.05)
CASES = {
    'quad/base': quad(),
    'quad/eps_big_v0': quad(eps=0.3),
    'quad/eps_big_v_eps_sq': quad(eps=0.3, v_init='eps_sq'),
    'quad/nomomentum': quad(b1=0.0),
    'quad/rho_zero': optim.adasam(0.05, rho=0),
    'logit/base': logit(),
    'logit/b2_098': logit(b2=0.98),
    'logit/decoupled_wd': logit(weight_decay=0.01),
    'logit/l2_wd': logit(weight_decay=0.01, decoupled=False),
    'logit/clip': logit(max_norm=0.25),
    'logit/sched': optim.adasam(warmup_then_decay, 0.1),
    'logit/amsgrad': optim.adasam(0.05, rho=0.0),
    'logit/sam_sgd': optim.sam(sgd_as_moments(0.5), 0.1),
    'logit/sgd': optim.sam(sgd_as_moments(0.5), 0),
    'logit/adam_sam_nomax': optim.sam(
        optax.chain(without_maximum(v_init='eps_sq'), optax.scale(-0.05)), 0.1),
    'given/base': given(),
    'given/eps_1e-3': given(eps=1e-3),
    'given/b2_09': given(b2=0.9, eps=1e-4),
}
B1 = {'quad/nomomentum': 0.0, 'logit/sam_sgd': 0.0, 'logit/sgd': 0.0}


def cross_entropy(params, images, labels):
  logits = images @ params['w'] + params['b']
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def problem(golden, family):
  """(gradient of (params, batch), gradient at the perturbed point, params, batches [T, ...])."""
  if family == 'quad':
    gradient = lambda x, _: golden['quad/A'] @ x - golden['quad/b']
    return gradient, gradient, jnp.asarray(golden['quad/x0']), jnp.arange(15)
  if family == 'given':
    batches = (jnp.asarray(golden['given/s']), jnp.asarray(golden['given/g']))
    return lambda x, b: b[0], lambda x, b: b[1], jnp.asarray(golden['given/x0']), batches
  rows = golden['logit/batch_idx']
  batches = (jnp.asarray(golden['logit/X'][rows]), jnp.asarray(golden['logit/y'][rows]))
  gradient = lambda params, batch: jax.grad(cross_entropy)(params, *batch)
  params = {'b': jnp.asarray(golden['logit/b0']), 'w': jnp.asarray(golden['logit/w0'])}
  return gradient, gradient, params, batches


def trajectory(optimizer, gradient, second_gradient, params, batches, per_device=False):
  """Flat arrays [T, D] of everything that the golden cases store, by their names.

  On a device axis the gradients are averaged over it, as equal shards of a batch allow.
  """
  flat = lambda tree: ravel_pytree(tree)[0]
  mean = lambda tree: jax.tree.map(
      lambda x: parallel.psum(x) / parallel.psum(jnp.ones_like(x)), tree)

  def step(carry, batch):
    x, state = carry
    points = [x]

    def grad_fn(point):
      points.append(point)
      return mean(second_gradient(point, batch))

    local = gradient(x, batch)
    s = mean(local)
    updates, state = optimizer.update(
        s, state, x, grad_fn=grad_fn, local_grads=local if per_device else None)
    delta = mean(jax.tree.map(jnp.subtract, points[-1], x))
    moments = {name: flat(optax.tree.get(state, field)) for name, field in MOMENTS.items()}
    out = {'s': flat(s), 's_norm': optax.tree.norm(s), 'delta': flat(delta), **moments,
           'update': flat(updates), 'x': flat(optax.apply_updates(x, updates))}
    return (optax.apply_updates(x, updates), state), out

  out = jax.lax.scan(step, (params, optimizer.init(params)), batches)[1]
  return {**out, 'x': jnp.concatenate([flat(params)[None], out['x']])}


def entered(m, b1):
  """The gradients [T, D] that turned each m [T, D] into the next."""
  return (m - b1 * np.concatenate([np.zeros_like(m[:1]), m[:-1]])) / (1 - b1)


def run(golden, case):
  """Replays a golden case in the precision that is switched on."""
  family = case.split('/')[0]
  gradient, second_gradient, params, batches = problem(golden, family)
  optimizer = CASES[case]
  return jax.jit(functools.partial(trajectory, optimizer, gradient, second_gradient))(
      params, batches)


def run_on_devices(golden, perturb):
  """Replays the sharded case on one device a shard; outputs have a leading axis of devices."""
  gradient, _, params, batches = problem(golden, 'logit')
  shards = int(golden['msharp/num_shards'])
  cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], shards, -1, *x.shape[2:]), 1, 0)
  replay = functools.partial(
      trajectory, logit(perturb=perturb), gradient, gradient, per_device=perturb == 'per_device')
  return jax.pmap(replay, axis_name=parallel.BATCH, in_axes=(None, 0))(
      params, jax.tree.map(cut, batches))


class GoldenTest(absltest.TestCase):

  def compare(self, golden, case, out):
    out = {**out, 'g': entered(np.asarray(out['m']), B1.get(case, 0.9))}
    for name, value in out.items():
      np.testing.assert_allclose(value, golden[f'{case}/{name}'], 0, 1e-10, err_msg=name)

  def test_every_array_in_float64(self):
    golden = Golden('adasam')
    with jax.enable_x64(True):
      for case in CASES:
        with self.subTest(case):
          out = run(golden, case)
          self.compare(golden, case, out)
          self.assertTrue(np.isfinite(out['update']).all())
          if case.startswith('given'):  # whose last coordinate never receives a gradient
            np.testing.assert_array_equal(out['update'][:, -1], 0)
          if case.startswith('logit'):
            params = jax.vmap(ravel_pytree(problem(golden, 'logit')[2])[1])(out['x'])
            losses = jax.vmap(cross_entropy, (0, None, None))(
                params, golden['logit/X'], golden['logit/y'])
            np.testing.assert_allclose(losses, golden[f'{case}/full_loss'], 0, 1e-10)
      for perturb, case in (('global', 'allreduce'), ('per_device', 'per_device')):
        with self.subTest(case):
          out = run_on_devices(golden, perturb)
          first = jax.tree.map(lambda x: x[0], out)
          for i in range(1, 4):  # the replicas agree bit for bit
            chex.assert_trees_all_equal(jax.tree.map(lambda x: x[i], out), first)
          self.compare(golden, f'msharp/{case}', first)
    self.assertEmpty(golden.unread())

  def test_final_parameters_in_float32(self):
    golden = Golden('adasam')
    outs = {case: run(golden, case) for case in CASES}
    for case, out in outs.items():
      with self.subTest(case):
        self.assertEqual(out['x'].dtype, jnp.float32)
        np.testing.assert_allclose(out['x'][-1], golden[f'{case}/x'][-1], 0, 5e-6)
    with self.subTest('four devices are the single-device run'):
      sharded = jax.tree.map(lambda x: x[0], run_on_devices(golden, 'global'))
      chex.assert_trees_all_close(sharded, outs['logit/base'], atol=1e-6)


def bowl(params, batch=1.0):
  """A loss with a gradient in every coordinate."""
  return sum(jnp.sum(batch * (leaf - 1.0) ** 2 + jnp.cos(leaf)) for leaf in jax.tree.leaves(params))


PARAMS = {'b': jnp.array([0.3, -0.2]), 'w': jnp.array([[1.5, -1.0, 0.1], [0.0, 2.0, -3.0]])}


def take_steps(optimizer, params, steps, loss=bowl, grad_fn=None, jit=jax.jit):
  """(params, state) after some steps."""
  gradient = jax.grad(loss)

  @jit
  def step(params, state):
    updates, state = optimizer.update(
        gradient(params), state, params, grad_fn=grad_fn or gradient)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params, state


class AdaSAMTest(parameterized.TestCase):

  @parameterized.parameters(jax.jit, lambda step: step)
  def test_rho_zero_is_scale_by_adasam_bit_for_bit(self, jit):
    def refuse(_):
      raise AssertionError('a second gradient was taken')

    plain = optax.with_extra_args_support(
        optax.chain(optim.scale_by_adasam(), optax.scale(-0.1)))
    params, state = take_steps(optim.adasam(0.1, rho=0), PARAMS, 5, grad_fn=refuse, jit=jit)
    expected, (moments, _) = take_steps(plain, PARAMS, 5, jit=jit)
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal(state[1:], tuple(moments))

  def test_a_zero_gradient_changes_nothing_at_the_start(self):
    optimizer = optim.adasam(0.1)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = optimizer.update(
        zeros, optimizer.init(PARAMS), PARAMS, grad_fn=lambda _: zeros)
    chex.assert_trees_all_equal(optax.apply_updates(PARAMS, updates), PARAMS)
    chex.assert_tree_all_finite((updates, state))

  def test_the_first_step_is_not_bias_corrected(self):
    optimizer = optim.scale_by_adasam()
    direction, _ = optimizer.update(jnp.array([2.0, -5.0]), optimizer.init(jnp.zeros(2)))
    np.testing.assert_allclose(direction, [0.1 / 0.001**0.5, -0.1 / 0.001**0.5], 1e-6)

  def test_the_direction_has_the_dtypes_of_the_parameters_if_they_are_given(self):
    optimizer, grads = optim.scale_by_adasam(), jnp.ones(2)
    state = optimizer.init(grads)
    chex.assert_type(optimizer.update(grads, state)[0], jnp.float32)
    chex.assert_type(optimizer.update(grads, state, jnp.ones(2, jnp.bfloat16))[0], jnp.bfloat16)

  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(seed=st.integers(0, 2**31 - 1), scale=st.floats(1e-3, 1e3))
  def test_vhat_is_monotone_and_bounded(self, seed, scale):
    out = _vhat_paths(seed, scale)
    bound = np.maximum(1e-16, np.max(out['g'] ** 2, axis=1, keepdims=True))
    self.assertTrue((np.diff(out['vhat'], axis=1) >= 0).all())
    self.assertTrue((out['vhat'] >= np.float32(1e-16)).all())
    self.assertTrue((out['vhat'] <= bound * (1 + 1e-5)).all())

  def test_rho_follows_its_schedule_in_optimizer_steps(self):
    optimizer = optim.adasam(0.1, rho=lambda count: 0.1 * count)
    state = optimizer.init(PARAMS)
    radii = []

    def grad_fn(point):
      radii.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, point, PARAMS))))
      return jax.grad(bowl)(point)

    for _ in range(3):
      _, state = optimizer.update(jax.grad(bowl)(PARAMS), state, PARAMS, grad_fn=grad_fn)
    np.testing.assert_allclose(radii, [0.0, 0.1, 0.2], atol=1e-6)
    self.assertEqual(state.count, 3)

  def test_weight_decay_spares_masked_leaves(self):
    mask = {'b': False, 'w': True}
    decayed, _ = take_steps(optim.adasam(0.1, weight_decay=0.5, mask=mask), PARAMS, 1)
    plain, _ = take_steps(optim.adasam(0.1), PARAMS, 1)
    chex.assert_trees_all_equal(decayed['b'], plain['b'])
    chex.assert_trees_all_close(decayed['w'], plain['w'] - 0.1 * 0.5 * PARAMS['w'], atol=1e-6)

  def test_the_state_is_three_copies_of_the_parameters_in_float32(self):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    state = optim.adasam(0.1).init(params)
    self.assertLen(jax.tree.leaves(state), 1 + 3 * len(params))
    chex.assert_type(jax.tree.leaves(state[1:]), jnp.float32)
    params, state = take_steps(optim.adasam(0.1, mu_dtype=jnp.bfloat16), PARAMS, 2)
    chex.assert_type(jax.tree.leaves((params, state.nu, state.nu_max)), jnp.float32)
    chex.assert_type(jax.tree.leaves(state.mu), jnp.bfloat16)

  def test_leaves_that_are_not_floating_stay(self):
    params = {**PARAMS, 'steps': jnp.arange(3)}
    loss = lambda params: bowl({'b': params['b'], 'w': params['w']})
    gradient = jax.grad(loss, allow_int=True)
    optimizer = optim.adasam(0.1)
    state = optimizer.init(params)
    updates, state = optimizer.update(gradient(params), state, params, grad_fn=gradient)
    new = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(new['steps'], params['steps'])
    expected, _ = take_steps(optimizer, PARAMS, 1)
    chex.assert_trees_all_close({k: new[k] for k in PARAMS}, expected, atol=1e-6)
    self.assertLen(jax.tree.leaves(state.nu_max), 2)

  def test_masked_freezes_leaves_without_counting_them(self):
    frozen = {'b': PARAMS['b'], 'w': optax.MaskedNode()}
    merge = lambda part: {**part, 'b': frozen['b']}
    gradient = jax.grad(lambda part: bowl(merge(part)))
    optimizer = optax.masked(optim.adasam(0.1), {'b': False, 'w': True})
    grads = {'b': jnp.full(2, 1e3), 'w': gradient({'w': PARAMS['w']})['w']}
    updates, _ = optimizer.update(
        grads, optimizer.init(PARAMS), PARAMS,
        grad_fn=lambda part: {**part, **gradient({'w': part['w']})})
    expected, _ = take_steps(
        optim.adasam(0.1), {'w': PARAMS['w']}, 1, lambda part: bowl(merge(part)))
    chex.assert_trees_all_close(PARAMS['w'] + updates['w'], expected['w'], atol=1e-6)

  def test_vmapped_clients_equal_a_loop_and_padded_steps_keep_the_state(self):
    optimizer = optim.adasam(0.1, rho=0.2)
    data = jax.random.uniform(jax.random.key(0), (3, 4), minval=0.5, maxval=2.0)
    real = jnp.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], bool)
    starts = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), PARAMS)

    def one(carry, batch):
      params, state = carry
      gradient = jax.grad(lambda p: bowl(p, batch))
      updates, state = optimizer.update(gradient(params), state, params, grad_fn=gradient)
      return optax.apply_updates(params, updates), state

    def client(params, data, real):
      def step(carry, xs):
        batch, real = xs
        keep = lambda new, old: jnp.where(real, new, old)
        return jax.tree.map(keep, one(carry, batch), carry), None
      return jax.lax.scan(step, (params, optimizer.init(params)), (data, real))[0]

    together = jax.jit(jax.vmap(client))(starts, data, real)
    one = jax.jit(one)
    for i in range(3):
      params = jax.tree.map(lambda x: x[i], starts)
      carry = params, optimizer.init(params)
      for batch in data[i][real[i]]:
        carry = one(carry, batch)
      chex.assert_trees_all_close(jax.tree.map(lambda x: x[i], together), carry, atol=1e-6)

  def test_rates_and_radii_may_be_traced(self):
    run = lambda rate, rho: take_steps(optim.adasam(rate, rho), PARAMS, 3, jit=lambda f: f)[0]
    rates, radii = jnp.array([0.1, 0.2]), jnp.array([0.05, 0.0])
    swept = jax.jit(jax.vmap(run))(rates, radii)
    for i, (rate, rho) in enumerate(((0.1, 0.05), (0.2, 0.0))):
      chex.assert_trees_all_close(jax.tree.map(lambda x: x[i], swept), run(rate, rho), atol=1e-6)

  def test_a_device_with_nothing_but_padding_perturbs_nothing(self):
    optimizer = optim.adasam(0.1, perturb='per_device')
    points = []
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS,
                     grad_fn=lambda point: points.append(point) or point,
                     local_grads=jax.tree.map(jnp.zeros_like, PARAMS))
    chex.assert_trees_all_equal(points, [PARAMS])

  def test_bfloat16_training_stays_finite(self):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {'hidden': 0.2 * jax.random.normal(keys[0], (64, 16), jnp.bfloat16),
              'out': 0.2 * jax.random.normal(keys[1], (16, 10), jnp.bfloat16)}
    images = jax.random.uniform(keys[2], (20, 64), jnp.bfloat16)
    labels = jax.random.randint(keys[3], (20,), 0, 10)

    def loss(params):
      logits = jax.nn.relu(images @ params['hidden']) @ params['out']
      return optax.softmax_cross_entropy_with_integer_labels(
          logits.astype(jnp.float32), labels).mean()

    optimizer, gradient = optim.adasam(3e-3), jax.grad(loss)

    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(gradient(params), state, params, grad_fn=gradient)
      return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    trained, state = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200)[0])(start)
    chex.assert_tree_all_finite((trained, state))
    chex.assert_type(jax.tree.leaves(trained), jnp.bfloat16)
    self.assertLess(loss(trained), 0.5 * loss(params))

  @parameterized.parameters(
      ({'rho': -0.1}, 'rho'), ({'b1': 1.0}, 'b1'), ({'b2': -0.1}, 'b2'), ({'eps': 0.0}, 'eps'),
      ({'eps': 1e-19}, 'eps'), ({'learning_rate': -1.0}, 'learning_rate'),
      ({'v_init': 'one'}, 'v_init'),
      ({'perturb': 'local'}, 'perturb'), ({'max_norm': 0.0}, 'max_norm'),
      ({'weight_decay': -1.0}, 'weight_decay'), ({'norm_guard': -1.0}, 'norm_guard'))
  def test_impossible_values_are_refused(self, wrong, key):
    with self.assertRaisesRegex(ValueError, f'^{key}: expected'):
      optim.adasam(**{'learning_rate': 0.1, **wrong})

  def test_the_smallest_floor_divides(self):
    optimizer = optim.scale_by_adasam(eps=1.1e-19)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    chex.assert_trees_all_equal(optimizer.update(zeros, optimizer.init(PARAMS))[0], zeros)

  @parameterized.parameters(
      ({}, {'grad_fn': None}, 'grad_fn'), ({}, {'params': None}, 'params'),
      ({'rho': 0}, {'params': None}, 'params'), ({'perturb': 'per_device'}, {}, 'local_grads'))
  def test_missing_arguments_of_update_are_named(self, options, arguments, key):
    optimizer = optim.adasam(0.1, **options)
    arguments = {'params': PARAMS, 'grad_fn': jax.grad(bowl), **arguments}
    with self.assertRaisesRegex(ValueError, f'^{key}: '):
      optimizer.update(PARAMS, optimizer.init(PARAMS), **arguments)


@jax.jit
def _vhat_paths(seed, scale):
  """Gradients and vhat [clients, steps, D] of random walks, vmapped."""
  optimizer = optim.scale_by_adasam(b2=0.9)
  grads = scale * jax.random.normal(jax.random.key(seed), (2, 20, 3))

  def client(grads):
    step = lambda state, g: (optimizer.update(g, state)[1],) * 2
    return jax.lax.scan(step, optimizer.init(grads[0]), grads)[1].nu_max

  return {'g': grads, 'vhat': jax.vmap(client)(grads)}


if __name__ == '__main__':
  absltest.main()
