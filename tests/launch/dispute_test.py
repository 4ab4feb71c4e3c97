"""The dispute launcher's library side: what it prints, draws and refuses."""
import copy
import importlib.util
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.agatha import evm, game, merkle, report

ROOT = pathlib.Path(__file__).parents[2]


def config(variant='mlp', **changes):
  """The committed config on the Python arbiter, as plain dicts."""
  spec = importlib.util.spec_from_file_location('dispute', ROOT / 'configs/agatha/dispute.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return {**copy.deepcopy(module.get_config(variant).to_dict()), 'arbiter': 'python', **changes}


class DisputeTest(parameterized.TestCase):

  @parameterized.parameters(('submitter', 'challenger wins after'), ('nobody', 'is accepted'),
                            ('challenger', 'submitter wins after'))
  def test_text(self, who, expected):
    settings = config(cheat={'who': who, 'line': 1})
    report.check(settings)
    text = report.dispute(settings)
    self.assertIn(expected, text)
    self.assertRegex(text, r'submit +1 ')
    self.assertRegex(text, r'owed: requester \d+, submitter \d+, challenger \d+; burnt \d+$')

  def test_figure(self):
    small = [{'model': {'name': 'mlp', 'features': (n,)}, 'shape': (1, 4)} for n in (2, 8)]
    with tempfile.TemporaryDirectory() as folder:
      text = report.sizes(config(sizes=small), folder)
      self.assertTrue((pathlib.Path(folder) / 'figures' / 'cost.png').exists())
    self.assertRegex(text, r'mlp +\d+ +\d+ +\d+ +0\n')

  @parameterized.parameters(
      ({'arbiter': 'evn'}, 'config.arbiter: expected'), ({'mode': 'fast'}, 'config.mode: expected'),
      ({'cheat': {'who': 'me', 'line': 1}}, 'config.cheat.who: expected'),
      ({'model': {'name': 'vgg'}}, "unknown name 'vgg'; did you mean 'vgg16'"),
      ({'model': {'name': 'mlp', 'widths': 3}}, "model: unknown key 'widths'"),
      ({'money': {'burn_percent': 101}}, 'burn_percent: expected 0 to 100'),
      ({'lines': 3}, "unknown key 'lines'"), ({'fee': -1}, 'config.fee: expected at least 0'),
      ({'fee': 1.5}, 'config.fee: expected int'),
      ({'seed': -1}, 'config.seed: expected at least 0'),
      ({'shape': (1, -8)}, r'config.shape\[1\]: expected at least 1, got -8'),
      ({'shape': 8}, 'config.shape: expected tuple'),
      ({'sizes': [{'model': {'name': 'mlp'}, 'shape': (0,)}]}, r'sizes\[0\].shape\[0\]: expected'),
      ({'cheat': {'who': 'nobody'}}, 'config.cheat.line: expected'),
      ({'cheat': {'who': 'submitter', 'line': 'a'}}, 'config.cheat.line: expected int'))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      report.check(config(**change))

  @parameterized.parameters(('Crypto.Hash', merkle.keccak256, b''),
                            ('eth_tester', evm.EvmArbiter, game.Money()))
  def test_the_extra_is_named(self, module, function, argument):
    merkle._keccak.cache_clear()
    with mock.patch.dict('sys.modules', {module: None}):
      with self.assertRaisesRegex(ConfigError, r"pip install 'jaxlab\[agatha\]'"):
        function(argument)

  def test_a_line_that_is_not_there(self):
    with self.assertRaisesRegex(ConfigError, 'config.cheat.line: expected 0 to'):
      report.dispute(config(cheat={'who': 'submitter', 'line': 10**6}))


if __name__ == '__main__':
  absltest.main()
