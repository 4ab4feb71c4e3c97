"""Real slices: pages and what is asked about them."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab.data import sts
from jaxlab.systems.infocse import real_text


class PagesTest(absltest.TestCase):

  def test_pages(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    row = '{}\t{}\t{}\tOne. <sep>Two.<sep> Three.\tn/a\ten\t0\t0\n'
    for split, title in (('train', 'A'), ('dev', 'B'), ('test', 'C')):
      (folder / f'{split}.tsv').write_text(
          row.format('what?', title, 'Two.') + row.format('why?', title, 'Four.'))
    pages, asked = real_text.read_pages(folder)
    self.assertEqual(pages, {title: ['One.', 'Two.', 'Three.'] for title in 'ABC'})
    self.assertEqual(asked, [('what?', 'C', 'Two.')])  # the other's sentence is not on its page
    vectors = {'One.': [1, 0], 'Two.': [.8, .6], 'Three.': [0, 1], 'what?': [.6, .8],
               'a': [1, 0], 'b': [0, 1], 'c': [.6, .8]}
    embed = lambda sentences: np.array([vectors[s] for s in sentences], np.float32)
    pairs = sts.Pairs(['a', 'a', 'a'], ['a', 'b', 'c'], np.array([5., 0., 3.]), np.zeros(3))
    found = real_text._judge_slices(pages, asked, pairs)(embed)  # pylint: disable=protected-access
    self.assertEqual((found['recall@1'], found['recall@5']), (1, 1))
    self.assertAlmostEqual(found['spearman'], 100)
    (folder / 'dev.tsv').write_text('what?\tB\n')
    with self.assertRaisesRegex(ValueError, 'dev.tsv: line 1: expected at least 4 columns'):
      real_text.read_pages(folder)


if __name__ == '__main__':
  absltest.main()
