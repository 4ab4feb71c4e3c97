"""The decoder against the reference's numbers, and its invariances, names and errors."""
import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models import decoder_config, decoder_lm, generate, pretrained, scoring
from jaxlab.models.decoder_lm import DecoderConfig, DecoderLM
from jaxlab.nn import decoder as decoder_layers
from jaxlab.nn import rotary
from tests.golden_reader import Golden

ATOL = 1e-4
COMMON = {'hidden_size': 32, 'num_attention_heads': 4, 'rms_norm_eps': 1e-6}
LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
          'original_max_position_embeddings': 32}
FAMILIES = {  # as config.json spells them
    'qwen2': {**COMMON, 'model_type': 'qwen2', 'vocab_size': 89, 'intermediate_size': 48,
              'num_hidden_layers': 2, 'num_key_value_heads': 2, 'sliding_window': None,
              'use_sliding_window': False, 'tie_word_embeddings': False,
              'rope_parameters': {'rope_theta': 1e6, 'rope_type': 'default'}},
    'qwen3': {**COMMON, 'model_type': 'qwen3', 'vocab_size': 97, 'intermediate_size': 56,
              'num_hidden_layers': 3, 'num_key_value_heads': 2, 'head_dim': 12,
              'tie_word_embeddings': True, 'rope_theta': 1e6, 'rope_scaling': None},
    'llama': {**COMMON, 'model_type': 'llama', 'vocab_size': 83, 'hidden_size': 24,
              'intermediate_size': 40, 'num_hidden_layers': 2, 'num_attention_heads': 3,
              'rms_norm_eps': 1e-5, 'rope_theta': 1e4},
    'llama3rope': {**COMMON, 'model_type': 'llama', 'vocab_size': 83, 'intermediate_size': 40,
                   'num_hidden_layers': 2, 'num_key_value_heads': 1, 'rms_norm_eps': 1e-5,
                   'tie_word_embeddings': True, 'rope_theta': 5e5, 'rope_scaling': LLAMA3},
}
GOLDEN = Golden('decoder_lm')
TINY = DecoderConfig(vocab_size=17, hidden_size=12, num_hidden_layers=3, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=4, intermediate_size=20, qk_norm=True,
                     attention_bias=True, init='scaled')


@functools.cache
def loaded(tag):
  """(config, params) of a family of the golden file."""
  config = decoder_config.from_checkpoint_config(FAMILIES[tag])
  prefix = f'{tag}/w/'
  weights = {key[len(prefix):]: GOLDEN[key] for key in GOLDEN.unread() if key.startswith(prefix)}
  return config, decoder_lm.params_from_torch(weights, config)


@functools.cache
def program(config):
  """(params, tokens, mask) -> (logits, hidden states)."""
  model = DecoderLM(config)

  def run(params, tokens, mask):
    states = decoder_lm.hidden_states(model, params, tokens, mask)
    return model.apply({'params': params}, states[-1], method='logits'), states

  return jax.jit(run)


@functools.cache
def tiny(**changes):
  """(model, params) of a small decoder."""
  model = DecoderLM(dataclasses.replace(TINY, **changes))
  return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']


