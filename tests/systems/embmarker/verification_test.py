"""The evidence: exact p-values, both halves of the verdict, what a disguise does to it."""
import functools
import math
import random

import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from jaxlab.config import ConfigError
from jaxlab.systems.embmarker import attacks, verification

RNG = np.random.default_rng(0)
DIM = 64


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


TARGET = unit(RNG.normal(size=DIM))


def answers(pull, size=20):
  """(answers, num_triggers) of a suspect that moves towards the target by `pull` times t / 4."""
  numbers = np.repeat(np.arange(5), size)
  q = pull * numbers[:, None] / 4
  return unit((1 - q) * unit(RNG.normal(size=(5 * size, DIM))) + q * TARGET), numbers


class EvidenceTest(parameterized.TestCase):

  @parameterized.parameters(*range(5, 26))
  def test_separated_groups_have_the_smallest_p(self, n):
    a = unit(TARGET + 0.01 * RNG.normal(size=(n, DIM)))
    b = unit(RNG.normal(size=(n, DIM)) - TARGET)
    numbers = np.repeat([4, 0], n)
    found = verification.evidence(np.concatenate([a, b]), numbers, TARGET)
    np.testing.assert_allclose(found.p, 2 / math.comb(2 * n, n), rtol=1e-9)
    self.assertEqual(found.sizes, (n, n))

  @parameterized.parameters((5, 8), (7, 19), (20, 20), (25, 24))
  def test_p_is_the_exact_one(self, n, m):
    x, numbers = RNG.normal(size=(n + m, DIM)), np.repeat([2, 0], (n, m))
    found = verification.evidence(x, numbers, TARGET)
    cosines = unit(x.astype(np.float32)) @ TARGET
    self.assertAlmostEqual(
        found.p, stats.kstest(cosines[:n], cosines[n:], method='exact').pvalue, places=12)
    self.assertLess(abs(found.delta_l2 + 2 * found.delta_cos), 1e-5)

  def test_the_verdict_needs_both(self):
    stolen = verification.evidence(*answers(1.0), TARGET)
    self.assertTrue(stolen.convicts())
    x, numbers = answers(1.0)
    away = verification.evidence(x, numbers, -TARGET)
    self.assertLess(away.p, 1e-4)
    self.assertLess(away.delta_cos, 0)
    self.assertFalse(away.convicts())
    weak = stolen._replace(p=1e-3)
    self.assertFalse(weak.convicts())
    self.assertTrue(weak.convicts(1e-2))

  def test_innocents_have_uniform_p(self):
    p = [verification.evidence(*answers(0.0), TARGET).p for _ in range(200)]
    self.assertLess(np.mean(np.array(p) < 0.05), 0.12)
    self.assertGreater(np.mean(np.array(p) > 0.5), 0.3)

  @parameterized.parameters(
      (lambda x, n: (x[:-1], n), 'answers: expected 100 rows, one a text, got 99'),
      (lambda x, n: (np.where(np.arange(100)[:, None] == 7, 0, x), n),
       'answers: row 7: expected a direction, got length 0'),
      (lambda x, n: (x[:, 1:], n), 'answers: expected 64 dimensions, got 63'),
      (lambda x, n: (x, 0 * n), 'num_triggers: expected texts with triggers and texts without'))
  def test_errors(self, spoil, message):
    with self.assertRaisesRegex(ValueError, message):
      verification.evidence(*spoil(*answers(1.0)), TARGET)
    with self.assertRaisesRegex(ValueError, 'target: row 0: expected a direction'):
      verification.evidence(*answers(1.0), 0 * TARGET)

  def test_the_strongest_of_several(self):
    a, b = (verification.evidence(*answers(pull), TARGET) for pull in (0.0, 1.0))
    joint = verification.strongest([a, b])
    self.assertEqual((joint.p, joint.delta_cos, joint.delta_l2), (b.p, b.delta_cos, b.delta_l2))


