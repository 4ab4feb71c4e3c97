"""Task, Loss, and how variables are split and joined."""
import dataclasses

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from jaxlab.task import Loss, join_variables, split_variables
from tests import toy

PARAMS, STATS, TEACHER = {'w': jnp.ones(2)}, {'mean': jnp.zeros(2)}, {'w': jnp.full(2, 3.0)}


class VariablesTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'params': PARAMS}, {}, {}),
      ({'params': PARAMS, 'stats': STATS}, {'stats': STATS}, {}),
      ({'params': PARAMS, 'constants': TEACHER}, {}, TEACHER),
      ({'constants': TEACHER, 'stats': STATS, 'cache': STATS, 'params': PARAMS},
       {'stats': STATS, 'cache': STATS}, TEACHER),
  )
  def test_split_and_join_are_inverse(self, variables, running, constants):
    parts = split_variables(variables)
    self.assertEqual(parts, (variables['params'], running, constants))
    self.assertEqual(join_variables(*parts), variables)

  def test_variables_need_params(self):
    with self.assertRaises(KeyError):
      split_variables({'stats': STATS})


class TaskTest(absltest.TestCase):

  def test_a_loss_has_no_metrics_and_no_state_unless_given(self):
    loss = Loss(jnp.ones(3), jnp.ones(3))
    self.assertEqual((dict(loss.metrics), dict(loss.state)), ({}, {}))

  def test_a_task_can_be_a_key(self):
    task = toy.softmax_task()
    armed = dataclasses.replace(task, arms={'a': None})
    self.assertLen({task, task, armed}, 2)

  def test_a_task_is_frozen(self):
    task = toy.softmax_task()
    with self.assertRaises(dataclasses.FrozenInstanceError):
      task.loss = None
    self.assertIs(dataclasses.replace(task, predict=len).loss, task.loss)


if __name__ == '__main__':
  absltest.main()
