"""The page of entities: weights of the model, names of the data, nothing unescaped."""
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest

from jaxlab.systems.kred import data, page
from tests.systems.kred import toy_kred


class PageTest(absltest.TestCase):

  def test_shows_the_weights_of_the_model(self):
    net, tables = toy_kred.make_model(), toy_kred.make_tables()
    ids = np.ones((1, 1), int)
    params = jax.jit(net.init)(jax.random.key(0), tables, ids, ids)['params']
    attention = page.read_attention(net, params, tables, [1, 3])
    weights = net.apply({'params': params}, tables, np.array([1]), method='encode')[1]
    count = int((tables['news']['entities'][1] > 0).sum())
    self.assertLen(attention[0]['slots'], count)
    self.assertAlmostEqual(sum(slot['weight'] for slot in attention[0]['slots']), 1, places=5)
    np.testing.assert_allclose(sorted(slot['weight'] for slot in attention[0]['slots']),
                               np.sort(weights['entity'][0])[-count:], rtol=1e-4)
    for slot in attention[0]['slots']:
      if slot['entity'] != 2:  # which has no neighbours
        self.assertAlmostEqual(sum(weight for *_, weight in slot['neighbours']), 1, places=4)
    self.assertEqual(attention[1], {'news': 3, 'slots': []})

    names = [f'Q{i}' for i in range(1, toy_kred.ENTITIES + 1)]
    text = data.Text([f'N{i}' for i in range(1, 13)], ['<b>news</b>'] * 12, names,
                     {'Q1': 'A & B', 'Q2': 'two'})
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'page.html'
    page.write(path, attention, text)
    found = path.read_text()
    self.assertIn('&lt;b&gt;news&lt;/b&gt;', found)
    self.assertNotIn('<b>', found)
    self.assertIn('no entity of the graph', found)
    self.assertIn(f'{attention[0]["slots"][0]["weight"]:.3f}', found)
    shown = {names[slot['entity'] - 1] for slot in attention[0]['slots']}
    for name in shown:
      self.assertIn(name, found)


if __name__ == '__main__':
  absltest.main()
