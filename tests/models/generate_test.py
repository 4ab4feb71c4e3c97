"""Sampling: distributions, filters, stop tokens, padding, batches of unlike prompts."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special, stats

from jaxlab.config import ConfigError
from jaxlab.models import decoder_lm, generate, pretrained, scoring

CONFIG = decoder_lm.DecoderConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, intermediate_size=16, init='scaled')
MODEL = decoder_lm.DecoderLM(CONFIG)
KEY = jax.random.key(3)


@functools.cache
def params():
  return jax.tree.map(
      lambda x: 2 * x, jax.jit(MODEL.init)(KEY, jnp.zeros((1, 1), jnp.int32))['params'])


@functools.cache
def sampler(**settings):
  return jax.jit(functools.partial(generate.generate, MODEL, **settings))


def prompts(rows=3, length=5):
  tokens = np.random.default_rng(0).integers(1, 11, (rows, length))
  mask = np.arange(length) >= np.arange(rows)[:, None] % 3
  return np.where(mask, tokens, 0), mask


class FilterTest(parameterized.TestCase):

  @parameterized.parameters(0.05, 0.3, 0.7, 0.95, 0.999)
  def test_top_p_keeps_the_smallest_prefix(self, top_p):
    logits = np.random.default_rng(0).normal(size=(40, 23)).astype(np.float32) * 3
    kept = np.asarray(generate.filter_logits(logits, top_p=top_p)) > -1e8
    probabilities = special.softmax(logits.astype(np.float64), -1)
    for row, chosen in zip(probabilities, kept):
      order = np.argsort(-row)
      before = np.concatenate([[0], np.cumsum(row[order])[:-1]])
      expected = np.zeros(23, bool)
      expected[order[before < top_p]] = True
      np.testing.assert_array_equal(chosen, expected)
      self.assertGreaterEqual(row[chosen].sum(), top_p - 1e-6)

  def test_top_k_keeps_ties(self):
    logits = np.array([[1., 5, 3, 3, 0], [2, 2, 2, 2, 2]], np.float32)
    kept = np.asarray(generate.filter_logits(logits, top_k=2)) > -1e8
    np.testing.assert_array_equal(kept, [[0, 1, 1, 1, 0], [1] * 5])
    np.testing.assert_array_equal(generate.filter_logits(logits, top_k=5), logits)

  def test_top_p_takes_the_first_of_ties(self):
    logits = np.log(np.array([[.2, .4, .2, .2], [.25, .25, .25, .25]], np.float32))
    for top_p, kept in ((.5, [[1, 1, 0, 0], [1, 1, 0, 0]]), (.61, [[1, 1, 1, 0], [1, 1, 1, 0]])):
      found = np.asarray(generate.filter_logits(logits, top_p=top_p)) > -1e8
      np.testing.assert_array_equal(found, kept)

  def test_top_k_comes_first(self):
    logits = np.log(np.array([[.4, .3, .2, .1]], np.float32))
    kept = np.asarray(generate.filter_logits(logits, top_k=2, top_p=.5)) > -1e8
    np.testing.assert_array_equal(kept, [[1, 0, 0, 0]])  # 4/7 of what is left


  def test_what_is_filtered_is_never_sampled_however_cold(self):
    logits = np.array([[-5., -4., -3., -20.]] * 2, np.float32)
    keys = jax.random.split(KEY, 2)
    for temperature in (1e-6, 1e-10):
      token, logprob, sampling = generate._sample(logits, keys, 0, temperature, 2, 1.0)
      np.testing.assert_array_equal(token, [2, 2])
      np.testing.assert_allclose(logprob, special.log_softmax(logits[0])[2], atol=1e-5)
      np.testing.assert_array_equal(sampling, [0, 0])


class GenerateTest(parameterized.TestCase):

  @parameterized.parameters(
      {'temperature': 1e-4}, {'temperature': 1.0, 'top_k': 1}, {'temperature': 1.0, 'top_p': 1e-6})
  def test_nearly_greedy_is_greedy(self, **settings):
    greedy = sampler(max_new=6, temperature=0)(params(), *prompts(), KEY)
    out = sampler(max_new=6, **settings)(params(), *prompts(), KEY)
    np.testing.assert_array_equal(out.tokens, greedy.tokens)
    np.testing.assert_allclose(out.logprobs, greedy.logprobs, atol=1e-6)
    np.testing.assert_allclose(out.sampling_logprobs, 0, atol=1e-3)

  @parameterized.parameters({}, {'temperature': .7, 'top_k': 5, 'top_p': .9})
  def test_frequencies_are_the_softmax(self, **settings):
    rows = 20000
    prompt = np.tile(prompts(1)[0], (rows, 1))
    out = sampler(max_new=1, **settings)(params(), prompt, np.ones_like(prompt), KEY)
    logits = MODEL.apply({'params': params()}, prompt[:1])[0][0, -1]
    filtered = generate.filter_logits(logits / settings.get('temperature', 1), **{
        name: value for name, value in settings.items() if name != 'temperature'})
    expected = special.softmax(np.asarray(filtered, np.float64))
    kept = expected > 0
    counts = np.bincount(out.tokens[:, 0], minlength=11)
    self.assertEqual(counts[~kept].sum(), 0)
    self.assertGreater(
        stats.chisquare(counts[kept], rows * expected[kept] / expected[kept].sum()).pvalue, 1e-3)
    tokens = np.asarray(out.tokens[:, 0])
    np.testing.assert_allclose(out.logprobs[:, 0], special.log_softmax(
        np.asarray(logits, np.float64))[tokens], atol=1e-5)
    np.testing.assert_allclose(out.sampling_logprobs[:, 0], np.log(expected[tokens]), atol=1e-4)

  def test_log_probabilities_are_the_trainers(self):
    prompt, mask = prompts()
    out = sampler(max_new=6)(params(), prompt, mask, KEY)
    whole = np.concatenate([prompt, out.tokens], 1)
    visible = np.concatenate([mask, np.ones((3, 6), bool)], 1)
    scores = scoring.token_logprobs(MODEL, params(), whole, visible, first=5)
    np.testing.assert_allclose(out.logprobs, scores, atol=1e-5)

  @parameterized.parameters('while', 'scan')
  def test_stop_tokens(self, loop):
    free = sampler(max_new=8)(params(), *prompts(), KEY)
    stops = (int(free.tokens[0, 2]), int(free.tokens[1, 1]))
    out = sampler(max_new=8, eos_ids=stops, pad_id=7, loop=loop)(params(), *prompts(), KEY)
    for row, free_row, mask, scores in zip(out.tokens, free.tokens, out.mask, out.logprobs):
      ends = np.flatnonzero(np.isin(free_row, stops))
      end = ends[0] + 1 if len(ends) else 8
      np.testing.assert_array_equal(mask, np.arange(8) < end)
      np.testing.assert_array_equal(row[:end], free_row[:end])
      np.testing.assert_array_equal(row[end:], 7)
      np.testing.assert_array_equal(scores[end:], 0)
    self.assertTrue(np.any(~np.asarray(out.mask)))

  def test_rows_draw_alone(self):
    prompt, mask = prompts()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(3))
    together = sampler(max_new=6)(params(), prompt, mask, KEY)
    split = sampler(max_new=6)(params(), prompt[1:], mask[1:], keys[1:])
    np.testing.assert_array_equal(together.tokens[1:], split.tokens)
    wider = [np.pad(x, ((0, 0), (3, 0))) for x in (prompt, mask)]
    padded = sampler(max_new=6)(params(), *wider, KEY)
    np.testing.assert_array_equal(together.tokens, padded.tokens)
    other = sampler(max_new=6)(params(), prompt, mask, jax.random.key(4))
    self.assertTrue(np.any(other.tokens != together.tokens))

  def test_scanned_layers_and_vmapped_models(self):
    model = decoder_lm.DecoderLM(CONFIG.__class__(**{**CONFIG.__dict__, 'scan_layers': True}))
    expected = sampler(max_new=4)(params(), *prompts(), KEY)
    out = jax.jit(functools.partial(generate.generate, model, max_new=4))(
        pretrained.stack_layers(params()), *prompts(), KEY)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    both = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), params())
    run = functools.partial(generate.generate, MODEL, max_new=4, loop='scan')
    out = jax.jit(jax.vmap(run, (0, None, None, None)))(both, *prompts(), KEY)
    np.testing.assert_array_equal(out.tokens[0], expected.tokens)

  def test_prompts_of_unlike_lengths(self):
    rng = np.random.default_rng(1)
    texts = [rng.integers(1, 11, n).tolist() for n in (3, 9, 1, 4, 8, 2, 5)]
    out = generate.generate_all(
        MODEL, params(), texts, KEY, max_new=5, batch_size=2, buckets=(4, 16), temperature=0,
        eos_ids=[2])
    for text, tokens in zip(texts, out):
      alone = sampler(max_new=5, temperature=0, eos_ids=(2,))(
          params(), *generate.pad_left([text], 16), KEY)
      np.testing.assert_array_equal(tokens, np.asarray(alone.tokens[0])[np.asarray(alone.mask[0])])

  @parameterized.parameters(
      ({'max_new': 0}, 'max_new: expected at least 1'),
      ({'temperature': -1.0}, 'temperature: expected at least 0'),
      ({'top_p': 0.0}, r'top_p: expected in \(0, 1\]'), ({'top_k': -1}, 'top_k: expected'),
      ({'loop': 'scna'}, "loop: expected 'while' or 'scan', got 'scna'"))
  def test_impossible_settings(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      generate.generate(MODEL, params(), *prompts(), KEY, **{'max_new': 1, **change})

  @parameterized.parameters(([[1], []], (), 'prompts: expected at least one token'),
                            ([[1] * 9], (4, 8), r'buckets: expected a length of at least 9'))
  def test_impossible_prompts(self, texts, buckets, message):
    with self.assertRaisesRegex(ConfigError, message):
      generate.generate_all(MODEL, params(), texts, KEY, max_new=1, buckets=buckets)


if __name__ == '__main__':
  absltest.main()