class GoldenTest(parameterized.TestCase):

  def check_scores(self, tag):
    config, params = loaded(tag)
    ids = GOLDEN[f'{tag}/ids']
    logits, states = program(config)(params, ids, np.ones_like(ids))
    np.testing.assert_allclose(logits, GOLDEN[f'{tag}/logits'], atol=ATOL)
    self.assertLen(states, config.num_hidden_layers + 1)
    for i, state in enumerate(states):
      np.testing.assert_allclose(state, GOLDEN[f'{tag}/hidden_{i}'], atol=2e-5)
    scores = scoring.gather_logprobs(logits[:, :-1], ids[:, 1:])
    np.testing.assert_allclose(scores, GOLDEN[f'{tag}/token_logprobs'], atol=ATOL)
    tables = rotary.rotary_tables(jnp.arange(ids.shape[1]), config.frequencies)
    for name, table in zip(('cos', 'sin'), tables):
      np.testing.assert_allclose(table, GOLDEN[f'{tag}/rope_{name}'], atol=2e-5)
    mask = GOLDEN[f'{tag}/right_mask']
    logits, _ = program(config)(params, ids, mask)
    np.testing.assert_allclose(
        logits * mask[..., None], GOLDEN[f'{tag}/right_logits'], atol=ATOL)

  def check_greedy_continuation(self, tag, loop):
    config, params = loaded(tag)
    prompt, mask, expected = (GOLDEN[f'{tag}/gen_{name}'] for name in ('prompt', 'mask', 'tokens'))
    run = jax.jit(functools.partial(
        generate.generate, DecoderLM(config), max_new=expected.shape[1], temperature=0, loop=loop))
    out = run(params, prompt, mask, jax.random.key(0))
    np.testing.assert_array_equal(out.tokens, expected)
    self.assertTrue(np.all(out.mask))
    reference = scoring.gather_logprobs(GOLDEN[f'{tag}/gen_step_logits'], expected)
    np.testing.assert_allclose(out.logprobs, reference, atol=ATOL)

  @parameterized.parameters('qwen2', 'qwen3')
  def test_each_row_alone(self, tag):
    config, params = loaded(tag)
    prompt, mask, expected = (GOLDEN[f'{tag}/gen_{name}'] for name in ('prompt', 'mask', 'tokens'))
    for row, kept, tokens in zip(prompt, mask, expected):
      row = row[kept > 0][None]
      out = jax.jit(functools.partial(
          generate.generate, DecoderLM(config), max_new=len(tokens), temperature=0))(
              params, row, np.ones_like(row), jax.random.key(0))
      np.testing.assert_array_equal(out.tokens[0], tokens)

  def check_bfloat16_checkpoint(self):
    config, params = loaded('qwen2')
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    ids = GOLDEN['qwen2/ids']
    logits, _ = program(config)(rounded, ids, np.ones_like(ids))
    np.testing.assert_allclose(logits, GOLDEN['qwen2_bf16ckpt/logits'], atol=ATOL)

  @parameterized.parameters('interleaved positions', 'no biases')
  def test_what_breaks_every_checkpoint(self, mistake):
    config, params = loaded('qwen2')
    ids = GOLDEN['qwen2/ids']

    def interleaved(x, cos, sin):
      split = lambda x: jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
      turned = rotary.apply_rotary(split(x), cos, sin)
      return jnp.stack(jnp.split(turned, 2, axis=-1), axis=-1).reshape(x.shape)

    if mistake == 'no biases':
      params = jax.tree_util.tree_map_with_path(
          lambda path, x: 0 * x if path[-1].key == 'bias' else x, params)
      logits, _ = program(config)(params, ids, np.ones_like(ids))
    else:
      with mock.patch.object(decoder_layers, 'apply_rotary', interleaved):
        logits, _ = DecoderLM(config).apply({'params': params}, ids)
    self.assertGreater(np.abs(logits - GOLDEN['qwen2/logits']).max(), 0.1)

  def test_every_array(self):
    for tag in FAMILIES:
      self.check_scores(tag)
      self.check_greedy_continuation(tag, 'while')
    self.check_greedy_continuation('qwen3', 'scan')
    self.check_bfloat16_checkpoint()
    self.assertEmpty(GOLDEN.unread())


class PropertiesTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_the_past_does_not_see_the_future(self, scanned):
    model, params = tiny(scan_layers=scanned)
    run = jax.jit(lambda tokens: model.apply({'params': params}, tokens)[0])
    tokens = np.random.default_rng(0).integers(0, 17, (2, 9))
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 17
    before, after = run(tokens), run(changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    self.assertTrue(np.all(np.any(before[:, 5:] != after[:, 5:], axis=-1)))

  def test_padding_changes_nothing(self):
    model, params = tiny()
    run = jax.jit(lambda tokens, mask: model.apply({'params': params}, tokens, mask)[0])
    tokens = np.random.default_rng(0).integers(1, 17, (2, 10))
    alone = run(tokens[:, 3:], np.ones((2, 7)))
    mask = np.arange(10) >= 3
    for filler in (0, 5):
      padded = np.where(mask, tokens, filler)
      left = run(padded, np.tile(mask, (2, 1)))
      np.testing.assert_allclose(left[:, 3:], alone, atol=ATOL)
      right = run(np.roll(padded, -3, axis=1), np.tile(np.roll(mask, -3), (2, 1)))
      np.testing.assert_allclose(right[:, :7], alone, atol=ATOL)
      self.assertTrue(np.all(np.isfinite(left)))  # rows of padding see nothing

  def test_scanned_layers_equal_unrolled_ones(self):
    model, params = tiny()
    scanned = DecoderLM(dataclasses.replace(TINY, scan_layers=True, remat=True))
    stacked = pretrained.stack_layers(params)
    tokens = np.arange(12).reshape(2, 6)
    loss = lambda model: lambda p: jnp.square(model.apply({'params': p}, tokens)[0]).sum()
    ours, gradient = jax.jit(jax.value_and_grad(loss(model)))(params)
    theirs, stacked_gradient = jax.jit(jax.value_and_grad(loss(scanned)))(stacked)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    chex.assert_trees_all_close(
        pretrained.stack_layers(gradient), stacked_gradient, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_equal(pretrained.unstack_layers(stacked), params)
    chex.assert_trees_all_equal_shapes(
        stacked, jax.eval_shape(scanned.init, jax.random.key(0), tokens)['params'])
    states = [decoder_lm.hidden_states(m, p, tokens)
              for m, p in ((model, params), (scanned, stacked))]
    chex.assert_trees_all_close(*states, atol=1e-5)

  @parameterized.product(scanned=[False, True])
  def test_decoding_with_a_cache_equals_without(self, scanned):
    model, params = tiny(scan_layers=scanned)
    tokens = np.random.default_rng(0).integers(1, 17, (2, 7))
    mask = np.arange(7) >= [[2], [0]]
    full, _ = jax.jit(model.apply)({'params': params}, tokens, mask)
    step = jax.jit(lambda tokens, cache: model.apply({'params': params}, tokens, mask, None, cache))
    cache = decoder_lm.init_cache(model.config, 2, 7)
    pieces = []
    for start, end in ((0, 4), (4, 5), (5, 7)):
      logits, cache = step(tokens[:, start:end], cache)
      pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, 1)[:, 2:], full[:, 2:], atol=1e-5)
    self.assertEqual(int(cache.slot), 7)

  @parameterized.parameters(True, False)
  def test_every_parameter_has_a_gradient(self, tied):
    model, params = tiny(tie_word_embeddings=tied, mlp_bias=True, output_bias=True)
    tokens = np.random.default_rng(1).integers(0, 17, (4, 8))
    score = lambda p: scoring.token_logprobs(model, p, tokens, chunk=3).sum()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(score))(params)):
      largest = np.abs(leaf).max()
      # A bias of the keys moves all scores of a query alike, but for the norm.
      self.assertTrue(np.isfinite(largest) and largest > 0, jax.tree_util.keystr(path))

  def test_embeddings_may_be_given(self):
    model, params = tiny()
    tokens = np.arange(6)[None]
    given = params['embed']['embedding'][tokens]
    np.testing.assert_allclose(model.apply({'params': params}, given)[0],
                               model.apply({'params': params}, tokens)[0], atol=1e-6)

  def test_bfloat16_is_close_and_logits_are_float32(self):
    model, params = tiny()
    low = DecoderLM(dataclasses.replace(TINY, dtype='bfloat16'))
    tokens = np.arange(12).reshape(2, 6)
    exact, rough = (jax.jit(m.apply)({'params': params}, tokens)[0] for m in (model, low))
    self.assertEqual(rough.dtype, jnp.float32)
    self.assertLess(np.abs(exact - rough).max(), 0.1)
    self.assertGreater(np.abs(exact - rough).max(), 0)
    grads = jax.eval_shape(jax.grad(lambda p: low.apply({'params': p}, tokens)[0].sum()), params)
    chex.assert_trees_all_equal_dtypes(grads, params)

  def test_initialisation(self):
    model, params = tiny(init='normal', hidden_size=64, intermediate_size=256)
    kernel = params['layers_0']['mlp']['down_proj']['kernel']
    self.assertAlmostEqual(float(kernel.std()), 0.02, places=3)
    _, params = tiny(hidden_size=64, intermediate_size=256)
    kernel = params['layers_0']['mlp']['down_proj']['kernel']
    self.assertAlmostEqual(float(kernel.std()), 1 / 16 / np.sqrt(6), places=3)
    self.assertTrue(np.all(params['layers_0']['attn']['q_proj']['bias'] == 0))


