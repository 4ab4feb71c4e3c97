"""Every system's claims hold, and fail once the paper's ingredient is taken away."""
import json
import pathlib
import tempfile

import pytest
from absl.testing import absltest, parameterized

from jaxlab import systems


@pytest.mark.slow
class ReproduceTest(parameterized.TestCase):

  @parameterized.product(name=systems.names(), ablate=[False, True])
  def test_the_ingredient_decides(self, name, ablate):
    with tempfile.TemporaryDirectory() as folder:
      held = systems.load(name).reproduce.main(3, folder, ablate)
      results = json.loads((pathlib.Path(folder) / 'results.json').read_text())
      self.assertTrue((pathlib.Path(folder) / 'figure.png').exists())
    self.assertEqual(held, not ablate)
    judged = {claim['status'] for claim in results['claims']} - {'not judged at this size'}
    self.assertEqual(judged, {'does not hold'} if ablate else {'holds'})


if __name__ == '__main__':
  absltest.main()
