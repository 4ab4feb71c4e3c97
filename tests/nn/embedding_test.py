"""Field embeddings: weighted sums by field, padding, the univalent case."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.nn.embedding import FieldEmbed, pool_fields


class FieldEmbedTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.embed = FieldEmbed(9, 3, 4)
    self.params = self.embed.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    self.table = np.asarray(self.params['params']['table']['embedding'])

  def test_sums_by_field_equal_a_loop(self):
    rng = np.random.default_rng(0)
    ids, field = rng.integers(0, 9, (5, 6)), rng.integers(0, 3, (5, 6))
    values = rng.normal(size=(5, 6)).astype(np.float32)
    field[0] = 1  # two fields of row 0 are empty
    expected = np.zeros((5, 3, 4))
    for b in range(5):
      for k in range(6):
        expected[b, field[b, k]] += values[b, k] * self.table[ids[b, k]]
    out = self.embed.apply(self.params, ids, values, field)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    self.assertFalse(out[0, [0, 2]].any())

  def test_univalent_is_the_general_case(self):
    ids = np.random.default_rng(0).integers(0, 9, (5, 3))
    general = self.embed.apply(self.params, ids, np.ones((5, 3), np.float32),
                               np.tile(np.arange(3), (5, 1)))
    np.testing.assert_array_equal(self.embed.apply(self.params, ids), general)
    np.testing.assert_array_equal(general, self.table[ids])

  def test_padding_adds_exactly_nothing_also_to_gradients(self):
    ids, values = np.array([[3, 4]]), np.array([[.5, 2.]], np.float32)
    field = np.array([[0, 2]])
    wide = (np.array([[3, 4, 0, 9]]), np.array([[.5, 2, 0, 0]], np.float32),
            np.array([[0, 2, -1, 1]]))
    def total(params, *pairs):
      return (self.embed.apply(params, *pairs)**2).sum()
    gradients = [jax.grad(total)(self.params, *pairs)['params']['table']['embedding']
                 for pairs in ((ids, values, field), wide)]
    np.testing.assert_array_equal(*gradients)
    np.testing.assert_array_equal(np.flatnonzero(np.any(gradients[1], -1)), [3, 4])

  def test_rows_of_one_number(self):
    rows = jnp.array([[1., 2, 3]])
    out = pool_fields(rows, jnp.array([[1., 1, 0]]), jnp.array([[0, 0, 1]]), 2)
    np.testing.assert_array_equal(out, [[3, 0]])


if __name__ == '__main__':
  absltest.main()
