"""The examples in docstrings run and print what they say."""
import doctest
import importlib
import pkgutil

from absl.testing import absltest

import jaxlab


class DoctestTest(absltest.TestCase):

  def test_every_module(self):
    attempted = 0
    for module in pkgutil.walk_packages(jaxlab.__path__, 'jaxlab.'):
      with self.subTest(module.name):
        results = doctest.testmod(importlib.import_module(module.name))
        self.assertEqual(results.failed, 0)
        attempted += results.attempted
    self.assertGreater(attempted, 15)


if __name__ == '__main__':
  absltest.main()
