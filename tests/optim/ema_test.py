"""The moving average of parameters: closed form, dtypes, use inside chains, factory and fit."""
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim, train
from jaxlab.config import ConfigError
from tests import toy


class EMATest(parameterized.TestCase):

  def test_closed_form(self):
    optimizer = optax.chain(optax.sgd(1.0), optim.ema(0.5))
    params = jnp.array([8.0])
    state = optimizer.init(params)
    for _ in range(3):  # 8 -> 7, 6, 5
      updates, state = optimizer.update(jnp.ones(1), state, params)
      params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, [5.0])
    np.testing.assert_allclose(optim.averaged(state, params), [8 / 8 + 7 / 8 + 6 / 4 + 5 / 2])

  def test_changes_no_update_and_starts_at_the_parameters(self):
    params = {'w': jnp.arange(3.0), 'n': jnp.arange(2)}
    optimizer = optim.ema(0.9)
    state = optimizer.init(params)
    average = optim.averaged(state, params)
    for ours, theirs in zip(jax.tree.leaves(average), jax.tree.leaves(params)):
      np.testing.assert_array_equal(ours, theirs)
    updates = {'w': jnp.ones(3), 'n': jnp.zeros(2, jnp.int32)}
    self.assertIs(optimizer.update(updates, state, params)[0], updates)

  def test_bfloat16_parameters_are_averaged_in_float32(self):
    params = jnp.ones(2, jnp.bfloat16)
    optimizer = optim.ema(0.999)
    state = optimizer.init(params)
    for _ in range(100):  # in bfloat16 each of these changes would be rounded away
      _, state = optimizer.update(jnp.ones(2, jnp.bfloat16), state, params)
    self.assertEqual(state.average.dtype, jnp.float32)
    np.testing.assert_allclose(state.average, 2 - 0.999**100, rtol=1e-5)
    self.assertEqual(optim.averaged(state, params).dtype, jnp.bfloat16)

  def test_nothing_to_read_without_it(self):
    self.assertIsNone(optim.averaged(optax.sgd(0.1).init(jnp.ones(1)), jnp.ones(1)))

  @parameterized.parameters(-0.1, 1.0, 2)
  def test_impossible_decay(self, decay):
    with self.assertRaisesRegex(ConfigError, 'decay: expected a number in'):
      optim.ema(decay)
    with self.assertRaisesRegex(ConfigError, 'optimizer.ema_decay: expected a number in'):
      optim.make_optimizer({'name': 'sgd', 'learning_rate': 0.1, 'ema_decay': decay})

  def test_needs_parameters(self):
    with self.assertRaisesRegex(ValueError, 'params: the average needs the parameters'):
      optim.ema(0.9).update(jnp.ones(1), optim.ema(0.9).init(jnp.ones(1)))

  @parameterized.parameters('.*', 'w')
  def test_fit_evaluates_the_average_too(self, trainable):
    config = {'batch_size': 8, 'steps': 4, 'trainable': trainable, 'optimizer': {
        'name': 'adasam', 'learning_rate': 0.1, 'rho': 0.1, 'ema_decay': 0.5}}
    with tempfile.TemporaryDirectory() as folder:
      state = train.fit(toy.softmax_task(), config, workdir=folder)
      row = json.loads((pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()[-1])
    self.assertIn('ema/test/accuracy', row)
    average = optim.averaged(state.opt_state, {**state.params, 'b': None} if trainable == 'w'
                             else state.params)
    self.assertFalse(np.allclose(average['w'], state.params['w']))


if __name__ == '__main__':
  absltest.main()
