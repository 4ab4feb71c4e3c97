"""Ranges of hyperparameters."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.optim import hyperparameters


class HyperparametersTest(parameterized.TestCase):

  @parameterized.parameters(
      ('learning_rate', -1e-3), ('learning_rate', float('nan')), ('learning_rate', float('inf')),
      ('learning_rate', '1e-3'), ('rho', True), ('rho', np.float64(-1)), ('b1', 1), ('b2', -0.1),
      ('eps', 0.0), ('tau', 0), ('clip_norm', 0), ('weight_decay', -1), ('rho', {'name': 'x'}))
  def test_impossible(self, name, value):
    with self.assertRaisesRegex(ConfigError, f'^here.{name}: expected a .*number'):
      hyperparameters.check_range(name, value, f'here.{name}')

  @parameterized.parameters(
      ('learning_rate', 0), ('rho', 0.5), ('b1', 0), ('b2', 0.999), ('max_norm', None),
      ('learning_rate', lambda count: count), ('rho', jnp.array(-1.0)))
  def test_possible_or_not_known_yet(self, name, value):
    hyperparameters.check_range(name, value, name)

  def test_only_a_python_zero_is_known_to_be_zero(self):
    self.assertTrue(hyperparameters.is_zero(0) and hyperparameters.is_zero(0.0))
    for value in (0.1, False, None, jnp.zeros([]), lambda count: 0):
      self.assertFalse(hyperparameters.is_zero(value))
    jax.jit(lambda x: self.assertFalse(hyperparameters.is_zero(x)))(0.0)

  def test_value_at(self):
    self.assertEqual(hyperparameters.value_at(lambda count: 2 * count, 3), 6)
    self.assertEqual(hyperparameters.value_at(0.1, 3), 0.1)


if __name__ == '__main__':
  absltest.main()
