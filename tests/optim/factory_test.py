"""Optimizers from configs: what they compute, and what is refused with which message."""
import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim
from jaxlab.config import ConfigError

PARAMS = {'embed': {'table': jnp.array([2.0, -1.0])},
          'out': {'bias': jnp.array([0.5]), 'kernel': jnp.array([[3.0], [-2.0]])}}
ADASAM = {'name': 'adasam', 'learning_rate': 0.1}


def loss(params):
  return sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(params))


GRADIENT = jax.grad(loss)


def run(optimizer, steps=3, params=PARAMS):
  """(params, points where second gradients were taken) after some steps."""
  state, points = optimizer.init(params), []

  def grad_fn(point):
    points.append(point)
    return GRADIENT(point)

  for _ in range(steps):
    updates, state = optimizer.update(GRADIENT(params), state, params, grad_fn=grad_fn)
    params = optax.apply_updates(params, updates)
  return params, points


class MakeOptimizerTest(parameterized.TestCase):

  @parameterized.parameters(
      (ADASAM, optim.adasam(0.1)),
      ({**ADASAM, 'rho': 0.5, 'b1': 0.0, 'v_init': 'eps_sq', 'weight_decay': 0.1,
        'decoupled': False},
       optim.adasam(0.1, 0.5, 0.0, v_init='eps_sq', weight_decay=0.1, decoupled=False)),
      ({**ADASAM, 'rho': 0, 'clip_norm': 1.0}, optim.adasam(0.1, 0, max_norm=1.0)),
      ({**ADASAM, 'clip_norm': 1.0}, optim.adasam(0.1, max_norm=1.0)),
      ({'name': 'fedlalr', 'learning_rate': 0.1}, optim.fedlalr(0.1)),
      ({'name': 'sam', 'rho': 0.5, 'base': {'name': 'sgd', 'learning_rate': 0.1}},
       optim.sam(optax.sgd(0.1), 0.5)),
      ({'name': 'sgd', 'learning_rate': 0.01, 'momentum': 0.9, 'clip_norm': 1.0},
       optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01, momentum=0.9))),
      ({'name': 'amsgrad', 'learning_rate': 1}, optax.amsgrad(1)),
      ({'name': 'adamw', 'learning_rate': 0.1, 'weight_decay': 0.5},
       optax.adamw(0.1, weight_decay=0.5)))
  def test_it_is_the_optimizer_that_the_config_names(self, config, expected):
    expected, _ = run(optax.with_extra_args_support(expected))
    for mapping in (config, ml_collections.ConfigDict(config)):
      params, _ = run(optim.make_optimizer(mapping))
      chex.assert_trees_all_close(params, expected, rtol=1e-6)

  def test_without_groups_fedlalr_keeps_its_state(self):
    state = optim.make_optimizer({'name': 'fedlalr', 'learning_rate': 0.1}).init(PARAMS)
    self.assertIsInstance(state, optim.FedLALRState)

  def test_schedules_count_optimizer_steps(self):
    config = {
        'name': 'adasam',
        'learning_rate': {'name': 'join_schedules', 'boundaries': [2], 'schedules': [
            {'name': 'linear_schedule', 'init_value': 0.0, 'end_value': 0.2, 'transition_steps': 2},
            {'name': 'piecewise_constant_schedule', 'init_value': 0.2,
             'boundaries_and_scales': {1: 0.5}}]},
        'rho': {'name': 'linear_schedule', 'init_value': 0.0, 'end_value': 0.3,
                'transition_steps': 3}}
    table = jnp.array([0.0, 0.1, 0.2, 0.1])
    expected = optim.adasam(lambda count: table[count], lambda count: 0.1 * count)
    out, points = run(optim.make_optimizer(config), 4)
    chex.assert_trees_all_close((out, points), run(expected, 4), rtol=1e-5)
    self.assertLen(points, 4)


