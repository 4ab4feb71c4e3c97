"""V-JEPA 2 without its golden file: leaks by Jacobians, layouts, gradients, errors."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models import vjepa2, vjepa2_weights

CONFIG = vjepa2.VJEPA2Config(
    crop_size=8, patch_size=4, tubelet_size=2, hidden_size=12, num_attention_heads=2,
    num_hidden_layers=2, pred_hidden_size=12, pred_num_attention_heads=2,
    pred_num_hidden_layers=1, pred_num_mask_tokens=2, init_std=0.0)
TOKENS = CONFIG.tokens_per_step


def params_of(config):
  return jax.jit(lambda key: vjepa2_weights.init_params(config, key))(jax.random.key(0))


def noise(*shape, seed=1):
  return jax.random.normal(jax.random.key(seed), shape)


class LeakTest(parameterized.TestCase):

  @parameterized.parameters('causal_prefix', 'repeat_frame', 'shared')
  def test_which_frames_a_context_state_depends_on(self, how):
    params, frames, steps = params_of(CONFIG)['encoder'], noise(1, 6, 8, 8, 3), 3
    encode = lambda x: vjepa2.Encoder(CONFIG).apply({'params': params}, x)

    def states(frames):
      context, _ = vjepa2.context_states(encode, frames, how=how, tubelet=2)
      # A random mixture: a plain sum of normalised tokens would be constant.
      mixed = context.reshape(steps - 1, TOKENS, -1) * noise(TOKENS, 12, seed=2)
      return mixed.sum((1, 2))

    jacobian = np.asarray(jax.jit(jax.jacrev(states))(frames))  # [G - 1, 1, T, H, W, 3]
    touched = np.abs(jacobian).max((1, 3, 4, 5))  # [G - 1, T]
    for k in range(steps - 1):
      end = 2 * k + 2
      if how == 'shared':
        self.assertTrue((touched[k] > 1e-6).all(), touched)
      else:
        np.testing.assert_array_equal(touched[k, end:], 0)
        self.assertGreater(touched[k, end - 1], 1e-6)
      if how == 'causal_prefix':
        self.assertTrue((touched[k, :end] > 1e-6).all(), touched)

  def test_targets_are_of_the_whole_clip_or_of_the_same_kind(self):
    params, frames = params_of(CONFIG)['encoder'], noise(2, 6, 8, 8, 3)
    encode = jax.jit(lambda x: vjepa2.Encoder(CONFIG).apply({'params': params}, x))
    whole = encode(frames)
    for how in vjepa2.CONTEXT_ENCODINGS:
      _, target = vjepa2.context_states(encode, frames, how=how, tubelet=2)
      np.testing.assert_allclose(target, whole[:, TOKENS:], atol=1e-6)
      context, target = vjepa2.context_states(encode, frames, how=how, tubelet=2,
                                              targets='context')
      np.testing.assert_array_equal(context[:, TOKENS:], target[:, :-TOKENS])
    with self.assertRaisesRegex(ConfigError, "context_encoding: .* did you mean 'shared'"):
      vjepa2.context_states(encode, frames, how='share', tubelet=2)


class EncoderTest(parameterized.TestCase):

  def test_scanned_layers_compute_and_convert_the_same(self):
    params = params_of(CONFIG)
    scanned = dataclasses.replace(CONFIG, scan_layers=True, remat=True)
    tensors = vjepa2_weights.params_to_torch(params, CONFIG)
    stacked = vjepa2_weights.params_from_torch(tensors, scanned)
    frames = noise(2, 4, 8, 8, 3)
    run = lambda config, p: jax.jit(vjepa2.Encoder(config).apply)({'params': p['encoder']}, frames)
    np.testing.assert_allclose(run(CONFIG, params), run(scanned, stacked), atol=1e-5)
    back = vjepa2_weights.params_to_torch(stacked, scanned)
    self.assertEqual(set(tensors), set(back))
    for name, value in tensors.items():
      np.testing.assert_array_equal(value, back[name])

  def test_every_parameter_has_a_gradient(self):
    numbers = jnp.array([[0, 1, 2], [1, 2, 3]]), jnp.array([[3, 4], [5, 0]])

    def total(params):
      encoded = vjepa2.Encoder(CONFIG).apply({'params': params['encoder']}, noise(2, 4, 8, 8, 3))
      out = vjepa2.MaskedPredictor(CONFIG).apply({'params': params['predictor']}, encoded,
                                                 *numbers, mask_index=3)
      return jnp.sum(out * noise(*out.shape, seed=4))

    # Mask tokens start at zero, where their queries say nothing.
    params = jax.tree.map(lambda x: x + 0.1 * noise(*x.shape, seed=5), params_of(CONFIG))
    gradient = jax.jit(jax.grad(total))(params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      if "'key'" not in name or 'bias' not in name:  # softmax ignores most of a key's bias
        self.assertGreater(np.abs(leaf).max(), 1e-7, name)

  def test_errors(self):
    encoder, params = vjepa2.Encoder(CONFIG), params_of(CONFIG)['encoder']
    for shape in ((1, 3, 8, 8, 3), (1, 2, 8, 4, 3), (2, 8, 8, 3)):
      with self.assertRaisesRegex(ValueError, r'frames: expected \[B, a multiple of 2, 8, 8, 3\]'):
        encoder.apply({'params': params}, jnp.zeros(shape))
    with self.assertRaisesRegex(ConfigError, 'patch_size: expected a divisor of crop_size=16'):
      vjepa2.VJEPA2Config(crop_size=16, patch_size=5)
    with self.assertRaisesRegex(ConfigError, 'pred_num_attention_heads: expected a divisor of'):
      vjepa2.VJEPA2Config(pred_hidden_size=12, pred_num_attention_heads=5)
    with self.assertRaisesRegex(ConfigError, 'model_type: expected vjepa2'):
      vjepa2_weights.config_from_checkpoint({'model_type': 'vit'})
    tensors = vjepa2_weights.params_to_torch(params_of(CONFIG), CONFIG)
    del tensors['encoder.layernorm.bias']
    with self.assertRaisesRegex(ValueError, 'encoder.layernorm.bias is missing'):
      vjepa2_weights.params_from_torch(tensors, CONFIG)

  def test_reads_a_checkpoints_config(self):
    keys = ('crop_size', 'patch_size', 'tubelet_size', 'hidden_size', 'num_attention_heads',
            'num_hidden_layers', 'mlp_ratio', 'pred_hidden_size', 'pred_num_attention_heads',
            'pred_num_hidden_layers', 'pred_num_mask_tokens', 'pred_mlp_ratio', 'layer_norm_eps')
    config = {'model_type': 'vjepa2', **{key: getattr(CONFIG, key) for key in keys}}
    self.assertEqual(vjepa2_weights.config_from_checkpoint(config, init_std=0.0), CONFIG)
    narrow = vjepa2_weights.config_from_checkpoint({**config, 'mlp_ratio': 2.0}, init_std=0.0)
    shapes = jax.eval_shape(lambda: vjepa2_weights.init_params(narrow, jax.random.key(0)))
    widths = [shapes[part]['layers_0']['fc1']['kernel'].shape[1]
              for part in ('encoder', 'predictor')]
    self.assertEqual(widths, [24, 48])


if __name__ == '__main__':
  absltest.main()
