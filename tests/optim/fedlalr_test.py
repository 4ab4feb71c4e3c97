"""FedLALR's local optimizer and its two companions; whole rounds are tested with the federation."""
import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jaxlab import optim
from tests.golden_reader import Golden

FIELDS = {'m': 'mu', 'v': 'nu', 'vhat': 'nu_max'}


def loss(params, images, labels):
  logits = images @ params['w'] + params['b']
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def local_steps(optimizer, params, state, batches):
  """(params, state) after one step a batch of (images, labels)."""
  @jax.jit
  def step(params, state, batch):
    updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
    return optax.apply_updates(params, updates), state

  for batch in batches:
    params, state = step(params, state, batch)
  return params, state


def client_batches(golden, round_number, client):
  """The batches of a golden client; padded rows and padded steps are dropped."""
  steps = golden['data/batch_idx'][round_number, client]
  rows = [step[step >= 0] for step in steps if (step >= 0).any()]
  return [(jnp.asarray(golden['data/X'][client, r]), jnp.asarray(golden['data/y'][client, r]))
          for r in rows]


class GoldenTest(parameterized.TestCase):

  @parameterized.parameters(('base', 1e-8), ('eps_big', 0.2))
  def test_a_client_of_the_second_round(self, case, eps):
    golden = Golden('fedlalr')
    optimizer = optim.fedlalr(0.01, eps=eps)
    with jax.enable_x64(True):
      unravel = ravel_pytree({'b': golden['init/b'], 'w': golden['init/w']})[1]
      read = lambda name: unravel(golden[f'{case}/server_{name}'][1])
      state = optim.begin_round(optim.FedLALRState(read('m'), None, read('vhat')))
      params, state = local_steps(optimizer, read('x'), state, client_batches(golden, 1, 0))
      out = {'x': params, **{name: getattr(state, field) for name, field in FIELDS.items()}}
      for name, tree in out.items():
        expected = golden[f'{case}/client_{name}'][1, 0]
        np.testing.assert_allclose(ravel_pytree(tree)[0], expected, 0, 1e-10, err_msg=name)

  @parameterized.parameters(
      'base', 'weighted', 'vhat_max', 'no_momentum_sync', 'partial', 'eps_big', 'fixed_k',
      'single_step')
  def test_the_server_synchronizes_the_clients(self, case):
    golden = Golden('fedlalr')
    vhat_agg = 'max' if case == 'vhat_max' else 'mean'
    with jax.enable_x64(True):
      for t in range(5):
        weights = golden['data/sizes'] if case == 'weighted' else np.ones(4)
        weights = weights * (golden['data/participation'][t] if case == 'partial' else 1)
        read = lambda name: jnp.asarray(golden[f'{case}/client_{name}'][t])  # absent: NaN
        server = optim.synchronize(
            optim.FedLALRState(read('m'), read('v'), read('vhat')), weights, vhat_agg,
            sync_momentum=case != 'no_momentum_sync')
        np.testing.assert_allclose(server.mu, golden[f'{case}/server_m'][t + 1], 0, 1e-10)
        np.testing.assert_allclose(server.nu_max, golden[f'{case}/server_vhat'][t + 1], 0, 1e-10)
        chex.assert_trees_all_equal(server.nu, server.nu_max)


class FedLALRTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    keys = jax.random.split(jax.random.key(0), 3)
    self.params = {'b': jnp.zeros(3), 'w': jax.random.normal(keys[0], (4, 3))}
    self.batches = [(x, jnp.array([0, 1, 2, 0, 1]))
                    for x in jax.random.normal(keys[1], (6, 5, 4))]

  def test_one_client_is_scale_by_adasam_until_v_is_seeded_anew(self):
    optimizer = optim.fedlalr(0.01, b2=0.9)
    plain = optax.chain(optim.scale_by_adasam(b2=0.9, v_init='eps_sq'), optax.scale(-0.01))
    start = self.params, optim.begin_round(optimizer.init(self.params))
    expected = self.params, plain.init(self.params)
    first = local_steps(optimizer, *start, self.batches[:3])
    expected = local_steps(plain, *expected, self.batches[:3])
    chex.assert_trees_all_equal(first[0], expected[0])
    chex.assert_trees_all_equal(tuple(first[1]), tuple(expected[1][0]))

    stacked = jax.tree.map(lambda x: x[None], first[1])
    second = local_steps(optimizer, first[0], optim.synchronize(stacked, jnp.ones(1)),
                         self.batches[3:])
    seeded = expected[1][0]._replace(nu=expected[1][0].nu_max)
    chex.assert_trees_all_close(
        second[0], local_steps(plain, expected[0], (seeded, expected[1][1]), self.batches[3:])[0])
    unseeded = local_steps(plain, *expected, self.batches[3:])[0]
    self.assertGreater(float(jnp.abs(second[0]['w'] - unseeded['w']).max()), 1e-4)

  def test_the_ablation_is_sgd(self):
    optimizer, sgd = optim.fedlalr(0.1, adaptive=False), optax.sgd(0.1)
    batches = [(100 * x, y) for x, y in self.batches]  # gradients far above the held vhat
    params, state = local_steps(
        optimizer, self.params, optim.begin_round(optimizer.init(self.params)), batches)
    expected, _ = local_steps(sgd, self.params, sgd.init(self.params), batches)
    chex.assert_trees_all_close(params, expected, rtol=1e-5)
    chex.assert_trees_all_equal(state.nu_max, jax.tree.map(jnp.ones_like, params))

  def test_the_start_is_eps_squared_in_float32(self):
    params = {'n': jnp.arange(2), 'x': jnp.ones(3, jnp.float16)}
    optimizer = optim.fedlalr(0.1)
    state = optimizer.init(params)
    expected = {'n': optax.MaskedNode(), 'x': jnp.full(3, 1e-16, jnp.float32)}
    chex.assert_trees_all_equal(state.nu, expected)
    chex.assert_trees_all_equal(state.nu_max, expected)
    grads = jax.grad(lambda p: p['x'][0], allow_int=True)(params)
    updates, state = optimizer.update(grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    np.testing.assert_array_equal(updates['x'][1:], 0)
    chex.assert_trees_all_equal(optim.synchronize(jax.tree.map(lambda x: x[None], state),
                                                  jnp.ones(1)).nu_max, state.nu_max)

  def test_a_new_round_may_be_donated(self):
    state = optim.begin_round(optim.fedlalr(0.1).init(self.params))
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)

  def test_a_schedule_is_refused(self):
    with self.assertRaisesRegex(ValueError, '^learning_rate: expected a number'):
      optim.fedlalr(optax.constant_schedule(0.1))

  @parameterized.parameters(({'b1': 1.0}, 'b1'), ({'eps': 1e-19}, 'eps'), ({'b2': 2.0}, 'b2'),
                            ({'learning_rate': -0.1}, 'learning_rate'))
  def test_impossible_values_are_refused(self, wrong, key):
    with self.assertRaisesRegex(ValueError, f'^{key}: expected'):
      optim.fedlalr(**{'learning_rate': 0.1, **wrong})


def client_states(seed, clients=4):
  moments = jax.random.normal(jax.random.key(seed), (2, clients, 3))
  return optim.FedLALRState(moments[0], None, jnp.exp(moments[1]))


class SynchronizeTest(parameterized.TestCase):

  @parameterized.product(vhat_agg=('mean', 'max'))
  @hypothesis.settings(max_examples=10, deadline=None)
  @hypothesis.given(seed=st.integers(0, 2**31 - 1), padding=st.integers(1, 3))
  def test_padded_clients_have_no_part(self, vhat_agg, seed, padding):
    states, weights = client_states(seed), jnp.array([1.0, 2.0, 0.5, 3.0])
    expected = optim.synchronize(states, weights, vhat_agg)
    for junk in (jnp.nan, jnp.inf):
      padded = jax.tree.map(lambda x: jnp.pad(x, ((0, padding), (0, 0)), constant_values=junk),
                            states)
      out = optim.synchronize(padded, jnp.pad(weights, (0, padding)), vhat_agg)
      chex.assert_trees_all_close(out, expected, rtol=1e-6)

  @parameterized.parameters('mean', 'max')
  def test_order_and_uniform_duplication_do_not_matter(self, vhat_agg):
    states = client_states(0)
    expected = optim.synchronize(states, jnp.ones(4), vhat_agg)
    for rows in ([2, 0, 3, 1], [0, 1, 2, 3, 0, 1, 2, 3]):
      chosen = jax.tree.map(lambda x: x[jnp.array(rows)], states)
      out = optim.synchronize(chosen, jnp.ones(len(rows)), vhat_agg)
      chex.assert_trees_all_close(out, expected, atol=1e-6)

  @parameterized.parameters('mean', 'max')
  def test_vhat_is_monotone_over_rounds(self, vhat_agg):
    optimizer = optim.fedlalr(0.1, b2=0.9)
    server = optimizer.init(jnp.zeros(3))
    for t in range(5):
      grads = jax.random.normal(jax.random.key(t), (4, 3))
      states = jax.vmap(lambda g: optimizer.update(g, optim.begin_round(server))[1])(grads)
      weights = jax.random.bernoulli(jax.random.key(t), 0.6, (4,)).at[0].set(True)
      new = optim.synchronize(states, weights, vhat_agg)
      self.assertTrue((new.nu_max >= server.nu_max).all())
      server = new
    self.assertTrue((server.nu_max > 1e-3).all())

  def test_without_momentum_m_is_zero_and_not_asked_for(self):
    states = client_states(0)._replace(mu=None)
    out = optim.synchronize(states, jnp.ones(4), sync_momentum=False)
    chex.assert_trees_all_equal(out.mu, jnp.zeros(3))

  def test_an_unknown_rule_is_refused(self):
    with self.assertRaisesRegex(ValueError, "^vhat_agg: expected 'mean' or 'max', got 'min'"):
      optim.synchronize(client_states(0), jnp.ones(4), 'min')


if __name__ == '__main__':
  absltest.main()
