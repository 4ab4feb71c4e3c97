"""The jump: the reference's searches and trajectories, and the hook in fit and in federated rounds.
"""
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel, train
from jaxlab.systems.effopd import extrapolation
from tests import conftest, toy
from tests.golden_reader import Golden

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
GOLDEN = Golden('effopd')
CONFIG = {'seed': 1, 'batch_size': 8, 'steps': 12, 'log_every': 4,
          'optimizer': {'name': 'adam', 'learning_rate': 1e-3}}
FEDERATED = {'num_clients': 4, 'cohort_size': 2, 'rounds': 5, 'batch_size': 4, 'eval_every': 0,
             'partition': {'name': 'iid'}, 'algorithm': {'name': 'fedavg'},
             'client_optimizer': {'name': 'sgd', 'learning_rate': 0.05}}


class State:
  """What the hook needs of a loop's state."""

  def __init__(self, params, hooks):
    self.params, self.hooks = params, hooks

  def with_params(self, params):
    return State(params, self.hooks)

  def _replace(self, hooks):
    return State(self.params, hooks)


def descend(hook, steps):
  """(trajectory [steps + 1, D], hook state) of gradient descent on the quadratic problem."""
  a, b, eta = (GOLDEN[f'algo/{name}'] for name in ('quad_A', 'quad_b', 'eta'))
  w = jnp.zeros(len(b), a.dtype)
  state = State({'w': w}, {hook.name: hook.init({'w': w})})
  path = [w]
  for step in range(1, steps + 1):
    w = state.params['w']
    state = hook.apply(state.with_params({'w': w - eta * (a @ w - b)}), step)
    path.append(state.params['w'])
  return np.stack(path), state.hooks[hook.name]


def minus_loss(params, examples, key):
  del examples, key
  w = np.asarray(params['w'], np.float64)
  return -float(0.5 * w @ GOLDEN['algo/quad_A'] @ w - GOLDEN['algo/quad_b'] @ w)


class GoldenTest(absltest.TestCase):

  def test_all(self):
    for ties, name in ((False, 'strict'), (True, 'ge')):
      for row, expected in zip(GOLDEN['algo/scores'], GOLDEN[f'algo/accepted_{name}']):
        k, scored = extrapolation.search(lambda k: float(row[k]), 5, ties)
        np.testing.assert_array_equal((k, scored - 1), expected)
    multiples = [float(extrapolation.candidate(
        {'w': jnp.ones(())}, {'w': jnp.zeros(())}, k)['w']) for k in range(6)]
    np.testing.assert_allclose(multiples, GOLDEN['algo/displacement_multiples'])
    here, recursive = 1.0, [1.0]
    for factor in GOLDEN['algo/factors_recursive']:
      here += factor * here
      recursive.append(here)
    np.testing.assert_allclose(recursive, multiples, rtol=1e-12)
    with jax.enable_x64(True):
      never = extrapolation.extrapolation(minus_loss, {}, max_k=0)
      path, _ = descend(never, 40)
      np.testing.assert_allclose(path, GOLDEN['algo/traj/vanilla'], atol=1e-8)
      for ties, name in ((False, 'strict'), (True, 'ge')):
        for anchor in ('accepted', 'raw'):
          hook = extrapolation.extrapolation(minus_loss, {}, accept_ties=ties, anchor=anchor)
          path, own = descend(hook, 40)
          where = f'{name}/anchor_{anchor}'
          np.testing.assert_allclose(path, GOLDEN[f'algo/traj/{where}'], atol=1e-8, err_msg=where)
          accepted = GOLDEN[f'algo/traj_k/{where}']
          np.testing.assert_array_equal(own.accepted[:len(accepted)], accepted)
          self.assertEqual(int(own.evaluations), GOLDEN[f'algo/traj_nval/{where}'].sum())
    names = [str(name) for name in GOLDEN['filter/names']]
    moved = extrapolation.movable({name: 0 for name in names})
    np.testing.assert_array_equal([moved[name] for name in names], GOLDEN['filter/official'])
    self.assertEmpty(
        [name for name in GOLDEN.unread() if name.startswith(('algo/', 'filter/'))])


class SearchTest(parameterized.TestCase):

  @parameterized.parameters(
      ([1, np.nan, 9], 0, 2), ([np.nan, 0, 1, -1], 2, 4), ([0, np.inf], 0, 2), ([0, -1, 5], 0, 2),
      ([0, 1, 1, 2], 1, 3), ([0, 1, 2, 3], 3, 4))
  def test_failures_end_it(self, scores, k, scored):
    self.assertEqual(
        extrapolation.search(lambda k: scores[k], len(scores) - 1), (k, scored))

  def test_nothing_is_scored_without_candidates(self):
    self.assertEqual(extrapolation.search(None, 0), (0, 0))

  def test_powers_of_two(self):
    self.assertEqual([n for n in range(40) if extrapolation.is_power_of_two(n)],
                     [1, 2, 4, 8, 16, 32])


def fit(config=CONFIG, hooks=(), workdir=None, count=1):
  return train.fit(toy.softmax_task(noise=0.1), config, hooks=hooks, workdir=workdir,
                   devices=jax.devices()[:count])


