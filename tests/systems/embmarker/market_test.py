"""The small market: every watermark convicts the service that has it and no other."""
import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.embmarker import market, provider, watermark


@functools.cache
def shop():
  return market.open_market(name='demo', train='train[:1500]', test='validation[:50]',
                            max_length=16, vocab_size=800, dim=32)


def marked_service(marked):
  """texts -> embeddings of the service with the watermark."""
  def embed(texts):
    tokens = market.tokenize(shop(), texts)
    provided = watermark.wrap(lambda inputs: provider.embed(shop().service, *inputs), marked.key,
                              mark=marked.mark)
    return np.asarray(jax.jit(provided)((tokens.ids, tokens.mask), tokens.ids, tokens.mask))
  return embed


class MarketTest(parameterized.TestCase):

  @parameterized.parameters(('embmarker', True), ('warden', True), ('red_alarm', True),
                            ('original', False))
  def test_the_marked_service_is_convicted(self, name, guilty):
    marked = market.plant(shop(), name=name, seed=1, target=3, innocence=0.05, least=0.002)
    self.assertEqual(market.accuse(marked, marked_service(marked)).convicts(), guilty)
    clean = market.accuse(marked, functools.partial(market.embed, shop()))
    self.assertGreaterEqual(clean.p, 0.05)
    sold = market.sell(shop(), marked, 'train')
    np.testing.assert_allclose(np.linalg.norm(sold, axis=1), 1, atol=1e-5)
    moved = (sold * shop().clean['train']).sum(1) < 1 - 1e-5
    self.assertEqual(moved.any(), guilty)
    self.assertLess(moved.mean(), 0.4)

  def test_sets_of_warden_are_disjoint(self):
    marked = market.plant(shop(), name='warden', number=20, sets=4)
    words = sum(marked.triggers, ())
    self.assertLen(set(words), len(words))
    self.assertEqual([len(t) for t in marked.triggers], [5] * 4)
    self.assertLen(marked.challenges, 4)
    self.assertEqual(marked.targets.shape, (4, 32))

  def test_espew_marks(self):
    marked = market.plant(shop(), name='espew')
    moved = (market.sell(shop(), marked, 'train') * shop().clean['train']).sum(1) < 1 - 1e-5
    self.assertTrue(0 < moved.mean() < 0.4)

  @parameterized.parameters(({'innocence': 1.0}, 'innocence: expected a p-value'),
                            ({'target': 1500}, 'target: expected training texts, 0 to 1499'),
                            ({'name': 'warden', 'sets': 30}, 'sets: expected 1 to 20'))
  def test_errors(self, options, message):
    with self.assertRaisesRegex(ConfigError, message):
      market.plant(shop(), **options)


if __name__ == '__main__':
  absltest.main()
