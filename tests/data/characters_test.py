import doctest

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.data import characters


class CharactersTest(parameterized.TestCase):

  @parameterized.parameters((characters.LEAF, 80), (characters.TFF, 86))
  def test_published_sizes(self, symbols, size):
    self.assertLen(symbols, size)
    self.assertLen(set(symbols), size)
    self.assertEqual(characters.vocab_size(symbols), size + 4)

  @parameterized.parameters(
      (characters.LEAF, '\n', 0), (characters.LEAF, '0', 11), (characters.LEAF, 'A', 25),
      (characters.LEAF, 'a', 53), (characters.LEAF, '}', 79), (characters.TFF, 'd', 0),
      (characters.TFF, '\n', 62), (characters.TFF, '\r', 85))
  def test_positions(self, symbols, symbol, position):
    self.assertEqual(characters.encode(symbol, symbols).tolist(), [3 + position])

  @parameterized.parameters(characters.LEAF, characters.TFF)
  def test_round_trip(self, symbols):
    ids = characters.encode(symbols, symbols)
    self.assertEqual(ids.dtype, np.uint8)
    self.assertEqual(ids.tolist(), list(range(3, 3 + len(symbols))))
    self.assertEqual(characters.decode(ids, symbols), symbols)

  @parameterized.parameters(characters.LEAF, characters.TFF)
  def test_what_is_no_symbol_has_the_last_id(self, symbols):
    last = characters.vocab_size(symbols) - 1
    self.assertEqual(characters.encode('~é\x00', symbols).tolist(), [last] * 3)
    self.assertEqual(characters.decode([1, last, 2, 0], symbols), '\ufffd')

  def test_doctests(self):
    self.assertEqual(doctest.testmod(characters)[0], 0)


if __name__ == '__main__':
  absltest.main()
