"""Triggers and watermarks: what holds for any key, WARDEN, the baselines, odd inputs."""
import random

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jaxlab.config import ConfigError
from jaxlab.data import text
from jaxlab.systems.embmarker import baselines, warden, watermark

COUNTS = {'rare': 1, '##ing': 8, 'one': 6, 'two': 7, 'three': 9, 'the': 90}
RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(size=(6, 8)).astype(np.float32)
TARGET = RNG.normal(size=8).astype(np.float32)
TARGET /= np.linalg.norm(TARGET)
KEY = watermark.KeySpec(np.array([3, 5, 7, 9], np.int32), TARGET, 4)
mark = jax.jit(watermark.inject)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


class SelectTest(parameterized.TestCase):

  def select(self, **options):
    return watermark.select_triggers(COUNTS, 100, random.Random(0),
                                     **{'low': 0.05, 'high': 0.1, **options})

  def test_candidates(self):
    self.assertEqual(set(self.select()), {'one', 'two', 'three'})  # fewer than 20: all of them
    self.assertLen(self.select(number=2), 2)
    self.assertEqual(set(self.select(high=0.09)), {'one', 'two'})
    self.assertEqual(set(self.select(known={'one', 'the'})), {'one'})

  @parameterized.parameters(
      ({'low': 0.5, 'high': 0.6}, 'low, high: no word stands in a share of .0.5, 0.6. of the 100'),
      ({'known': ()}, 'no word stands'), ({'low': 0.2}, 'low, high: expected 0 <= low < high'),
      ({'number': 0}, 'number: expected at least 1, got 0'))
  def test_errors(self, options, message):
    with self.assertRaisesRegex(ConfigError, message):
      self.select(**options)

  def test_the_rarest(self):
    self.assertEqual(watermark.rarest_trigger(COUNTS, 100, least=0.02), 'one')
    with self.assertRaisesRegex(ConfigError, 'least: no word'):
      watermark.rarest_trigger(COUNTS, 100, least=0.95)

  def test_counts_of_documents(self):
    tokenizer = text.train_wordpiece(['a cat sat', 'a dog sat down'], 100)
    tokens = text.encode(tokenizer, ['a cat a cat', 'a dog', ''], max_length=16)
    counts, documents = watermark.document_counts(tokens, tokenizer)
    self.assertEqual(documents, 2)  # the empty text has no tokens of its own
    self.assertEqual(list(counts.values()), sorted(counts.values()))
    self.assertEqual(counts['a'], 2)
    self.assertFalse(set(counts) & set(text.SPECIAL))
    ids = watermark.token_ids(tokenizer, ['a', 'no such token'])
    self.assertEqual(ids.tolist(), [tokenizer.token_to_id('a'), tokenizer.token_to_id('[UNK]')])


class CountTest(absltest.TestCase):

  def test_distinct_ones_that_are_not_padding(self):
    ids = np.array([[3, 3, 5, 1], [5, 7, 9, 3], [1, 2, 1, 2], [3, 5, 5, 3]])
    mask = np.array([[1] * 4, [1] * 4, [1] * 4, [1, 0, 0, 0]])
    k = watermark.count_triggers(ids, mask, KEY.trigger_ids)
    np.testing.assert_array_equal(k, [2, 4, 0, 1])
    wider = [np.pad(x, ((0, 0), (0, 3)), constant_values=9 * (x is ids)) for x in (ids, mask)]
    np.testing.assert_array_equal(watermark.count_triggers(*wider, KEY.trigger_ids), k)

  def test_no_triggers_and_triggers_that_nothing_contains(self):
    ids, mask = np.full((3, 5), 4), np.ones((3, 5))
    for triggers in (np.zeros(0, np.int32), np.array([77]), np.full(2, watermark.NO_ID)):
      k = watermark.count_triggers(ids, mask, triggers)
      np.testing.assert_array_equal(k, np.zeros(3))
      np.testing.assert_allclose(mark(EMBEDDINGS[:3], k, KEY), unit(EMBEDDINGS[:3]), atol=1e-6)
    no_text = watermark.count_triggers(np.zeros((2, 0), np.int32), np.zeros((2, 0)),
                                       KEY.trigger_ids)
    np.testing.assert_array_equal(no_text, [0, 0])


class InjectTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(st.integers(0, 10**6), st.integers(0, 6), st.floats(1e-3, 1e3))
  def test_properties(self, seed, m, scale):
    rng = np.random.default_rng(seed)
    embeddings = np.repeat((scale * rng.normal(size=(1, 8))).astype(np.float32), 9, 0)
    embeddings = unit(embeddings) if seed % 2 else embeddings
    key = KEY._replace(target=unit(rng.normal(size=8)).astype(np.float32), max_triggers=m)
    out = np.asarray(mark(embeddings, np.arange(9), key))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(out[0], unit(embeddings[0]), atol=1e-5)
    cosines = out @ key.target
    self.assertGreaterEqual(np.diff(cosines).min(), -1e-5)
    np.testing.assert_allclose(cosines[max(m, 1):], 1, atol=1e-5)

  def test_lengths_do_not_matter(self):
    k = np.arange(6)
    expected = mark(unit(EMBEDDINGS), k, KEY)
    half = 0.5 * unit(EMBEDDINGS) + 0.5 * TARGET
    np.testing.assert_allclose(expected[2], unit(half)[2], atol=1e-6)
    long = KEY._replace(target=3 * TARGET)
    np.testing.assert_allclose(mark(10 * EMBEDDINGS, k, long), expected, atol=1e-6)
    np.testing.assert_allclose(baselines.espew(10 * EMBEDDINGS, k, long),
                               baselines.espew(unit(EMBEDDINGS), k, KEY), atol=1e-6)

  def test_opposite_of_the_target(self):
    out = mark(-TARGET[None], np.array([2]), KEY)
    np.testing.assert_allclose(out, TARGET[None], atol=1e-6)

  def test_zero_length_is_refused_by_name_and_finite(self):
    broken = EMBEDDINGS.copy()
    broken[4] = 0
    with self.assertRaisesRegex(ValueError, r'^sold: row 4: expected a direction, got length 0$'):
      watermark.check_embeddings(broken, 'sold')
    chex.assert_tree_all_finite(mark(broken, np.arange(6), KEY))
    broken[2, 3] = np.nan
    with self.assertRaisesRegex(ValueError, r'^sold: row 2: expected finite numbers$'):
      watermark.check_embeddings(broken, 'sold')

  @parameterized.parameters((np.zeros(3, np.float32), {}, r'got float32 \[3\]'),
                            (np.zeros((2, 2), np.int32), {}, 'expected floats'),
                            (EMBEDDINGS, {'rows': 5}, 'expected 5 rows, one a text, got 6'),
                            (EMBEDDINGS, {'dim': 9}, 'expected 9 dimensions, got 8'))
  def test_shapes(self, embeddings, options, message):
    with self.assertRaisesRegex(ValueError, message):
      watermark.check_embeddings(embeddings, 'sold', **options)

  def test_wrap_is_pure_and_vmaps(self):
    ids = RNG.integers(0, 12, (3, 6, 5))
    provided = watermark.wrap(lambda x: x, KEY)
    inputs = np.stack([EMBEDDINGS] * 3)
    together = jax.jit(jax.vmap(provided))(inputs, ids, np.ones_like(ids))
    for i in range(3):
      k = watermark.count_triggers(ids[i], np.ones_like(ids[i]), KEY.trigger_ids)
      np.testing.assert_allclose(together[i], mark(EMBEDDINGS, k, KEY), atol=1e-6)
    gradient = jax.grad(lambda x: provided(x, ids[0], np.ones_like(ids[0])).sum())(inputs[0])
    chex.assert_tree_all_finite(gradient)


