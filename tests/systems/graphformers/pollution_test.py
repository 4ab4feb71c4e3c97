"""Pollution: how much, of what, and with what; the same key pollutes alike."""
import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.graphformers import pollution

VOCABULARY = pollution.Vocabulary(1000, 4, (0, 2, 3))
ROWS, LENGTH = 512, 40
SELECT = jax.jit(jax.vmap(pollution.select_spans, in_axes=(0, None, None)))


def texts():
  rng = np.random.default_rng(0)
  ids = rng.integers(5, 1000, (ROWS, LENGTH))
  lengths = rng.integers(2, LENGTH + 1, ROWS)
  ids[:, 0] = 2
  ids[np.arange(ROWS), lengths - 1] = 3
  return np.where(np.arange(LENGTH) < lengths[:, None], ids, 0).astype(np.int32), lengths - 2


class PollutionTest(parameterized.TestCase):

  def test_shares_and_what_is_left_alone(self):
    ids, words = texts()
    run = jax.jit(lambda key, x: pollution.pollute(key, x, VOCABULARY))
    found = np.asarray(run(jax.random.key(0), ids))
    special = np.isin(ids, VOCABULARY.special)
    np.testing.assert_array_equal(found[special], ids[special])
    changed = (found != ids).sum(1)
    wanted = np.where(words, np.maximum(np.round(0.15 * words), 1), 0)
    self.assertTrue((changed <= wanted).all())
    # A tenth is kept, and one of a thousand random ids is the old one.
    total = wanted.sum()
    self.assertAlmostEqual(changed.sum() / total, 0.9, delta=5 * (0.09 / total)**0.5)
    masked = (found == VOCABULARY.mask).sum()
    self.assertAlmostEqual(masked / total, 0.8, delta=5 * (0.16 / total)**0.5)
    np.testing.assert_array_equal(found, run(jax.random.key(0), ids))
    self.assertTrue((found != np.asarray(run(jax.random.key(1), ids))).any())

  def test_a_row_depends_on_its_own_key_alone(self):
    ids, _ = texts()
    keys = jax.random.split(jax.random.key(3), 4)
    run = jax.jit(lambda keys, x: pollution.pollute(keys, x, VOCABULARY))
    np.testing.assert_array_equal(run(keys, ids[:4]), run(keys[::-1], ids[:4][::-1])[::-1])

  @parameterized.parameters(0, 1, 5, 20)
  def test_spans_take_as_many_as_they_should(self, count):
    candidates = np.arange(30) % 6 != 0
    taken = np.asarray(SELECT(jax.random.split(jax.random.key(0), 64), candidates, count))
    np.testing.assert_array_equal(taken.sum(1), count)
    self.assertFalse(taken[:, ~candidates].any())

  def test_they_are_spans(self):
    taken = np.asarray(SELECT(jax.random.split(jax.random.key(0), 200), np.ones(200, bool), 30))
    starts = (taken & ~np.pad(taken, ((0, 0), (1, 0)))[:, :-1]).sum(1)
    # Truncated at 10, a geometric length of 0.2 has mean 3.8; spans may touch or be cut.
    self.assertBetween((30 / starts).mean(), 3.2, 4.8)


if __name__ == '__main__':
  absltest.main()