class NamesTest(parameterized.TestCase):

  @parameterized.parameters(*FAMILIES)
  def test_there_and_back_is_exact(self, tag):
    config, params = loaded(tag)
    scanned = dataclasses.replace(config, scan_layers=True)
    exported = decoder_lm.params_to_torch(params)
    for name, value in exported.items():
      np.testing.assert_array_equal(value, GOLDEN[f'{tag}/w/{name}'])
    again = decoder_lm.params_from_torch(exported, scanned)
    chex.assert_trees_all_equal(pretrained.unstack_layers(again), params)
    self.assertEqual(list(decoder_lm.params_to_torch(again)), list(exported))
    self.assertLen(set(exported), len(jax.tree.leaves(params)))

  def test_wrong_tensors_are_listed(self):
    config, params = loaded('qwen3')
    weights = decoder_lm.params_to_torch(params)
    weights['model.norm.weight'] = weights['model.norm.weight'][:-1]
    del weights['model.layers.1.self_attn.q_norm.weight']
    weights['model.layers.0.self_attn.q_proj.bias'] = np.zeros(48)
    weights['lm_head.weight'] = np.zeros((97, 32))  # tied: not looked at
    with self.assertRaises(ValueError) as caught:
      decoder_lm.params_from_torch(weights, config)
    self.assertEqual(
        str(caught.exception), 'the checkpoint is not of this model: '
        'model.layers.1.self_attn.q_norm.weight is missing; '
        'model.layers.0.self_attn.q_proj.bias is left over; '
        'model.norm.weight has shape (31,), expected (32,)')

  def test_both_spellings_of_a_config(self):
    old = FAMILIES['llama3rope']
    new = {**old, 'rope_parameters': {**LLAMA3, 'rope_theta': 5e5}}
    del new['rope_theta'], new['rope_scaling']
    read = decoder_config.from_checkpoint_config
    self.assertEqual(read(old), read(new))
    frequencies = read({**old, 'rope_scaling': {'type': 'linear', 'factor': 4.0}}).frequencies
    np.testing.assert_allclose(frequencies, rotary.rotary_frequencies(8, 5e5) / 4, rtol=1e-6)

  @parameterized.parameters(
      ({'model_type': 'qwen4'}, "config.json: model_type: unknown name 'qwen4'; did you mean"),
      ({'use_sliding_window': True, 'sliding_window': 128},
       'config.json: sliding_window: expected full attention in every layer, got 128'),
      ({'model_type': 'mistral', 'sliding_window': 4096, 'use_sliding_window': True},
       'sliding_window: expected full'),
      ({'hidden_act': 'gelu'}, "config.json: hidden_act: expected silu, got 'gelu'"),
      ({'vocab_size': None}, 'config.json: vocab_size: expected a number'),
      ({'rope_parameters': {'rope_type': 'yarn', 'factor': 2.0}},
       "config.json: rope_type: expected default, linear or llama3, got 'yarn'"),
      ({'model_type': ['qwen2']}, r'config.json: model_type: expected str'),
      ({'vocab_size': '89'}, "config.json.vocab_size: expected int, got '89'"),
      ({'num_key_value_heads': 0}, 'num_key_value_heads: expected at least 1, got 0'),
      ({'head_dim': 0}, 'head_dim: expected at least 1, got 0'),
      ({'rope_parameters': 'linear'}, 'config.json: rope_scaling: expected Mapping'),
      ({'rope_parameters': {'type': 'linear'}}, 'rope_scaling: factor: expected a number, got N'),
      ({'rope_parameters': {**LLAMA3, 'factor': 'eight'}}, 'rope_scaling.factor: expected float'),
      ({'rope_parameters': {'rope_type': 'llama3', 'factor': 8.0}},
       'config.json: rope_scaling: low_freq_factor: expected a number'))
  def test_a_config_that_cannot_be_run(self, change, message):
    config = {k: v for k, v in {**FAMILIES['qwen2'], **change}.items() if v is not None}
    with self.assertRaisesRegex(ConfigError, message):
      decoder_config.from_checkpoint_config(config)

  @parameterized.parameters(
      ({'num_key_value_heads': 3}, 'num_key_value_heads: expected a divisor of'),
      ({'head_dim': 3}, 'head_dim: expected an even number, got 3'),
      ({'head_dim': None, 'hidden_size': 13}, 'hidden_size: expected a multiple of'),
      ({'num_hidden_layers': 0}, 'num_hidden_layers: expected at least 1'),
      ({'rope_scaling': {'kind': 'yarn', 'factor': 2.0}}, 'rope_scaling.kind: expected'),
      ({'rope_scaling': 'linear'}, 'rope_scaling: expected'),
      ({'rope_scaling': {'kind': 'linear', 'factor': 0.0}}, 'rope_scaling.factor: expected at lea'),
      ({'rope_scaling': {'kind': 'llama3', 'factor': 2.0, 'low_freq_factor': 4.0}},
       'rope_scaling.high_freq_factor: expected above low_freq_factor=4.0, got 4.0'))
  def test_impossible_fields(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      dataclasses.replace(TINY, **change)

  def test_a_config_there_and_back(self):
    read, write = decoder_config.from_checkpoint_config, decoder_config.checkpoint_config
    for tag, given in FAMILIES.items():
      config = read(given, init='scaled', remat=True)
      written = write(config)
      self.assertEqual(written['model_type'], given['model_type'], msg=tag)
      self.assertEqual(read(written, init='scaled', remat=True), config, msg=tag)
    with self.assertRaisesRegex(ConfigError, 'model: expected the biases and norms of one of llam'):
      write(TINY)  # norms of queries and biases of theirs alone

  def test_presets_have_the_size_of_their_names(self):
    for name, config in decoder_config.PRESETS.items():
      model = DecoderLM(config)
      shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      billions = sum(x.size for x in jax.tree.leaves(shapes)) / 1e9
      self.assertAlmostEqual(billions / float(name.split('-')[1][:-1]), 1, delta=0.27, msg=name)
      self.assertTrue(config.scan_layers)


if __name__ == '__main__':
  absltest.main()
