"""Experiment configs refuse a variant that they do not have."""
import importlib

from absl.testing import absltest, parameterized


class VariantTest(parameterized.TestCase):

  @parameterized.parameters('adasam.digits', 'adasam.glue_demo', 'adasam.glue_roberta',
                            'fedlalr.cifar10', 'fedlalr.digits', 'fedlalr.shakespeare',
                            'fedra.attack_grid', 'fedra.digits', 'fedra.femnist',
                            'ua_fedrec.demo', 'ua_fedrec.mind_small',
                            'efficient_fedrec.mind_demo', 'efficient_fedrec.mind_small')
  def test_an_unknown_variant(self, name):
    get_config = importlib.import_module(f'configs.{name}').get_config
    with self.assertRaisesRegex(ValueError, "^variant: expected .*, got 'foo'$"):
      get_config('foo')


if __name__ == '__main__':
  absltest.main()
