"""Decoders from mappings of a config: drawn, read from a public folder, or refused."""
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models import decoder_checkpoint, decoder_lm, pretrained
from jaxlab.models.decoder_config import DecoderConfig

SPEC = {'vocab_size': 11, 'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2,
        'intermediate_size': 8}
PUBLIC = {'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'rms_norm_eps': 1e-6,
          'tie_word_embeddings': False, **SPEC}


class DecoderCheckpointTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'hiden_size': 8}, "model: unknown key 'hiden_size'; did you mean 'hidden_size'"),
      ({'hidden_size': 'wide'}, 'model.hidden_size: expected'),
      ({'num_attention_heads': 3}, 'hidden_size: expected a multiple of num_attention_heads=3'),
      ({'weights': 3}, 'model.weights: expected'),
  )
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      decoder_checkpoint.check_spec({**SPEC, **change}, 'model')

  def test_a_public_folder_gives_shape_and_weights_in_the_asked_dtype(self):
    with tempfile.TemporaryDirectory() as folder:
      drawn = decoder_checkpoint.decoder_config(SPEC, 'model')
      self.assertEqual(drawn, DecoderConfig(**SPEC))
      params = jax.jit(decoder_checkpoint.initializer(drawn))(jax.random.key(0))
      # Untied, as the public config says.
      params = {**params, 'lm_head': {'kernel': jnp.ones((8, 11))}}
      pretrained.write_safetensors_folder(
          pathlib.Path(folder), {name: x.astype(ml_dtypes.bfloat16) for name, x in
                                 decoder_lm.params_to_torch(params).items()}, PUBLIC)
      spec = {'weights': folder, 'dtype': 'bfloat16'}
      decoder_checkpoint.check_spec(spec, 'model')
      config = decoder_checkpoint.decoder_config(spec, 'model')
      self.assertEqual((config.hidden_size, config.tie_word_embeddings, config.dtype),
                       (8, False, 'bfloat16'))
      read = decoder_checkpoint.read_params(folder, config)
      chex.assert_trees_all_equal_shapes_and_dtypes(read, decoder_checkpoint.shapes_of(config))
      traced = jax.jit(decoder_checkpoint.initializer(
          config, lambda: decoder_checkpoint.read_params(folder, config)))(jax.random.key(1))
      chex.assert_trees_all_equal(traced, read)
      decoder_checkpoint.write_params(pathlib.Path(folder) / 'again', read, config)
      spec['weights'] = str(pathlib.Path(folder) / 'again')
      self.assertEqual(decoder_checkpoint.decoder_config(spec, 'model'), config)
      chex.assert_trees_all_equal(decoder_checkpoint.read_params(spec['weights'], config), read)
      with self.assertRaisesRegex(ConfigError, "model: unknown key 'hidden_size'"):
        decoder_checkpoint.decoder_config({**spec, 'hidden_size': 8}, 'model')


if __name__ == '__main__':
  absltest.main()
