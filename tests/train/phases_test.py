"""The settings of a fit: defaults, phases, impossible values."""
import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.train import phases

SGD = {'name': 'sgd', 'learning_rate': 0.1}
ADAM = {'name': 'adam', 'learning_rate': 0.1}
CONFIG = {'batch_size': 8, 'steps': 12, 'optimizer': SGD}
PARAMS = {'encoder': {'layer_0': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}},
          'head': {'kernel': jnp.ones((2, 3))}}


def double(params):
  """A surgery."""
  return jax.tree.map(lambda x: jnp.concatenate([x, x]), params)


def mask(trainable):
  return phases.trainable_mask(PARAMS, phases.Phase(1, SGD, trainable))


class ScheduleTest(parameterized.TestCase):

  def test_one_phase(self):
    settings = phases.fit_config({**CONFIG, 'trainable': 'head/.*', 'init_from': '/x', 'other': 1})
    self.assertEqual(settings.schedule(), [phases.Phase(12, SGD, 'head/.*', '/x')])
    self.assertEqual(settings.total_steps, 12)

  @parameterized.parameters(dict, ml_collections.ConfigDict)
  def test_phases_take_defaults(self, kind):
    config = kind({**CONFIG, 'trainable': 'head/.*', 'phases': (
        {'steps': 3}, {'steps': 4, 'optimizer': ADAM, 'trainable': '.*', 'init_from': '/x'},
        {'steps': 5, 'surgery': 'a:b'})})
    settings = phases.fit_config(config)
    self.assertEqual(settings.schedule(), [
        phases.Phase(3, config['optimizer'], 'head/.*'), phases.Phase(4, ADAM, '.*', '/x'),
        phases.Phase(5, config['optimizer'], 'head/.*', None, 'a:b')])
    self.assertEqual(settings.total_steps, 12)

  def test_the_first_phase_starts_from_the_weights_of_the_run(self):
    starts = lambda *own: [phase.init_from for phase in phases.fit_config(
        {**CONFIG, 'init_from': '/x', 'phases': [{'steps': 1, **one} for one in own]}).schedule()]
    self.assertEqual(starts({}, {}, {'init_from': '/z'}), ['/x', None, '/z'])
    self.assertEqual(starts({'init_from': '/y'}, {}), ['/y', None])

  def test_a_phase_has_an_optimizer_of_its_own(self):
    settings = phases.fit_config({'batch_size': 1, 'phases': ({'steps': 1, 'optimizer': ADAM},)})
    state = phases.make_optimizer(settings.schedule()[0]).init(PARAMS)
    self.assertTrue(any(isinstance(part, optax.ScaleByAdamState) for part in jax.tree.leaves(
        state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))))

  def test_keys(self):
    self.assertEqual(phases.FIT_KEYS,
                     tuple(field.name for field in dataclasses.fields(phases.FitConfig)))
    self.assertContainsSubset(['batch_size', 'optimizer', 'phases', 'seed'], phases.FIT_KEYS)

  @parameterized.parameters(
      *(({name: 0}, f'^{name}: expected at least 1, got 0$') for name in (
          'batch_size', 'accumulate', 'steps_per_call', 'log_every', 'max_bad_steps', 'steps')),
      *(({name: -1}, f'^{name}: expected at least 0, got -1$') for name in (
          'eval_every', 'save_every', 'seed')),
      *(({'steps_per_call': 4, 'steps': 12, 'log_every': 4, name: 6},
         f'steps: expected a multiple of .*=4, got 6|^{name}: expected a multiple of .*=4, got 6$')
        for name in ('steps', 'log_every', 'eval_every', 'save_every')),
      ({'phases': ({'steps': 3}, {'steps': 0})}, r'^phases\[1\].steps: expected at least 1'),
      ({'phases': ({'steps': 4}, {'steps': 3}), 'steps_per_call': 2, 'log_every': 2},
       r'^phases\[1\].steps: expected a multiple of steps_per_call=2, got 3$'),
      ({'phases': ({},)}, r'^phases\[0\].steps: missing$'),
      ({'phases': ({'steps': 3}, {'step': 3})}, r"^phases\[1\]: .*; did you mean 'steps'"),
      ({'phases': ({'steps': 3, 'optimizer': {**SGD, 'learning_rate': -1}},)},
       r'^phases\[0\].optimizer.learning_rate: expected a finite number >= 0, got -1$'),
      ({'phases': ({'steps': 3, 'trainable': '['},)}, r"trainable: '\[' is no regular expression"),
      ({'optimizer': {**SGD, 'learning_rate': -1}}, '^optimizer.learning_rate: expected a finite'),
      ({'optimizer': {}}, '^optimizer.name: '),
      ({'trainable': '('}, r"^trainable: '\(' is no regular expression"),
      ({'batch_size': None}, r'^config.batch_size: missing$'),
      ({'eval_splits': 'test'}, '^config.eval_splits: expected .*Sequence'),
      ({'phases': (3,)}, '^config.phases: expected .*Sequence'),
  )
  def test_mistakes(self, change, message):
    config = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
    with self.assertRaisesRegex(ConfigError, message):
      phases.fit_config(config)


class MaskTest(parameterized.TestCase):

  @parameterized.parameters(
      ('.*', [True, True, True]), ('head/kernel', [False, False, True]),
      ('.*kernel', [False, True, True]), ('encoder/.*', [True, True, False]),
      ('.*layer_0/bias|head/.*', [True, False, True]))
  def test_whole_paths_are_matched(self, trainable, expected):
    made = mask(trainable)
    self.assertEqual(jax.tree.structure(made), jax.tree.structure(PARAMS))
    self.assertEqual(jax.tree.leaves(made), expected)  # bias, kernel, head

  @parameterized.parameters('head', 'kernel', 'encoder', '', 'HEAD/.*')
  def test_nothing_to_train(self, trainable):
    with self.assertRaisesRegex(ConfigError, f"trainable: '{trainable}' matches none of .*'encoder/"
                                "layer_0/bias', 'encoder/layer_0/kernel', 'head/kernel'"):
      mask(trainable)

  def test_operate(self):
    phase = phases.Phase(1, SGD, surgery='tests.train.phases_test:double')
    self.assertEqual(phases.operate(PARAMS, phase)['head']['kernel'].shape, (4, 3))
    self.assertIs(phases.operate(PARAMS, phases.Phase(1, SGD)), PARAMS)
    with self.assertRaisesRegex(ConfigError, "^surgery: expected package.module:function, got 'x'"):
      phases.operate(PARAMS, phases.Phase(1, SGD, surgery='x'))
    np.testing.assert_array_equal(PARAMS['head']['kernel'], np.ones((2, 3)))


if __name__ == '__main__':
  absltest.main()
