"""The tabletop: what is drawn, how it moves, who succeeds, what the perturbations change."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.vla_jepa import rollout, tabletop

RENDER = jax.jit(tabletop.render)


@jax.jit
def play(keys, looks):
  """(success of the expert, success at the start, first pictures) of episodes."""
  starts = jax.vmap(tabletop.reset)(keys, looks)
  move = jax.vmap(lambda scene: tabletop.step(scene, tabletop.expert(scene)))
  last = jax.lax.fori_loop(0, tabletop.STEPS, lambda _, scenes: move(scenes), starts)
  succeed = jax.vmap(tabletop.success)
  return succeed(last), succeed(starts), jax.vmap(tabletop.render)(starts, keys)


@functools.cache
def table():
  return jax.jit(tabletop.reset)(jax.random.key(0), tabletop.LOOKS['plain'])


class TabletopTest(parameterized.TestCase):

  def test_the_picture_shows_what_is_where(self):
    blocks = jnp.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.75], [0.5, 0.5]])
    scene = table()._replace(agent=jnp.array([0.75, 0.25]), blocks=blocks)
    image = np.asarray(RENDER(scene, jax.random.key(0)))
    at = lambda x, y: image[int(y * 16), int(x * 16)]
    self.assertEqual([int(np.argmax(at(*place))) for place in ((.25, .25), (.25, .75), (.75, .75))],
                     [0, 1, 2])
    self.assertGreater(at(.75, .25).min(), 0.8)
    np.testing.assert_allclose(at(.5, .5), 0.25, atol=1e-4)  # no yellow block on a plain table
    yellow = RENDER(scene._replace(yellow=jnp.float32(1)), jax.random.key(0))
    self.assertGreater(float(yellow[8, 8, 0]), 0.8)

  def test_what_is_drawn_of_a_table_is_independent(self):
    look = tabletop.LOOKS['plain']._replace(yellow=0.5, shift=(0.1, 0.2), bar=0.5)
    scenes = jax.jit(jax.vmap(lambda key: tabletop.reset(key, look)))(
        jax.random.split(jax.random.key(0), 400))
    drawn = {'yellow': scenes.yellow > 0, 'shift x': scenes.shift[:, 0] > 0,
             'shift y': scenes.shift[:, 1] > 0, 'bar': scenes.bar[:, 0] > -9}
    for (one, a), (other, b) in itertools.combinations(drawn.items(), 2):
      # a standard deviation is .05
      self.assertLess(abs(float(np.corrcoef(a, b)[0, 1])), 0.25, f'{one}, {other}')

  def test_a_shifted_camera_moves_the_picture(self):
    scene = table()
    plain = RENDER(scene, jax.random.key(0))
    moved = RENDER(scene._replace(shift=jnp.array([2 / 16, 0.0])), jax.random.key(0))
    np.testing.assert_allclose(plain[:, 2:], moved[:, :-2], atol=1e-4)
    np.testing.assert_allclose(moved[:, -2:], 0.05, atol=1e-4)  # the border

  @parameterized.parameters(*tabletop.LOOKS)
  def test_the_expert_reaches_the_block_and_random_actions_do_not(self, name):
    keys = jax.random.split(jax.random.key(1), 64)
    reached, begun, image = play(keys, tabletop.stack_looks([tabletop.LOOKS[name]] * 64))
    self.assertTrue(bool(reached.all()))
    self.assertFalse(bool(begun.any()))
    _, _, plain = play(keys, tabletop.stack_looks([tabletop.LOOKS['plain']] * 64))
    self.assertEqual(float(np.abs(image - plain).max()) > 0.05, name != 'plain')

  def test_random_actions_seldom_succeed(self):
    success = rollout.random_success(128, ('plain',))(jax.random.key(0))
    self.assertLess(float(success.mean()), 0.2)

  def test_a_demonstration(self):
    episode = jax.jit(lambda key: tabletop.demonstrate(
        key, tabletop.LOOKS['plain'], 0.2))(jax.random.key(2))
    self.assertEqual(episode['image'].shape, (21, 16, 16, 3))
    self.assertEqual(episode['image'].dtype, np.uint8)
    moved = np.diff(episode['state'], axis=0) / tabletop.STEP
    self.assertLessEqual(np.abs(moved).max(), 1 + 1e-4)
    self.assertGreater(np.abs(moved - episode['action']).max(), 0.05)  # the labels are clean

  def test_wilson(self):
    low, high = rollout.wilson(0, 100)
    self.assertAlmostEqual(low, 0, places=6)
    self.assertAlmostEqual(high, 0.037, places=3)


if __name__ == '__main__':
  absltest.main()
