"""Server optimizers of FedOpt, fed with the golden pseudo-gradients."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim
from tests.golden_reader import Golden


def server_path(optimizer, start, deltas):
  """x, m and v [R + 1, D] of a server that starts at x and receives `deltas` [R, D]."""
  def step(carry, delta):
    x, state = carry
    updates, state = optimizer.update(-delta, state, x)
    x = optax.apply_updates(x, updates)
    return (x, state), (x, *state[0])

  state = optimizer.init(start)
  rest = jax.lax.scan(step, (start, state), deltas)[1]
  return [jnp.concatenate([first[None], more])
          for first, more in zip((start, *state[0]), rest, strict=True)]


class FedOptTest(parameterized.TestCase):

  @parameterized.parameters(('fedadam', 'adam', 0.9), ('fedyogi', 'yogi', 0.9),
                            ('fedadagrad', 'adagrad', 0.0))
  def test_golden_rounds(self, case, kind, b1):
    golden = Golden('fedbase')
    optimizer = optax.chain(optim.scale_by_fedopt(kind, b1, 0.99, 1e-3), optax.scale(-0.1))
    with jax.enable_x64(True):
      deltas = jnp.asarray(golden[f'{case}/delta'])
      x, m, v = server_path(optimizer, jnp.asarray(golden[f'{case}/server_x'][0]), deltas)
      np.testing.assert_allclose(x, golden[f'{case}/server_x'], 0, 1e-10)
      # The golden moment is Delta's, ours the pseudo-gradient's.
      np.testing.assert_allclose(-m, golden[f'{case}/m'], 0, 1e-10)
      np.testing.assert_allclose(v, golden[f'{case}/v'], 0, 1e-10)

  def test_moments_are_float32_and_integers_stay(self):
    params = {'n': jnp.arange(2), 'x': jnp.ones(3, jnp.bfloat16)}
    optimizer = optim.scale_by_fedopt()
    updates, state = optimizer.update(params, optimizer.init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_type(jax.tree.leaves(state), jnp.float32)
    np.testing.assert_array_equal(updates['n'], 0)

  def test_an_unknown_kind_is_refused(self):
    with self.assertRaisesRegex(ValueError, "^kind: unknown name 'adm'; did you mean 'adam'"):
      optim.scale_by_fedopt('adm')

  @parameterized.parameters(({'tau': 0.0}, 'tau'), ({'b1': 1.0}, 'b1'), ({'b2': 1.5}, 'b2'))
  def test_impossible_values_are_refused(self, wrong, key):
    with self.assertRaisesRegex(ValueError, f'^{key}: expected'):
      optim.scale_by_fedopt(**wrong)


if __name__ == '__main__':
  absltest.main()