class GroupsTest(parameterized.TestCase):

  def test_one_perturbation_for_all_groups_and_none_for_frozen_or_plain_ones(self):
    optimizer = optim.make_optimizer({**ADASAM, 'rho': 0.5, 'groups': (
        {'match': 'embed/.*', 'frozen': True},
        {'match': 'out/bias', 'name': 'sgd'},
        {'match': 'out/kernel', 'b1': 0.0, 'learning_rate': 0.2})})
    params, points = run(optimizer, 1)
    self.assertLen(points, 1)
    chex.assert_trees_all_equal(params['embed'], PARAMS['embed'])
    chex.assert_trees_all_equal(points[0]['embed'], PARAMS['embed'])
    chex.assert_trees_all_equal(points[0]['out']['bias'], PARAMS['out']['bias'])
    moved = points[0]['out']['kernel'] - PARAMS['out']['kernel']
    np.testing.assert_allclose(jnp.linalg.norm(moved), 0.5, 1e-5)
    np.testing.assert_allclose(params['out']['bias'], 0.5 - 0.1 * 4 * 0.5**3, 1e-5)
    kernel, _ = run(optim.adasam(0.2, 0.5, 0.0), 1, PARAMS['out']['kernel'])
    chex.assert_trees_all_close(params['out']['kernel'], kernel, rtol=1e-6)

  @parameterized.parameters(ADASAM, {'name': 'sam', 'base': {'name': 'adam', 'learning_rate': 0.1}})
  def test_equal_groups_are_no_groups(self, **config):
    grouped = optim.make_optimizer(
        {**config, 'clip_norm': 2.0, 'groups': [{'match': 'embed/.*'}, {'match': 'out/.*'}]})
    plain = optim.make_optimizer({**config, 'clip_norm': 2.0})
    chex.assert_trees_all_close(run(grouped), run(plain), rtol=1e-6)

  def test_frozen_leaves_do_not_count_in_the_clipped_norm(self):
    optimizer = optim.make_optimizer({
        'name': 'sgd', 'learning_rate': 1.0, 'clip_norm': 1.0,
        'groups': ({'match': 'embed/.*'}, {'match': 'out/.*', 'frozen': True})})
    params, _ = run(optimizer, 1)
    step = params['embed']['table'] - PARAMS['embed']['table']
    np.testing.assert_allclose(jnp.linalg.norm(step), 1.0, 1e-5)
    chex.assert_trees_all_equal(params['out'], PARAMS['out'])

  @parameterized.parameters(
      (({'match': 'embed/.*'}, {'match': 'out/kernel'}), 'out/bias is matched by none'),
      (({'match': '.*'}, {'match': 'out/bias'}), "out/bias is matched by '.*' and 'out/bias'"),
      (({'match': 'embed'}, {'match': 'out/.*'}), 'embed/table is matched by none'))
  def test_every_parameter_belongs_to_exactly_one_group(self, groups, message):
    optimizer = optim.make_optimizer({**ADASAM, 'groups': groups})
    with self.assertRaises(ConfigError) as caught:
      jax.eval_shape(optimizer.init, PARAMS)
    self.assertIn(message, str(caught.exception))
    self.assertStartsWith(str(caught.exception), 'optimizer.groups: expected exactly one of ')

  def test_two_radii_are_refused(self):
    groups = ({'match': 'embed/.*'}, {'match': 'out/.*', 'rho': 0.1})
    with self.assertRaisesRegex(ConfigError, r'^optimizer.groups\[1\].rho: expected the perturb'):
      optim.make_optimizer({**ADASAM, 'groups': groups})

  def test_equal_schedules_and_a_radius_of_zero_are_no_second_radius(self):
    zero = ({'match': 'embed/.*'}, {'match': 'out/.*', 'rho': 0})
    _, points = run(optim.make_optimizer({**ADASAM, 'groups': zero}), 1)
    chex.assert_trees_all_equal(points[0]['out'], PARAMS['out'])
    schedule = {'name': 'constant_schedule', 'value': 0.1}
    same = ({'match': 'embed/.*'}, {'match': 'out/.*', 'rho': dict(schedule)})
    optim.make_optimizer({**ADASAM, 'rho': schedule, 'groups': same})


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'name': 'adasm', 'learning_rate': 0.1}, "optimizer.name: unknown name 'adasm'; .*'adasam'"),
      ({'learning_rate': 0.1}, 'optimizer.name: expected the name'),
      ({'name': 'adasam', 'learning_rte': 0.1}, "optimizer: .*'learning_rte'; .*'learning_rate'"),
      ({'name': 'sgd'}, 'optimizer.learning_rate: missing'),
      ({**ADASAM, 'rho': -0.1}, 'optimizer.rho: expected a finite number >= 0, got -0.1'),
      ({**ADASAM, 'b1': 1.0}, r'optimizer.b1: expected a number in \[0, 1\), got 1.0'),
      ({**ADASAM, 'eps': 0}, r'optimizer.eps: expected a number in \[1.1e-19, 1e19\], .* got 0'),
      ({'name': 'scale_by_adasam', 'eps': 1e-19}, 'optimizer.eps: expected a number in .* 1e-19'),
      ({**ADASAM, 'name': 'fedlalr', 'eps': 1e-19}, 'optimizer.eps: expected a number in .* 1e-19'),
      ({'name': 'adam', 'learning_rate': 0.1, 'eps': 0}, 'optimizer.eps: expected a finite number'),
      ({'name': 'lbfgs', 'learning_rate': 0.1}, "optimizer.name: unknown name 'lbfgs'"),
      ({**ADASAM, 'learning_rate': -1.0}, 'optimizer.learning_rate: expected a finite number >= 0'),
      ({**ADASAM, 'learning_rate': '1e-3'}, "optimizer.learning_rate: .* got '1e-3'"),
      ({**ADASAM, 'v_init': 'one'}, 'optimizer.v_init: expected'),
      ({**ADASAM, 'decoupled': 1}, 'optimizer.decoupled: expected bool'),
      ({**ADASAM, 'perturb': 'local'}, 'optimizer.perturb: expected'),
      ({**ADASAM, 'clip_norm': -1}, 'optimizer.clip_norm: expected a finite number > 0'),
      ({'name': 'adam', 'learning_rate': 0.1, 'b2': 1}, 'optimizer.b2: expected'),
      ({**ADASAM, 'name': 'fedlalr', 'adaptive': 'no'}, 'optimizer.adaptive: expected bool'),
      ({'name': 'fedlalr', 'learning_rate': {'name': 'constant_schedule', 'value': 0.1}},
       'optimizer.learning_rate: expected float'),
      ({**ADASAM, 'learning_rate': {'value': 0.1}}, 'optimizer.learning_rate.name: unknown'),
      ({**ADASAM, 'learning_rate': {'name': 'constant_schedul', 'value': 0.1}},
       "optimizer.learning_rate.name: .*'constant_schedule'"),
      ({**ADASAM, 'learning_rate': {'name': 'constant_schedule', 'value': -0.1}},
       'optimizer.learning_rate.value: expected a finite number >= 0'),
      ({**ADASAM, 'rho': {'name': 'linear_schedule', 'init': 0.1}}, "optimizer.rho: .*'init'"),
      ({**ADASAM, 'learning_rate': {'name': 'join_schedules', 'boundaries': [1], 'schedules': [
          {'name': 'constant_schedule', 'value': 1.0}, {'name': 'constant_schedule'}]}},
       r'optimizer.learning_rate.schedules\[1\].value: missing'),
      ({'name': 'sam', 'rho': 0.1}, 'optimizer.base: expected a mapping'),
      ({'name': 'sam', 'base': ADASAM}, 'optimizer.base: expected an optimizer without'),
      ({'name': 'sam', 'base': {'name': 'sgd', 'lr': 0.1}}, "optimizer.base: unknown key 'lr'"),
      ({'name': 'sam', 'learning_rate': 0.1, 'base': {'name': 'sgd', 'learning_rate': 0.1}},
       "optimizer: unknown key 'learning_rate'"),
      ({'name': 'sam', 'perturb': 'local', 'base': {'name': 'sgd', 'learning_rate': 0.1}},
       'optimizer.perturb: expected'),
      ({**ADASAM, 'groups': ()}, 'optimizer.groups: expected some mappings'),
      ({**ADASAM, 'groups': ({'rho': 0.1},)}, r'optimizer.groups\[0\].match: expected a regex'),
      ({**ADASAM, 'groups': ('.*',)}, r'optimizer.groups\[0\]: expected a mapping'),
      ({**ADASAM, 'groups': ({'match': '('},)}, r"optimizer.groups\[0\].match: '\(' is no regex"),
      ({**ADASAM, 'groups': ({'match': '.*', 'frozen': False},)},
       r'optimizer.groups\[0\].frozen: expected True'),
      ({**ADASAM, 'groups': ({'match': '.*', 'frozen': True, 'rho': 1},)},
       r"optimizer.groups\[0\]: unknown key 'rho'"),
      ({**ADASAM, 'groups': ({'match': '.*', 'b3': 1},)}, r"optimizer.groups\[0\]: .*'b3'"),
      ({**ADASAM, 'b1': 2, 'groups': ({'match': '.*'},)}, 'optimizer.b1: expected'),
      ('adasam', 'optimizer: expected a mapping'))
  def test_messages_name_the_key(self, config, message):
    with self.assertRaisesRegex(ConfigError, f'^{message}'):
      optim.make_optimizer(config)

  def test_the_path_of_the_config_is_in_the_message(self):
    with self.assertRaisesRegex(ConfigError, '^server.rho: '):
      optim.make_optimizer({**ADASAM, 'rho': -1}, 'server')


if __name__ == '__main__':
  absltest.main()
