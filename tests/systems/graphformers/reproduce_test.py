"""What the measured numbers of reproduce are judged to mean, and files in place of the demo."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.data import graph
from jaxlab.systems.graphformers import reproduce
from jaxlab.train import claims


def measured(text=0.17, nested=0.27, masked=0.15, step=0.8, cached=0.3, difference=1e-6):
  """Numbers of three seeds that differ by half a point."""
  def arm(hits, alone=0.1):
    runs = [{part: {'p@1': x + 0.1, 'tied_p@1': x, 'tied_mrr': x + 0.2}
             for part, x in (('test', hits + d), ('masked', alone + d))}
            for d in (-0.005, 0.0, 0.005)]
    return {'rate': 1e-3, 'runs': runs}

  name = reproduce.NESTED
  return {'arms': {f'short centre: {reproduce.TEXT}': arm(text),
                   f'short centre: {name}': arm(nested, masked),
                   f'short centre: {reproduce.CASCADE}': arm(0.22),
                   f'full texts: {reproduce.TEXT}': arm(0.37), f'full texts: {name}': arm(0.36),
                   f'full texts: {name}, progressive': arm(0.365)},
          'step_seconds': {name: step, reproduce.CASCADE: 1.0},
          'hub_seconds': {'joint': 1.0, 'cached': cached}, 'hub_difference': difference}


class JudgeTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, (1, 1, 1, 1)),
      ({'nested': 0.2}, (0, 0, 0, 0)),  # too little gain decides all
      ({'nested': 0.17, 'masked': 0.17}, (0, 0, 0, 0)),  # the ablation
      ({'masked': 0.26}, (1, 0, 1, 1)),  # the gain is not the neighbours'
      ({'step': 1.31}, (1, 1, 0, 1)),
      ({'cached': 0.9}, (1, 1, 1, 0)),
      ({'difference': 1e-4}, (1, 1, 1, 0)))
  def test_verdicts(self, changes, expected):
    table = reproduce.judge(measured(**changes))
    found = [claim.status for claim in table]
    self.assertEqual(found.count(claims.NOT_JUDGED), 3)
    judged = tuple(int(s == claims.HOLDS) for s in found if s != claims.NOT_JUDGED)
    self.assertEqual(judged, expected)

  def test_one_seed_below_the_gain_is_enough(self):
    found = measured()
    found['arms'][f'short centre: {reproduce.NESTED}']['runs'][1]['test']['tied_p@1'] = 0.21
    self.assertEqual(reproduce.judge(found)[0].status, claims.FAILS)

  def test_a_folder_of_pairs(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    for file in graph.FILES.values():
      graph.write_pairs(folder / file, [{'query': ['a', 'b', ''], 'key': ['c']}])
    texts = reproduce.load_texts(folder)
    self.assertEqual(texts.texts, ['', 'a', 'b', 'c'])
    np.testing.assert_array_equal(texts.numbers['test'][0],
                                  [[1, 2, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]])


if __name__ == '__main__':
  absltest.main()
