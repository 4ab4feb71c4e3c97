"""The errors of guessed states by hand, the trunk's images, the world model's cameras."""
import types

import jax
import numpy as np
from absl.testing import absltest
from PIL import Image

from jaxlab.models import vjepa2, vjepa2_weights
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


class ImagesTest(absltest.TestCase):

  def test_training_resizes_as_pillow_and_evaluation_by_areas(self):
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    bytes_of = lambda size, training: (np.asarray(model.trunk_images(
        image[None, None], types.SimpleNamespace(image_size=size), training)[0, 0]) + 1) * 127.5
    pillow = np.asarray(Image.fromarray(image).resize((14, 14))).astype(np.float32)
    np.testing.assert_allclose(bytes_of(14, True), pillow, atol=1.01)
    means = image.reshape(10, 2, 10, 2, 3).mean((1, 3))
    np.testing.assert_allclose(bytes_of(10, False), means, atol=0.51)
    # Output pixel 0 of 14 covers pixel 0 and three sevenths of the next, in rows and columns.
    share = np.array([7, 3]) / 10
    corner = np.einsum('i,j,ijc->c', share, share, image[:2, :2])
    np.testing.assert_allclose(bytes_of(14, False)[0, 0], corner, atol=0.51)
    np.testing.assert_allclose(bytes_of(0, False), image, atol=1e-3)


class ViewsTest(absltest.TestCase):

  def test_the_world_model_has_two_of_three_cameras(self):
    config = vjepa2.VJEPA2Config(crop_size=8, patch_size=4, tubelet_size=1, hidden_size=12,
                                 num_attention_heads=2, num_hidden_layers=1, pred_hidden_size=0)
    parts = model.Parts(None, config, None, None, model.Settings(), None, None)
    params = jax.jit(lambda key: vjepa2_weights.init_params(config, key)['encoder'])(
        jax.random.key(0))
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 8, 8, 3)).astype(np.uint8)
    three, two = (model.encode(parts, params, x)[1] for x in (video, video[:, [0, 2]]))
    self.assertEqual(three.shape, (2, 4, 24))
    np.testing.assert_array_equal(three, two)


if __name__ == '__main__':
  absltest.main()
