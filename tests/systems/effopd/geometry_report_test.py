"""The report on several runs: what it says of known updates, and its figures."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab.systems.effopd import geometry_report

NAMES = [f'model.layers.{i}.{kind}.weight' for i in range(3)
         for kind in ('self_attn.q_proj', 'mlp.up_proj')]


class ReportTest(absltest.TestCase):

  def test_two_runs(self):
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=(6, 5)) for name in (*NAMES, 'model.embed_tokens.weight')}
    one = {name: rng.normal(size=(6, 1)) @ rng.normal(size=(1, 5)) for name in base}
    full = {name: rng.normal(size=(6, 5)) for name in base}
    moved = lambda delta, scale: {name: base[name] + scale * delta[name] for name in base}
    with tempfile.TemporaryDirectory() as folder:
      found = geometry_report.report(
          base, {'straight': {1: moved(one, .1), 8: moved(one, 1)},
                 'crooked': {1: moved(one, .1), 8: moved(full, 1)}}, folder, directions=2)
      for name in ('allocation', 'spectrum', 'alignment'):
        self.assertGreater((pathlib.Path(folder) / f'{name}.png').stat().st_size, 1000)
    straight, crooked = found['straight'], found['crooked']
    self.assertAlmostEqual(straight['flat'][1], 1)
    self.assertLess(abs(crooked['flat'][1]), 0.5)
    self.assertAlmostEqual(straight['spectrum'][8]['effrank'], 1, places=5)
    self.assertGreater(crooked['spectrum'][8]['effrank'], 3)
    self.assertAlmostEqual(straight['alignment'][8], 1)
    np.testing.assert_allclose(straight['allocation']['mlp'],
                               [np.linalg.norm(one[name]) for name in NAMES[1::2]])
    self.assertAlmostEqual(
        straight['embedding'], np.linalg.norm(one['model.embed_tokens.weight']))
    text = geometry_report.table(found)
    self.assertIn('effrank', text)
    self.assertLen(text.splitlines(), 4)


if __name__ == '__main__':
  absltest.main()