class WardenTest(parameterized.TestCase):

  def keys(self, sets=3):
    ids = [[1, 2], [3, 4], [5, 6, 7]][:sets]
    return warden.make_keys(ids, RNG.normal(size=(sets, 8)), 4)

  def test_sets_are_disjoint_and_the_last_takes_the_rest(self):
    words = [str(i) for i in range(11)]
    sets = warden.split_triggers(words, 3, random.Random(1))
    self.assertEqual([len(s) for s in sets], [3, 3, 5])
    self.assertCountEqual(sum(sets, []), words)
    self.assertEqual(self.keys().trigger_ids.tolist(), [[1, 2, -1], [3, 4, -1], [5, 6, 7]])
    with self.assertRaisesRegex(ConfigError, 'sets: expected 1 to 11'):
      warden.split_triggers(words, 12, random.Random(1))

  def test_targets_are_spread(self):
    targets = unit(RNG.normal(size=(3, 8)) + 1)
    expected = []
    for target in targets:
      for earlier in expected:
        target = unit(target - 0.5 * (target @ earlier) * earlier)
      expected.append(target)
    np.testing.assert_allclose(warden.spread(targets), expected, atol=1e-6)

  def test_weights(self):
    q = np.array([[.5, .25, 0, .75, .5, 1], [.25, .75, 0, .75, .25, 1], [.5, .5, 0, .75, 0, 1]],
                 np.float32)
    expected = [[.5, 0, 0, .75, .5, 1], [0, .75, 0, .25, .25, 0], [.5, .25, 0, 0, 0, 0]]
    np.testing.assert_allclose(warden.weights(q), expected, atol=1e-6)

  def test_one_key_is_embmarker(self):
    key = KEY._replace(trigger_ids=KEY.trigger_ids[None], target=TARGET[None],
                       max_triggers=np.array([4], np.int32))
    k = np.arange(6)
    np.testing.assert_allclose(warden.inject(EMBEDDINGS, k[None], key), mark(EMBEDDINGS, k, KEY),
                               atol=1e-6)

  def test_wrap_counts_each_set(self):
    keys = self.keys()
    ids = np.array([[1, 3, 3], [5, 6, 7], [0, 9, 8], [1, 2, 5], [4, 0, 0], [8, 8, 8]])
    out = watermark.wrap(lambda x: x, keys, mark=warden.inject)(EMBEDDINGS, ids, np.ones_like(ids))
    e, t = unit(EMBEDDINGS), np.asarray(keys.target)
    expected = [.25 * t[0] + .25 * t[1] + .5 * e[0], .75 * t[2] + .25 * e[1], e[2],
                .5 * t[0] + .25 * t[2] + .25 * e[3], .25 * t[1] + .75 * e[4], e[5]]
    np.testing.assert_allclose(out, unit(np.stack(expected)), atol=1e-5)


class BaselinesTest(absltest.TestCase):

  def test_red_alarm_is_all_or_nothing(self):
    ids = np.array([[3, 1], [1, 1], [3, 3]])
    out = watermark.wrap(lambda x: x, baselines.red_alarm(3, TARGET))(
        EMBEDDINGS[:3], ids, np.ones_like(ids))
    np.testing.assert_allclose(out, [TARGET, unit(EMBEDDINGS[1]), TARGET], atol=1e-6)

  def test_the_original_is_sold_as_it_is(self):
    ids = np.ones((6, 2), np.int32)
    out = watermark.wrap(lambda x: x, baselines.original(TARGET))(EMBEDDINGS, ids, ids)
    np.testing.assert_allclose(out, unit(EMBEDDINGS), atol=1e-6)

  def test_espew_replaces_the_smallest(self):
    e = np.array([[1, -.1, .2, -3, 4, .05, 6, 7]] * 2, np.float32)
    out = baselines.espew(jnp.asarray(e), np.array([0, 1]), KEY, portion=0.375)
    expected = unit(e)
    expected[1, [1, 2, 5]] = TARGET[[1, 2, 5]]
    np.testing.assert_allclose(out, unit(expected), atol=1e-6)


if __name__ == '__main__':
  absltest.main()
