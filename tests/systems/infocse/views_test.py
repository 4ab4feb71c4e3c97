"""The hand-made rules keep what they should, with and without special tokens at the ends."""
import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.infocse import views

LENGTHS = (2, 3, 4, 9, 12)
IDS = np.where(np.arange(12) < np.array(LENGTHS)[:, None], 1 + np.arange(60).reshape(5, 12), 0)
MASK = (IDS > 0).astype(np.uint8)


@functools.cache
def many(name, ends):
  """(ids, mask) [20, 5, 12] of 20 draws of the five sentences."""
  one = lambda *row: views.view(name, *row, ends)
  draws = jax.jit(jax.vmap(jax.vmap(one), (0, None, None)))
  keys = jax.random.split(jax.random.key(0), (20, len(LENGTHS)))
  return tuple(map(np.asarray, draws(keys, IDS, MASK)))


class ViewTest(parameterized.TestCase):

  @parameterized.product(name=['crop', 'cutoff', 'shuffle'], ends=[True, False])
  def test_what_is_kept(self, name, ends):
    ids, mask = many(name, ends)
    self.assertEqual(mask.dtype, np.uint8)
    seen = set()
    for drawn, there in zip(ids, mask):
      for row, (new, keep) in enumerate(zip(drawn, there)):
        length = LENGTHS[row]
        old, found = IDS[row, :length].tolist(), new[keep > 0].tolist()
        seen.add((row, *found))
        if ends:
          self.assertEqual((found[0], found[-1]), (old[0], old[-1]))
          old, found = old[1:-1], found[1:-1]
        self.assertContainsSubset(found, old)
        n = len(old)
        if name == 'shuffle':
          self.assertCountEqual(found, old)
        elif name == 'crop':
          self.assertLen(found, min(n, max(1, int(np.round(n / 2)))))
          self.assertEqual(found, list(range(found[0], found[0] + len(found))) if found else [])
        else:
          drop = max(min(max(1, int(np.round(0.15 * n))), n - 1), 0)
          self.assertLen(found, n - drop)
          self.assertEqual(found, sorted(found))
    self.assertGreater(len(seen), 2 * len(LENGTHS))  # the draws differ

  def test_none_changes_nothing(self):
    self.assertIs(views.view('none', None, IDS, MASK, True)[0], IDS)


if __name__ == '__main__':
  absltest.main()