class TextsTest(parameterized.TestCase):
  WORDS = [f'w{i}' for i in range(30)]
  TRIGGERS = [f't{i}' for i in range(5)]

  def test_groups(self):
    texts, numbers = verification.verification_texts(
        self.TRIGGERS, self.WORDS, random.Random(0), max_triggers=4, size=20)
    self.assertLen(set(texts), len(texts))
    for one, t in zip(texts, numbers):
      words = one.split()
      self.assertLen(words, 4)
      self.assertEqual(sum(w in self.TRIGGERS for w in words), t)
    self.assertEqual(set(numbers), set(range(5)))
    texts, numbers = verification.verification_texts(
        self.TRIGGERS[:1], self.WORDS, random.Random(0), max_triggers=1, length=4, size=3)
    self.assertEqual([one.split()[0] == 't0' for one in texts], [False] * 3 + [True] * 3)

  @parameterized.parameters(
      ({'max_triggers': 6}, 'max_triggers: expected 1 to 5, the number of triggers, got 6'),
      ({'max_triggers': 0}, 'max_triggers'), ({'size': 1}, 'size: expected at least 2'),
      ({'length': 3}, 'length: expected at least max_triggers=4'),
      ({'length': 31}, 'words: expected at least 31 words'))
  def test_errors(self, options, message):
    with self.assertRaisesRegex(ConfigError, message):
      verification.verification_texts(self.TRIGGERS, self.WORDS, random.Random(0), **options)


class DisguiseTest(parameterized.TestCase):
  CHANGES = {'shift': functools.partial(attacks.shift, places=10),
             'permute': lambda x: attacks.permute(x, jax.random.key(0)),
             'rotate': lambda x: attacks.rotate(x, jax.random.key(0))}

  @parameterized.parameters(*CHANGES)
  def test_only_the_adaptive_check_sees_through(self, name):
    x, numbers = answers(0.8)
    table = dict(zip(range(len(x)), x)) | {len(x): TARGET}
    challenge = verification.Challenge(tuple(range(len(x))), numbers, len(x))
    suspect = lambda texts: self.CHANGES[name](
        np.stack([table[t] for t in texts]).astype(np.float32))
    plain = verification.verify(suspect, challenge, TARGET)
    adaptive = verification.verify(suspect, challenge)
    undisguised = verification.evidence(x, numbers, TARGET)
    self.assertLess(abs(plain.delta_cos), 0.5 * undisguised.delta_cos)
    self.assertTrue(adaptive.convicts())
    self.assertAlmostEqual(adaptive.delta_cos, undisguised.delta_cos, places=4)

  def test_shift_and_rotation(self):
    x = RNG.normal(size=(4, DIM)).astype(np.float32)
    shifted = np.asarray(attacks.shift(x, 3))
    for j in range(DIM):
      np.testing.assert_array_equal(shifted[:, j], x[:, (j - 3) % DIM])
    rotated = np.asarray(attacks.rotate(x, jax.random.key(1)))
    np.testing.assert_allclose(rotated @ rotated.T, x @ x.T, rtol=1e-4, atol=1e-3)
    self.assertGreater(np.abs(rotated - x).max(), 0.5)

  def test_lossy_ones_give_unit_length(self):
    x, key = unit(RNG.normal(size=(4, DIM))).astype(np.float32), jax.random.key(0)
    for out in (attacks.add_noise(x, key, 0.5), attacks.drop_dimensions(x, key, 0.3),
                attacks.truncate(x, 20)):
      np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    self.assertEqual(attacks.truncate(x, 20).shape, (4, 20))
    gone = np.asarray(attacks.drop_dimensions(x, key, 0.3) == 0)
    self.assertTrue((gone == gone[0]).all() and 5 < gone[0].sum() < 35)


class CSETest(absltest.TestCase):

  def test_finds_and_removes_the_direction_that_was_added(self):
    meaning = unit(RNG.normal(size=(120, DIM))).astype(np.float32)
    marked = np.arange(120) % 4 == 0
    bought = unit(meaning + marked[:, None] * TARGET).astype(np.float32)
    components = attacks.suspicious_components(bought, meaning, components=3, clusters=2, pairs=.5)
    np.testing.assert_allclose(components @ components.T, np.eye(3), atol=1e-5)
    cleansed = np.asarray(attacks.eliminate(bought, components))
    gap = lambda x: (x @ TARGET)[marked].mean() - (x @ TARGET)[~marked].mean()
    self.assertGreater(gap(bought), 0.5)
    self.assertLess(gap(cleansed), 0.5 * gap(bought))
    one_by_one = bought
    for v in components:
      one_by_one = unit(one_by_one - (one_by_one @ v)[:, None] * v)
    np.testing.assert_allclose(cleansed, one_by_one, atol=1e-5)

  def test_errors(self):
    x = unit(RNG.normal(size=(6, 4)))
    with self.assertRaisesRegex(ConfigError, 'independent: expected 6 rows, got 5'):
      attacks.suspicious_components(x, x[:5], components=1, clusters=2)
    with self.assertRaisesRegex(ConfigError, 'clusters: expected 1 to 6 texts, got 7'):
      attacks.suspicious_components(x, x, components=1, clusters=7)


if __name__ == '__main__':
  absltest.main()