def by_loss(params, examples, key):
  """A score with noise from its key."""
  task = toy.softmax_task()
  loss = task.loss({'params': params}, examples, key).values.mean()
  return -float(loss) + 1e-6 * float(jax.random.normal(key))


EXAMPLES = {**{name: x[:16] for name, x in toy.columns().items()},
            'weight': np.ones(16, np.float32)}


class Interrupt(Exception):
  """Ends a run as a kill would."""


class HookTest(parameterized.TestCase):

  def test_a_validation_that_refuses_changes_no_bit(self):
    plain = fit()
    scores = iter(range(0, -1000, -1))
    refusing = extrapolation.extrapolation(lambda *_: float(next(scores)), EXAMPLES)
    state = fit(hooks=[refusing])
    toy.assert_trees_equal(plain._replace(hooks={}), state._replace(hooks={}))
    own = state.hooks['extrapolation']
    np.testing.assert_array_equal(own.accepted[:5], [0, 0, 0, 0, -1])
    self.assertEqual(int(own.evaluations), 8)

  @parameterized.parameters(1, 2)
  def test_it_gets_ahead_on_any_task(self, count):
    hook = extrapolation.extrapolation(by_loss, EXAMPLES)
    plain, ahead = fit(count=count), fit(hooks=[hook], count=count)
    parallel.assert_replicated(ahead)
    score = lambda state: by_loss(parallel.to_host(state.params), EXAMPLES, jax.random.key(0))
    self.assertGreater(score(ahead), score(plain) + 1e-3)
    self.assertGreater(int(ahead.hooks['extrapolation'].accepted.max()), 0)

  def test_the_published_rule_and_the_anchor_move_what_they_name(self):
    only_w = lambda params: {'w': True, 'b': False}
    plain = fit({**CONFIG, 'steps': 1})
    hook = extrapolation.extrapolation(by_loss, EXAMPLES, mask=only_w, max_k=1)
    state = fit({**CONFIG, 'steps': 1}, hooks=[hook])
    start = fit({**CONFIG, 'steps': 1, 'optimizer': {'name': 'sgd', 'learning_rate': 0.0}})
    np.testing.assert_array_equal(state.params['b'], plain.params['b'])
    np.testing.assert_allclose(state.params['w'] - start.params['w'],
                               3 * (plain.params['w'] - start.params['w']), rtol=1e-3)
    self.assertIsNone(state.hooks['extrapolation'].anchor['b'])
    np.testing.assert_array_equal(state.hooks['extrapolation'].anchor['w'], state.params['w'])

  def test_all_candidates_of_a_search_share_their_numbers(self):
    for common in (True, False):
      keys = []
      def validate(params, examples, key):
        keys.append(int(jax.random.bits(key)))
        return len(keys)
      hook = extrapolation.extrapolation(validate, EXAMPLES, max_k=2, common_random_numbers=common)
      fit({**CONFIG, 'steps': 2}, hooks=[hook])
      self.assertLen(keys, 6)
      self.assertLen(set(keys), 2 if common else 6)

  def test_moments_are_kept_unless_told_otherwise(self):
    always = lambda *_: next(count)
    for reset in (False, True):
      count = iter(map(float, range(100)))
      hook = extrapolation.extrapolation(always, EXAMPLES, reset_moments=reset)
      state = fit({**CONFIG, 'steps': 2}, hooks=[hook])
      sizes = [float(np.abs(x).max()) for x in jax.tree.leaves(state.opt_state) if x.ndim]
      self.assertEqual(max(sizes) == 0, reset)

  @parameterized.parameters(3, 6, 8)
  def test_resumes_inside_an_interval(self, stop):
    def halt(state, step):
      if step == stop:
        raise Interrupt
      return state

    config = {**CONFIG, 'save_every': 1}
    hook = lambda: extrapolation.extrapolation(by_loss, EXAMPLES, seed=5)
    idle = train.Hook('stop', lambda params: {}, lambda state, step: state)
    whole = fit(config, hooks=[hook(), idle])
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaises(Interrupt):
        fit(config, [hook(), train.Hook('stop', lambda params: {}, halt)], folder)
      self.assertTrue((pathlib.Path(folder) / 'checkpoints').exists())
      again = fit(config, [hook(), idle], folder)
    toy.assert_trees_equal(whole, again)

  def test_federated_rounds(self):
    task, config = toy.softmax_task(), {'seed': 0, 'federated': FEDERATED}
    run = lambda hooks: federated.simulate(task, config, hooks=hooks, devices=jax.devices()[:1])
    plain = run([])
    ahead = run([extrapolation.extrapolation(by_loss, EXAMPLES)])
    score = lambda state: by_loss(parallel.to_host(state.params), EXAMPLES, jax.random.key(0))
    self.assertGreater(score(ahead), score(plain) + 1e-2)
    never = run([extrapolation.extrapolation(by_loss, EXAMPLES, max_k=0)])
    toy.assert_trees_equal(never.params, plain.params)


if __name__ == '__main__':
  absltest.main()
