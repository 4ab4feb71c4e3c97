"""The trunks without golden files: positions, padding, causality, config.json, errors."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.config import ConfigError
from jaxlab.models import vlm, vlm_weights
from jaxlab.models.decoder_config import DecoderConfig

QWEN = vlm.QwenVLConfig(
    DecoderConfig(20, 16, 2, 2, 24, 1, 8, qk_norm=True),
    vlm.VisionConfig(2, 16, 2, 24, 4, 16, num_position_embeddings=9,
                     deepstack_visual_indexes=(0,)), (2, 1, 1), 19)
KEYPOINTS = vlm.KeypointConfig(9, keypoints=3, pixel_width=8, hidden_size=16, num_hidden_layers=1,
                               num_attention_heads=2)


def init(config):
  return jax.jit(lambda key: vlm_weights.init_params(config, key))(jax.random.key(0))


def images(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), (*shape, 3))


class QwenTest(absltest.TestCase):

  def test_positions_of_two_images(self):
    tokens = np.array([[0, 1, 19, 19, 19, 19, 19, 19, 2, 19, 19, 19, 19, 19, 19, 3]])
    mask = np.arange(16)[None] > 0
    place = vlm.mrope_positions((tokens == 19) & mask, mask, 2, 3)
    # Padding, a word, a 2 x 3 image from 1, a word at 1 + 3, an image from 5, a word at 5 + 3.
    np.testing.assert_array_equal(place[0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 4, 5, 5, 5, 5, 5, 5, 8])
    np.testing.assert_array_equal(place[1, 0], [0, 0, 1, 1, 1, 2, 2, 2, 4, 5, 5, 5, 6, 6, 6, 8])
    np.testing.assert_array_equal(place[2, 0], [0, 0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8])

  def test_padding_changes_nothing(self):
    params = init(QWEN)
    run = jax.jit(lambda *args: vlm.QwenVL(QWEN).apply({'params': params}, *args))
    pictures, tokens = images(1, 2, 8, 16), [[1, *[19] * 4, 2, 3]]
    short = run(pictures, jnp.array(tokens), jnp.ones((1, 7), bool))
    for junk in (0, 19):
      long = run(pictures, jnp.array([[junk] * 3 + tokens[0]]), jnp.arange(10)[None] >= 3)
      np.testing.assert_allclose(long[:, 3:], short, atol=1e-5)

  def test_every_parameter_has_a_gradient(self):
    config = dataclasses.replace(QWEN, readout='post_norm')
    tokens = jnp.array([[1, 19, 19, 2, 4]])

    def total(params):
      out = vlm.QwenVL(config).apply({'params': params}, images(1, 1, 8, 16), tokens,
                                     jnp.ones((1, 5), bool))
      return jnp.sum(out * images(1, 5, 16)[..., 0])

    gradient = jax.jit(jax.grad(total))(init(config))
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
      self.assertTrue(np.isfinite(leaf).all() and np.abs(leaf).max() > 0,
                      jax.tree_util.keystr(path))

  def test_reads_a_checkpoints_config(self):
    text, vision = QWEN.text, QWEN.vision
    config = {
        'model_type': 'qwen3_vl', 'image_token_id': 19,
        'text_config': {'vocab_size': 20, 'hidden_size': 16, 'num_hidden_layers': 2,
                        'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 8,
                        'intermediate_size': 24, 'rms_norm_eps': text.rms_norm_eps,
                        'rope_theta': text.rope_theta,
                        'rope_scaling': {'mrope_section': [2, 1, 1]}},
        'vision_config': {key: list(value) if isinstance(value, tuple) else value
                          for key, value in dataclasses.asdict(vision).items()}}
    self.assertEqual(vlm_weights.config_from_checkpoint(config), QWEN)
    with self.assertRaisesRegex(ConfigError, 'model_type: expected qwen3_vl'):
      vlm_weights.config_from_checkpoint({**config, 'model_type': 'qwen3'})
    del config['text_config']['head_dim']
    with self.assertRaisesRegex(ConfigError, 'text_config.head_dim'):
      vlm_weights.config_from_checkpoint(config)

  def test_an_image_of_another_size(self):
    with self.assertRaisesRegex(ValueError, 'expected sides that are multiples of 8, got 8 x 12'):
      QWEN.vision.merged(8, 12)


class KeypointTest(absltest.TestCase):

  def test_shape_causality_and_left_padding(self):
    trunk, tokens = vlm.KeypointTrunk(KEYPOINTS), jnp.array([[1, 2, 3, 4]])
    params = jax.jit(trunk.init)(jax.random.key(0), images(1, 2, 6, 6), tokens,
                                 jnp.ones((1, 4), bool))
    run = jax.jit(trunk.apply)
    out = run(params, images(1, 2, 6, 6), tokens, jnp.ones((1, 4), bool))
    self.assertEqual(out.shape, (1, 4, 16))
    other = run(params, images(1, 2, 6, 6), jnp.array([[1, 2, 5, 4]]), jnp.ones((1, 4), bool))
    np.testing.assert_array_equal(out[:, :2], other[:, :2])
    self.assertGreater(np.abs(out[:, 2:] - other[:, 2:]).max(), 1e-3)
    padded = run(params, images(1, 2, 6, 6), jnp.array([[7, 7, 1, 2, 3, 4]]),
                 jnp.arange(6)[None] >= 2)
    np.testing.assert_allclose(padded[:, 2:], out, atol=1e-5)

  def test_every_parameter_has_a_gradient(self):
    trunk = vlm.KeypointTrunk(dataclasses.replace(KEYPOINTS, readout='post_norm'))
    tokens = jnp.arange(9)[None]  # the whole vocabulary
    args = images(1, 1, 6, 6), tokens, jnp.ones((1, 9), bool)
    params = jax.jit(trunk.init)(jax.random.key(0), *args)
    total = lambda params: jnp.sum(trunk.apply(params, *args) * images(1, 9, 16)[..., 0])
    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(total))(params))[0]:
      self.assertTrue(np.isfinite(leaf).all() and np.abs(leaf).max() > 0,
                      jax.tree_util.keystr(path))


if __name__ == '__main__':
  absltest.main()
