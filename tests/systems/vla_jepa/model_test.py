"""The errors of guessed states, plain and weighted by motion, by hand."""
import numpy as np
from absl.testing import absltest

from jaxlab.systems.vla_jepa import model


class StateErrorTest(absltest.TestCase):

  def test_still_tokens_weigh_nothing_and_moving_ones_by_how_far_they_move(self):
    context = np.zeros((1, 3, 2), np.float32)
    target = np.array([[[0, 0], [1, 1], [3, 3]]], np.float32)  # moves by 0, 1 and 3
    guess = target + np.array([[[8.0], [2.0], [4.0]]], np.float32)
    np.testing.assert_allclose(model.state_error(guess, context, target, False), [14 / 3])
    np.testing.assert_allclose(model.state_error(guess, context, target, True),
                               [(2 * 1 + 4 * 3) / 4], rtol=1e-6)

  def test_nothing_that_moves_gives_a_finite_error(self):
    still = np.ones((1, 3, 2), np.float32)
    np.testing.assert_array_equal(model.state_error(still + 1, still, still, True), [0])


if __name__ == '__main__':
  absltest.main()
